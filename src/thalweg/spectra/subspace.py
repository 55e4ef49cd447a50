"""A search space that remembers its products: only new directions cost any."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from thalweg.operators.base import Operator
from thalweg.spectra.task import Array, not_finite


class Subspace:
    """Orthonormal rows ``Q``, their products ``A Q``, and ``T = Q A Q'``.

    Args:
        operator: The symmetric operator.
        capacity: Rows that fit.
        against: Orthonormal rows to stay orthogonal to, or None.
    """

    def __init__(self, operator: Operator, capacity: int, against: Tensor | None = None) -> None:
        self.operator = operator
        self.capacity = capacity
        self.against = against
        self.space = operator.space  # every inner product goes through it: vectors may lie in pieces on processes
        shape = (capacity, self.space.length)
        self.rows = torch.empty(shape, dtype=operator.dtype, device=operator.device)
        self.images = torch.empty_like(self.rows)
        self.matrix: Array = np.zeros((capacity, capacity))
        self.size = 0
        self.eps = float(torch.finfo(operator.dtype).eps)

    def add(self, block: Tensor) -> int:
        """Append what is new in the rows of ``block``, multiply it, and return how many rows that was.

        Raises:
            NonFinite: A product is NaN or infinite; the message has its number.
        """
        new = self.orthonormal(block)[: self.capacity - self.size]
        count, before = len(new), self.size
        if not count:
            return 0
        already = self.operator.products
        images = self.operator.matmat(new.T).T
        finite = torch.isfinite(self.space.norm(images))
        if not bool(finite.all()):
            raise not_finite(already + 1 + int(finite.int().argmin()))
        self.size += count
        self.rows[before : self.size] = new
        self.images[before : self.size] = images
        part = self.space.inner(self.rows[: self.size], images).to("cpu", torch.float64).numpy()
        self.matrix[: self.size, before : self.size] = part
        self.matrix[before : self.size, : self.size] = part.T
        corner = self.matrix[before : self.size, before : self.size]
        self.matrix[before : self.size, before : self.size] = (corner + corner.T) / 2
        return count

    def orthonormal(self, block: Tensor) -> Tensor:
        """Return orthonormal rows that span what ``block`` adds to the space, without what is rounding.

        Projection and a whitening by the Gram matrix (Stathopoulos and Wu, 2002) alternate: after the first pass the
        block is well conditioned, so the second leaves it orthonormal to rounding.
        """
        block = block.to(self.rows)
        lengths = self.space.norm(block)[:, None]
        keep = (lengths > 0).reshape(-1)
        block = block[keep] / lengths[keep]
        for sweep in range(3):
            for known in (self.against, self.rows[: self.size]):
                if known is not None and len(known) and len(block):
                    block = block - self.space.inner(block, known) @ known
            if not len(block):
                break
            gram = self.space.inner(block, block).to("cpu", torch.float64).numpy()
            weights, turn = np.linalg.eigh((gram + gram.T) / 2)
            # On entry rows have length one: what is left below rounding carries no direction.
            held = weights > ((50 * self.eps) ** 2 if sweep == 0 else 1e-6)
            whiten = torch.from_numpy((turn[:, held] / np.sqrt(weights[held])).T.copy()).to(block)
            block = whiten @ block
        return block

    def ritz(self) -> tuple[Array, Array]:
        """Return Ritz values (ascending) and their coordinates in the basis (columns)."""
        values, coordinates = np.linalg.eigh(self.matrix[: self.size, : self.size])
        return values, coordinates

    def vectors(self, coordinates: Array) -> Tensor:
        """Return the vectors of these coordinates (columns) as rows."""
        return torch.from_numpy(coordinates.T.copy()).to(self.rows) @ self.rows[: self.size]

    def products(self, coordinates: Array) -> Tensor:
        """Return ``A`` times these vectors as rows, from what is stored."""
        return torch.from_numpy(coordinates.T.copy()).to(self.rows) @ self.images[: self.size]

    def residuals(self, values: Array, coordinates: Array) -> Tensor:
        """Return ``A v - theta v`` as rows, from stored products."""
        scaled = torch.from_numpy(values.copy()).to(self.rows)[:, None]
        return self.products(coordinates) - scaled * self.vectors(coordinates)

    def compress(self, coordinates: Array) -> None:
        """Keep only the span of orthonormal ``coordinates``, recombining rows and products."""
        kept = coordinates.shape[1]
        rows, images = self.vectors(coordinates), self.products(coordinates)
        small = coordinates.T @ self.matrix[: self.size, : self.size] @ coordinates
        self.rows[:kept], self.images[:kept] = rows, images
        self.matrix[:] = 0.0
        self.matrix[:kept, :kept] = (small + small.T) / 2
        self.size = kept
