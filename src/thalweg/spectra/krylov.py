"""A Krylov basis that can be restarted, kept orthogonal in full, with the projected matrix beside it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from thalweg.operators.base import Operator
from thalweg.spectra.task import Array, not_finite

COLUMNS = 1 << 16
"""Columns that a restart combines at a time."""

TOUCH = 1e-2
"""Length of the random vector that is added to a start of length one, which may be orthogonal to what is wanted."""


class Krylov:
    """Orthonormal rows ``Q`` and ``T = Q A Q'`` with ``A Q' = Q' T + beta q e'``.

    Every new vector is orthogonalised twice against all rows, and against ``against`` if given, so ``T`` may hold a
    restarted basis or a random injection without special cases.

    Args:
        operator: The symmetric operator.
        capacity: Rows that fit.
        generator: Source of random directions.
        against: Blocks of rows, each ``(l, P)``, orthonormal together: work in their complement.
    """

    def __init__(self, operator: Operator, capacity: int, generator: torch.Generator, *against: Tensor | None) -> None:
        self.operator = operator
        self.capacity = capacity
        self.generator = generator
        self.against = [block for block in against if block is not None and len(block)]
        self.space = operator.space  # every inner product goes through it: vectors may lie in pieces on processes
        self.rows = torch.empty(capacity + 1, self.space.length, dtype=operator.dtype, device=operator.device)
        self.matrix: Array = np.zeros((capacity, capacity))
        self.size = 0
        self.beta = 0.0
        self.norm = 0.0
        """Largest magnitude seen in a projected spectrum: an estimate of ``|A|`` from below."""
        self.eps = float(torch.finfo(operator.dtype).eps)
        self.whole = True
        """Whether the basis still is one chain from its first vector, and ``T`` tridiagonal."""

    @property
    def room(self) -> int:
        """Dimension of the space that the basis can still grow into."""
        return self.operator.size - sum(len(block) for block in self.against) - self.size

    def begin(self, start: Tensor | None) -> None:
        """Set the first vector: ``start`` with a `TOUCH` of everything else, or random."""
        vector = self._random()
        if start is not None:
            direction = start.reshape(self.space.length).to(vector)
            length = float(self.space.norm(direction))
            if length > 0:
                vector = direction / length + TOUCH * vector / self.space.norm(vector)
        self._orthogonalise(vector)
        self.rows[0] = vector / self.space.norm(vector)

    def expand(self) -> None:
        """Multiply the newest row, and append what is new in the product."""
        j = self.size
        product = self.operator.matvec(self.rows[j])
        length = float(self.space.norm(product))
        if not np.isfinite(length):
            raise not_finite(self.operator.products)
        coefficients = self._orthogonalise(product, count=j + 1)
        self.matrix[j, : j + 1] = coefficients
        self.matrix[: j + 1, j] = coefficients
        self.size = j + 1
        self.norm = max(self.norm, abs(float(coefficients[j])))
        self.beta = float(self.space.norm(product))
        if self.beta <= 10 * self.eps * max(self.norm, length):
            self.beta = 0.0
        if self.beta:
            torch.div(product, self.beta, out=self.rows[j + 1])
        elif self.room:
            self.inject()

    def inject(self) -> None:
        """Continue from a random direction: the space so far is invariant."""
        self.whole = False
        vector = self._random()
        self._orthogonalise(vector, count=self.size)
        self.rows[self.size] = vector / self.space.norm(vector)

    def ritz(self) -> tuple[Array, Array, Array]:
        """Return Ritz values (ascending), their coordinates in the basis (columns), and residual norms."""
        values, coordinates = np.linalg.eigh(self.matrix[: self.size, : self.size])
        self.norm = max(self.norm, float(np.abs(values[[0, -1]]).max()))
        return values, coordinates, self.beta * np.abs(coordinates[-1])

    def vectors(self, coordinates: Array) -> Tensor:
        """Return Ritz vectors as rows, for coordinates given as columns."""
        return torch.from_numpy(coordinates.T.copy()).to(self.rows) @ self.rows[: self.size]

    def extend(self, capacity: int) -> None:
        """Make room for more rows."""
        rows = torch.empty(capacity + 1, self.space.length, dtype=self.rows.dtype, device=self.rows.device)
        rows[: self.size + 1] = self.rows[: self.size + 1]
        matrix = np.zeros((capacity, capacity))
        matrix[: self.size, : self.size] = self.matrix[: self.size, : self.size]
        self.rows, self.matrix, self.capacity = rows, matrix, capacity

    def restart(self, values: Array, coordinates: Array) -> None:
        """Keep these Ritz pairs and the newest direction; forget the rest."""
        self.whole = False
        kept = len(values)
        change = torch.from_numpy(coordinates.T.copy()).to(self.rows)
        for piece in torch.split(self.rows, COLUMNS, dim=1):  # in place: there may be no room for the kept ones twice
            newest = piece[self.size].clone()
            piece[:kept] = change @ piece[: self.size]
            piece[kept] = newest
        self.matrix[:] = 0.0
        self.matrix[range(kept), range(kept)] = values
        self.size = kept

    def _random(self) -> Tensor:
        return self.space.random(self.generator).to(self.rows)

    def _orthogonalise(self, vector: Tensor, count: int = 0) -> Array:
        """Remove the components along ``against`` and ``count`` rows, twice; return those along the rows."""
        total = torch.zeros(count, dtype=vector.dtype, device=vector.device)
        rows = self.rows[:count]
        for _ in range(2):
            for block in self.against:
                vector.addmv_(block.T, self.space.inner(block, vector), alpha=-1)
            if count:
                part = self.space.inner(rows, vector)
                vector.addmv_(rows.T, part, alpha=-1)
                total += part
        return total.to("cpu", torch.float64).numpy()
