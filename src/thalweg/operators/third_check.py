"""Whether a loss has a third derivative that means something: automatic differentiation against differences.

Once for each problem, along one direction. An operation with a wrong third derivative disagrees with differences at
every step. A kink has no third derivative, and differences across many kinks do not settle; automatic
differentiation gives that of the smooth pieces, which says nothing about a flow that crosses them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from thalweg._rng import generator
from thalweg.errors import NotDifferentiable, explain
from thalweg.operators import third_methods
from thalweg.problem.problem import Problem

MethodName = Literal["exact", "products", "gradients"]

LONG_STEPS = (1e-2, 2.5e-3, 6e-4)
"""In units of the weights: long enough to cross kinks, in single precision above rounding (docs/third.md)."""

TOLERANCE = 0.2
"""Relative disagreement along a long step up to which a loss counts as smooth; kinks are off by one and more."""


@dataclass(frozen=True)
class Verdict:
    """What the comparison found.

    Attributes:
        trusted: The ways that agree with differences of gradients along a long step; none where the loss has kinks.
        disagreement: Relative, between differences of gradients at the step in use and the best trusted way.
        cost: What it took, in gradients.
    """

    trusted: frozenset[MethodName]
    disagreement: float
    cost: float

    def refuse(self, method: MethodName) -> None:
        """Raise where ``method`` is not to be trusted.

        Raises:
            NotDifferentiable: Its rows would be wrong, or mean nothing.
        """
        if method in self.trusted:
            return
        if self.trusted:
            raise NotDifferentiable(
                explain(
                    f'Third derivatives by method="{method}" disagree with differences of gradients',
                    "an operation's third derivative is wrong or missing (a fused norm, a custom backward)",
                    f"Use one of {', '.join(sorted(self.trusted))}; thalweg doctor looks for the cause",
                )
            )
        raise NotDifferentiable(
            explain(
                "Automatic third derivatives and differences of gradients do not meet, whatever the step",
                "the loss has kinks, such as those of ReLU or max pooling, across which curvature jumps "
                "(or derivatives that are wrong: thalweg doctor tells)",
                "Use smooth activations (GELU, SiLU, tanh, softplus) and average pooling; verify=False accepts it",
            )
        )


def default_step(w: Tensor, method: MethodName) -> float:
    """Return the step, a length in weight space, that balances truncation against rounding.

    Errors are of order ``h^2`` against ``eps / h^2`` for ``"gradients"``, least near ``h = eps^(1/4)``, and against
    ``eps / h`` for ``"products"``, least near ``eps^(1/3)``. The factors are measured (docs/third.md). A step is never
    so short that the rounding of the weights would bend it by more than 1e-3.
    """
    eps = float(torch.finfo(w.dtype).eps)
    best = 0.5 * eps**0.25 if method == "gradients" else 0.3 * eps ** (1 / 3)
    return max(float(best), 1e3 * eps * float(w.norm()))


def examine(problem: Problem, w: Tensor, U: Tensor, gradient: Tensor | None = None) -> Verdict:
    """Compare the ways along one random combination of the columns of ``U``; the answer is remembered.

    Args:
        problem: What to examine.
        w: Shape ``(P,)``.
        U: Shape ``(P, k)``, columns of length one.
        gradient: ``g(w)`` where it is known.
    """
    known: Verdict | None = problem.notes.get("third")
    if known is not None:
        return replace(known, cost=0.0)
    mix = torch.randn(U.shape[1], generator=generator(0, "third"), dtype=torch.float64).to(U)
    compared = _Comparison(problem, w, U @ mix, gradient)
    verdict = compared.verdict()
    problem.notes["third"] = verdict
    return verdict


class _Comparison:
    """References along one direction, and differences of gradients at any step to hold against them."""

    def __init__(self, problem: Problem, w: Tensor, d: Tensor, gradient: Tensor | None) -> None:
        self.problem, self.w, self.d = problem, w, (d / d.norm()).unsqueeze(1)
        self.gradient = problem.gradient(w) if gradient is None else gradient
        self.h = default_step(w, "gradients")
        slope = (problem.gradient(w + self.h * self.d[:, 0]) - self.gradient).norm() / self.h
        size = float(self.gradient.norm()) + float(slope) * max(float(w.norm()), 1.0)
        self.rounding = 16 * float(torch.finfo(w.dtype).eps) * size
        self.cost = 1.0 if gradient is not None else 2.0
        self.known: dict[float, Tensor] = {}

    def verdict(self) -> Verdict:
        """Try the references in order, until one agrees with differences along some long step."""
        best = float("inf")
        names: tuple[MethodName, MethodName] = ("exact", "products")
        for name in names:
            reference = self.reference(name)
            if reference is None:
                continue
            best = min(best, self.disagreement(reference, self.h))
            if any(self.jumps(reference, length) for length in (self.h, LONG_STEPS[0], 4 * LONG_STEPS[0])):
                return Verdict(frozenset(), best, self.cost)
            if self.formula_is_right(reference) and self.settles(reference):
                return Verdict(frozenset({name, "products", "gradients"}), best, self.cost)
        if best < float("inf"):
            return Verdict(frozenset(), best, self.cost)
        # There is no second derivative, so differences are compared with themselves.
        best = self.disagreement(self.difference(2 * self.h), self.h)
        settled = best <= TOLERANCE and self.disagreement(self.difference(LONG_STEPS[0]), LONG_STEPS[1]) <= TOLERANCE
        only: frozenset[MethodName] = frozenset({"gradients"} if settled else ())
        return Verdict(only, best, self.cost)

    def formula_is_right(self, reference: Tensor) -> bool:
        """Whether some step agrees as well as rounding lets differences."""
        limit = max(1e-3, 150 * float(torch.finfo(self.w.dtype).eps) ** 0.5)
        return any(self.agrees(reference, length, limit) for length in (self.h, *LONG_STEPS))

    def settles(self, reference: Tensor) -> bool:
        """Whether some long step agrees roughly: across many kinks, none does."""
        return any(self.agrees(reference, length, TOLERANCE) for length in LONG_STEPS)

    def reference(self, name: str) -> Tensor | None:
        """The row by another way than differences of gradients; None where torch cannot compute it."""
        try:
            if name == "exact":
                rows, cost = third_methods.exact(self.problem, self.w, self.d, [(0, 0)])
            else:
                h = default_step(self.w, "products")
                rows, cost = third_methods.products(self.problem, self.w, self.d, [(0, 0)], h)
        except NotDifferentiable:
            return None
        self.cost += cost
        return rows[0]

    def difference(self, h: float) -> Tensor:
        """The row by second differences of gradients."""
        if h not in self.known:
            rows, cost = third_methods.gradients(self.problem, self.w, self.d, [(0, 0)], h, self.gradient)
            self.known[h] = rows[0]
            self.cost += cost
        return self.known[h]

    def agrees(self, reference: Tensor, h: float, limit: float) -> bool:
        """Whether differences are within ``limit`` of the reference, or within rounding (it may vanish)."""
        off = float((self.difference(h) - reference).norm())
        return off <= self.rounding / h**2 or self.disagreement(reference, h) <= limit

    def disagreement(self, reference: Tensor, h: float) -> float:
        """Relative, with a floor where the third derivative vanishes."""
        found = self.difference(h)
        size = max(float(found.norm()), float(reference.norm()), 10 * self.rounding / h**2)
        return float((found - reference).norm()) / size if size else 0.0

    def jumps(self, reference: Tensor, h: float) -> bool:
        """Whether a kink lies within the step: differences far too large, and not because the step is long.

        Truncation falls 16-fold with a fourth of the step, and a wrong reference leaves differences as they are. The
        ``jump / h`` of a kink grows instead, or vanishes when the step no longer reaches it.
        """
        off = float((self.difference(h) - reference).norm())
        if off <= 5 * max(float(reference.norm()), 10 * self.rounding / h**2):
            return False
        steps = [self.difference(h / 4**power) for power in range(3)]
        change, next_change = (float((b - a).norm()) for a, b in pairwise(steps))
        settled = change <= TOLERANCE * float(steps[1].norm())
        falls = off / max(float((steps[1] - reference).norm()), 1e-300), change / max(next_change, 1e-300)
        return not (settled or any(8 <= fall <= 32 for fall in falls))
