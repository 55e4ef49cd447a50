"""Rows of a glass density: one a layer or tensor, averaged over its coordinates, with standard errors over batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from thalweg.errors import InvalidInput, explain
from thalweg.glass.estimators import CROSSOVER
from thalweg.glass.probing import Groups

RESOLVED = 3.0
"""A density below so many times what rounding alone gives is not resolved."""


@dataclass(frozen=True)
class GlassRow:
    r"""Means over the coordinates of a layer or tensor.

    Attributes:
        name: Of the layer or tensor.
        members: Names of its tensors.
        parameters: Coordinates.
        rho: Glass density in gradient^2 / weight, while all coordinates move.
        rho_error: Its standard error over batches.
        floor: What the rounding of the gradients alone adds to ``rho``.
        square: ``E \hat h^2`` of the finite difference, glass included, in (loss / weight^2)^2.
        square_error: Its standard error.
        hessian: ``E (H z)_i^2 = \sum_j H_ij^2`` by Hessian products, in the same unit; NaN where not measured.
        hessian_error: Its standard error.
        leakage: ``\rho / (2 \sigma E \hat h^2)``, the share of the finite-difference curvature that is glass. It can
            come out above one by its error.
        leakage_error: Its standard error.
        crossover: Move per coordinate, in weights, below which the glass part of the expected loss change exceeds the
            Hessian part: ``(8 / 3 \pi) \rho / h^2``; infinite without a Hessian.
        crossover_error: Its standard error.
    """

    name: str
    members: tuple[str, ...]
    parameters: int
    rho: float
    rho_error: float
    floor: float
    square: float
    square_error: float
    hessian: float
    hessian_error: float
    leakage: float
    leakage_error: float
    crossover: float
    crossover_error: float

    @property
    def resolved(self) -> bool:
        """Whether the density stands out from rounding."""
        return self.rho > RESOLVED * self.floor


@dataclass(frozen=True)
class GlassTable:
    """Rows by number or name."""

    rows: tuple[GlassRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[GlassRow]:
        return iter(self.rows)

    @overload
    def __getitem__(self, key: int | str) -> GlassRow: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[GlassRow, ...]: ...
    def __getitem__(self, key: int | str | slice) -> GlassRow | tuple[GlassRow, ...]:
        """Return a row by its place or name."""
        if not isinstance(key, str):
            return self.rows[key]
        for row in self.rows:
            if row.name == key:
                return row
        names = ", ".join(row.name for row in self.rows)
        raise InvalidInput(explain(f"There is no row {key!r}", "rows are layers or tensors", f"Choose among: {names}"))

    def __repr__(self) -> str:
        width = max([5, *(len(row.name) for row in self.rows)])
        head = f"{'layer':<{width}}  {'rho':>9} {'s.e.':>8}  {'leakage':>13}  {'glass below a move of':>21}"
        lines = [head]
        for r in self.rows:
            mark = "" if r.resolved else "  (rounding)"
            leak = f"{r.leakage:.0%}" + (f" ± {r.leakage_error:.0%}" if math.isfinite(r.leakage_error) else "")
            lines.append(
                f"{r.name:<{width}}  {r.rho:>9.2e} {r.rho_error:>8.1e}  {leak:>13}  {r.crossover:>21.2e}{mark}"
            )
        return "\n".join(lines)


def jackknife(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``function(rows)`` and its standard error by leaving out one row at a time; NaN with fewer than two.

    Args:
        function: Of an array ``(n, ...)``; returns an array.
        rows: Independent rows, shape ``(n, ...)``.

    Example:
        >>> value, error = jackknife(lambda rows: rows.mean(axis=0), np.array([1.0, 3.0]))
        >>> float(value), float(error)
        (2.0, 1.0)
    """
    with np.errstate(all="ignore"):
        value = np.asarray(function(rows))
        count = len(rows)
        if count < 2:
            return value, np.full_like(value, math.nan, dtype=float)
        left = np.stack([function(np.delete(rows, i, axis=0)) for i in range(count)])
        spread = np.square(left - left.mean(axis=0)).sum(axis=0)
        return value, np.sqrt(spread * (count - 1) / count)


def make_table(
    groups: Groups, sigma: float, rho: np.ndarray, square: np.ndarray, hessian: np.ndarray, floor: np.ndarray
) -> GlassTable:
    """Make the table of ``groups`` from means over tensors, each ``(batches, tensors)``, and the floor of each."""
    parts = np.stack([rho @ groups.weights, square @ groups.weights, hessian @ groups.weights], axis=1)
    means, errors = jackknife(lambda rows: rows.mean(axis=0), parts)

    def ratio(rows: np.ndarray) -> np.ndarray:
        mean = rows.mean(axis=0)
        return np.asarray(mean[0] / (2 * sigma * mean[1]))

    def crossover(rows: np.ndarray) -> np.ndarray:
        mean = rows.mean(axis=0)
        smooth = np.where(np.isfinite(mean[2]), mean[2], np.clip(mean[1] - mean[0] / (2 * sigma), 0, None))
        return np.asarray(CROSSOVER * mean[0] / smooth)

    leakage, crossing = jackknife(ratio, parts), jackknife(crossover, parts)
    noise = floor @ groups.weights
    numbers: Sequence[np.ndarray] = (
        means[0],
        errors[0],
        noise,
        means[1],
        errors[1],
        means[2],
        errors[2],
        *leakage,
        *crossing,
    )
    rows = []
    for i, name in enumerate(groups.names):
        values = [float(v[i]) for v in numbers]
        rows.append(GlassRow(name, groups.members[i], int(groups.sizes[i]), *values))
    return GlassTable(tuple(rows))
