r"""The pull of an oscillation: ``1/2 grad_w <H(w), U X U'>``, with as few gradients as the rank of ``X`` allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.operators.third import ACCURACY, Choice, choose, compute, directions
from thalweg.operators.third_check import MethodName, examine
from thalweg.problem.problem import Problem

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Penalty:
    """The gradient of ``1/2 <H(w), U X U'>`` with ``U X U'`` held fixed.

    Attributes:
        vector: Shape ``(P,)``.
        rank: Eigenvalues of ``U X U'`` that were kept, each one second derivative of the gradient.
        method: The way it was computed; see `third_derivative`.
        gradients: Cost in gradient-equivalents.
        disagreement: As of `ThirdDerivative`.
        error: Estimated relative error; None without ``check``.
    """

    vector: Tensor
    rank: int
    method: MethodName
    gradients: float
    disagreement: float | None
    error: float | None

    def __repr__(self) -> str:
        shown = "" if self.error is None else f", error={self.error:.0e}"
        return (
            f"Penalty(norm={float(self.vector.norm()):.4g}, rank={self.rank}, method={self.method!r}, "
            f"gradients={self.gradients:.3g}{shown})"
        )

    def plot(self) -> Figure:
        """Draw how large the entries are, sorted."""
        import plotly.graph_objects as go

        sizes = self.vector.abs().sort(descending=True).values.double().cpu()
        shown = torch.linspace(0, len(sizes) - 1, min(len(sizes), 1000)).long()
        figure = go.Figure(go.Scatter(x=(shown + 1).tolist(), y=sizes[shown].tolist(), mode="lines"))
        return figure.update_layout(
            title=f"Curvature penalty of rank {self.rank}", xaxis_title="entry, sorted", yaxis_title="size"
        )


def penalty(
    problem: Problem,
    w: Tensor | None,
    U: Tensor,
    X: Tensor,
    *,
    method: Choice = "auto",
    gradient: Tensor | None = None,
    accuracy: float = ACCURACY,
    step: float | None = None,
    check: bool = False,
    verify: bool = True,
) -> Penalty:
    r"""Return ``1/2 grad_w <H(w), Sigma>`` for ``Sigma = U X U'``, the curvature penalty of an oscillation.

    ``Sigma`` is diagonalised first, ``sum_r xi_r q_r q_r'`` with orthonormal ``q_r``, so that only
    ``1/2 sum_r xi_r T[q_r, q_r]`` is needed: two gradients for each of its rank (plus ``g(w)``), or ``1.75 + 5.5 rank``
    for exact ones, instead of one for each pair of columns.

    Args:
        problem: Model, loss and data.
        w: The point, shape ``(P,)``; None for ``problem.initial``.
        U: Shape ``(P, k)``, linearly independent columns.
        X: Shape ``(k, k)``, symmetric.
        method: As of `third_derivative`, and so are the following.
        gradient: ``g(w)`` where it is known.
        accuracy: Relative error that ``"auto"`` accepts.
        step: Length of the differences.
        check: Estimate the error.
        verify: Compare the ways when this problem is seen first.

    Returns:
        A `Penalty`.

    Raises:
        InvalidInput: Shapes do not fit, or entries are not finite.
        NotDifferentiable: As of `third_derivative`.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> x = torch.eye(2).double()
        >>> problem = Problem(model, lambda out, y: (out**4).mean(), (x, x))
        >>> w = torch.tensor([1.0, 2.0]).double()
        >>> U, X = torch.eye(2).double(), torch.diag(torch.tensor([1.0, 0.0])).double()
        >>> found = penalty(problem, w, U, X, method="exact")
        >>> [round(value, 6) for value in found.vector.tolist()]  # L = (w1^4 + w2^4) / 2, so 1/2 * 12 w1
        [6.0, 0.0]
    """
    k = U.shape[1] if U.ndim == 2 else -1
    if X.shape != (k, k) or not bool(torch.isfinite(X).all()):
        raise InvalidInput(
            explain(
                f"X has shape {tuple(X.shape)}",
                f"with U of shape {tuple(U.shape)} it is ({k}, {k}) and finite",
                "Pass X",
            )
        )
    point, unit, lengths = directions(problem, w, U)
    q, r = torch.linalg.qr(unit * lengths)
    small = r.double().cpu() @ X.detach().double().cpu() @ r.double().cpu().T
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    kept = values.abs() > 1e-12 * values.abs().max() if k else values.abs() > 0
    values, columns = values[kept], q @ vectors[:, kept].to(q)
    rank = len(values)
    if rank == 0:
        return Penalty(torch.zeros_like(point), 0, "exact", 0.0, None, None)
    verdict = examine(problem, point, columns, gradient) if verify else problem.notes.get("third")
    chosen = choose(method, verdict, accuracy, point.dtype)
    if verify and verdict is not None:
        verdict.refuse(chosen)
    wanted = [(i, i) for i in range(rank)]
    rows, cost, error, _ = compute(problem, point, columns, wanted, chosen, gradient, step, check)
    vector = rows.T @ (values / 2).to(rows)
    if verify and verdict is not None:
        cost += verdict.cost
    return Penalty(vector, rank, chosen, cost, None if verdict is None else verdict.disagreement, error)
