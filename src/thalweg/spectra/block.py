"""Warm block solver: expand old eigenvectors by the residuals of what has not converged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import NonFinite, explain
from thalweg.operators.base import Operator


@dataclass(frozen=True)
class BlockResult:
    """Leading Ritz pairs of a block space, values descending, vectors as rows, residuals explicit.

    ``coordinates`` are those of the vectors in the space, as columns.
    """

    values: Tensor
    rows: Tensor
    residuals: Tensor
    coordinates: Tensor
    converged: bool


class BlockSpace:
    """Orthonormal rows ``Q``, their products ``A Q``, and ``Q A Q'``; only new rows cost products.

    Residuals come from the stored products themselves, so they are explicit, not estimated.
    """

    def __init__(self, operator: Operator, capacity: int) -> None:
        self.operator = operator
        self.capacity = min(capacity, operator.size)
        self.space = operator.space  # every inner product goes through it: vectors may lie in pieces on processes
        shape = (self.capacity, self.space.length)
        self.rows = torch.empty(shape, dtype=operator.dtype, device=operator.device)
        self.images = torch.empty_like(self.rows)
        self.matrix = torch.zeros(self.capacity, self.capacity, dtype=torch.float64)
        self.size = 0

    def add(self, block: Tensor) -> int:
        """Append what is new in the rows of ``block``; return how many rows that were."""
        before = self.size
        for vector in block:
            if self.size == self.capacity:
                break
            self._append(vector.clone())
        new = self.rows[before : self.size]
        if len(new):
            images = self.operator.matmat(new.T).T
            if not bool(torch.isfinite(self.space.norm(images)).all()):
                raise NonFinite(
                    explain(
                        f"Product number {self.operator.products} is not finite",
                        "the loss overflows or has left its domain at this point",
                        "Lower the learning rate, or use float64",
                    )
                )
            self.images[before : self.size] = images
            part = self.space.inner(self.rows[: self.size], images).to("cpu", torch.float64)
            self.matrix[: self.size, before : self.size] = part
            self.matrix[before : self.size, : self.size] = part.T
            corner = self.matrix[before : self.size, before : self.size]
            self.matrix[before : self.size, before : self.size] = (corner + corner.T) / 2
        return self.size - before

    def _append(self, vector: Tensor) -> None:
        length = self.space.norm(vector)
        if not float(length) > 0:
            return
        vector /= length
        for _ in range(2):
            known = self.rows[: self.size]
            vector.sub_(known.T @ self.space.inner(known, vector))
        left = float(self.space.norm(vector))
        if left > 50 * torch.finfo(vector.dtype).eps:
            # Normalise, and clean once more: what is left may be small enough to carry rounding.
            vector /= left
            known = self.rows[: self.size]
            vector.sub_(known.T @ self.space.inner(known, vector))
            self.rows[self.size] = vector / self.space.norm(vector)
            self.size += 1

    def ritz(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the leading values (descending), coordinates (columns) and residual rows."""
        values, coordinates = np.linalg.eigh(self.matrix[: self.size, : self.size].numpy())
        values, coordinates = values[::-1][:count].copy(), coordinates[:, ::-1][:, :count].copy()
        chosen = torch.from_numpy(coordinates)
        scaled = torch.from_numpy(values).to(self.rows)[:, None]
        return torch.from_numpy(values), chosen, self.image(chosen) - scaled * self.vectors(chosen)

    def vectors(self, coordinates: Tensor) -> Tensor:
        """Return Ritz vectors as rows."""
        return coordinates.T.to(self.rows) @ self.rows[: self.size]

    def image(self, coordinates: Tensor) -> Tensor:
        """Return ``A`` times the Ritz vectors as rows, from stored products."""
        return coordinates.T.to(self.rows) @ self.images[: self.size]

    def compress(self, coordinates: Tensor) -> None:
        """Keep the span of these Ritz vectors, recombining stored products at no cost."""
        kept = coordinates.shape[1]
        rows, images = self.vectors(coordinates), self.image(coordinates)
        self.rows[:kept], self.images[:kept] = rows, images
        self.matrix.zero_()
        part = self.space.inner(rows, images).to("cpu", torch.float64)
        self.matrix[:kept, :kept] = (part + part.T) / 2
        self.size = kept


def solve_block(
    space: BlockSpace, count: int, tol: float, *, max_rounds: int = 60, keep: int | None = None
) -> BlockResult:
    """Converge the ``count`` leading pairs of ``space.operator`` from what ``space`` already spans.

    Each round adds the residuals of the pairs that have not converged; pairs that have cost nothing more.

    Args:
        space: A space that holds the starting block.
        count: Pairs to converge.
        tol: ``|A v - theta v| <= tol |theta_1|``, the leading value in magnitude.
        max_rounds: Rounds before giving up.
        keep: Ritz vectors kept when the space is full; default ``2 count``.
    """
    keep = keep or 2 * count
    for _ in range(max_rounds):
        values, coordinates, residual_rows = space.ritz(count)
        residuals = space.space.norm(residual_rows).to("cpu", torch.float64)
        scale = max(float(values.abs().max()), 1e-300)
        open_pairs = torch.nonzero(residuals > tol * scale).reshape(-1)
        short = len(values) < min(count, space.operator.size)
        if not len(open_pairs) and not short:
            return BlockResult(values, space.vectors(coordinates), residuals, coordinates, True)
        if space.size + len(open_pairs) > space.capacity:
            if space.capacity == space.operator.size and space.size == space.capacity:
                break
            _, kept, _ = space.ritz(min(keep, space.size))
            space.compress(kept)
        if not space.add(residual_rows[open_pairs.to(residual_rows.device)]):
            break
    values, coordinates, residual_rows = space.ritz(count)
    residuals = space.space.norm(residual_rows).to("cpu", torch.float64)
    scale = max(float(values.abs().max()), 1e-300)
    done = bool((residuals <= tol * scale).all())
    return BlockResult(values, space.vectors(coordinates), residuals, coordinates, done)
