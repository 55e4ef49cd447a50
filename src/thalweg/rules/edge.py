"""How far an optimizer is from its edge of stability, as one number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.operators import Operator, from_function, hessian, preconditioned
from thalweg.problem.problem import Problem
from thalweg.rules.base import Rule, State
from thalweg.rules.live import Part, Source, main_part, parts
from thalweg.spectra.lanczos import top_eigenpairs
from thalweg.spectra.results import Eigenpairs
from thalweg.spectra.task import Method

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Edge:
    r"""The preconditioned sharpness beside the threshold of its rule.

    Attributes:
        sharpness: Largest eigenvalue of the effective Hessian ``P^{-1/2} (H + \Gamma) P^{-1/2}``, in 1 / learning rate.
        residual: ``|A v - theta v|`` of it: an eigenvalue lies within.
        threshold: Where the rule loses stability on a quadratic with ``P`` held fixed, same units.
        learning_rate: ``eta`` that the threshold was computed with.
        eigenpairs: The ``k`` leading pairs; a vector ``q`` is the direction ``P^{-1/2} q`` of the weights.
        rule: The rule (of the group with most parameters, for a torch optimizer).
        convention: What ``P``, the threshold and the decay mean here, in a sentence.
    """

    sharpness: float
    residual: float
    threshold: float
    learning_rate: float
    eigenpairs: Eigenpairs
    rule: Rule
    convention: str

    @property
    def ratio(self) -> float:
        """``sharpness / threshold``: 1 at the edge."""
        return self.sharpness / self.threshold

    @property
    def distance(self) -> float:
        """``1 - ratio``: the share of the threshold that is left; negative beyond the edge."""
        return 1 - self.ratio

    @property
    def products(self) -> int:
        """Hessian products that it cost."""
        return self.eigenpairs.products

    @property
    def largest_stable_lr(self) -> float:
        r"""The learning rate whose threshold is this sharpness, all groups scaled alike; infinite without curvature.

        ``\kappa / (S + \kappa \gamma / 2)`` with decoupled decay ``gamma``, else ``\kappa / S``.
        """
        kappa = self.rule.kappa
        decay = self.rule.decay if self.rule.decoupled else 0.0
        pull = self.sharpness + kappa * decay / 2
        return kappa / pull if pull > 0 else math.inf

    def describe(self) -> str:
        """Return the finding in two sentences."""
        if self.sharpness <= 0:
            return (
                f"No direction of positive curvature: the largest eigenvalue is {self.sharpness:.4g}. {self.convention}"
            )
        side = "below" if self.distance >= 0 else "beyond"
        return (
            f"{100 * abs(self.distance):.3g}% {side} the edge of stability: sharpness {self.sharpness:.5g} against "
            f"{self.threshold:.5g} at learning rate {self.learning_rate:.4g}; "
            f"stable up to {self.largest_stable_lr:.4g}. {self.convention}"
        )

    def __repr__(self) -> str:
        return (
            f"Edge(distance={self.distance:.4g}, sharpness={self.sharpness:.6g} (±{self.residual:.0e}), "
            f"threshold={self.threshold:.6g}, largest_stable_lr={self.largest_stable_lr:.4g}, "
            f"products={self.products}, rule={self.rule.name})"
        )

    def plot(self) -> Figure:
        """Draw the leading eigenvalues as shares of the threshold."""
        figure = self.eigenpairs.plot()
        figure.add_hline(y=self.threshold, line_dash="dash", annotation_text="edge of stability")
        return figure.update_layout(title=f"Sharpness at {self.ratio:.1%} of the threshold", yaxis_rangemode="tozero")


def edge(
    problem: Problem,
    source: Source,
    w: Tensor | None = None,
    state: State | None = None,
    *,
    k: int = 1,
    operator: Operator | None = None,
    method: Method | None = None,
    start: Tensor | None = None,
    seed: int = 0,
    strict: bool = True,
) -> Edge:
    r"""Compare ``\lambda_max`` of ``P^{-1/2} (H + \Gamma) P^{-1/2}`` with the threshold of the rule.

    ``P`` is the preconditioner of the last update, held fixed; ``\Gamma`` is coupled weight decay. At the edge every
    step flips the sign of the unstable mode: insert ``w' = -w``, ``m' = -m`` into the update. A heavy ball gives
    ``(2 + 2 \beta) / \eta``; Adam, whose momentum is an average, ``(2 + 2 \beta_1) / ((1 - \beta_1) \eta)``: 38 / eta
    at 0.9. Decoupled decay takes ``\gamma (1 + \beta_1) / (1 - \beta_1)`` off. Below that no mode of positive curvature
    grows (Jury's conditions hold for each of the rules here, ``P`` and ``H`` need not commute).

    Parameter groups: with rates ``\eta_i`` and decoupled decays ``\gamma_i`` the same condition reads
    ``H + \Gamma + (\kappa / 2) P diag(\gamma_i) < \kappa P diag(1 / \eta_i)``. So rates go into the preconditioner and
    decays into the curvature, exactly, relative to the group with most parameters, and the threshold is one number.

    Args:
        problem: Model, loss and data: the loss whose curvature counts, usually the full training loss.
        source: A rule of `thalweg.rules`, or a live SGD, RMSprop, Adam or AdamW of torch on ``problem.model``.
        w: The point, shape ``(P,)``; default ``problem.initial``.
        state: The rule's state after its last update; a live optimizer has its own.
        k: Leading eigenpairs to return.
        operator: Use this curvature instead of the Hessian, such as a Gauss-Newton operator at ``w``.
        method: Tolerance and budget of the eigensolver.
        start: Its starting guess, such as ``eigenpairs.vectors`` of the last call.
        seed: Of its random starting vector.
        strict: Raise where the tolerance is not met.

    Returns:
        `Edge`.

    Raises:
        InvalidInput: The preconditioner has an entry that is not positive, no step was taken yet, groups differ in
            momentum, decay alone is unstable, or an option or optimizer has no threshold here (amsgrad, maximize,
            centered, ...).
        NotConverged: The eigensolver missed its tolerance.
        NonFinite: A product is NaN or infinite.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> problem = Problem(model, torch.nn.MSELoss(), (x, 0 * x))  # its only curvature is 10
        >>> edge(problem, torch.optim.SGD(model.parameters(), lr=0.1))
        Edge(distance=0.5, sharpness=10 (±...), threshold=20, largest_stable_lr=0.2, products=..., rule=gradient...)

    Source: Cohen et al., arXiv 2103.00065 (gradient descent, momentum) and arXiv 2207.14484 (Adam, 38 / eta).
    """
    point = problem.initial if w is None else w.detach().to(problem.device, problem.dtype)
    everything = parts(problem, source, point, state)
    _check_momentum(everything)
    reference = main_part(everything)
    threshold = reference.rule.stability_threshold(int(reference.state["step"]))
    if not threshold > 0:
        raise InvalidInput(
            explain(
                f"Learning rate {reference.rate:g} times weight decay {reference.rule.decay:g} is 2 or more",
                "the decay alone makes the weights grow, whatever the curvature",
                "Lower one of them",
            )
        )
    diagonal = _preconditioner(everything, reference, point)
    shift = _shift(everything, reference, point)
    curvature = hessian(problem, point) if operator is None else operator
    if _coupled(reference):
        curvature = curvature.shift(_coupled(reference))
    effective = curvature if diagonal is None else preconditioned(curvature, diagonal)
    if shift is not None:
        effective = effective + from_function(lambda v: shift * v, problem.dimension, problem.dtype, problem.device)
    pairs = top_eigenpairs(effective, k, method=method, start=start, seed=seed, strict=strict)
    return Edge(
        sharpness=float(pairs.values[0]),
        residual=float(pairs.residuals[0]),
        threshold=threshold,
        learning_rate=reference.rate,
        eigenpairs=pairs,
        rule=reference.rule,
        convention=_convention(everything, reference, diagonal is not None),
    )


def _coupled(part: Part) -> float:
    return 0.0 if part.rule.decoupled else part.rule.decay


def _check_momentum(everything: list[Part]) -> None:
    """One threshold needs one ``kappa``; decay is folded, momentum cannot be."""
    first = everything[0].rule
    for part in everything[1:]:
        if part.rule.kappa != first.kappa or type(part.rule) is not type(first):
            raise InvalidInput(
                explain(
                    f"Parameter groups differ in momentum: {first.describe()}, and {part.rule.describe()}",
                    "the threshold depends on it, so that no single number decides stability",
                    "Restrict the problem to one group with Problem(parameters=...)",
                )
            )


def _preconditioner(everything: list[Part], reference: Part, w: Tensor) -> Tensor | None:
    r"""``P_i \eta_ref / \eta_i``, shape ``(P,)``; None where it is the identity."""
    found, plain = [], True
    for part in everything:
        if part.rate == 0 and reference.rate != 0:
            raise InvalidInput(
                explain(
                    f"The learning rate of {part.names} is 0 beside {reference.rate:g} elsewhere",
                    "these weights do not move, and have no part in stability",
                    "Restrict the problem with parameters= to what is trained",
                )
            )
        diagonal = part.rule.preconditioner(part.state)
        if diagonal is not None and int(part.state["step"]) == 0:
            raise InvalidInput(
                explain(
                    f"No update has been taken with a gradient of {part.names}",
                    "the preconditioner is built from gradients seen, and there are none",
                    "Take a step first; for a rule pass state=rule.update(rule.init(w), gradient, w)",
                )
            )
        if diagonal is not None and not bool((torch.isfinite(diagonal) & (diagonal > 0)).all()):
            worst = float(diagonal.nan_to_num(nan=-math.inf).min())
            raise InvalidInput(
                explain(
                    f"The preconditioner of {part.names} has an entry {worst:.3g}",
                    "an optimizer with a preconditioner that is not positive has no edge of stability",
                    "Give the rule a positive eps, or look for gradients that are zero or NaN",
                )
            )
        ratio = reference.rate / part.rate if part.rate else 1.0
        plain = plain and diagonal is None and ratio == 1
        entries = w.new_ones(part.size) if diagonal is None else diagonal.to(w).expand(part.size)
        found.append(entries * ratio)
    return None if plain else torch.cat(found)


def _shift(everything: list[Part], reference: Part, w: Tensor) -> Tensor | None:
    """What differing decays add to the diagonal of the effective Hessian, shape ``(P,)``; None without difference."""
    if all(part.rule.decay == reference.rule.decay and part.rate == reference.rate for part in everything):
        return None
    found = []
    for part in everything:
        rate = part.rate / reference.rate if reference.rate else 1.0
        if part.rule.decoupled:
            excess = part.rule.kappa / 2 * (part.rule.decay * rate - reference.rule.decay)
            found.append(w.new_full((part.size,), excess))
        else:
            diagonal = part.rule.preconditioner(part.state)
            entries = w.new_ones(part.size) if diagonal is None else diagonal.to(w).expand(part.size)
            found.append((part.rule.decay - reference.rule.decay) * rate / entries)
    shift = torch.cat(found)
    return shift if bool((shift != 0).any()) else None


def _convention(everything: list[Part], reference: Part, has_diagonal: bool) -> str:
    rule = reference.rule
    words = [f"{rule.name}: threshold {rule.kappa:.4g} / lr"]
    if rule.decoupled and rule.decay:
        words[0] += f" - {rule.kappa * rule.decay / 2:.4g} for decoupled decay"
    if has_diagonal:
        words.append("P of the last update, held fixed")
    if "mu" in reference.state:
        words.append("P holds the bias corrections")
    if rule.decay and not rule.decoupled:
        words.append("weight decay counts as curvature")
    if len({(part.rate, part.rule.decay) for part in everything}) > 1:
        words.append(f"groups are referred to lr {reference.rate:g}, decay {rule.decay:g}")
    return "; ".join(words) + "."
