"""Flat vectors of which every process holds a piece: some rows of each parameter."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thalweg import _rng
from thalweg._vectors import Layout
from thalweg.errors import InvalidInput, explain
from thalweg.operators.processes import Processes
from thalweg.operators.space import Space


class Pieces(Space):
    """Vectors of length ``P`` cut along the first dimension of every named tensor, as ``Shard(0)`` cuts them.

    Of a tensor with ``m`` rows on ``n`` processes, process ``r`` holds rows ``[r c, (r + 1) c)`` that exist, with
    ``c = ceil(m / n)``; the last processes may hold fewer, or none.

    Attributes:
        layout: Names and whole shapes.
        local: Names and the shapes of what this process holds.
    """

    def __init__(self, layout: Layout, processes: Processes) -> None:
        scalars = [name for name, shape in zip(layout.names, layout.shapes) if not len(shape)]
        if scalars:
            raise InvalidInput(
                explain(
                    f"The parameter {scalars[0]!r} has no dimension",
                    "a single number has no rows to share out",
                    "Give it shape (1,), or leave it out with parameters=",
                )
            )
        self.layout, self.processes = layout, processes
        self.local = self.on(processes.rank)
        super().__init__(layout.size, self.local.size)

    def on(self, rank: int) -> Layout:
        """Return names and shapes of what process ``rank`` holds."""
        return Layout(
            self.layout.names, tuple(torch.Size((len(self._rows(s[0], rank)), *s[1:])) for s in self.layout.shapes)
        )

    def all_sum(self, part: Tensor) -> Tensor:
        """Return the sum of ``part`` over processes."""
        return self.processes.all_sum(part)

    def norm(self, v: Tensor) -> Tensor:
        """Return the norm of whole vectors from their pieces; squares are added up in float64."""
        squares = torch.linalg.vector_norm(v, dim=-1, dtype=torch.float64).square()
        return self.all_sum(squares).sqrt().to(v.dtype)

    def random(self, generator: torch.Generator) -> Tensor:
        """Return this process's piece of a standard normal vector; it depends on how many processes there are."""
        seed = int(torch.randint(1 << 62, (), generator=generator))
        own = _rng.generator(seed, "piece", self.processes.rank)
        return torch.randn(self.length, generator=own, dtype=torch.float64)

    def piece(self, whole: Tensor) -> Tensor:
        """Return this process's piece, a copy of shape ``(length,)``, of a whole vector ``(P,)``."""
        parts = self.layout.split(whole)
        return Layout.join([t[r.start : r.stop] for t, r in zip(parts, self._ranges(self.processes.rank))])

    def whole(self, piece: Tensor) -> Tensor:
        """Return the whole vector, ``(P,)``, on every process. For small P, and for what is written to disk."""
        lengths = [self.on(rank).size for rank in range(self.processes.count)]
        padded = piece.new_zeros(self.processes.count, max(lengths))
        padded[self.processes.rank, : len(piece)] = piece
        filled = self.processes.all_sum(padded)  # every row has one process that is not zero: exact
        out = piece.new_empty(self.size)
        views = self.layout.split(out)
        for rank, length in enumerate(lengths):
            for view, rows, part in zip(views, self._ranges(rank), self.on(rank).split(filled[rank, :length])):
                view[rows.start : rows.stop] = part
        return out

    def _rows(self, rows: int, rank: int) -> range:
        chunk = math.ceil(rows / self.processes.count)
        return range(min(rank * chunk, rows), min((rank + 1) * chunk, rows))

    def _ranges(self, rank: int) -> list[range]:
        return [self._rows(shape[0], rank) for shape in self.layout.shapes]
