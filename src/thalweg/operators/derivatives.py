"""Checks of derivatives: each order by automatic differentiation against central differences of the order below.

Central differences carry no assumption about torch, so where the two agree both are right. A kink within the step
spoils a difference, and rounding spoils a small step, so every comparison is made at two steps: a formula that is
wrong is off at both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from thalweg._rng import generator
from thalweg._vectors import Layout
from thalweg.errors import NotDifferentiable
from thalweg.operators.diagnosis import Check, judged
from thalweg.operators.hessian import LayoutName, hessian
from thalweg.operators.layouts import linearise, second_derivative
from thalweg.problem.guards import no_autocast
from thalweg.problem.norms import decomposed_norms
from thalweg.problem.problem import Problem

REPORT = 'Do not trust this derivative; please report the operation, and use layout="difference" meanwhile'
STEPS = (1.0, 1e-2)
"""Factors on the step ``eps^(1/3) max(|w|, 1)``."""


@dataclass(frozen=True)
class Probe:
    """A problem, a point, and random directions of length one."""

    problem: Problem
    w: Tensor
    u: Tensor
    v: Tensor

    @classmethod
    def of(cls, problem: Problem, seed: int) -> Probe:
        """Draw the directions from the stream ``seed``."""
        draw = generator(seed, "doctor")
        u, v = torch.randn(2, problem.dimension, generator=draw, dtype=torch.float64).to(problem.device, problem.dtype)
        return cls(problem, problem.initial, u / u.norm(), v / v.norm())

    @property
    def eps(self) -> float:
        """Rounding of the dtype in which the checks run."""
        return torch.finfo(self.problem.dtype).eps

    def differences(self, function: Callable[[Tensor], Tensor], direction: Tensor) -> list[Tensor]:
        """Central differences of ``function`` along ``direction`` for each of `STEPS`."""
        size = self.eps ** (1 / 3) * max(float(self.w.norm()), 1.0)
        found = []
        for factor in STEPS:
            h = size * factor
            found.append((function(self.w + h * direction) - function(self.w - h * direction)) / (2 * h))
        return found


def relative(found: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """``|found - expected| / max(|found|, |expected|, floor)``; zero where both are zero."""
    size = max(float(found.norm()), float(expected.norm()), floor)
    return float((found - expected).norm()) / size if size else 0.0


def finite(probe: Probe) -> Check:
    """Loss and gradient at the point are numbers."""
    value, gradient = probe.problem.value_and_gradient(probe.w)
    bad = int((~torch.isfinite(gradient)).sum()) + int(not torch.isfinite(value))
    good = f"The loss is {float(value):.4g}, the gradient's norm {float(gradient.norm()):.4g}"
    return judged(
        "finite", bad, 0, good, f"{bad} entries of loss and gradient are NaN or infinite", "Start from another point"
    )


def first(probe: Probe) -> Check:
    """Gradient against differences of the loss, along a direction that has a share of the gradient."""
    gradient = probe.problem.gradient(probe.w)
    direction = gradient / gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny) + probe.u
    floor = probe.eps ** (2 / 3) * abs(float(probe.problem.value(probe.w)))
    errors = [
        relative(found, gradient @ direction, floor) for found in probe.differences(probe.problem.value, direction)
    ]
    return _compared("first derivative", errors, probe.eps**0.3, "gradients", "differences of the loss")


def symmetry(probe: Probe) -> Check:
    """``u' H v = v' H u``."""
    operator = hessian(probe.problem, probe.w)
    hu, hv = operator.matvec(probe.u), operator.matvec(probe.v)
    gap = abs(float(probe.u @ hv - probe.v @ hu)) / (float(hu.norm() + hv.norm()) or 1.0)
    return judged(
        "symmetry",
        gap,
        1e4 * probe.eps,
        "Hessian products are symmetric",
        "Hessian products are not symmetric: an operation's second derivative is wrong or missing",
        REPORT,
    )


def linearity(probe: Probe) -> Check:
    """``H (2.5 u - v) = 2.5 H u - H v``."""
    operator = hessian(probe.problem, probe.w)
    joint = operator.matvec(2.5 * probe.u - probe.v)
    apart = 2.5 * operator.matvec(probe.u) - operator.matvec(probe.v)
    return judged(
        "linearity",
        relative(joint, apart),
        1e4 * probe.eps,
        "Hessian products are linear",
        "Hessian products are not linear in the vector",
        REPORT,
    )


def layouts(probe: Probe) -> Check:
    """Double backward, the kept graph and forward-over-reverse give one product."""
    reference = hessian(probe.problem, probe.w, layout="double_backward").matvec(probe.v)
    worst, refused = 0.0, []
    exact: list[LayoutName] = [
        name for name in get_args(LayoutName) if name not in ("auto", "difference", "double_backward")
    ]
    for name in exact:
        try:
            worst = max(worst, relative(hessian(probe.problem, probe.w, layout=name).matvec(probe.v), reference))
        except NotDifferentiable as error:
            refused.append(f"{name}: {error}")
    check = judged(
        "layouts",
        worst,
        1e4 * probe.eps,
        "All ways to compute a product agree",
        "Two ways to compute the same Hessian product differ",
        REPORT,
    )
    if check.status == "ok" and refused:
        return Check("layouts", "warn", worst, check.tolerance, " ".join(refused), 'Keep layout="auto"')
    return check


def second(probe: Probe) -> Check:
    """Hessian product against differences of gradients."""
    product = hessian(probe.problem, probe.w).matvec(probe.v)
    floor = probe.eps ** (1 / 3) * float(probe.problem.gradient(probe.w).norm()) / max(float(probe.w.norm()), 1.0)
    errors = [relative(found, product, floor) for found in probe.differences(probe.problem.gradient, probe.v)]
    return _compared("second derivative", errors, probe.eps**0.3, "Hessian products", "differences of gradients")


def third(probe: Probe) -> Check:
    """``grad_w (u' H v)`` by automatic differentiation against differences of Hessian products along ``u``."""
    name = "third derivative"
    try:
        errors = _third_errors(probe)
    except NotDifferentiable as error:
        meaning = f"There is no third derivative. {error}"
        return Check(name, "warn", None, None, meaning, "Central flows will use differences of Hessian products")
    check = _compared(name, errors, probe.eps**0.3, "Third derivatives", "differences of Hessian products")
    if check.status != "fail":
        return check
    with decomposed_norms(probe.problem.model) as count:
        repaired = min(_third_errors(probe)) if count else float("inf")
    if repaired <= probe.eps**0.3:
        meaning = "Third derivatives through a fused norm are silently wrong in this torch; first and second are right"
        remedy = f"Take them inside decomposed_norms(model): checked here, {count} layers, error {repaired:.0e}"
        return Check(name, "warn", check.value, check.tolerance, meaning, remedy)
    return check


def precision(probe: Probe, own: Problem) -> Check:
    """How far a Hessian product in the problem's own dtype is from the same in float64."""
    if own.dtype == torch.float64:
        return Check("precision", "ok", 0.0, None, "Everything runs in float64")
    if probe.problem.dtype != torch.float64:
        meaning = f"The model runs in {own.dtype} only, so there is no float64 to compare with"
        return Check("precision", "skipped", None, None, meaning)
    product = hessian(own).matvec(probe.v.to(own.dtype)).double()
    error = relative(product, hessian(probe.problem, probe.w).matvec(probe.v.to(own.dtype).double()))
    name = str(own.dtype).removeprefix("torch.")
    meaning = f"In {name} a Hessian product is off by {error:.1e}; eigenvalues are no better"
    if error <= 1e-3:
        return Check("precision", "ok", error, 1e-3, meaning)
    remedy = "Use Problem(..., dtype=torch.float64), or float32 for a half-precision model"
    return Check("precision", "warn", error, 1e-3, meaning, remedy)


def _third_errors(probe: Probe) -> list[float]:
    exact = torch.zeros_like(probe.w)
    problem, split = probe.problem, probe.problem.layout.split
    for batch, weight in problem.batches():
        leaves, grads = linearise(problem, probe.w, batch)
        with second_derivative(), no_autocast(problem.device), torch.enable_grad():
            product = _contract(grads, split(probe.v), leaves, create_graph=True)
            exact.add_(Layout.join(_contract(product, split(probe.u), leaves, create_graph=False)), alpha=weight)

    def products(at: Tensor) -> Tensor:
        return hessian(problem, at).matvec(probe.v)

    size = max(float(probe.w.norm()), 1.0)
    floor = probe.eps ** (1 / 3) * float(products(probe.w).norm()) / size
    return [relative(found, exact, floor) for found in probe.differences(products, probe.u)]


def _contract(
    tensors: Sequence[Tensor], vectors: list[Tensor], leaves: list[Tensor], *, create_graph: bool
) -> tuple[Tensor, ...]:
    """Gradient of ``sum_i <tensor_i, vector_i>``, zero where nothing was recorded."""
    pairs = [(t, v) for t, v in zip(tensors, vectors) if t.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    outputs, weights = zip(*pairs)
    return torch.autograd.grad(
        outputs, leaves, weights, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )


def _compared(name: str, errors: list[float], tolerance: float, what: str, other: str) -> Check:
    best = min(errors)
    if not best <= tolerance:
        bad = f"{what[:1].upper()}{what[1:]} differ from {other}"
        return Check(name, "fail", best, tolerance, bad, REPORT)
    if errors[0] > 100 * tolerance:
        meaning = f"Along a long step {what} and {other} differ: the loss has kinks, which derivatives do not see"
        return Check(name, "warn", errors[0], tolerance, meaning, "Read curvature as that of the smooth pieces only")
    return Check(name, "ok", best, tolerance, f"{what[:1].upper()}{what[1:]} agree with {other}")


__all__ = ["Probe", "finite", "first", "layouts", "linearity", "precision", "second", "symmetry", "third"]
