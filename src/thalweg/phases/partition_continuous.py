"""Joined straight pieces: dynamic programming over functions of the value at a knot."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def best_knots(x: Floats, y: Floats, penalty: float, min_points: int) -> tuple[tuple[int, ...], Floats, float]:
    r"""Return knots, lines ``(K, 2)`` and residual of the best joined piecewise-linear fit with knots at points.

    Let ``f_t(v)`` be the least cost of points ``0..t`` for a line that ends in value ``v`` at ``x_t``. Then
    ``f_t(v) = \min_s \min_u f_s(u) + \sum_{s < i \le t} (y_i - u - (v - u)(x_i - x_s)/(x_t - x_s))^2 + penalty``.
    Each choice of knots gives a parabola in ``v``; only those on the lower envelope can be part of a best fit, so
    that the rest is dropped, which keeps a few dozen.
    Source: the idea of functional pruning for continuous fits, Fearnhead, Maidstone and Letchford, arXiv 1609.07363.

    Args:
        x: Increasing, ``(n,)``.
        y: ``(n,)``.
        penalty: Cost of a piece.
        min_points: Points of a piece, both ends counted.
    """
    n = len(x)
    # Parabolas a v^2 + b v + c on the envelope of each point, and where each came from: (point, index there).
    curves: list[Floats] = [np.array([[1.0, -2 * y[0], y[0] ** 2]])]
    origins: list[NDArray[np.int64]] = [np.full((1, 2), -1)]
    reach, charge = min_points - 1, np.array([0.0, 0.0, penalty])
    for t in range(1, n):
        found, whence = [], []
        for s in range(t - reach + 1):
            if len(curves[s]):
                found.append(_extend(curves[s], x[s : t + 1], y[s : t + 1]) + charge)
                whence.append(np.stack([np.full(len(curves[s]), s), np.arange(len(curves[s]))], axis=1))
        if not found:
            curves.append(np.empty((0, 3)))
            origins.append(np.empty((0, 2), dtype=np.int64))
            continue
        candidates, sources = np.concatenate(found), np.concatenate(whence)
        kept = envelope(candidates)
        curves.append(candidates[kept])
        origins.append(sources[kept])
    a, b, c = curves[-1].T
    index = int(np.argmin(c - b * b / (4 * a)))
    knots, t = [n - 1], n - 1
    while t > 0:
        t, index = (int(number) for number in origins[t][index])
        knots.append(t)
    ends = tuple(reversed(knots))
    return ends, *_fit(x, y, ends)


def _extend(curves: Floats, x: Floats, y: Floats) -> Floats:
    """Return the parabolas at the end of a piece from those at its start, the start's value minimised out."""
    share = (x[1:] - x[0]) / (x[-1] - x[0])
    rest, y = 1 - share, y[1:]
    uu = curves[:, 0] + rest @ rest
    u = curves[:, 1] - 2 * (rest @ y)
    cross = 2 * (rest @ share)
    a = share @ share - cross**2 / (4 * uu)
    b = -2 * (share @ y) - cross * u / (2 * uu)
    c = curves[:, 2] + y @ y - u * u / (4 * uu)
    return np.stack([a, b, c], axis=1)


def envelope(curves: Floats) -> NDArray[np.int64]:
    """Return the indices of the upward parabolas ``(m, 3)`` that are lowest somewhere, in no order.

    Example:
        >>> envelope(np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0], [2.0, 0.0, -1.0]])).tolist()
        [0, 2]
    """
    a, b, c = curves.T
    order = np.lexsort((c, -b, a))  # lowest towards minus infinity first
    current, position = int(order[0]), -np.inf
    kept = [current]
    while True:
        following = _crossings(a - a[current], b - b[current], c - c[current], position)
        following[current] = np.inf
        nearest = float(following.min())
        if not np.isfinite(nearest):
            return np.unique(np.array(kept))
        level = np.flatnonzero(following <= nearest)
        slope = 2 * a[level] * nearest + b[level]
        best = np.lexsort((a[level], slope))[0]  # of those that meet there, the one that is lowest just behind
        current, position = int(level[best]), nearest
        kept.append(current)


def _crossings(a: Floats, b: Floats, c: Floats, beyond: float) -> Floats:
    """Return where ``a v^2 + b v + c`` first goes from above zero to below, behind ``beyond``; infinity if nowhere."""
    found = np.full(len(a), np.inf)
    with np.errstate(all="ignore"):
        straight = a == 0
        root = np.where(b < 0, -c / b, np.inf)
        found = np.where(straight & (root > beyond), root, found)
        discriminant = b * b - 4 * a * c
        # Downward through zero is the smaller root of an upward parabola and the larger root of a downward one; both
        # are (-b - sqrt) / 2a, written so that nothing cancels.
        root_d = np.sqrt(discriminant)
        down = np.where(b >= 0, (-b - root_d) / (2 * a), 2 * c / (-b + root_d))
        valid = ~straight & (discriminant > 0) & (down > beyond)
    return np.where(valid, down, found)


def _fit(x: Floats, y: Floats, knots: tuple[int, ...]) -> tuple[Floats, float]:
    """Return lines and residual of the least-squares fit with these knots."""
    places = x[list(knots)]
    hats = np.stack([np.interp(x, places, unit) for unit in np.eye(len(knots))], axis=1)
    heights, *_ = np.linalg.lstsq(hats, y, rcond=None)
    slopes = np.diff(heights) / np.diff(places)
    residual = y - hats @ heights
    return np.stack([slopes, heights[:-1] - slopes * places[:-1]], axis=1), float(residual @ residual)
