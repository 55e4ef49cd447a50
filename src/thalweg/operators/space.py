"""How the vectors of an operator are held: whole by one process, or in pieces by several."""

from __future__ import annotations

import torch
from torch import Tensor


class Space:
    """Vectors of length ``P`` that this process holds whole.

    A subclass holds a piece of each vector per process. A solver that takes every inner product through `all_sum` or
    `norm`, draws through `random` and allocates `length` entries works on both without knowing which it has. One
    that allocates ``size`` entries fails at its first product on pieces: no number comes out wrong.

    Attributes:
        size: ``P``, the dimension of the operator.
        length: Entries of a vector that this process holds; ``P`` here.

    Example:
        >>> space = Space(3)
        >>> v = torch.tensor([3.0, 0.0, 4.0])
        >>> space.length, float(space.norm(v)), float(space.all_sum(v @ v))
        (3, 5.0, 25.0)
    """

    def __init__(self, size: int, length: int | None = None) -> None:
        self.size = size
        self.length = size if length is None else length

    def all_sum(self, part: Tensor) -> Tensor:
        """Return the sum over processes of ``part``, an inner product (or an array of them) over what each holds."""
        return part

    def norm(self, v: Tensor) -> Tensor:
        """Return ``|v|`` of the whole vector: 0-dim for shape ``(length,)``, one each for rows ``(k, length)``."""
        norms: Tensor = torch.linalg.vector_norm(v, dim=-1)
        return norms

    def random(self, generator: torch.Generator) -> Tensor:
        """Return what this process holds of a standard normal vector: shape ``(length,)``, float64, on the CPU."""
        return torch.randn(self.size, generator=generator, dtype=torch.float64)
