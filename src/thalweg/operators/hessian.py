"""The Hessian of a problem at a point, as an operator."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.operators.base import Operator
from thalweg.operators.layouts import (
    Difference,
    DoubleBackward,
    ForwardReverse,
    Graph,
    HessianLayout,
    Linearised,
    forget_values,
    linearise,
)
from thalweg.problem import memory
from thalweg.problem.guards import no_autocast
from thalweg.problem.problem import Problem

LayoutName = Literal["auto", "linearised", "double_backward", "forward_reverse", "difference"]


class HessianOperator(Operator):
    """``v -> H(w) v`` with ``H`` the Hessian of the mean loss over all data.

    Attributes:
        layout_used: The layout that computes the products.
        record: Why it was picked: estimated and allowed bytes, number of batches.
        value: ``L(w)``, 0-dim, and
        gradient: its gradient, shape ``(P,)``, where these were asked for and came with the layout; else None.
    """

    def __init__(
        self, problem: Problem, w: Tensor, layout: LayoutName, memory_limit: int | None, with_gradient: bool = False
    ) -> None:
        super().__init__(problem.dimension, problem.dtype, problem.device)
        self.record: dict[str, Any] = {"asked": layout}
        self.value: Tensor | None = None
        self.gradient: Tensor | None = None
        self._sum: Tensor | None = torch.zeros_like(w) if with_gradient else None
        self._values: list[Tensor] = []
        self._layout = self._choose(problem, w, layout, memory_limit)
        self.layout_used = _NAMES[type(self._layout)]
        self.record["used"] = self.layout_used

    def _matvec(self, v: Tensor) -> Tensor:
        with no_autocast(self.device):
            return self._layout.product(v.unsqueeze(0))[0]

    def _matmat(self, block: Tensor) -> Tensor:
        with no_autocast(self.device):
            return self._layout.product(block.T.contiguous()).T

    def close(self) -> None:
        """Free the kept graph. Later products rebuild it batch by batch."""
        self._layout.close()
        self._layout = DoubleBackward(self._layout.problem, self._layout.w)
        self.layout_used = _NAMES[DoubleBackward]
        self.record["used"] = self.layout_used

    def __enter__(self) -> HessianOperator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _choose(self, problem: Problem, w: Tensor, layout: LayoutName, memory_limit: int | None) -> HessianLayout:
        if layout == "double_backward":
            return DoubleBackward(problem, w)
        if layout == "forward_reverse":
            return ForwardReverse(problem, w)
        if layout == "difference":
            return Difference(problem, w)
        allowed = memory.available(problem.device) // 4 if memory_limit is None else memory_limit
        known: int | None = problem.notes.get("graph_bytes")
        self.record |= {"allowed_bytes": allowed, "graph_bytes": known}
        graphs: list[tuple[Graph, float]] = []
        kept = 0
        for number, (batch, weight) in enumerate(problem.batches()):
            if known is None:  # counting doubles the cost of recording, so it is done once a problem
                with memory.SavedBytes() as saved:
                    graphs.append((self._graph(problem, w, batch, weight), weight))
                kept += saved.bytes
                self.record["graph_bytes"] = kept * problem.batch_count // (number + 1)
            elif known <= allowed or layout == "linearised":
                graphs.append((self._graph(problem, w, batch, weight), weight))
            if layout == "auto" and self.record["graph_bytes"] > allowed:
                problem.notes["graph_bytes"] = self.record["graph_bytes"]
                self.record["why"] = "the kept graph would need more memory than allowed"
                return DoubleBackward(problem, w)
        problem.notes["graph_bytes"] = self.record["graph_bytes"]
        self.record["why"] = "the graph fits in memory, and reusing it costs least per product"
        if self._sum is not None:
            self.value, self.gradient, self._sum = torch.stack(self._values).sum(), self._sum, None
        return Linearised(problem, w, graphs)

    def _graph(self, problem: Problem, w: Tensor, batch: Any, weight: float) -> Graph:
        """Record one batch; add its gradient up on the way, where that is wanted."""
        if self._sum is None:
            return forget_values(linearise(problem, w, batch))
        values: list[Tensor] = []
        leaves, grads = linearise(problem, w, batch, values)
        self._values.append(values[0] * weight)
        for place, part in zip(problem.layout.split(self._sum), grads):
            place.add_(part.detach(), alpha=weight)
        return forget_values((leaves, grads))


_NAMES: dict[type[HessianLayout], LayoutName] = {
    Linearised: "linearised",
    DoubleBackward: "double_backward",
    ForwardReverse: "forward_reverse",
    Difference: "difference",
}


def hessian(
    problem: Problem,
    w: Tensor | None = None,
    *,
    layout: LayoutName = "auto",
    memory_limit: int | None = None,
    with_gradient: bool = False,
) -> HessianOperator:
    r"""Return the Hessian ``H(w) = sum_b (n_b / N) grad^2 L_b(w)`` as an operator of shape ``(P, P)``.

    Args:
        problem: Model, loss and data.
        w: The point, shape ``(P,)``; default ``problem.initial``. It is copied.
        layout: How products are computed. ``"linearised"`` records the gradient's graph once and reuses it: one
            product costs about 1.5 gradients. ``"double_backward"`` rebuilds it, batch by batch, for each block of
            vectors: least memory. ``"forward_reverse"`` pushes the vector forward through the gradient.
            ``"difference"`` needs no second derivative and is right to about 1e-8 in float64, 1e-3 in float32.
            ``"auto"`` takes the first if it fits in memory, else the second; see ``operator.record``.
        memory_limit: Bytes that ``"auto"`` may keep; default a quarter of what is free now.
        with_gradient: Keep value and gradient at ``w``, which recording the graph computes anyway, in
            ``operator.value`` and ``operator.gradient``: one vector more. Other layouts leave them None.

    Returns:
        A `HessianOperator`. Use it in a ``with`` block, or drop it, to free the graph.

    Raises:
        InvalidInput: ``w`` has another shape, or the layout's name is unknown.
        NotDifferentiable: The loss has no second derivative (here, or at the first product).

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> from thalweg.problem import Problem
        >>> H = hessian(Problem(model, torch.nn.MSELoss(), (x, 0 * x)))
        >>> H.matvec(torch.ones(1, dtype=torch.float64)).item()  # 2 mean(x^2)
        10.0
    """
    if layout not in get_args(LayoutName):
        raise InvalidInput(
            explain(
                f"The layout {layout!r} is unknown",
                "it names how Hessian products are computed",
                f"Choose among {', '.join(get_args(LayoutName))}",
            )
        )
    point = problem.initial if w is None else w.detach().to(problem.device, problem.dtype, copy=True)
    problem.layout.split(point)  # checks the shape
    return HessianOperator(problem, point, layout, memory_limit, with_gradient)
