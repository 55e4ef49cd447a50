"""Where a run really turns from one regime to the next, on its measurements rather than on the pieces of the grid.

A straight piece has a least length, and a smooth turn has no corner: a short rest at a minimum is shared between the
fall before it and the rise behind it, and the last of a rise is drawn into the plateau that it leads to.
"""

from __future__ import annotations

from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from thalweg.phases.regimes_labels import MOVED, STEEP
from thalweg.phases.regimes_result import RegimeLabel

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

FLOOR = 1e-3
"""Noise of ``log10 sharpness`` is taken to be at least this."""

DOUBLING = float(np.log10(2))
"""A rest counts as a regime where it lasts at least as long as all time before it, in decades."""
NEAR = float(-np.log10(0.95))
"""Within 5 % of the threshold it is reached."""
FEW = 3
"""Measurements that a rest or a plateau has at least."""


def mend(
    labels: list[RegimeLabel], x: Floats, y: Floats, usable: Indices, ratio: Floats, *, since: float
) -> list[RegimeLabel]:
    """Put a rest between a fall and a rise, and let an edge begin where its plateau does.

    Args:
        labels: Of the measurements of one stretch, ``(n,)``.
        x: Logarithm of one plus time, ``(n,)``.
        y: ``log10 sharpness``, ``(n,)``.
        usable: Measurements with a ratio that decides about the edge, increasing, ``(k,)``.
        ratio: ``log10`` of that ratio, ``(k,)``.
        since: Earliest ``x`` at which a rest counts.

    Example:
        >>> x = np.linspace(1, 3, 21)
        >>> labels = ["reduction"] * 10 + ["sharpening"] * 11
        >>> found = mend(labels, x, 0.9 * (x - 2) ** 2, np.arange(0), x[:0], since=1.0)
        >>> [(label, len(list(group))) for label, group in groupby(found)]
        [('reduction', 8), ('saturation', 5), ('sharpening', 8)]
    """
    mended, runs, begin = list(labels), [], 0
    for label, group in groupby(labels):
        size = len(list(group))
        runs.append((label, begin, begin + size))
        begin += size
    for (before, start, _), (after, _, end) in pairwise(runs):
        if before in ("transient", "reduction", "late reduction") and after == "sharpening":
            found = rest(x[start:end], y[start:end], since)
            if found is not None:
                first, last = start + found[0], start + found[1] + 1
                for index in range(start, end):
                    mended[index] = before if index < first else "saturation" if index < last else after
    for label, start, end in runs:
        inside = np.flatnonzero((usable >= start) & (usable < end))
        inside = inside[np.diff(x[usable[inside]], prepend=-np.inf) > 0]
        if label == "edge of stability" and len(inside) > FEW:
            at, values = x[usable[inside]], ratio[inside]
            first, _ = arrival(at, values, noise(at, values))
            risen = int(usable[inside[first]]) if first else start
            mended[start:risen] = ["sharpening"] * (risen - start)
    return mended


def deciding(x: Floats, usable: Indices, ratio: Floats, grid: Floats, own: Indices) -> tuple[float, bool]:
    r"""Return the median ratio that may call a piece the edge, from its arrival on, and whether it still rises.

    The median of ``k`` values is known to ``1.25 \sigma / \sqrt k``; it is moved towards 1 by two of these, and at most
    by 10 %, so that noise alone, as that of batch sharpness, keeps no piece out of the band, nor brings one in.

    Args:
        x: Logarithm of one plus time of the measurements of a stretch, ``(n,)``.
        usable: As for `mend`, ``(k,)``.
        ratio: As for `mend`, ``(k,)``.
        grid: Points of the piece, on which the median is taken.
        own: Measurements of the piece.

    Example:
        >>> x, flat = np.linspace(0, 3, 31), np.full(31, np.log10(0.8))
        >>> found, rising = deciding(x, np.arange(31), flat, x[20:], np.arange(20, 31))
        >>> round(found, 2), rising
        (0.8, False)
    """
    distinct = np.diff(x[usable], prepend=-np.inf) > 0
    usable, ratio = usable[distinct], ratio[distinct]
    if not len(usable):
        return np.nan, False
    values, rising, doubt = np.interp(grid, x[usable], ratio), False, 0.0
    inside = np.isin(usable, own)
    at, y = x[usable[inside]], ratio[inside]
    if len(at) >= FEW:
        spread = noise(at, y)
        since, came = arrival(at, y, spread)
        rising = not came and approaching(at, y, spread)
        since = since if came else 0
        values = values[grid >= min(at[since], grid[-1])] if came else values
        doubt = min(2.5 * spread / float(np.sqrt(len(at) - since)), MOVED)
    middle = float(np.median(values))
    return 10 ** float(np.sign(middle) * max(abs(middle) - doubt, 0.0)), rising


