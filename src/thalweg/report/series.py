"""One measured quantity of a run as plain arrays, thinned for drawing without hiding its extremes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Steps = NDArray[np.int64]

MAX_POINTS = 3000
"""Points drawn per curve."""


@dataclass(frozen=True)
class Series:
    """Where something was measured, and what was found: ``steps`` and finite ``values``, both ``(n,)``."""

    steps: Steps
    values: Floats

    def __len__(self) -> int:
        return len(self.steps)

    def after(self, step: int) -> Series:
        """Return the part from ``step`` on."""
        return self._where(self.steps >= step)

    def before(self, step: int) -> Series:
        """Return the part up to ``step``, without it."""
        return self._where(self.steps < step)

    def _where(self, chosen: NDArray[np.bool_]) -> Series:
        return Series(self.steps[chosen], self.values[chosen])


def series(data: xr.Dataset, name: str, eigenvalue: int | None = None) -> Series:
    """Return a variable where it is finite; empty where it was never measured.

    Args:
        data: A run's data.
        name: The variable.
        eigenvalue: The column of a variable with one per eigenvalue.
    """
    if name not in data or (eigenvalue is not None and eigenvalue >= data.sizes.get("eigenvalue", 0)):
        return Series(np.empty(0, np.int64), np.empty(0))
    chosen = data[name] if eigenvalue is None else data[name].isel(eigenvalue=eigenvalue)
    values = chosen.to_numpy().astype(np.float64)
    finite = np.isfinite(values)
    return Series(data["step"].to_numpy().astype(np.int64)[finite], values[finite])


def aligned(data: xr.Dataset, name: str, steps: Steps) -> Floats:
    """Return a variable at ``steps``, which are among the run's; NaN where it was not measured."""
    if name not in data:
        return np.full(len(steps), np.nan)
    position = np.searchsorted(data["step"].to_numpy(), steps)
    return data[name].to_numpy().astype(np.float64)[position]


def thin(curve: Series, most: int = MAX_POINTS) -> Series:
    """Keep at most ``most`` points: the first and last of all, and the lowest and highest of each stretch.

    Example:
        >>> curve = Series(np.arange(10_000), np.sin(np.arange(10_000.0)))
        >>> len(thin(curve)) <= MAX_POINTS, bool(thin(curve).values.max() == curve.values.max())
        (True, True)
    """
    if len(curve) <= most:
        return curve
    kept: set[int] = {0, len(curve) - 1}
    for part in np.array_split(np.arange(len(curve)), max((most - 2) // 2, 1)):
        values = curve.values[part]
        kept |= {int(part[values.argmin()]), int(part[values.argmax()])}
    chosen = np.array(sorted(kept))
    return Series(curve.steps[chosen], curve.values[chosen])


def gaps(curve: Series, every: float) -> Steps:
    """Return the steps at which measuring began again after being left out.

    Args:
        curve: What was measured.
        every: Usual number of steps between two measurements.

    Example:
        >>> gaps(Series(np.array([0, 2, 4, 10, 12]), np.zeros(5)), every=2)
        array([10])
    """
    return curve.steps[1:][np.diff(curve.steps) > 1.5 * every]


def cadence(curve: Series) -> float:
    """Return the usual number of steps between two measurements; 1 where there are fewer than two."""
    return float(np.median(np.diff(curve.steps))) if len(curve) > 1 else 1.0


def broken(curve: Series, starts: Steps) -> tuple[Floats, Floats]:
    """Return ``(x, y)`` to draw, with a NaN before each of ``starts`` so that no line spans a gap.

    Example:
        >>> broken(Series(np.array([0, 1, 9]), np.ones(3)), np.array([9]))
        (array([0., 1., 9., 9.]), array([ 1.,  1., nan,  1.]))
    """
    position = np.unique(np.searchsorted(curve.steps, starts))
    position = position[(position > 0) & (position < len(curve))]
    x = np.insert(curve.steps.astype(np.float64), position, curve.steps[position])
    return x, np.insert(curve.values, position, np.nan)
