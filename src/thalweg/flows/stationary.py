r"""The preconditioner at which averages of squares come to rest while the weights stand still."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, NotConverged, explain
from thalweg.flows.laws import LIMIT, SquaresLaw
from thalweg.flows.registry import law_of
from thalweg.flows.subspace import Critical, react
from thalweg.operators import hessian, preconditioned
from thalweg.operators.base import Operator
from thalweg.problem import Problem
from thalweg.rules import Adam, Rule, State
from thalweg.spectra import EigenTracker, top_eigenpairs

CANDIDATE = 0.9
"""Share of the limit above which directions take part."""
DENSE = 600
"""Weights up to which the Hessian is formed: eigenvalues cluster at the limit, which iterative solvers dislike."""
LEAST = 0.01
"""The rate is lowered no further."""
LONG = 10**9
"""Steps after which bias corrections have gone."""


@dataclass(frozen=True)
class Stationary:
    r"""Where the averages of squares rest.

    Attributes:
        nu: The averages, shape ``(P,)``, or ``()`` for the scalar rule.
        preconditioner: The metric ``P``, of the same shape: the limit of stability of ``P^{-1} H`` is 2.
        covariance: Eigenvalues of the oscillation in the metric, descending, shape ``(k,)``.
        directions: Its directions, shape ``(P, k)``, ``U' P U = I``.
        sharpness: Largest eigenvalue of ``P^{-1} H``.
        residual: ``|g^2 + diag(H Sigma H) - nu| / |nu|``.
        products: Hessian products.
        steps: Steps of the iteration.
    """

    nu: Tensor
    preconditioner: Tensor
    covariance: Tensor
    directions: Tensor
    sharpness: float
    residual: float
    products: int
    steps: int

    def __repr__(self) -> str:
        return (
            f"Stationary({int((self.covariance > 0).sum())} directions oscillate, effective sharpness "
            f"{self.sharpness:.4g}; residual {self.residual:.1e} after {self.steps} steps, {self.products} products)"
        )


def stationary_preconditioner(
    problem: Problem,
    rule: Rule,
    w: Tensor | None = None,
    *,
    start: Tensor | None = None,
    rate: float = 0.3,
    tol: float = 1e-4,
    max_steps: int = 500,
    strict: bool = True,
) -> Stationary:
    r"""Return the preconditioner at which RMSProp comes to rest if the weights are held at ``w``.

    .. math::
        \nu = g^2 + \mathrm{diag}(H \Sigma H), \qquad 2 P(\nu) - H \succeq 0, \quad \Sigma \succeq 0, \quad
        \langle \Sigma, 2 P - H \rangle = 0 .

    Without ``eps`` that is the minimum of ``tr P + g' P^{-1} g / \eta^2`` over diagonal ``P`` with ``H <= 2 P``, whose
    multiplier is ``2 Sigma / \eta^2``. It is found by moving ``nu`` at fixed weights, ``nu' = (1 - r) nu + r (g^2 +
    diag(H Sigma H))`` with ``Sigma`` from complementarity at the end of each step: the motion of the rule's own
    average, at any rate ``r``, as where it rests does not depend on that.

    Args:
        problem: Model, loss and data. ReLU is allowed: no third derivative is taken.
        rule: `RMSProp` or `ScalarRMSProp`; ``beta2`` and bias correction do not matter.
        w: Weights, shape ``(P,)``; default ``problem.initial``.
        start: Averages to start from, shape of ``nu``; default the squared gradient, made stable.
        rate: ``r``, in (0, 1). Halved where a step does not come nearer.
        tol: Relative change of ``nu`` in a step over ``r`` at which it rests.
        max_steps: Budget.
        strict: Whether to raise where it does not come to rest.

    Returns:
        A `Stationary`. Cost: some Hessian products a step, for tens to hundreds of steps; up to 600 weights the Hessian
        is formed instead, at one product a weight.

    Raises:
        InvalidInput: The rule averages no squares or remembers gradients, or an argument is out of range.
        NotConverged: ``tol`` was not reached; ``error.result`` is how far it came.

    Example:
        >>> from thalweg.rules import RMSProp
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(20, 3, dtype=torch.float64)
        >>> model = torch.nn.Linear(3, 1).double()
        >>> problem = Problem(model, torch.nn.MSELoss(), (x, x.sum(1, keepdim=True)))
        >>> found = stationary_preconditioner(problem, RMSProp(lr=0.1))
        >>> found.residual < 1e-4, round(found.sharpness, 3) <= 2.001
        (True, True)

    Source: arXiv 2410.24206 (RMSProp's stationary preconditioner); the iteration is our own.
    """
    law = law_of(rule)
    if not isinstance(law, SquaresLaw) or isinstance(rule, Adam):
        raise InvalidInput(
            explain(
                f"The stationary preconditioner of {rule.name} was asked for",
                "it is where averages of squares rest in a rule without averages of gradients",
                "Use RMSProp or ScalarRMSProp",
            )
        )
    if not (0 < rate < 1 and tol > 0 and max_steps > 0):
        raise InvalidInput(
            explain(
                f"stationary_preconditioner got rate={rate}, tol={tol}, max_steps={max_steps}",
                "a rate lies between 0 and 1, and tolerance and budget are positive",
                "Correct the argument",
            )
        )
    w = problem.initial if w is None else w.detach().to(problem.device, problem.dtype)
    force = law.force(problem.gradient(w), w)
    with hessian(problem, w) as curvature:
        operator = curvature.shift(law.decay) if law.decay else curvature
        found = _Search(law, operator, force, start).run(rate, tol, max_steps)
    if strict and found.residual > tol:
        raise NotConverged(
            explain(
                f"The preconditioner rests to {found.residual:.1e} instead of {tol:.0e} after {found.steps} steps",
                "many eigenvalues near the limit take turns",
                "Allow more max_steps, start nearer, or pass strict=False",
            ),
            found,
        )
    return found


class _Search:
    """The averages at fixed weights."""

    def __init__(self, law: SquaresLaw, operator: Operator, force: Tensor, start: Tensor | None) -> None:
        self.law, self.operator, self.force = law, operator, force
        self.first = operator.products
        self.dense = _symmetric(operator.dense()) if operator.size <= DENSE else None
        sure = 1e-6 if operator.dtype == torch.float64 else 1e-4
        self.tracker = EigenTracker(1, threshold=CANDIDATE, max_k=min(60, operator.size), tol=sure, history=2)
        squares = law.squared(force, force)
        self.squares, self.sharpness = squares, float("nan")
        # Half the sharpness for all weights is stable: from above the averages fall until something holds them.
        self.nu = start.detach().to(squares).clone() if start is not None else squares + self._level() ** 2

    def _level(self) -> float:
        """Root of the averages at which the metric is half the sharpness."""
        if self.dense is not None:
            top = float(torch.linalg.eigvalsh(self.dense)[-1])
        else:
            top = float(top_eigenpairs(self.operator, 1, tol=1e-3).values[0])
        return max(top, 0.0) / LIMIT / self.law.stiffness(self._state(self.squares))

    def run(self, rate: float, tol: float, max_steps: int) -> Stationary:
        """Move the averages until they rest."""
        change, taken, X = float("inf"), 0, None
        nothing = torch.zeros_like(self.force)
        for taken in range(1, max_steps + 1):
            U, values = self._critical()
            here = self.law.metric(self._state(self.nu))
            before, squares = change, self.squares
            if U.shape[1]:
                pairs = U.shape[1] * (U.shape[1] + 1) // 2
                block = Critical(U, torch.diag(values), torch.zeros(pairs, len(U), dtype=U.dtype, device=U.device))
                # On a line from here and not from the end, so that where it rests does not depend on the rate.
                state = self._state(self.nu)
                fall = self.law.slope(state, rate * (self.squares - self.nu))
                found = react(
                    block,
                    self.law,
                    self.force,
                    here,
                    here + fall,
                    lambda extra, state=state, share=rate: self.law.slope(state, extra * share),  # type: ignore[misc]
                    nothing,
                    penalised=False,
                )
                X = found.solution.X
                assert found.squares is not None
                squares = self.squares + found.squares
            change = float((squares - self.nu).norm() / self.nu.norm())
            if change <= tol or taken == max_steps:
                break
            if change > before:  # it turns about the resting point
                rate = max(rate / 1.2, LEAST)
            self.nu = (self.nu + rate * (squares - self.nu)).clamp_min(0.0)
        order = torch.empty(0, dtype=torch.float64), torch.empty(0, 0, dtype=torch.float64)
        variance, turned = torch.linalg.eigh(X) if X is not None and len(X) == U.shape[1] else order
        return Stationary(
            nu=self.nu,
            preconditioner=here,
            covariance=variance.flip(0).clamp_min(0.0),
            directions=U @ turned.flip(1).to(U) if len(variance) else U[:, :0],
            sharpness=self.sharpness,
            residual=change,
            products=self.operator.products - self.first,
            steps=taken,
        )

    def _critical(self) -> tuple[Tensor, Tensor]:
        """Directions near the limit, ``U' P U = I``, and their eigenvalues, descending."""
        scale = self.law.metric(self._state(self.nu)).to(self.force).rsqrt()
        if self.dense is not None:
            half = scale[:, None] if scale.ndim else scale
            values, vectors = torch.linalg.eigh(half * self.dense * half.T if scale.ndim else half * self.dense * half)
            values, vectors = values.flip(0), vectors.flip(1)
        else:
            pairs = self.tracker.update(preconditioned(self.operator, scale.pow(-2)), LIMIT)
            values, vectors = pairs.values, pairs.vectors
        near = int((values > CANDIDATE * LIMIT).sum())
        U = vectors[:, :near] * (scale[:, None] if scale.ndim else scale)
        self.sharpness = float(values[0])
        return U, values[:near].to("cpu", torch.float64)

    def _state(self, nu: Tensor) -> State:
        # Bias correction is one after a long time, and a schedule stands where it ends.
        return {"step": torch.tensor(LONG), "nu": nu, "gradient": self.force}


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2
