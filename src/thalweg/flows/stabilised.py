r"""A stabilised explicit Runge-Kutta method of second order: long steps along stiff flows, for few gradients.

Gradient flow at the edge of stability has eigenvalues up to -2 a unit of time. An ordinary explicit method takes steps
of about a unit there. A method whose ``s`` stages form a Chebyshev polynomial is stable for steps of
``0.65 (s^2 - 1) / 2`` units: the length of a step grows with the square of what it costs.

The stability polynomial ``R(z) = a + b T_s(w_0 + w_1 z)`` oscillates within ``1 - eps/3`` on all of the stable
interval, and the conditions of second order, ``R(0) = R'(0) = R''(0) = 1``, fix

.. math::
    w_1 = T_s'(w_0) / T_s''(w_0), \qquad b = T_s''(w_0) / T_s'(w_0)^2, \qquad a = 1 - b T_s(w_0).

Stages are the polynomials of lower degree, and their three-term recursion is the recursion of the method, so that
rounding does not grow with the number of stages. Source: the Runge-Kutta-Chebyshev methods of van der Houwen and
Sommeijer (1980), with the error estimate of Sommeijer, Shampine and Verwer (1998); coefficients derived anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

DAMPING = 2 / 13
"""How far the polynomial stays below one, over three, on the stable interval."""
MOST = 200
"""Stages at most."""

Point = list[Tensor]
"""A state of the differential equation, in parts."""


@dataclass(frozen=True)
class Coefficients:
    """Of a method with ``s`` stages: the recursion's ``(mu, nu, mu~, gamma~, c)`` for each stage from the second on.

    Attributes:
        first: ``mu~`` of the first stage, which is its time ``c`` too.
        rows: Of the later stages; ``c`` is the share of the step at which each stands.
        interval: The method is stable for ``-interval <= h lambda <= 0``.
    """

    first: float
    rows: tuple[tuple[float, float, float, float, float], ...]
    interval: float


@lru_cache(maxsize=MOST)
def coefficients(stages: int) -> Coefficients:
    """Return the coefficients of the method with ``stages >= 2`` stages.

    Example:
        >>> [round(coefficients(s).interval, 1) for s in (2, 5, 10)]
        [2.0, 15.7, 64.7]
    """
    w0 = 1 + DAMPING / stages**2
    value, first, second = [1.0, w0], [0.0, 1.0], [0.0, 0.0]  # Chebyshev polynomials at w0 and their derivatives
    for _ in range(2, stages + 1):
        value.append(2 * w0 * value[-1] - value[-2])
        second.append(4 * first[-1] + 2 * w0 * second[-1] - second[-2])
        first.append(2 * value[-2] + 2 * w0 * first[-1] - first[-2])
    w1 = first[stages] / second[stages]
    b = [0.0, 0.0, *(second[j] / first[j] ** 2 for j in range(2, stages + 1))]
    b[0] = b[1] = b[2]
    rows = []
    for j in range(2, stages + 1):
        mu = 2 * b[j] * w1 / b[j - 1]
        before = 1 - b[j - 1] * value[j - 1]
        rows.append((2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2], mu, -before * mu, w1 * second[j] / first[j]))
    return Coefficients(b[1] * w1, tuple(rows), (1 + w0) / w1)


def stages_for(stiffness: float) -> int:
    """Return the fewest stages for which ``h rho = stiffness`` is within the stable interval."""
    stages = max(2, math.isqrt(max(0, int(stiffness / 0.68))))
    while stages < MOST and coefficients(stages).interval < stiffness:
        stages += 1
    return stages


def chebyshev_step(y: Point, slope: Point, h: float, velocity: Callable[[float, Point], Point], stages: int) -> Point:
    """Take one step of length ``h`` from ``y``, where the velocity is ``slope``.

    Args:
        y: The state.
        slope: The velocity there.
        h: Length of the step.
        velocity: Of a state ``c h`` after the start: called as ``velocity(c h, state)``, ``stages - 1`` times.
        stages: Number of stages, at least 2; see `stages_for`.

    Returns:
        The state at the end.
    """
    method = coefficients(stages)
    before, now, at = y, along(y, slope, h * method.first), method.first
    for mu, nu, push, pull, c in method.rows:
        found = velocity(at * h, now)
        after = [
            (1 - mu - nu) * a + mu * b + nu * d + (push * h) * e + (pull * h) * f
            for a, b, d, e, f in zip(y, now, before, found, slope, strict=True)
        ]
        before, now, at = now, after, c
    return now


def error_estimate(y: Point, end: Point, slope: Point, end_slope: Point, h: float) -> Point:
    """``0.8 (y - y') + 0.4 h (f + f')``: proportional to the third derivative, from both ends of a step alone."""
    return [0.8 * (a - b) + 0.4 * h * (f + g) for a, b, f, g in zip(y, end, slope, end_slope, strict=True)]


def hermite(s: float, h: float, y: Point, end: Point, slope: Point, end_slope: Point) -> Point:
    """Interpolate at the share ``s`` of a step of length ``h``, from states and velocities at its ends."""
    a, b = 1 + s * s * (2 * s - 3), s * s * (3 - 2 * s)
    c, d = h * s * (1 - s) ** 2, h * s * s * (s - 1)
    return [a * p + b * q + c * u + d * v for p, q, u, v in zip(y, end, slope, end_slope, strict=True)]


def along(y: Point, slope: Point, h: float) -> Point:
    """``y + h slope``."""
    return [a.add(b, alpha=h) for a, b in zip(y, slope, strict=True)]
