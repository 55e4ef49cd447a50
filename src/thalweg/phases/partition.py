"""Optimal piecewise-linear partitions of a short series, by an exact dynamic programme."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thalweg.errors import InvalidInput, explain

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Partition:
    """Straight pieces of a series.

    Attributes:
        bounds: ``0 = b_0 < ... < b_K``; piece ``k`` is ``b_k <= i < b_{k+1}``, or, where pieces are joined, runs from
            point ``b_k`` to point ``b_{k+1}``, which both share.
        lines: Slope and intercept of each piece, ``(K, 2)``.
        cost: Sum of squared residuals, in units of ``y`` squared, without penalties.
        penalty: What each piece was charged.
        continuous: Whether pieces are joined at their ends.
    """

    bounds: tuple[int, ...]
    lines: Floats
    cost: float
    penalty: float
    continuous: bool = False

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __repr__(self) -> str:
        kind = "joined " if self.continuous else ""
        return f"Partition({len(self)} {kind}pieces, bounds={self.bounds}, cost={self.cost:.4g})"


def partition(
    x: ArrayLike, y: ArrayLike, *, penalty: float, min_points: int = 4, continuous: bool = False
) -> Partition:
    r"""Minimise ``\sum_k [ \min_{a, b} \sum_{i \in k} (y_i - a x_i - b)^2 + penalty ]`` over all cuts into pieces.

    Exact. Separate pieces: the cost of each candidate follows from running sums, and the best cut before each point
    from those before it, ``O(n^2)`` in all. Joined pieces (``continuous``): the best cost before a point is a function
    of the line's value there, the lower envelope of parabolas; see `partition_continuous`.

    Args:
        x: Increasing, ``(n,)``.
        y: Finite, ``(n,)``.
        penalty: What one more piece costs, in units of ``y`` squared; ``9 s^2 ln n`` suits noise of size ``s``.
        min_points: Points that a piece has at least; joined pieces share their end points.
        continuous: Join the pieces at points of the series.

    Returns:
        The best partition; of several equally good ones the one with the latest last cut.

    Raises:
        InvalidInput: ``x`` does not increase, lengths differ, a value is not finite, or there are too few points.

    Example:
        >>> x = np.arange(12.0)
        >>> partition(x, np.where(x < 6, 0, x), penalty=0.01, min_points=3).bounds
        (0, 6, 12)
    """
    at, values = _checked(x, y, penalty, min_points)
    if continuous:
        from thalweg.phases.partition_continuous import best_knots

        knots, lines, cost = best_knots(at, values, penalty, min_points)
        return Partition(knots, lines, cost, penalty, continuous=True)
    costs = _costs(at, values)
    n = len(at)
    total = np.full(n + 1, np.inf)
    total[0] = 0.0
    back = np.zeros(n + 1, dtype=np.int64)
    for end in range(min_points, n + 1):
        starts = np.arange(end - min_points + 1)
        through = total[starts] + costs[starts, end] + penalty
        best = len(through) - 1 - int(np.argmin(through[::-1]))
        total[end], back[end] = through[best], best
    bounds = [n]
    while bounds[-1] > 0:
        bounds.append(int(back[bounds[-1]]))
    ends = tuple(reversed(bounds))
    lines = np.array([_line(at[i:j], values[i:j]) for i, j in pairwise(ends)])
    return Partition(ends, lines, float(sum(costs[i, j] for i, j in pairwise(ends))), penalty)


def _checked(x: ArrayLike, y: ArrayLike, penalty: float, min_points: int) -> tuple[Floats, Floats]:
    at, values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    problem = None
    if at.ndim != 1 or at.shape != values.shape:
        problem = f"x and y have shapes {at.shape} and {values.shape}", "each point has one of both"
    elif not (np.isfinite(at).all() and np.isfinite(values).all()):
        problem = "x or y holds NaN or infinity", "a line cannot be fitted through it"
    elif (np.diff(at) <= 0).any():
        problem = "x does not increase everywhere", "pieces are cut along it"
    elif not (np.isfinite(penalty) and penalty >= 0):
        problem = f"The penalty is {penalty}", "it is what one more piece costs"
    elif min_points < 2:
        problem = f"min_points is {min_points}", "two points make a line"
    elif len(at) < min_points:
        problem = f"There are {len(at)} points for pieces of at least {min_points}", "not one piece fits in"
    if problem:
        raise InvalidInput(explain(*problem, "Correct the argument"))
    return at, values


def _costs(x: Floats, y: Floats) -> Floats:
    """Return the residual of the best line through points ``i <= k < j`` as ``[i, j]``, ``(n, n + 1)``."""
    n = len(x)
    x, y = x - x.mean(), y - y.mean()  # running sums then lose few digits

    def between(terms: Floats) -> Floats:
        run = np.concatenate([[0.0], np.cumsum(terms)])
        sums: Floats = run[None, :] - run[:n, None]
        return sums

    count = np.arange(n + 1)[None, :] - np.arange(n)[:, None]
    size = np.maximum(count, 1)
    sx, sy = between(x), between(y)
    xx, xy, yy = between(x * x) - sx * sx / size, between(x * y) - sx * sy / size, between(y * y) - sy * sy / size
    cost: Floats = np.maximum(yy - np.where(xx > 0, xy * xy / np.where(xx > 0, xx, 1.0), 0.0), 0.0)
    cost[count <= 0] = np.inf
    cost[(count == 1) | (count == 2)] = 0.0
    return cost


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    centred = x - x.mean()
    square = float(centred @ centred)
    slope = float(centred @ y) / square if square > 0 else 0.0
    return slope, float(y.mean()) - slope * float(x.mean())
