r"""The precision floor: what rounding of stored weights adds to updates and takes from turning angles.

Weights rounded to ``q`` (relative) put noise ``q |theta|`` on each checkpoint. It enters two neighbouring updates
with opposite signs, so it fakes a zig-zag. Derived here and checked by simulation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thalweg.trajectories.kernels import Floats, Kernels

FLOOR = 3.0
"""Updates shorter than so many ``q |theta|`` are mostly rounding."""


def turning_bias(u: Floats | float, q: float) -> Floats:
    """Return ``-q^2 / (u^2 + 2 q^2)``, what rounding adds to the cosine between neighbouring updates.

    Args:
        u: True size of the update over the norm of the weights.
        q: Relative rounding.

    Example:
        >>> float(turning_bias(1e-3, 2.1e-4).round(4))
        -0.0405
    """
    true = np.asarray(u, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = -(q**2) / (true**2 + 2 * q**2)
    return np.asarray(np.where(q > 0, found, 0.0), dtype=np.float64)


def inflation(u: Floats | float, q: float) -> Floats:
    """Return ``sqrt(1 + 2 q^2 / u^2)``, measured over true length of an update.

    Example:
        >>> float(inflation(1e-3, 2.1e-4).round(3))
        1.043
    """
    with np.errstate(divide="ignore"):
        return np.asarray(np.sqrt(1 + 2 * q**2 / np.asarray(u, dtype=np.float64) ** 2), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Precision:
    """Where a path is below its precision floor, and by how much rounding bends it.

    Attributes:
        quantum: ``q``; 0 where unknown, and then nothing is marked.
        ratio: Measured ``u_a = |U_a| / |theta_a|``, shape ``(T-1,)``.
        below: Updates with ``u_a < 3 q``, shape ``(T-1,)``.
        bias: Part of ``cos(U_a, U_{a+1})`` that is rounding, ``-q^2 n_{a+1}^2 / (|U_a| |U_{a+1}|)`` of measured
            lengths, not below -1/2, shape ``(T-2,)``. Where most weights do not change at all it overstates.
        inflated: Measured over true length of each update, shape ``(T-1,)``; infinite where all may be rounding.
        unchanged: Share of weights bitwise equal between neighbours, shape ``(T-1,)``; NaN where unknown.
    """

    quantum: float
    ratio: Floats
    below: NDArray[np.bool_]
    bias: Floats
    inflated: Floats
    unchanged: Floats

    @property
    def share(self) -> float:
        """Part of the updates below the floor."""
        return float(self.below.mean())

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Entries of the update map with one of both updates below the floor, shape ``(T-1, T-1)``."""
        return np.asarray(self.below[:, None] | self.below[None, :], dtype=np.bool_)


def precision(path: Kernels, unchanged: Floats | None = None) -> Precision:
    """Say which updates of a path are below ``3 q |theta|``, and what rounding does to its turning angles.

    Args:
        path: The path, with its `quantum`.
        unchanged: Share of weights bitwise equal between neighbours, shape ``(T-1,)``.

    Example:
        >>> points = 1.0 + np.outer(np.arange(3), np.full(4, 1e-3))
        >>> path = Kernels.from_points(points)
        >>> import dataclasses
        >>> precision(dataclasses.replace(path, quantum=1.66e-3)).below.tolist()
        [True, True]
    """
    q, n, u = path.quantum, path.norms, path.lengths
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(n[:-1] > 0, u / n[:-1], np.nan)
        bias = np.maximum(-(q**2) * n[1:-1] ** 2 / (u[:-1] * u[1:]), -0.5)
        noise = 2 * q**2 / ratio**2
        inflated = np.where(noise < 1, 1 / np.sqrt(1 - np.minimum(noise, 1.0)), np.inf)
    if q == 0:
        bias, inflated = np.zeros(len(u) - 1), np.ones(len(u))
    return Precision(
        q,
        np.asarray(ratio, dtype=np.float64),
        np.asarray((ratio < FLOOR * q) if q > 0 else np.zeros(len(u), dtype=bool), dtype=np.bool_),
        np.asarray(np.where(np.isfinite(bias), bias, np.nan), dtype=np.float64),
        np.asarray(inflated, dtype=np.float64),
        np.full(len(u), np.nan) if unchanged is None else np.asarray(unchanged, dtype=np.float64),
    )
