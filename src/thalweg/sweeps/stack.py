"""R copies of one architecture on one data set, evaluated as one program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, NotDifferentiable, explain
from thalweg.problem import memory
from thalweg.problem.batches import map_tensors, tensors_in
from thalweg.problem.guards import no_autocast
from thalweg.problem.problem import Problem
from thalweg.sweeps.batched_layers import Layers, flaw
from thalweg.sweeps.batched_products import RowOperator as RowOperator
from thalweg.sweeps.batched_rows import Loop, Rows, Vmap

Way = Literal["auto", "mlp", "cnn", "vmap", "loop"]
CACHED = 1 << 25
"""Bytes of graph that are worked on at a time on the CPU: beyond its caches, more rows at once cost more each."""

FILLED = 2e7
"""Operations of a layer's product that fill a CPU core: from there on a stack of rows is slower than one by one."""


class Stack:
    r"""Many points of one problem, ``W`` of shape ``(R, P)``: losses ``L(W_r)``, gradients and products ``H(W_r) v_r``.

    The rows share model, loss and data and nothing else: the Hessian of ``sum_r L(W_r)`` is block diagonal, so one
    backward pass gives each row its own gradient, and one through the gradient's graph its own Hessian product. A row
    that overflows harms no other.

    Args:
        problem: Model, loss and data. Its data stays in memory.
        dtype: Evaluate in this floating dtype; default the problem's.
        method: ``"mlp"`` and ``"cnn"`` evaluate sequences of known layers by batched matrix products and grouped
            convolutions; ``"vmap"`` takes any module that ``torch.func`` takes; ``"loop"`` any module, a row at a time.
            ``"auto"`` is the first of these that takes the model and agrees with it where it stands.
        budget: Bytes that graphs and bases may take at a time, beyond ``W`` itself; default a quarter of what is free.

    Attributes:
        problem: As evaluated.
        method: The way that is used.
        why: Why not one that was tried before.
        graph_bytes: What the graph of one row's gradient keeps.

    Raises:
        InvalidInput: The method does not take this model; the message says what stands in its way.
        NotDifferentiable: The loss does not depend on the parameters.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
        >>> x = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)
        >>> problem = Problem(model, torch.nn.MSELoss(), (x, x.sum(1, keepdim=True)))
        >>> stack = Stack(problem)
        >>> W = torch.stack([problem.initial, 2 * problem.initial])
        >>> losses, gradients = stack.value_and_gradient(W)
        >>> bool((gradients[1] - problem.gradient(W[1])).abs().max() < 1e-12)
        True
    """

    def __init__(
        self, problem: Problem, *, dtype: torch.dtype | None = None, method: Way = "auto", budget: int | None = None
    ) -> None:
        if method not in get_args(Way):
            known = ", ".join(get_args(Way))
            raise InvalidInput(
                explain(f"The method is {method!r}", "it names how rows are evaluated", f"One of {known}")
            )
        if budget is not None and budget < 1:
            raise InvalidInput(explain(f"The budget is {budget}", "it counts bytes", "Pass a positive number, or None"))
        self.problem = problem if dtype in (None, problem.dtype) else problem.in_dtype(dtype)
        self._batches = list(self.problem.batches())
        self._whole: Any = None
        self.graph_bytes = self._measure()
        self.budget = memory.available(self.problem.device) // 4 if budget is None else budget
        self._rows, self.why = self._choose(method)
        self.method = self._rows.name

    @property
    def dimension(self) -> int:
        """Parameters of a row, ``P``."""
        return self.problem.dimension

    def loss(self, W: Tensor) -> Tensor:
        """Return ``L(W_r)`` over all data, shape ``(R,)``, for ``W`` of shape ``(R, P)``."""
        W = self._own(W)
        with torch.no_grad():
            return torch.cat([self._mean(self._leaves(W[part])) for part in self._parts(len(W), forward=True)])

    def value_and_gradient(self, W: Tensor, batch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return losses, shape ``(R,)``, and gradients, shape ``(R, P)``, without a graph.

        Args:
            W: Points, shape ``(R, P)``.
            batch: Indices of samples: ``(B,)`` for all rows alike, or ``(R, B)``, each row its own. Default: all data.

        Raises:
            InvalidInput: Shapes do not fit, or an index is out of range.
        """
        W = self._own(W)
        values, gradients = W.new_empty(len(W)), torch.zeros_like(W)
        index = None if batch is None else self._index(batch, len(W))
        for part in self._parts(len(W)):
            leaves = [leaf.requires_grad_() for leaf in self._leaves(W[part])]
            values[part] = 0.0
            for data, weight, own in self._data(index if index is None or index.ndim == 1 else index[part]):
                with torch.enable_grad(), no_autocast(W.device):
                    losses = self._rows.losses(leaves, data, own)
                    found = self._grad(losses, leaves, create_graph=False)
                values[part] += losses.detach() * weight
                for place, grad in zip(self._leaves(gradients[part]), found):
                    place.add_(grad, alpha=weight)
        return values, gradients

    def products(self, W: Tensor) -> RowOperator:
        """Return the Hessians at the rows of ``W``, with losses and gradients that come with their graphs."""
        return RowOperator(self, self._own(W))

    def rows_that_fit(self, vectors: int) -> int:
        """How many rows' graphs fit into the budget at once, each with ``vectors`` vectors beside it; at least one."""
        row = self.graph_bytes * 2 + vectors * self.dimension * self.problem.dtype.itemsize
        return max(self.budget // row, 1)

    def _measure(self) -> int:
        leaves = [leaf.requires_grad_() for leaf in self.problem.layout.split(self.problem.initial)]
        kept = 0
        for batch, _ in self._batches:
            with memory.SavedBytes() as saved, torch.enable_grad():
                value = self.problem.loss(leaves, batch)
                grads = (
                    torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
                    if value.requires_grad
                    else ()
                )
            if not any(g is not None for g in grads):
                raise NotDifferentiable(
                    explain(
                        "The loss does not depend on any of the chosen parameters",
                        "its gradient was not recorded",
                        "Look for .detach(), .item() or no_grad() in model or loss",
                    )
                )
            kept += saved.bytes
        return kept

    def _choose(self, method: Way) -> tuple[Rows, str]:
        """Build the rows of ``method``, or of the first way that works."""
        ways: dict[str, Any] = {
            "mlp": lambda problem: Layers(problem, images=False),
            "cnn": lambda problem: Layers(problem, images=True),
            "vmap": Vmap,
            "loop": Loop,
        }
        said: list[str] = []
        for name in ways if method == "auto" else [method]:
            wrong = flaw(self.problem, name == "cnn") if name in ("mlp", "cnn") else ""
            if not wrong:
                rows: Rows = ways[name](self.problem)
                wrong = self._wrong(rows)
            if not wrong:
                return rows, "; ".join(said)
            said.append(f"{name}: {wrong}")
        raise InvalidInput(
            explain(
                f"No method takes this model: {'; '.join(said)}",
                "its rows would be wrong, or do not come about at all",
                'Use method="auto"'
                if method != "auto"
                else "Check that the problem is deterministic: Problem(check=True)",
            )
        )

    def _wrong(self, rows: Rows) -> str:
        """What is wrong with two rows near where the model stands, or nothing."""
        start = self.problem.initial
        W = torch.stack([start, start * 1.01])
        batch = self._batches[0][0]
        try:
            with torch.no_grad():
                found = rows.losses(self._leaves(W), batch, False)
                wanted = Loop(self.problem).losses(self._leaves(W), batch, False)
        except (RuntimeError, NotImplementedError, IndexError, InvalidInput) as error:
            return str(error).splitlines()[0]
        slack = 1e3 * torch.finfo(wanted.dtype).eps
        if found.shape == wanted.shape and torch.allclose(found, wanted, rtol=slack, atol=slack, equal_nan=True):
            return ""
        return f"its losses are {found.tolist()} where the model's are {wanted.tolist()}"

    def _own(self, W: Tensor) -> Tensor:
        if W.ndim != 2 or W.shape[1] != self.dimension or not len(W):
            raise InvalidInput(
                explain(
                    f"W has shape {tuple(W.shape)}",
                    f"each of its rows holds the {self.dimension} parameters of one copy",
                    f"Pass shape (R, {self.dimension}) with at least one row",
                )
            )
        return W.detach().to(self.problem.device, self.problem.dtype)

    def _leaves(self, W: Tensor) -> list[Tensor]:
        """Views of ``W``, one per parameter, shape ``(R, *shape)``."""
        layout = self.problem.layout
        cut = torch.split(W, list(layout.sizes), dim=1)
        return [part.view(len(W), *shape) for part, shape in zip(cut, layout.shapes)]

    def _parts(self, count: int, forward: bool = False) -> Iterator[slice]:
        """Rows that are evaluated together."""
        size = self.rows_at_once * (4 if forward else 1)
        for start in range(0, count, size):
            yield slice(start, min(start + size, count))

    @property
    def rows_at_once(self) -> int:
        """How many rows are evaluated together: what the budget holds; on a CPU its caches, or one that fills it."""
        if self.problem.device.type == "cpu" and self.method == "mlp" and self._operations() > FILLED:
            return 1
        allowed = self.budget if self.problem.device.type != "cpu" else min(self.budget, CACHED)
        return max(allowed // (2 * max(self.graph_bytes, 1)), 1)

    def _operations(self) -> float:
        """Of the matrix product of a layer on the first batch, for one row, on average over layers."""
        layers = [size for size, shape in zip(self.problem.layout.sizes, self.problem.layout.shapes) if len(shape) == 2]
        return 2.0 * sum(layers) / max(len(layers), 1) * len(tensors_in(self._batches[0][0])[0])

    def _mean(self, leaves: Sequence[Tensor]) -> Tensor:
        with no_autocast(self.problem.device):
            parts = [self._rows.losses(leaves, batch, False) * weight for batch, weight in self._batches]
        return torch.stack(parts).sum(dim=0)

    def _grad(self, losses: Tensor, leaves: Sequence[Tensor], create_graph: bool) -> Sequence[Tensor]:
        return torch.autograd.grad(
            losses,
            leaves,
            torch.ones_like(losses),
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )

    def _data(self, index: Tensor | None) -> Iterator[tuple[Any, float, bool]]:
        """Batches with weights, and whether each row has its own."""
        if index is None:
            yield from ((batch, weight, False) for batch, weight in self._batches)
            return
        if self._whole is None:
            self._whole = _joined([batch for batch, _ in self._batches])
        yield map_tensors(lambda t: t[index], self._whole), 1.0, index.ndim == 2

    def _index(self, batch: Tensor, rows: int) -> Tensor:
        count = sum(len(tensors_in(data)[0]) for data, _ in self._batches)
        shaped = batch.ndim == 1 or (batch.ndim == 2 and len(batch) == rows)
        whole = not (batch.is_floating_point() or batch.is_complex() or batch.dtype == torch.bool)
        if not shaped or not whole or not batch.numel() or int(batch.min()) < 0 or int(batch.max()) >= count:
            raise InvalidInput(
                explain(
                    f"batch has shape {tuple(batch.shape)} and dtype {batch.dtype}",
                    f"it holds indices of samples, 0 to {count - 1}, for all rows or for each of {rows}",
                    f"Pass integers of shape (B,) or ({rows}, B)",
                )
            )
        return batch.to(self.problem.device)

    def __repr__(self) -> str:
        return f"Stack({self.problem!r}, method={self.method!r}, {self.rows_at_once} rows at once)"


def _joined(batches: list[Any]) -> Any:
    """All samples as one batch."""
    if len(batches) == 1:
        return batches[0]
    columns = [torch.cat(parts) for parts in zip(*(tensors_in(batch) for batch in batches))]
    left = iter(columns)
    return map_tensors(lambda _: next(left), batches[0])
