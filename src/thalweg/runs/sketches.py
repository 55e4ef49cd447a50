"""Random projections that are generated where they are needed: inner products of long vectors from short ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thalweg._rng import derive_seed
from thalweg.errors import InvalidInput, explain

TILE = 2**18
"""Elements that share one stream of random numbers."""
_SHORT = 1024


def project(x: np.ndarray, k: int, seed: int, name: str, tile: int) -> np.ndarray:
    """Project a tile of a tensor to k dimensions: ``E <S x, S y> = <x, y>``.

    Each chunk of k elements gets random signs, is rotated by a random number of places, and is added to the others. Two
    elements of different chunks meet with probability 1/k, two of one chunk never, so that
    ``Var <S x, S y> <= (<x, y>^2 + |x|^2 |y|^2) / k``, with equality for many small elements; and up to k elements keep
    their inner products exactly. Signs and rotations come from a counter-based generator keyed by the seed, the tensor
    and the tile: nothing is stored. (A count sketch, Charikar et al. 2002, with one bucket a chunk taken at most once.)

    Args:
        x: ``(n,)``, n at most `TILE`, float64.
        k: Dimensions.
        seed: Of the projection; inner products need the same.
        name: Of the tensor.
        tile: Number of the tile within it.

    Returns:
        ``(k,)``, float64.

    Example:
        >>> x = np.arange(5.0)
        >>> float(np.sum(project(x, 8, 0, "w", 0) ** 2))
        30.0
    """
    stream = np.random.Generator(np.random.Philox(key=derive_seed(seed, "sketch", name, tile)))
    count = len(x)
    bits = np.unpackbits(np.frombuffer(stream.bytes((count + 7) // 8), np.uint8), count=count)
    chunks = np.zeros((-(-count // k), k))
    flat = chunks.reshape(-1)[:count]
    np.negative(x, out=flat)
    np.copyto(flat, x, where=bits.view(bool))
    turns = stream.integers(0, k, len(chunks))
    if k < _SHORT:
        return np.asarray(np.take_along_axis(chunks, (np.arange(k) - turns[:, None]) % k, axis=1).sum(0))
    total = np.zeros(k)
    for chunk, turn in zip(chunks, turns):
        total[turn:] += chunk[: k - turn]
        total[:turn] += chunk[k - turn :]
    return total


@dataclass(frozen=True)
class Projection:
    """The projection of whole tensors: tile by tile with `project`; one of at most k elements is kept as it is.

    Args:
        size: ``k``, dimensions kept for each tensor. A cosine is then known to about ``(1 - c^2) / sqrt(k)``.
        seed: Root seed of all signs and rotations.

    Example:
        >>> x = torch.randn(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> short, square = Projection(1024).of("weight", x)
        >>> short.shape, bool(abs(short @ short / square - 1) < 4 * (2 / 1024) ** 0.5)
        (torch.Size([1024]), True)
    """

    size: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool) or not 1 <= self.size <= TILE:
            raise InvalidInput(
                explain(
                    f"The size of the projection is {self.size!r}",
                    f"a projection has 1 to {TILE} dimensions",
                    "Pass a whole number such as 1024, which gives cosines to about 0.03",
                )
            )

    def width(self, elements: int) -> int:
        """Return the length of the projection of a tensor of ``elements``."""
        return min(elements, self.size)

    def of(self, name: str, tensor: Tensor) -> tuple[Tensor, float]:
        """Project a tensor.

        Args:
            name: Its name, which decides on signs and rotations.
            tensor: On the CPU, any shape and floating dtype.

        Returns:
            Its projection, shape ``(width,)``, float64, and the sum of its squares.
        """
        flat = tensor.detach().reshape(-1)
        found, square = np.zeros(self.width(flat.numel())), 0.0
        for tile, start in enumerate(range(0, flat.numel(), TILE)):
            x = flat[start : start + TILE].to(torch.float64).numpy()
            square += float(x @ x)
            found += x if flat.numel() <= self.size else project(x, self.size, self.seed, name, tile)
        return torch.from_numpy(found), square
