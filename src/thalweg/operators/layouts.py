"""Four ways to compute ``H v``, each a small class with ``product(block)``.

All of them loop over the batches of the problem with weights ``n_b / N``, so the product is that of the full data.
``autograd.grad`` only, never ``backward`` with a kept graph: that would tie the graph to ``.grad`` and leak.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thalweg._rng import generator
from thalweg._vectors import Layout
from thalweg.errors import NotDifferentiable, explain
from thalweg.problem.graphs import BATCHED_COLUMNS as BATCHED_COLUMNS
from thalweg.problem.graphs import Graph as Graph
from thalweg.problem.graphs import accumulate as accumulate
from thalweg.problem.graphs import forget_values as forget_values
from thalweg.problem.graphs import linearise as linearise
from thalweg.problem.graphs import no_second_derivative as no_second_derivative
from thalweg.problem.graphs import second_derivative as second_derivative
from thalweg.problem.problem import Problem


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
            accumulate(out, forget_values(linearise(self.problem, self.w, batch)), block, weight)
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
            accumulate(out, graph, block, weight)
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
        accumulate(reference, linearise(self.problem, self.w, batch), probe.unsqueeze(0), 1.0)
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
