r"""How curvature changes: ``T[u_i, u_j] = grad_w (u_i' H(w) u_j)`` for all pairs of a few directions."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.operators import third_methods
from thalweg.operators.packing import order, pairs, smat
from thalweg.operators.third_check import MethodName, Verdict, default_step, examine
from thalweg.problem.problem import Problem

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Choice = Literal["auto", "exact", "products", "gradients"]

ACCURACY = 1e-2
"""Relative error up to which "auto" takes the cheapest way."""


@dataclass(frozen=True)
class ThirdDerivative:
    r"""The rows ``svec`` of ``T[u_i, u_j] = grad_w (u_i' H(w) u_j)``, and what they cost.

    Attributes:
        rows: Shape ``(m, P)``, ``m = k (k + 1) / 2``: pairs ``i <= j`` row by row, mixed ones times ``sqrt 2``, so that
            ``rows @ v`` is `svec` of the change of ``U' H U`` along ``v``.
        method: The way it was computed.
        gradients: Cost in gradient-equivalents, that of a check included.
        disagreement: Relative difference between automatic differentiation and differences of gradients, when this
            problem was verified; None if it never was.
        error: Estimated relative error of all rows together; None without ``check``.
        step: Length of the difference in weight space; None for ``"exact"``.
    """

    rows: Tensor
    method: MethodName
    gradients: float
    disagreement: float | None
    error: float | None
    step: float | None

    @property
    def k(self) -> int:
        """Number of directions."""
        return order(len(self.rows))

    def along(self, v: Tensor) -> Tensor:
        """Return ``d/ds U' H(w + s v) U`` at ``s = 0``, shape ``(k, k)``, for ``v`` of shape ``(P,)``."""
        return smat(self.rows @ v)

    def __repr__(self) -> str:
        shown = "" if self.error is None else f", error={self.error:.0e}"
        checked = "not verified" if self.disagreement is None else f"disagreement={self.disagreement:.0e}"
        return (
            f"ThirdDerivative(k={self.k}, P={self.rows.shape[1]:,}, method={self.method!r}, "
            f"gradients={self.gradients:.3g}, {checked}{shown})"
        )

    def plot(self) -> Figure:
        """Draw the norm of each ``T[u_i, u_j]``."""
        import plotly.graph_objects as go

        norms = smat(self.rows.norm(dim=1).double().cpu())
        index = [str(i + 1) for i in range(self.k)]
        figure = go.Figure(go.Heatmap(z=norms.tolist(), x=index, y=index, colorbar={"title": "|T|"}))
        return figure.update_layout(
            title=f"Third derivatives by {self.method}", xaxis_title="direction", yaxis_title="direction"
        )


def third_derivative(
    problem: Problem,
    w: Tensor | None,
    U: Tensor,
    *,
    method: Choice = "auto",
    gradient: Tensor | None = None,
    accuracy: float = ACCURACY,
    step: float | None = None,
    check: bool = False,
    verify: bool = True,
    many: third_methods.Many | None = None,
) -> ThirdDerivative:
    r"""Return ``T[u_i, u_j] = grad_w (u_i' H(w) u_j)`` for all pairs of columns of ``U``, in `svec` packing.

    Three ways. ``"exact"`` differentiates Hessian products once more, ``1.75 + 1.5 k + 4 m`` gradients. ``"products"``
    takes central differences of Hessian products, ``2 k (1.75 + 1.5 k)``; it needs no third derivative. ``"gradients"``
    takes second differences of gradients, ``2 m + 1``, one less where ``gradient`` is given; it needs none at all. The
    first is right to rounding; what the others lose is measured in docs/third.md.

    Args:
        problem: Model, loss and data.
        w: The point, shape ``(P,)``; None for ``problem.initial``.
        U: Directions, shape ``(P, k)``, any length, not necessarily orthogonal.
        method: One of the three, or ``"auto"``: differences of gradients where their error, as measured when the
            problem is verified, allows for ``accuracy``, else exact, else differences of products.
        gradient: ``g(w)`` where it is known, shape ``(P,)``.
        accuracy: Relative error that ``"auto"`` accepts.
        step: Length of the differences, in weight space; default by dtype and ``|w|`` (docs/third.md).
        check: Estimate the error: differences at two steps (and return their Richardson extrapolation), exact rows
            against differences. Doubles the cost of differences.
        verify: When this problem is seen first, compare differences with automatic differentiation along one
            direction, and refuse kinks and wrong formulas. Some 15 gradients, once; remembered in ``problem.notes``.
        many: Gradients at the rows of a matrix ``(R, P)`` at once, for ``"gradients"``: it gets two at a time,
            which a small network evaluates nearly as fast as one.

    Returns:
        A `ThirdDerivative`.

    Raises:
        InvalidInput: Shapes do not fit, or a direction is zero or not finite.
        NotDifferentiable: The loss has kinks; or ``method`` is exact, and an operation's third derivative is wrong
            or missing.

    Example:
        >>> class Cubic(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = torch.nn.Parameter(torch.tensor([1.0, 2.0]).double())
        ...     def forward(self, x):
        ...         return x * self.w[0] ** 2 * self.w[1]
        >>> x = torch.ones(1).double()
        >>> problem = Problem(Cubic(), lambda out, y: out.mean(), (x, x))
        >>> T = third_derivative(problem, None, torch.eye(2).double(), method="exact")
        >>> T.rows[0].tolist()  # grad of d2L/dw1^2 = 2 w2
        [0.0, 2.0]
    """
    if method not in get_args(Choice):
        raise InvalidInput(
            explain(
                f"The method {method!r} is unknown",
                "it names how third derivatives are computed",
                f"Choose among {', '.join(get_args(Choice))}",
            )
        )
    w, unit, lengths = directions(problem, w, U)
    k = unit.shape[1]
    if k == 0:
        return ThirdDerivative(w.new_zeros(0, len(w)), "exact", 0.0, None, None, None)
    verdict = examine(problem, w, unit, gradient) if verify else problem.notes.get("third")
    chosen = choose(method, verdict, accuracy, w.dtype)
    if verify and verdict is not None:
        verdict.refuse(chosen)
    wanted = pairs(k)
    rows, cost, error, h = compute(problem, w, unit, wanted, chosen, gradient, step, check, many)
    scale = [lengths[i] * lengths[j] * (1.0 if i == j else sqrt(2)) for i, j in wanted]
    rows.mul_(torch.stack(scale).unsqueeze(1).to(rows))
    if verify and verdict is not None:
        cost += verdict.cost
    return ThirdDerivative(rows, chosen, cost, None if verdict is None else verdict.disagreement, error, h)


def directions(problem: Problem, w: Tensor | None, U: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the point, the columns of ``U`` at length one, and their lengths, all in the problem's dtype.

    Raises:
        InvalidInput: Shapes do not fit, or a direction is zero or not finite.
    """
    point = problem.initial if w is None else w.detach().to(problem.device, problem.dtype)
    problem.layout.split(point)  # checks the shape
    if U.ndim != 2 or U.shape[0] != problem.dimension:
        raise InvalidInput(
            explain(
                f"U has shape {tuple(U.shape)}",
                f"directions are columns of length {problem.dimension}",
                "Pass (P, k); one direction as u.unsqueeze(1)",
            )
        )
    columns = U.detach().to(problem.device, problem.dtype)
    lengths = columns.norm(dim=0)
    if not bool((torch.isfinite(lengths) & (lengths > 0)).all()):
        raise InvalidInput(
            explain(
                f"The directions have lengths {[float(f'{x:.3g}') for x in lengths.tolist()]}",
                "a direction is finite and not zero",
                "Drop the columns that carry nothing",
            )
        )
    return point, columns / lengths, lengths


def choose(method: Choice, verdict: Verdict | None, accuracy: float, dtype: torch.dtype) -> MethodName:
    """Resolve ``"auto"``: by what was measured, else by what rounding leaves of second differences."""
    if method != "auto":
        return method
    # Mixed pairs add the rounding of three differences: three times what one direction shows.
    expected = 20 * float(torch.finfo(dtype).eps) ** 0.5 if verdict is None else 3 * verdict.disagreement
    if expected <= accuracy:
        return "gradients"
    if verdict is None or "exact" in verdict.trusted:
        return "exact"
    return "products" if "products" in verdict.trusted else "gradients"


def compute(
    problem: Problem,
    w: Tensor,
    unit: Tensor,
    wanted: third_methods.Pairs,
    method: MethodName,
    gradient: Tensor | None,
    step: float | None,
    check: bool,
    many: third_methods.Many | None = None,
) -> tuple[Tensor, float, float | None, float | None]:
    """Return rows ``T[u_i, u_j]`` of the wanted pairs (without weights), cost, estimated error, and step."""
    if method == "exact":
        rows, cost = third_methods.exact(problem, w, unit, wanted)
        if not check:
            return rows, cost, None, None
        other, more = third_methods.gradients(problem, w, unit, wanted, default_step(w, "gradients"), gradient)
        return rows, cost + more, _relative(other - rows, rows), None
    h = default_step(w, method) if step is None else step

    def differences(length: float) -> tuple[Tensor, float]:
        if method == "products":
            return third_methods.products(problem, w, unit, wanted, length)
        return third_methods.gradients(problem, w, unit, wanted, length, gradient, many)

    rows, cost = differences(h)
    if not check:
        return rows, cost, None, h
    longer, more = differences(2 * h)
    change = rows - longer
    return rows.add(change, alpha=1 / 3), cost + more, _relative(change, rows), h


def _relative(difference: Tensor, rows: Tensor) -> float:
    size = float(rows.norm())
    return float(difference.norm()) / size if size else 0.0
