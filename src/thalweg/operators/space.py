"""How the vectors of an operator are held: whole by one process, or in pieces by several."""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 1 << 15
"""Entries that are added up in float32 on a CPU before float64 takes over: longer sums lose digits, 1 % at 10^8."""


class Space:
    """Vectors of length ``P`` that this process holds whole.

    A subclass holds a piece of each vector per process. A solver that takes every inner product through `inner`,
    `all_sum` or `norm`, draws through `random` and allocates `length` entries works on both without knowing which it
    has. One that allocates ``size`` entries fails at its first product on pieces: no number comes out wrong.

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
        if v.dtype == torch.float64 or v.device.type != "cpu" or v.shape[-1] <= PIECE:
            norms: Tensor = torch.linalg.vector_norm(v, dim=-1)
            return norms
        pieces = torch.stack(
            [torch.linalg.vector_norm(piece, dim=-1) for piece in torch.split(v, PIECE, dim=-1)], dim=-1
        )
        total: Tensor = torch.linalg.vector_norm(pieces.double(), dim=-1)
        return total.to(v.dtype)

    def inner(self, rows: Tensor, others: Tensor) -> Tensor:
        """Return the inner products of ``rows``, ``(k, length)``, with ``(length,)`` or ``(m, length)`` others.

        Shape ``(k,)`` or ``(k, m)``, of the whole vectors.
        """
        turned = others if others.ndim == 1 else others.T
        if rows.dtype == torch.float64 or rows.device.type != "cpu":
            return self.all_sum(rows @ turned)
        if self.length <= PIECE:  # of the dtype that processes with longer pieces send
            return self.all_sum((rows @ turned).double()).to(rows.dtype)
        total = torch.zeros(rows.shape[:1] + others.shape[:-1], dtype=torch.float64)
        for block, piece in zip(torch.split(rows, PIECE, dim=1), torch.split(turned, PIECE)):
            total += block @ piece
        return self.all_sum(total).to(rows.dtype)

    def random(self, generator: torch.Generator) -> Tensor:
        """Return what this process holds of a standard normal vector: shape ``(length,)``, float64, on the CPU."""
        return torch.randn(self.size, generator=generator, dtype=torch.float64)
