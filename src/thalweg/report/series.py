"""One measured quantity of a run as plain arrays, thinned for drawing without hiding its extremes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_POINTS = 3000
"""Points drawn per curve."""


@dataclass(frozen=True)
class Series:
    """Where something was measured, and what was found: ``steps`` and finite ``values``, both ``(n,)``."""

    steps: NDArray[np.int64]
    values: Floats

    def __len__(self) -> int:
        return len(self.steps)

    def after(self, step: int) -> Series:
        """Return the part from ``step`` on."""
        chosen = self.steps >= step
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


def aligned(data: xr.Dataset, name: str, steps: NDArray[np.int64]) -> Floats:
    """Return a variable at ``steps``; NaN where it was not measured."""
    if name not in data:
        return np.full(len(steps), np.nan)
    position = np.searchsorted(data["step"].to_numpy(), steps)
    return data[name].to_numpy().astype(np.float64)[position]


def thin(curve: Series, most: int = MAX_POINTS) -> Series:
    """Keep at most about ``most`` points: the first, last, lowest and highest of each stretch.

    Example:
        >>> curve = Series(np.arange(10_000), np.sin(np.arange(10_000.0)))
        >>> len(thin(curve)) <= MAX_POINTS, thin(curve).values.max() == curve.values.max()
        (True, True)
    """
    if len(curve) <= most:
        return curve
    kept: set[int] = {0, len(curve) - 1}
    for part in np.array_split(np.arange(len(curve)), max(most // 3, 1)):
        values = curve.values[part]
        kept |= {int(part[0]), int(part[values.argmin()]), int(part[values.argmax()])}
    chosen = np.array(sorted(kept))[:most]
    chosen[-1] = len(curve) - 1
    return Series(curve.steps[chosen], curve.values[chosen])
