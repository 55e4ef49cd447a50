"""The Hessians at R points of one problem: one backward pass through a graph multiplies each with its own vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.problem.graphs import Graph, forget_values, linearise, no_second_derivative, second_derivative
from thalweg.problem.guards import no_autocast

if TYPE_CHECKING:
    from thalweg.sweeps.stack import Stack


class RowOperator:
    """The Hessians at R points: ``matvec`` multiplies each row of a block with its own.

    Attributes:
        W: The points, shape ``(R, P)``.
        value: Losses, shape ``(R,)``.
        gradient: Gradients, shape ``(R, P)``.
        products: Rows multiplied so far, summed over calls, those of operators selected from this one apart.
    """

    def __init__(self, stack: Stack, W: Tensor) -> None:
        self.stack, self.W = stack, W
        self.value, self.gradient = torch.zeros_like(W[:, 0]), torch.zeros_like(W)
        self.products = 0
        self._keeps = len(W) * stack.graph_bytes * 2 <= stack.budget
        self._blocks: list[_Block] = []
        for part in stack._parts(len(W)):
            block = _Block(stack, W[part])
            for losses, grads, weight in block.record(self._keeps):
                self.value[part] += losses * weight
                for place, grad in zip(stack._leaves(self.gradient[part]), grads):
                    place.add_(grad.detach(), alpha=weight)
            self._blocks.append(block)

    def matvec(self, V: Tensor) -> Tensor:
        """Return ``H(W_r) V_r``, shape ``(R, P)``."""
        if V.shape != self.W.shape:
            raise InvalidInput(
                explain(
                    f"V has shape {tuple(V.shape)}",
                    f"there is a row for each of {len(self.W)} Hessians",
                    f"Pass shape {tuple(self.W.shape)}",
                )
            )
        out, start = torch.zeros_like(self.W), 0
        for block in self._blocks:
            part = slice(start, start + len(block.W))
            block.multiply(V[part], out[part])
            start = part.stop
        self.products += len(V)
        return out

    def select(self, rows: Tensor) -> RowOperator:
        """Return the operator of some rows, in ascending order; graphs are kept, or recorded anew where rows left."""
        other = object.__new__(RowOperator)
        other.stack, other.W = self.stack, self.W[rows]
        other.value, other.gradient = self.value[rows], self.gradient[rows]
        other.products, other._keeps, other._blocks = 0, self._keeps, []
        start = 0
        for block in self._blocks:
            stop = start + len(block.W)
            inside = rows[(rows >= start) & (rows < stop)] - start
            if len(inside) == len(block.W):
                other._blocks.append(block)
            elif len(inside):
                fresh = _Block(self.stack, block.W[inside])
                if self._keeps:
                    for _ in fresh.record(True):
                        pass
                other._blocks.append(fresh)
            start = stop
        return other


class _Block:
    """Rows whose graph is one."""

    def __init__(self, stack: Stack, W: Tensor) -> None:
        self.stack, self.W = stack, W
        self.graphs: list[tuple[Graph, float]] = []

    def record(self, keep: bool) -> Iterator[tuple[Tensor, Sequence[Tensor], float]]:
        """Yield losses, gradients and weight of each batch; keep the graphs if asked to."""
        for batch, weight in self.stack._batches:
            losses, leaves, grads = self._linearise(batch)
            if keep:
                self.graphs.append((forget_values((leaves, grads)), weight))
            yield losses, grads, weight

    def multiply(self, V: Tensor, out: Tensor) -> None:
        """Add the products to ``out``."""
        if self.graphs:
            for graph, weight in self.graphs:
                self._through(graph, weight, V, out)
            return
        for batch, weight in self.stack._batches:
            _, leaves, grads = self._linearise(batch)
            self._through(forget_values((leaves, grads)), weight, V, out)

    def _linearise(self, batch: Any) -> tuple[Tensor, list[Tensor], Sequence[Tensor]]:
        stack = self.stack
        leaves = [leaf.detach().requires_grad_() for leaf in stack._leaves(self.W)]
        with torch.enable_grad(), no_autocast(self.W.device):
            losses = stack._rows.losses(leaves, batch, False)
            with second_derivative():
                grads = stack._grad(losses, leaves, create_graph=True)
        if not any(g.requires_grad for g in grads):
            raise no_second_derivative(None)
        if not stack.problem.notes.get("walked"):
            linearise(
                stack.problem, self.W[0], batch
            )  # looks for operations without a second derivative, and names them
        return losses.detach(), leaves, grads

    def _through(self, graph: Graph, weight: float, V: Tensor, out: Tensor) -> None:
        leaves, edges = graph
        recorded = [i for i, edge in enumerate(edges) if edge is not None]
        vectors = self.stack._leaves(V)
        with second_derivative(), no_autocast(V.device):
            found = torch.autograd.grad(
                [edges[i] for i in recorded],  # type: ignore[arg-type]
                leaves,
                grad_outputs=[vectors[i] for i in recorded],
                retain_graph=True,
                allow_unused=True,
            )
        for place, part in zip(self.stack._leaves(out), found):
            if part is not None:
                place.add_(part, alpha=weight)
