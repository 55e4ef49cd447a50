"""Distances between two samples, in the form that makes permuting blocks cheap.

Every one is a quadratic form or a sum over sorted values in weights ``u`` = 1/n on A, -1/m on B, so that a
permutation is another ``u`` and the distances are computed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from thalweg.stationarity.autocorrelation import Floats

Statistic: TypeAlias = Literal["energy", "mmd", "sliced"]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)
DIRECTIONS = 64
"""Random directions of the sliced distance."""
_SUBSAMPLE = 1000
_NUMBERS = 4_000_000


class BlockStatistic:
    """One statistic of pooled points, for many ways to deal out their blocks.

    ``energy``: ``-u'Du`` with D the distances, which is ``2 mean|a-b| - mean|a-a'| - mean|b-b'|``.
    ``mmd``: ``-u'Du`` with ``D = 1 - exp(-d^2 / 2h^2)``, h the median pooled distance: the squared mean discrepancy.
    ``sliced``: mean over directions of the area between the two distribution functions, which for windows of one
    length is the mean of ``|sorted a - sorted b|``.

    Args:
        points: Pooled points, shape ``(N, k)``, N a multiple of ``block``.
        block: Points of a block.
        kind: Which.
        rng: Draws the directions, and the points whose median distance is taken.
        width: ``h`` of ``mmd``, where it is known.

    Attributes:
        width: ``h``; NaN for the others.
        scale: Mean pooled distance of the same kind, between different points: what an effect size is relative to.
    """

    def __init__(
        self, points: Floats, block: int, kind: Statistic, rng: np.random.Generator, width: float | None = None
    ) -> None:
        self.block, self.width = block, math.nan
        if kind == "sliced":
            directions = rng.standard_normal((points.shape[1], DIRECTIONS))
            projected = points @ (directions / np.linalg.norm(directions, axis=0))
            self._order = np.argsort(projected, axis=0)
            ordered = np.take_along_axis(projected, self._order, axis=0)
            self._gaps: Floats | None = np.diff(ordered, axis=0)
            n = len(points)
            below = np.arange(1, n)[:, None]
            self.scale = float((self._gaps * below * (n - below)).sum() * 2 / (n * (n - 1) * DIRECTIONS))
            return
        distance: Callable[[Floats, Floats], Floats] = _plain
        if kind == "mmd":
            self.width = width or _median_distance(points, rng)
            distance = partial(_gaussian, width=self.width)
        self._gaps, self._sums = None, _block_sums(points, block, distance)
        self.scale = float(self._sums.sum() / (len(points) * (len(points) - 1)))

    def __call__(self, weights: Floats) -> Floats:
        """Return the statistic of each dealing.

        Args:
            weights: Weight of every point of a block, shape ``(P, blocks)``; each row sums to zero.

        Returns:
            Shape ``(P,)``.
        """
        if self._gaps is None:
            return np.asarray(-np.einsum("pb,pb->p", weights @ self._sums, weights))
        rows = max(1, _NUMBERS // len(self._order))
        return np.concatenate([self._areas(weights[i : i + rows]) for i in range(0, len(weights), rows)])

    def _areas(self, weights: Floats) -> Floats:
        assert self._gaps is not None
        total = np.zeros(len(weights))
        of_points = np.repeat(weights, self.block, axis=1)
        for direction in range(DIRECTIONS):
            apart = np.cumsum(of_points[:, self._order[:-1, direction]], axis=1)
            total += np.abs(apart, out=apart) @ self._gaps[:, direction]
        return total / DIRECTIONS


def _plain(a: Floats, b: Floats) -> Floats:
    return np.asarray(cdist(a, b))


def _gaussian(a: Floats, b: Floats, width: float) -> Floats:
    return np.asarray(-np.expm1(-cdist(a, b, "sqeuclidean") / (2 * width**2)))


def _median_distance(points: Floats, rng: np.random.Generator) -> float:
    some = points
    if len(points) > _SUBSAMPLE:
        some = points[np.sort(rng.choice(len(points), _SUBSAMPLE, replace=False))]
    upper = cdist(some, some)[np.triu_indices(len(some), 1)]
    return float(np.median(upper)) or float(upper.mean()) or 1.0


def _block_sums(points: Floats, block: int, distance: Callable[[Floats, Floats], Floats]) -> Floats:
    """Sums of distances between blocks, a strip of rows at a time, so that the whole matrix is never held."""
    starts = np.arange(0, len(points), block)
    rows = max(1, _NUMBERS // (len(points) * block)) * block
    sums = np.empty((len(starts), len(starts)))
    for first in range(0, len(points), rows):
        strip = distance(points[first : first + rows], points)
        across = np.add.reduceat(strip, starts, axis=1)
        sums[first // block : (first + rows) // block] = np.add.reduceat(
            across, np.arange(0, len(strip), block), axis=0
        )
    return sums


def dealings(first: int, second: int, permutations: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return which blocks go to A, shape ``(permutations, first + second)``, ``first`` of them in each row.

    Example:
        >>> dealings(2, 3, 4, np.random.default_rng(0)).sum(1).tolist()
        [2, 2, 2, 2]
    """
    start = np.arange(first + second) < first
    return rng.permuted(np.tile(start, (permutations, 1)), axis=1)
