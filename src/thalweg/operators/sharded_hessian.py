"""Hessian products of a sharded problem, on pieces of vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from thalweg import _rng
from thalweg.errors import DistributedError, InvalidInput, explain
from thalweg.operators.base import Operator
from thalweg.operators.pieces import Pieces
from thalweg.problem.graphs import no_second_derivative, refuse_dead_ends, second_derivative

if TYPE_CHECKING:
    from thalweg.operators.sharded import ShardedProblem

ShardedLayout = Literal["double_backward", "linearised", "difference"]
Graph = tuple[list[Tensor], Sequence[Tensor]]


class ShardedHessian(Operator):
    """``v -> H(w) v`` on pieces: ``size`` is ``P``, and vectors have the ``space.length`` entries of this process.

    Solvers that take inner products through ``operator.space`` work on it, such as `top_eigenpairs`. Others are
    refused when they come with vectors of length ``P``; for those, and ``P`` small enough, there is `gathered`.

    Attributes:
        layout_used: How products are computed.
    """

    def __init__(self, problem: ShardedProblem, w: Tensor, layout: ShardedLayout) -> None:
        super().__init__(problem.dimension, problem.dtype, problem.device, problem.space)
        self.problem, self.w, self.layout_used = problem, w, layout
        self._graphs: list[Graph] = []
        self._walked = False
        if layout == "linearised":
            self._graphs = list(self._linearise())
        if problem.check and layout != "difference":
            self._compare()

    def _matvec(self, v: Tensor) -> Tensor:
        return self._rows(v.unsqueeze(0))[0]

    def _matmat(self, block: Tensor) -> Tensor:
        return self._rows(block.T.contiguous()).T

    def close(self) -> None:
        """Free the kept graph. Later products rebuild it."""
        self._graphs = []

    def __enter__(self) -> ShardedHessian:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _linearise(self) -> Iterator[Graph]:
        """Yield leaves and weighted gradient of each batch, with its graph."""
        problem = self.problem
        for batch, weight in problem.steps():
            leaves = [leaf.requires_grad_() for leaf in problem.leaves(self.w)]
            with torch.enable_grad(), problem.differentiation(), second_derivative():
                value = problem.loss(leaves, batch) * weight
                grads = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
            if not any(g is not None and g.requires_grad for g in grads):
                raise no_second_derivative(None)
            if not self._walked:
                refuse_dead_ends([g for g in grads if g is not None])
                self._walked = True
            yield leaves, [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, grads)]

    def _rows(self, block: Tensor) -> Tensor:
        if self.layout_used == "difference":
            return torch.stack([self._difference(v) for v in block])
        out = torch.zeros_like(block)
        for leaves, grads in self._graphs or self._linearise():
            recorded = [i for i, g in enumerate(grads) if g.requires_grad]
            for row, v in zip(out, block):
                parts = self.problem.space.local.split(v)
                with self.problem.differentiation(), second_derivative():
                    found = torch.autograd.grad(
                        [grads[i] for i in recorded],
                        leaves,
                        grad_outputs=[parts[i] for i in recorded],
                        retain_graph=True,
                        allow_unused=True,
                    )
                self.problem.add(row, found)
        return out

    def _difference(self, v: Tensor) -> Tensor:
        """``(g(w + h v) - g(w - h v)) / 2h``, with a step relative to the rounding of the weights."""
        norm = float(self.space.norm(v))
        if norm == 0:
            return torch.zeros_like(v)
        h = torch.finfo(self.dtype).eps ** (1 / 3) * max(float(self.space.norm(self.w)), 1.0) / norm
        ahead, behind = (self.problem.outer_gradient(self.w + step * v) for step in (h, -h))
        slope: Tensor = (ahead - behind) / (2 * h)
        return slope

    def _compare(self) -> None:
        """Compare one product with a difference of gradients through the model's own hooks, once a problem."""
        v = self.space.random(_rng.generator(0, "sharded check")).to(self.w)
        exact, near = self._rows(v.unsqueeze(0))[0], self._difference(v)
        error, size = float(self.space.norm(exact - near)), float(self.space.norm(near))
        floor = 1e3 * torch.finfo(self.dtype).eps ** (2 / 3) * float(self.space.norm(v))
        if not error <= 0.05 * size + floor:
            raise DistributedError(
                explain(
                    f"A product differs from a difference of gradients by {error / (size or 1.0):.1e} of its size",
                    "the model does other operations on some process, gradients are not averaged over processes as "
                    "fully_shard does by default, or the loss has kinks everywhere",
                    'Compare with layout="difference"; check=False on the problem leaves this comparison out',
                )
            )
        self.problem.check = False


class Gathered(Operator):
    """An operator on pieces as one on whole vectors, equal on every process."""

    def __init__(self, inner: Operator, pieces: Pieces) -> None:
        super().__init__(inner.size, inner.dtype, inner.device)
        self.inner, self.pieces = inner, pieces

    def _matvec(self, v: Tensor) -> Tensor:
        return self.pieces.whole(self.inner.matvec(self.pieces.piece(v)))

    def _matmat(self, block: Tensor) -> Tensor:
        cut = torch.stack([self.pieces.piece(v) for v in block.T], dim=1)
        return torch.stack([self.pieces.whole(v) for v in self.inner.matmat(cut).T], dim=1)


def gathered(operator: Operator) -> Gathered:
    """Return an operator on pieces as one on whole vectors, replicated on every process.

    Any solver or estimator takes it. It needs memory for whole vectors, though still not for a whole model's graph.

    Args:
        operator: Such as ``ShardedProblem.hessian()``.

    Raises:
        InvalidInput: The operator's vectors are whole already.

    Example:
        >>> from thalweg.operators.base import from_dense
        >>> try:
        ...     gathered(from_dense(torch.eye(2)))
        ... except InvalidInput as error:
        ...     print(error)
        The vectors of this operator are whole. There is nothing to gather. Use it as it is.
    """
    pieces: Any = operator.space
    if not isinstance(pieces, Pieces):
        raise InvalidInput(
            explain("The vectors of this operator are whole", "there is nothing to gather", "Use it as it is")
        )
    return Gathered(operator, pieces)
