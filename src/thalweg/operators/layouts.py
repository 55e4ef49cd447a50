"""Four ways to compute ``H v``, each a small class with ``product(block)``.

All of them loop over the batches of the problem with weights ``n_b / N``, so the product is that of the full data.
``autograd.grad`` only, never ``backward`` with a kept graph: that would tie the graph to ``.grad`` and leak.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thalweg._vectors import Layout
from thalweg.errors import NotDifferentiable, explain
from thalweg.problem.problem import Problem

Graph = tuple[list[Tensor], Sequence[Tensor]]
"""Leaves, and the gradient at them with its own graph."""

BATCHED_COLUMNS = 8
"""Columns per batched backward on a GPU; on the CPU a loop is faster (measured: blocks cost 1.8-3.9 a vector)."""


class HessianLayout(ABC):
    """How to multiply the Hessian of ``problem`` at ``w`` with the columns of a block."""

    def __init__(self, problem: Problem, w: Tensor) -> None:
        self.problem = problem
        self.w = w

    @abstractmethod
    def product(self, block: Tensor) -> Tensor:
        """Return ``H V`` for ``block`` of shape ``(k, P)``, one vector per *row*; same shape."""

    def close(self) -> None:
        """Free what is kept between products."""


class DoubleBackward(HessianLayout):
    """``grad_w (g(w) . v)`` with the graph of ``g`` rebuilt for each call, batch by batch: least memory."""

    def product(self, block: Tensor) -> Tensor:
        """Linearise each batch once, use it for every row of the block, drop it."""
        out = torch.zeros_like(block)
        for batch, weight in self.problem.batches():
            _accumulate(out, linearise(self.problem, self.w, batch), block, weight)
        return out


class Linearised(HessianLayout):
    """The same with the graphs of all batches kept: one backward pass through them is one product."""

    def __init__(self, problem: Problem, w: Tensor, graphs: list[tuple[Graph, float]]) -> None:
        super().__init__(problem, w)
        self.graphs = graphs

    def product(self, block: Tensor) -> Tensor:
        """Run one backward pass per row through every kept graph."""
        out = torch.zeros_like(block)
        for graph, weight in self.graphs:
            _accumulate(out, graph, block, weight)
        return out

    def close(self) -> None:
        """Drop the graphs."""
        self.graphs = []


class ForwardReverse(HessianLayout):
    """Mixed mode ``jvp(jacrev)``: lighter on some GPU models; works where ``jvp(grad)`` raises (mean-reduced MSE)."""

    def product(self, block: Tensor) -> Tensor:
        """Push each row forward through the reverse-mode gradient."""
        leaves = tuple(self.problem.layout.split(self.w))
        rows = []
        for v in block:
            tangents = tuple(self.problem.layout.split(v))
            total = torch.zeros_like(v)
            for batch, weight in self.problem.batches():

                def value(*point: Tensor, batch: Any = batch) -> Tensor:
                    return self.problem.loss(point, batch)

                gradient = torch.func.jacrev(value, argnums=tuple(range(len(leaves))))
                try:
                    _, product = torch.func.jvp(gradient, leaves, tangents)
                except (RuntimeError, NotImplementedError) as error:
                    raise no_second_derivative(error) from error
                total.add_(Layout.join(product), alpha=weight)
            rows.append(total)
        return torch.stack(rows)


class Difference(HessianLayout):
    """``(g(w + h v) - g(w - h v)) / 2h``, for losses without a second derivative.

    The step is ``h = eps^(1/3) max(|w|, 1) / |v|``: relative to the rounding of the weights, because an absolute
    step is lost in it for low precision or many parameters. In units of the curvature the error is of order
    ``eps^(2/3)``: 4e-11 in float64, 2e-5 in float32.
    """

    def product(self, block: Tensor) -> Tensor:
        """Take two gradients per row."""
        scale = torch.finfo(self.w.dtype).eps ** (1 / 3) * max(float(self.w.norm()), 1.0)
        rows = []
        for v in block:
            norm = float(v.norm())
            if norm == 0:
                rows.append(torch.zeros_like(v))
                continue
            h = scale / norm
            ahead, behind = self.w + h * v, self.w - h * v
            rows.append((self.problem.gradient(ahead) - self.problem.gradient(behind)) / (2 * h))
        return torch.stack(rows)


def linearise(problem: Problem, w: Tensor, batch: Any) -> Graph:
    """Return leaves at ``w`` and the gradient of the batch's mean loss with its graph.

    Raises:
        NotDifferentiable: An operation on the way has no second derivative.
    """
    leaves = [leaf.detach().requires_grad_() for leaf in problem.layout.split(w)]
    with torch.enable_grad():
        value = problem.loss(leaves, batch)
        try:
            grads = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
        except (RuntimeError, NotImplementedError) as error:
            raise no_second_derivative(error) from error
    if not any(g.requires_grad for g in grads):
        raise no_second_derivative(None)
    return leaves, grads


def no_second_derivative(error: Exception | None) -> NotDifferentiable:
    """Build the error for a loss that cannot be differentiated twice."""
    if error is None:
        found = "The gradient of the loss does not depend on the weights through recorded operations"
        why = "its Hessian is zero, or a custom backward hides it"
    else:
        found = f"Differentiating the gradient failed: {str(error).splitlines()[0]}"
        why = "a Hessian product needs a second derivative of every operation"
    return NotDifferentiable(
        explain(
            found,
            why,
            'Use layout="difference", or replace the operation (attention: attn_implementation="eager"); '
            "thalweg doctor names it",
        )
    )


def _accumulate(out: Tensor, graph: Graph, block: Tensor, weight: float) -> None:
    leaves, grads = graph
    recorded = [i for i, g in enumerate(grads) if g.requires_grad]
    outputs = [grads[i] for i in recorded]
    shapes, sizes = [leaf.shape for leaf in leaves], [leaf.numel() for leaf in leaves]

    def cut(rows: Tensor, lead: tuple[int, ...]) -> list[Tensor]:
        parts = rows.split(sizes, dim=-1)
        return [parts[i].reshape(lead + tuple(shapes[i])) for i in recorded]

    def backward(vectors: list[Tensor], batched: bool) -> Sequence[Tensor]:
        try:
            return torch.autograd.grad(
                outputs,
                leaves,
                grad_outputs=vectors,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
                is_grads_batched=batched,
            )
        except (RuntimeError, NotImplementedError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise no_second_derivative(error) from error

    if block.is_cuda and len(block) > 1:
        for start in range(0, len(block), BATCHED_COLUMNS):
            rows = block[start : start + BATCHED_COLUMNS]
            parts = backward(cut(rows, (len(rows),)), batched=True)
            joined = torch.cat([p.reshape(len(rows), -1) for p in parts], dim=1)
            out[start : start + len(rows)].add_(joined, alpha=weight)
    else:
        for row, v in zip(out, block):
            row.add_(Layout.join(backward(cut(v, ()), batched=False)), alpha=weight)
