"""Four ways to compute ``H v``, each a small class with ``product(block)``.

All of them loop over the batches of the problem with weights ``n_b / N``, so the product is that of the full data.
``autograd.grad`` only, never ``backward`` with a kept graph: that would tie the graph to ``.grad`` and leak.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from thalweg._rng import generator
from thalweg._vectors import Layout
from thalweg.errors import NotDifferentiable, explain
from thalweg.problem.guards import no_autocast
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

    def close(self) -> None:  # noqa: B027  (most layouts keep nothing)
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
    """Forward mode over reverse mode: lighter on some GPU models, nothing kept between products.

    ``jvp(vjp)`` where torch can do it. It raises for mean-reduced MSE, and there ``jvp(jacrev)`` takes over, whose
    vectorised backward of fused norms loses terms without saying so (torch 2.13: 6-25 % of the product). So
    such products are first compared with double backward, on one random vector.
    """

    def __init__(self, problem: Problem, w: Tensor) -> None:
        super().__init__(problem, w)
        self._vectorised = self._compared = False

    def product(self, block: Tensor) -> Tensor:
        """Push each row forward through the reverse-mode gradient."""
        out = torch.zeros_like(block)
        for batch, weight in self.problem.batches():
            for row, v in zip(out, block):
                row.add_(self._one(batch, v), alpha=weight)
        return out

    def _one(self, batch: Any, v: Tensor) -> Tensor:
        if not self._vectorised:
            try:
                return self._push(batch, v, self._pulled)
            except RuntimeError as error:
                if "ZeroTensor" not in str(error):
                    raise
                self._vectorised = True
        if not self._compared:
            self._compare(batch)
        return self._push(batch, v, self._vector_pulled)

    def _push(self, batch: Any, v: Tensor, gradient: Callable[..., tuple[Tensor, ...]]) -> Tensor:
        leaves, tangents = tuple(self.problem.layout.split(self.w)), tuple(self.problem.layout.split(v))
        with second_derivative(passing="ZeroTensor"):
            pair: Any = torch.func.jvp(lambda *point: gradient(batch, *point), leaves, tangents)
        return Layout.join(pair[1])

    def _pulled(self, batch: Any, *point: Tensor) -> tuple[Tensor, ...]:
        pair: Any = torch.func.vjp(lambda *at: self.problem.loss(at, batch), *point)
        return tuple(pair[1](torch.ones_like(pair[0])))

    def _vector_pulled(self, batch: Any, *point: Tensor) -> tuple[Tensor, ...]:
        every = tuple(range(len(point)))
        return tuple(torch.func.jacrev(lambda *at: self.problem.loss(at, batch), argnums=every)(*point))

    def _compare(self, batch: Any) -> None:
        """Compare on a random vector: a given one may miss the terms that are lost."""
        probe = torch.randn(self.w.shape, generator=generator(0, "forward_reverse")).to(self.w)
        result, reference = self._push(batch, probe, self._vector_pulled), torch.zeros_like(probe).unsqueeze(0)
        _accumulate(reference, linearise(self.problem, self.w, batch), probe.unsqueeze(0), 1.0)
        difference, size = float((result - reference[0]).norm()), float(reference.norm())
        if difference > torch.finfo(self.w.dtype).eps ** 0.5 * size:
            raise NotDifferentiable(
                explain(
                    f"The forward-reverse product differs from double backward by {difference / (size or 1.0):.1e}",
                    "torch differentiates the vectorised backward of a fused norm wrongly",
                    'Use layout="linearised", or write the norm out in primitives',
                )
            )
        self._compared = True


class Difference(HessianLayout):
    """``(g(w + h v) - g(w - h v)) / 2h``, for losses without a second derivative.

    The step is ``h = eps^(1/3) max(|w|, 1) / |v|``: relative to the rounding of the weights, because an absolute
    step is lost in it for low precision or many parameters. In units of the curvature the error is ``eps^(2/3)``
    (4e-11 in float64, 2e-5 in float32) times a number that grows with the fourth derivative: 1 to 2000 on the
    models in the tests.
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
    with torch.enable_grad(), no_autocast(problem.device):
        value = problem.loss(leaves, batch)
        with second_derivative():
            grads = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
    if not any(g.requires_grad for g in grads):
        raise no_second_derivative(None)
    if not problem.notes.get("walked"):
        _refuse_dead_ends(grads)
        problem.notes["walked"] = True
    return leaves, grads


def _refuse_dead_ends(grads: Sequence[Tensor]) -> None:
    """Raise where the gradient's graph has a node of an operation that is marked as differentiable only once.

    Such a node raises when it is run, but it leads to no leaf, so a product never runs it and loses its terms
    without a word.
    """
    waiting: list[Any] = [g.grad_fn for g in grads if g.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node.name() == "torch::autograd::Error":
            raise no_second_derivative(RuntimeError("an operation is marked with @once_differentiable"))
        fresh = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= fresh
        waiting += fresh


@contextmanager
def second_derivative(passing: str = "allocate") -> Iterator[None]:
    """Say what a failure inside means, unless memory ran out or its text has ``passing`` in it."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError) or any(t in str(error) for t in ("allocate", passing)):
            raise
        raise no_second_derivative(error) from error


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


def _accumulate(out: Tensor, graph: Graph, block: Tensor, weight: float, batched: bool | None = None) -> None:
    """Add ``weight H V`` of one batch to ``out``; rows are vectors."""
    batched = block.is_cuda and len(block) > 1 if batched is None else batched
    leaves, grads = graph
    recorded = [i for i, g in enumerate(grads) if g.requires_grad]
    outputs = [grads[i] for i in recorded]
    shapes, sizes = [leaf.shape for leaf in leaves], [leaf.numel() for leaf in leaves]

    def cut(rows: Tensor, lead: tuple[int, ...]) -> list[Tensor]:
        parts = torch.split(rows, sizes, dim=-1)
        return [parts[i].reshape(lead + tuple(shapes[i])) for i in recorded]

    def backward(vectors: list[Tensor], lead: tuple[int, ...]) -> Tensor:
        with second_derivative():
            parts = torch.autograd.grad(
                outputs,
                leaves,
                grad_outputs=vectors,
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=bool(lead),
            )
        whole = [block.new_zeros((*lead, n)) if p is None else p.reshape((*lead, n)) for p, n in zip(parts, sizes)]
        return torch.cat(whole, dim=-1)

    if batched:
        for start in range(0, len(block), BATCHED_COLUMNS):
            rows = block[start : start + BATCHED_COLUMNS]
            lead = (len(rows),)
            out[start : start + len(rows)].add_(backward(cut(rows, lead), lead), alpha=weight)
    else:
        for row, v in zip(out, block):
            row.add_(backward(cut(v, ()), ()), alpha=weight)
