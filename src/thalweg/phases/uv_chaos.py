r"""At and beyond the edge of stability: the cubic map, its period doublings, chaos, and where it diverges.

With ``psi = eta a y`` and ``delta = eta a D`` the dynamics of `uv_step` has no other parameter. On the balanced line,
``u`` along ``v``, the kernel is ``eta T = 2 phi`` with ``phi = delta + psi``, and what is left is the cubic map

    phi' = phi (1 + psi - phi)^2.

Its fixed point ``phi = psi``, zero loss, has the slope ``1 - 2 psi``: stable up to ``psi = 1``, which is ``eta T = 2``.
Its largest value ``4 (1 + psi)^3 / 27`` passes the repelling fixed point ``2 + psi`` at ``psi = 2``: orbits leave.

Source: arXiv 2311.02076 (the route to chaos by period doubling).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from thalweg.errors import InvalidInput, NotConverged, explain
from thalweg.phases.uv import Floats

FEIGENBAUM = 4.669201609102990
"""Limit of the ratio of the distances between period doublings; here only to know where to look for the next one."""


def cubic_step(phi: ArrayLike, psi: ArrayLike) -> Floats:
    """``phi' = phi (1 + psi - phi)^2``.

    Example:
        >>> float(cubic_step(0.5, 0.5))  # zero loss stays
        0.5
    """
    value = np.asarray(phi, dtype=np.float64)
    return np.asarray(value * (1 + np.asarray(psi, dtype=np.float64) - value) ** 2)


def cubic_slope(phi: ArrayLike, psi: ArrayLike) -> Floats:
    """Derivative of `cubic_step` with respect to ``phi``: ``(1 + psi - phi) (1 + psi - 3 phi)``.

    Example:
        >>> float(cubic_slope(1.0, 1.0))  # a period doubles where the slope is -1
        -1.0
    """
    value, rate = np.asarray(phi, dtype=np.float64), 1 + np.asarray(psi, dtype=np.float64)
    return np.asarray((rate - value) * (rate - 3 * value))


def period_two_points(psi: float) -> tuple[float, float]:
    """The orbit of period 2: the roots of ``z^2 - (1 + psi) z + 1``, for ``psi >= 1``.

    Two points ``p, q`` that map to one another have ``(1 + psi - p)^2 (1 + psi - q)^2 = 1``; with ``p + q = 1 + psi``
    that is ``p q = 1``. The mean of ``eta T = 2 phi`` is ``1 + psi``: above 2, where the stable threshold is.

    Example:
        >>> low, high = period_two_points(1.1)
        >>> round(low * high, 12), round(low + high, 12)
        (1.0, 2.1)
    """
    if not 1 <= psi < math.inf:
        raise InvalidInput(
            explain(f"psi is {psi:g}", "the orbit of period 2 appears at psi = 1", "Give a psi of at least 1")
        )
    root = math.sqrt((1 + psi) ** 2 - 4)
    return (1 + psi - root) / 2, (1 + psi + root) / 2


def lyapunov(psi: ArrayLike, *, steps: int = 4000, discard: int = 1000, start: float = 0.3) -> Floats:
    """Lyapunov exponent of the cubic map, the mean of ``log |slope|`` along an orbit: chaos where it is positive.

    Args:
        psi: Any shape, within ``(0, 2]``.
        steps: Steps to average over.
        discard: Steps to leave out first.
        start: ``phi`` to start from, in units of ``1 + psi``, within ``(0, 1)``.

    Returns:
        Same shape; natural logarithm per step.

    Example:
        >>> found = lyapunov([0.5, 1.1, 1.9])
        >>> (found > 0).tolist()
        [False, False, True]
    """
    rate = _checked(psi)
    phi = start * (1 + rate)
    for _ in range(discard):
        phi = cubic_step(phi, rate)
    total = np.zeros_like(rate)
    for _ in range(steps):
        total += np.log(np.maximum(abs(cubic_slope(phi, rate)), 1e-300))
        phi = cubic_step(phi, rate)
    return np.asarray(total / steps)


@dataclass(frozen=True, eq=False, repr=False)
class UVOrbits:
    """Where the cubic map settles, for many ``psi``.

    Attributes:
        psi: Shape ``(M,)``, in units where the edge of stability begins at 1.
        kernel: ``eta T = 2 phi`` along the orbit after a transient, shape ``(M, K)``.
        exponent: Lyapunov exponent, shape ``(M,)``.
        doublings: ``psi`` at which the period doubles, ascending.
    """

    psi: Floats
    kernel: Floats
    exponent: Floats
    doublings: Floats

    def __repr__(self) -> str:
        chaotic = float((self.exponent > 0).mean())
        return (
            f"UVOrbits({len(self.psi)} values of psi from {self.psi[0]:g} to {self.psi[-1]:g}; the period doubles at "
            f"{', '.join(f'{value:.4f}' for value in self.doublings)}; {chaotic:.0%} of the values are chaotic)"
        )

    def plot(self) -> Any:
        """Draw the orbits, and below them the Lyapunov exponent."""
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.7, 0.3], vertical_spacing=0.05)
        points = np.repeat(self.psi, self.kernel.shape[1])
        dots = {"size": 1.5, "color": "#0068A8", "opacity": 0.5}
        figure.add_trace(
            go.Scattergl(x=points, y=self.kernel.ravel(), mode="markers", marker=dots, name="orbit"), row=1, col=1
        )
        figure.add_trace(
            go.Scatter(x=self.psi, y=self.kernel.mean(axis=1), mode="lines", name="mean", line={"color": "#C24A00"}),
            row=1,
            col=1,
        )
        figure.add_hline(y=2, line={"dash": "dash", "color": "#7D8590"}, row=1, col=1)
        figure.add_trace(
            go.Scatter(x=self.psi, y=self.exponent, mode="lines", name="exponent", line={"color": "#00795A"}),
            row=2,
            col=1,
        )
        figure.add_hline(y=0, line={"dash": "dash", "color": "#7D8590"}, row=2, col=1)
        for value in self.doublings:
            figure.add_vline(x=float(value), line={"width": 0.6, "color": "#7D8590"})
        figure.update_yaxes(title_text="rate × sharpness", row=1, col=1)
        figure.update_yaxes(title_text="exponent", range=[-2, 1], row=2, col=1)
        figure.update_xaxes(title_text="psi = rate × target × input / sqrt(width)", row=2, col=1)
        return figure.update_layout(height=620)


def uv_orbits(psi: ArrayLike | None = None, *, points: int = 120, discard: int = 2000) -> UVOrbits:
    """Follow the cubic map for many ``psi``: the orbit diagram, its Lyapunov exponent, its period doublings.

    Args:
        psi: Ascending values in ``(0, 2]``; by default 700 from 0.6 to 2.
        points: Points of each orbit to keep.
        discard: Steps to leave out first.

    Example:
        >>> found = uv_orbits([0.5, 1.1], points=2)
        >>> found.kernel[0].round(6).tolist()  # zero loss at eta T = 2 psi
        [1.0, 1.0]
        >>> round(float(found.kernel[1].mean()), 6)  # period 2: the mean is 1 + psi
        2.1
    """
    rate = np.atleast_1d(_checked(np.linspace(0.6, 2.0, 700) if psi is None else psi))
    phi = 0.3 * (1 + rate)
    for _ in range(discard):
        phi = cubic_step(phi, rate)
    kept = np.empty((len(rate), points))
    for at in range(points):
        phi = cubic_step(phi, rate)
        kept[:, at] = 2 * phi
    return UVOrbits(rate, kept, lyapunov(rate), np.array(period_doublings(4)))


def period_doublings(count: int = 5) -> list[float]:
    """Compute where the period doubles from 1 to 2, 2 to 4 and so on: the multiplier of the orbit is -1 there.

    Between the parameter at which the critical point ``(1 + psi) / 3`` itself has the period and the end of the period,
    the orbit is followed by Newton's method, and the multiplier bisected.

    Args:
        count: How many, from 1 to 8.

    Returns:
        Ascending values of ``psi``: 1, sqrt(5) - 1, about 1.29, ...

    Raises:
        InvalidInput: The count is out of range.

    Example:
        >>> [round(value, 4) for value in period_doublings(3)]
        [1.0, 1.2361, 1.288]
    """
    if not 1 <= count <= 8:
        raise InvalidInput(
            explain(f"{count} doublings are asked for", "float64 resolves about 8", "Give a count from 1 to 8")
        )
    found: list[float] = []
    centre = 0.5  # the critical point is the fixed point: (1 + psi) / 3 = psi
    for level in range(count):
        gap = 0.45 if level == 0 else (centre - found[-1])
        low, high = centre, centre + gap
        while _multiplier(2**level, high, centre) > -1:
            low, high = high, high + gap
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if _multiplier(2**level, middle, centre) > -1 else (low, middle)
        found.append((low + high) / 2)
        if level + 1 < count:
            centre = _centre(2 ** (level + 1), found[-1], (found[-1] - centre))
    return found


def chaos_begins(count: int = 6) -> float:
    """Where period doublings accumulate, extrapolated from the last three (Aitken).

    Example:
        >>> round(chaos_begins(), 4)
        1.3023
    """
    a, b, c = period_doublings(count)[-3:]
    return c - (c - b) ** 2 / ((c - b) - (b - a))


def map_diverges() -> float:
    """``psi`` beyond which orbits of the cubic map leave: the root of ``4 (1 + psi)^3 / 27 = 2 + psi``.

    Example:
        >>> round(map_diverges(), 12)
        2.0
    """
    from scipy.optimize import brentq

    return float(brentq(lambda psi: 4 * (1 + psi) ** 3 / 27 - 2 - psi, 0.5, 5.0, xtol=1e-14))


def _orbit(phi: float, psi: float, period: int) -> tuple[float, float, float]:
    """``F^period(phi)``, and its derivatives with respect to ``phi`` and ``psi``."""
    slope, shift = 1.0, 0.0
    for _ in range(period):
        rest = 1 + psi - phi
        step = rest * (rest - 2 * phi)
        slope, shift = slope * step, shift * step + 2 * phi * rest
        phi = phi * rest**2
    return phi, slope, shift


def _multiplier(period: int, psi: float, centre: float) -> float:
    """Slope of the orbit of that period, followed from ``centre``, where it holds the critical point."""
    phi = (1 + centre) / 3
    for at in np.linspace(centre, psi, 9)[1:]:
        for _ in range(50):
            image, slope, _ = _orbit(phi, float(at), period)
            step = (image - phi) / (1 - slope)
            phi += step
            if abs(step) < 1e-15 * phi:
                break
    return _orbit(phi, psi, period)[1]


def _centre(period: int, doubling: float, last: float) -> float:
    """``psi`` above ``doubling`` at which the critical point has this period: the root nearest to ``doubling``."""
    from scipy.optimize import brentq

    def miss(psi: float) -> float:
        return _orbit((1 + psi) / 3, psi, period)[0] - (1 + psi) / 3

    grid = doubling + last / FEIGENBAUM * np.linspace(0.2, 4.0, 400)
    values = [miss(float(at)) for at in grid]
    for low, high, one, two in zip(grid, grid[1:], values, values[1:]):
        if one * two < 0:
            return float(brentq(miss, low, high, xtol=1e-15))
    raise NotConverged(
        explain(
            f"No orbit of period {period} was found above psi = {doubling:g}",
            "the next doubling is not where the ones before it point to",
            "Ask for fewer doublings",
        )
    )


def _checked(psi: ArrayLike) -> Floats:
    rate = np.asarray(psi, dtype=np.float64)
    if rate.size == 0 or not ((rate > 0) & (rate <= 2)).all():
        raise InvalidInput(
            explain("A psi lies outside of (0, 2]", "orbits of the cubic map leave beyond 2", "Keep psi within (0, 2]")
        )
    return rate
