"""Sums, multiples, shifts and principal blocks of operators."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.operators.base import Operator


class Sum(Operator):
    """``A + B``. One product costs one of each."""

    def __init__(self, left: Operator, right: Operator) -> None:
        if (left.size, left.space.length, left.dtype, left.device) != (
            right.size,
            right.space.length,
            right.dtype,
            right.device,
        ):
            raise InvalidInput(
                explain(
                    f"The operators have size {left.size} in {left.dtype} and size {right.size} in {right.dtype}",
                    "a sum needs the same vectors on both sides",
                    "Build both from the same problem, dtype and device",
                )
            )
        super().__init__(left.size, left.dtype, left.device, left.space)
        self.left, self.right = left, right

    def _matvec(self, v: Tensor) -> Tensor:
        return self.left.matvec(v) + self.right.matvec(v)

    def _matmat(self, block: Tensor) -> Tensor:
        return self.left.matmat(block) + self.right.matmat(block)


class _Wrapped(Operator):
    """An operator on the same vectors as ``inner``."""

    def __init__(self, inner: Operator) -> None:
        super().__init__(inner.size, inner.dtype, inner.device, inner.space)
        self.inner = inner


class Scaled(_Wrapped):
    """``c A``."""

    def __init__(self, inner: Operator, factor: float) -> None:
        super().__init__(inner)
        self.factor = factor

    def _matvec(self, v: Tensor) -> Tensor:
        return self.factor * self.inner.matvec(v)

    def _matmat(self, block: Tensor) -> Tensor:
        return self.factor * self.inner.matmat(block)


class Shifted(_Wrapped):
    """``A + sigma I``."""

    def __init__(self, inner: Operator, sigma: float) -> None:
        super().__init__(inner)
        self.sigma = sigma

    def _matvec(self, v: Tensor) -> Tensor:
        return torch.add(self.inner.matvec(v), v, alpha=self.sigma)  # not in place: A v may share memory with v

    def _matmat(self, block: Tensor) -> Tensor:
        return torch.add(self.inner.matmat(block), block, alpha=self.sigma)


class Restricted(Operator):
    """``S' A S``, the principal block on some coordinates."""

    def __init__(self, inner: Operator, indices: Tensor) -> None:
        super().__init__(indices.numel(), inner.dtype, inner.device)
        self.inner, self.indices = inner, indices

    def _matvec(self, v: Tensor) -> Tensor:
        full = torch.zeros(self.inner.size, dtype=self.dtype, device=self.device)
        full[self.indices] = v
        return self.inner.matvec(full)[self.indices]

    def _matmat(self, block: Tensor) -> Tensor:
        full = torch.zeros(self.inner.size, block.shape[1], dtype=self.dtype, device=self.device)
        full[self.indices] = block
        return self.inner.matmat(full)[self.indices]