def arrival(x: Floats, y: Floats, noise: float) -> tuple[int, bool]:
    r"""Return the first measurement at the threshold, and whether it is within 5 % of it for good.

    First the corner: ``y = level + s \min(x - x_k, 0)`` with ``s > 0`` for each ``k`` by least squares, ``y`` cut off
    at the threshold, since what drifts above has arrived. The rise is believed where it lowers the squares by more than
    two parameters of noise do (``2 \sigma^2 \ln n``) and is more than 10 % high. A rise that slows down bends before it
    arrives: from the corner on, the first measurement within 5 % of the threshold, or two of the noise, is taken, if
    the median from there on is as near. If none is, the corner stands.

    Args:
        x: Logarithm of time, increasing, ``(n,)``.
        y: ``log10`` of the ratio of sharpness to the threshold, ``(n,)``.
        noise: ``\sigma``, of ``y``.

    Example:
        >>> x = np.arange(8.0)
        >>> [arrival(x, y, 1e-3) for y in (np.minimum(0.1 * (x - 4), 0), np.minimum(0.1 * (x - 4), 0) - 0.04, 0.1 * x)]
        [(4, True), (4, False), (0, True)]
    """
    n, y = len(x), np.minimum(y, 0.0)
    best, corner = float(((y - y.mean()) ** 2).sum()) - 2 * noise**2 * np.log(max(n, 2)), 0
    for k in range(1, n - FEW + 1):
        ramp = np.minimum(x - x[k], 0.0)
        centred = ramp - ramp.mean()
        slope = float(centred @ y / (centred @ centred))
        if slope * (x[k] - x[0]) <= MOVED:
            continue
        left = y - y.mean() - slope * centred
        cost = float(left @ left)
        if cost < best:
            best, corner = cost, k
    there = corner + np.flatnonzero(y[corner:] >= -max(NEAR, 2 * noise))
    if len(there) and n - there[0] >= FEW and np.median(y[there[0] :]) >= -max(NEAR, 2 * noise):
        return int(there[0]), True
    return corner, False


def approaching(x: Floats, y: Floats, noise: float) -> bool:
    """Whether a stretch more than 5 % below the threshold still rises to it: by 0.15 a decade, beyond its noise.

    Arguments are those of `arrival`.

    Example:
        >>> x = np.arange(8.0)
        >>> approaching(x, 0.2 * (x - 9), 1e-3), approaching(x, 0.2 * x, 1e-3), approaching(x, 0.2 * (x - 9), 1.0)
        (True, False, False)
    """
    if len(x) < FEW or np.median(y) >= -NEAR:
        return False
    centred = x - x.mean()
    square = float(centred @ centred)
    return float(centred @ np.minimum(y, 0.0)) / square > max(STEEP, 2 * noise / float(np.sqrt(square)))


def rest(x: Floats, y: Floats, since: float) -> tuple[int, int] | None:
    """Return the first and the last measurement of a rest at the minimum between a fall and a rise.

    A rest is where ``y`` lies within 10 % of its lowest value, both ends interpolated, from ``since`` on. It is None
    where that lasts less than a doubling of time, has fewer than `FEW` measurements, or is open at an end.

    Args:
        x: Logarithm of one plus time, increasing, ``(n,)``.
        y: ``log10 sharpness``, ``(n,)``.
        since: Earliest ``x`` that counts.

    Example:
        >>> x = np.linspace(1, 3, 21)
        >>> rest(x, 0.9 * (x - 2) ** 2, 1.0), rest(x, 10 * (x - 2) ** 2, 1.0)
        ((8, 12), None)
    """
    low = int(np.argmin(y))
    bound = y[low] + MOVED
    above = y > bound
    left, right = np.flatnonzero(above[:low]), np.flatnonzero(above[low:])
    if not len(left) or not len(right):
        return None
    i, j = int(left[-1]), low + int(right[0])
    begin = x[i] + (x[i + 1] - x[i]) * (y[i] - bound) / (y[i] - y[i + 1])
    end = x[j - 1] + (x[j] - x[j - 1]) * (bound - y[j - 1]) / (y[j] - y[j - 1])
    first = max(i + 1, int(np.searchsorted(x, since)))
    if end - max(begin, since) < DOUBLING or j - first < FEW:
        return None
    return first, j - 1


def noise(x: Floats, y: Floats) -> float:
    r"""Return the noise of ``y``: the scaled median deviation from the line through each point's two neighbours.

    On an even axis that is ``1.4826\,MAD(\Delta^2 y) / \sqrt 6``. At least `FLOOR`.

    Example:
        >>> noise(np.arange(9.0), np.arange(9.0)), round(noise(np.arange(5.0), np.array([0, 1.0, 0, 1, 0])), 4)
        (0.001, 1.2105)
    """
    if len(x) < 3:
        return FLOOR
    share = (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
    away = y[1:-1] - (1 - share) * y[:-2] - share * y[2:]
    scaled = away / np.sqrt(1 + share**2 + (1 - share) ** 2)
    return max(FLOOR, float(1.4826 * np.median(np.abs(scaled))))
