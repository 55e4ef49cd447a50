"""Random projections that are generated where they are needed: inner products of long vectors from short ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg import _rng
from thalweg.errors import InvalidInput, explain

_CHUNK = 1 << 20
_MIX = (-7046029254386353131, -4658895280553007687, -7723592293110705685)
"""Odd multipliers of the SplitMix64 generator, as signed integers; products wrap around."""


@dataclass(frozen=True)
class Projection:
    r"""A linear map ``S`` to few dimensions with ``E <S x, S y> = <x, y>``.

    ``(S x)_b = sum_{i: h(i) = b} s(i) x_i`` with a bucket ``h(i)`` and a sign ``s(i)`` for each element, both a hash of
    ``(seed, tensor, i)``. The variance is ``(|x|^2 |y|^2 + <x, y>^2 - 2 sum_i x_i^2 y_i^2) / k``: exactly that of k
    rows of random signs, at one addition an element instead of k (the count sketch of Charikar, Chen and
    Farach-Colton, 2002). A cosine c is known to about ``(1 - c^2) / sqrt(k)``. A tensor of at most k elements is
    kept as it is.

    Args:
        size: ``k``, dimensions kept for each tensor.
        seed: Root seed of all buckets and signs.

    Example:
        >>> x = torch.randn(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> short = Projection(1024).apply("weight", x)
        >>> short.shape, bool(abs(short @ short / (x @ x) - 1) < 4 * (2 / 1024) ** 0.5)
        (torch.Size([1024]), True)
    """

    size: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool) or not 1 <= self.size < 1 << 31:
            raise InvalidInput(
                explain(
                    f"The size of the projection is {self.size!r}",
                    "it counts the dimensions kept for each tensor",
                    "Pass a whole number such as 1024, which gives cosines to about 0.03",
                )
            )

    def width(self, elements: int) -> int:
        """Return the length of the projection of a tensor of ``elements``."""
        return min(elements, self.size)

    def apply(self, name: str, values: Tensor, start: int = 0, elements: int | None = None) -> Tensor:
        """Project elements ``[start, start + len(values))`` of a tensor; the projections of its pieces add up.

        Args:
            name: Name of the tensor, which has buckets and signs of its own.
            values: The elements, any shape and floating dtype.
            start: Place of the first of them in the flattened tensor.
            elements: Elements of the whole tensor; None: these are all.

        Returns:
            Shape ``(width,)``, float64, on the device of ``values``.
        """
        flat = values.detach().reshape(-1)
        whole = flat.numel() if elements is None else elements
        found = torch.zeros(self.width(whole), dtype=torch.float64, device=flat.device)
        if whole <= self.size:
            found[start : start + flat.numel()] = flat.to(torch.float64)
            return found
        key = _rng.derive_seed(self.seed, "projection", name)
        for first in range(0, flat.numel(), _CHUNK):
            part = flat[first : first + _CHUNK].to(torch.float64)
            place = torch.arange(start + first, start + first + part.numel(), device=flat.device)
            bits = _hash(place, key)
            negative = (bits & 1).to(torch.bool)
            found.index_add_(0, (bits >> 1) % self.size, torch.where(negative, -part, part))
        return found


def _hash(place: Tensor, key: int) -> Tensor:
    """Mix counters into 62 random bits each, the same on every device and in every order."""
    mixed = place * _MIX[0] + key
    mixed = (mixed ^ ((mixed >> 30) & ((1 << 34) - 1))) * _MIX[1]
    mixed = (mixed ^ ((mixed >> 27) & ((1 << 37) - 1))) * _MIX[2]
    return ((mixed ^ ((mixed >> 31) & ((1 << 33) - 1))) >> 2) & ((1 << 62) - 1)
