"""All inner products of a path, from those of its increments: maps, distances, angles, windows.

A run gives checkpoints ``theta_1 ... theta_T`` in ``R^P``. With ``U_a = theta_{a+1} - theta_a`` three small arrays
hold everything: ``G[a, b] = <U_a, U_b>``, ``c[a] = <theta_1, U_a>``, ``m = |theta_1|^2``. Subtracting before
multiplying keeps the digits that inner products of whole checkpoints lose where ``|U| << |theta|``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import InvalidInput, explain

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class Kernels:
    """The path of one group of parameters: ``G``, ``c``, ``m``, and all that follows from them.

    Attributes:
        steps: Step of each checkpoint, shape ``(T,)``, ascending.
        G: ``<U_a, U_b>``, shape ``(T-1, T-1)``, squared weights.
        c: ``<theta_1, U_a>``, shape ``(T-1,)``.
        m: ``|theta_1|^2``.
        quantum: Relative size of the rounding of stored weights; 0 where unknown.

    Example:
        >>> path = Kernels(np.arange(3), np.array([[1.0, 0.0], [0.0, 1.0]]), np.zeros(2), 1.0)  # two turns of 90 deg
        >>> path.radii.round(3).tolist(), path.norms.round(3).tolist()
        ([0.0, 1.0, 1.414], [1.0, 1.414, 1.732])
    """

    steps: Ints
    G: Floats
    c: Floats
    m: float
    quantum: float = 0.0

    def __post_init__(self) -> None:
        count = len(self.steps)
        if count < 2 or self.G.shape != (count - 1, count - 1) or self.c.shape != (count - 1,):
            raise InvalidInput(
                explain(
                    f"Got {count} checkpoints, G of shape {self.G.shape}, c of shape {self.c.shape}",
                    "a path has at least two checkpoints, and one increment fewer than checkpoints",
                    "Give (T,), (T-1, T-1) and (T-1,)",
                )
            )

    def __repr__(self) -> str:
        return f"Kernels of {len(self)} checkpoints, steps {self.steps[0]:,} to {self.steps[-1]:,}"

    def __len__(self) -> int:
        return len(self.steps)

    @classmethod
    def from_points(cls, points: Floats, steps: Sequence[int] | Ints | None = None) -> Kernels:
        """Build from the checkpoints themselves, shape ``(T, P)``: for small paths.

        Example:
            >>> Kernels.from_points(np.eye(3)).similarity.round(1).tolist()
            [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
        """
        wide = np.asarray(points, dtype=np.float64)
        moved = np.diff(wide, axis=0)
        at = np.arange(len(wide)) if steps is None else np.asarray(steps)
        return cls(at.astype(np.int64), moved @ moved.T, moved @ wide[0], float(wide[0] @ wide[0]))

    @cached_property
    def spacing(self) -> Ints:
        """Steps between neighbours, shape ``(T-1,)``."""
        return np.diff(self.steps)

    @cached_property
    def lengths(self) -> Floats:
        """``u_a = |U_a|``, shape ``(T-1,)``."""
        return _root(np.diag(self.G))

    @cached_property
    def squares(self) -> Floats:
        """``|theta_i|^2 - |theta_1|^2``, shape ``(T,)``: without ``m``, so that differences keep their digits."""
        return np.asarray(2 * _from_zero(self.c) + np.diag(self.relative_to(0)), dtype=np.float64)

    @cached_property
    def norms(self) -> Floats:
        """``n_i = |theta_i|``, shape ``(T,)``."""
        return _root(self.m + self.squares)

    @cached_property
    def radii(self) -> Floats:
        """``r_i = |theta_i - theta_1|``, shape ``(T,)``."""
        return self.radii_from(0)

    def radii_from(self, anchor: int) -> Floats:
        """``|theta_i - theta_a|``, shape ``(T,)``."""
        return _root(np.diag(self.relative_to(anchor)))

    @cached_property
    def kernel(self) -> Floats:
        """``K_ij = <theta_i, theta_j> = m + p_i + p_j + R_ij``, shape ``(T, T)``."""
        p = _from_zero(self.c)
        return np.asarray(self.m + p[:, None] + p[None, :] + self.relative_to(0), dtype=np.float64)

    def relative_to(self, anchor: int) -> Floats:
        """``R^a_ij = <theta_i - theta_a, theta_j - theta_a>``, shape ``(T, T)``: sums of G from the anchor outwards."""
        count = len(self)
        if not -count <= anchor < count:
            raise InvalidInput(explain(f"Anchor {anchor}", f"there are {count} checkpoints", "Give a valid index"))
        rows = _from_anchor(self.G, anchor % count)
        both = _from_anchor(np.ascontiguousarray(rows.T), anchor % count)
        return np.asarray((both + both.T) / 2, dtype=np.float64)

    @cached_property
    def distances(self) -> Floats:
        """``|theta_i - theta_j|^2``, shape ``(T, T)``."""
        inner = self.relative_to(0)
        size = np.diag(inner)
        found = np.maximum(size[:, None] + size[None, :] - 2 * inner, 0.0)
        count = len(self)
        found[np.arange(count - 1), np.arange(1, count)] = self.lengths**2  # these are known outright
        found[np.arange(1, count), np.arange(count - 1)] = self.lengths**2
        return found

    @cached_property
    def defect(self) -> Floats:
        """``1 - C_ij = (|theta_i - theta_j|^2 - (n_i - n_j)^2) / (2 n_i n_j)``: it keeps digits near 0."""
        n, s = self.norms, self.squares
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = (s[:, None] - s[None, :]) / (n[:, None] + n[None, :])
            found = (self.distances - apart**2) / (2 * n[:, None] * n[None, :])
            direct = 1 - self.kernel / (n[:, None] * n[None, :])
        found = np.where(found < 0.5, found, direct)
        return np.asarray(np.clip(_undefined(found, n), 0.0, 2.0), dtype=np.float64)

    @cached_property
    def similarity(self) -> Floats:
        """The trajectory map ``C_ij = cos(theta_i, theta_j)``, shape ``(T, T)``; NaN where a norm is 0."""
        return np.asarray(1 - self.defect, dtype=np.float64)

    def relative(self, anchor: int = 0) -> Floats:
        """``C^a_ij = cos(theta_i - theta_a, theta_j - theta_a)``; NaN for the anchor and what equals it."""
        inner = self.relative_to(anchor)
        return cosines(inner, _root(np.diag(inner)))

    @cached_property
    def updates(self) -> Floats:
        """``C^U_ab = cos(U_a, U_b)``, shape ``(T-1, T-1)``; NaN where nothing moved."""
        return cosines(self.G, self.lengths)

    def turning_terms(self, lag: int) -> tuple[Floats, Floats, Floats]:
        """``<A, B>, |A|^2, |B|^2`` of ``A = theta_i - theta_{i-q}``, ``B = theta_{i+q} - theta_i``: ``(T-2q,)``."""
        count = len(self)
        rows = [
            (self.G[i - lag : i, i : i + lag].sum(), self.G[i - lag : i, i - lag : i].sum(), self._square(i, lag))
            for i in range(lag, count - lag)
        ]
        found = np.array(rows, dtype=np.float64).reshape(-1, 3)
        return found[:, 0], np.maximum(found[:, 1], 0), np.maximum(found[:, 2], 0)

    def chords(self, lag: int) -> Floats:
        """``|theta_{i+q} - theta_i|``, shape ``(T-q,)``."""
        return _root(np.array([self._square(i, lag) for i in range(len(self) - lag)], dtype=np.float64))

    def _square(self, start: int, lag: int) -> float:
        return float(self.G[start : start + lag, start : start + lag].sum())

    def window(self, start: int, stop: int) -> Kernels:
        """The path from checkpoint ``start`` to before ``stop``, as a path of its own.

        Example:
            >>> points = np.random.default_rng(0).standard_normal((6, 4))
            >>> part = Kernels.from_points(points).window(2, 5)
            >>> bool(np.allclose(part.kernel, points[2:5] @ points[2:5].T))
            True
        """
        inside = slice(start, stop - 1)
        c = self.c[inside] + self.G[:start, inside].sum(axis=0)
        m = max(float(self.m + self.squares[start]), 0.0)
        return Kernels(self.steps[start:stop], self.G[inside, inside], c, m, self.quantum)

    def thinned(self, keep: Sequence[int] | Ints) -> Kernels:
        """The path through some of the checkpoints only, in order."""
        keep = np.asarray(keep)
        at, first = keep[:-1], int(keep[0])
        rows = np.add.reduceat(self.G[: keep[-1]], at, axis=0) if len(at) else self.G[:0]
        both = np.add.reduceat(rows[:, : keep[-1]], at, axis=1)
        before = self.c + self.G[:first].sum(axis=0)
        m = max(float(self.m + self.squares[first]), 0.0)
        return Kernels(self.steps[keep], both, np.add.reduceat(before[: keep[-1]], at), m, self.quantum)


def cosines(inner: Floats, sizes: Floats) -> Floats:
    """Return ``inner_ij / (s_i s_j)`` clipped to [-1, 1], NaN where a size is 0, and exactly 1 on the diagonal."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.clip(inner / (sizes[:, None] * sizes[None, :]), -1.0, 1.0)
    np.fill_diagonal(found, 1.0)
    return _undefined(found, sizes)


def angle(inner: Floats, first: Floats, second: Floats) -> Floats:
    r"""Return angles in degrees from ``<a, b>``, ``|a|^2`` and ``|b|^2``; NaN where one is 0.

    ``1 - cos = (|a - b|^2 - (|a| - |b|)^2) / (2 |a| |b|)`` and ``angle = 2 atan2(sqrt(1 - cos), sqrt(1 + cos))`` keep
    the digits of small angles, which the arc cosine loses.

    Example:
        >>> angle(np.array([1.0, 0.0, -2.0]), np.ones(3), np.array([1.0, 1.0, 4.0])).round(6).tolist()
        [0.0, 90.0, 180.0]
    """
    a, b = _root(first), _root(second)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = (first - second) / (a + b)
        low = (first + second - 2 * inner - apart**2) / (2 * a * b)
        low = np.where(low < 1, low, 1 - inner / (a * b))
    return angle_of_defect(np.where((a > 0) & (b > 0), low, np.nan))


def angle_of_defect(defect: Floats) -> Floats:
    """Return the angle in degrees whose cosine is ``1 - defect``."""
    low = np.clip(defect, 0.0, 2.0)
    return np.asarray(np.degrees(2 * np.arctan2(np.sqrt(low), np.sqrt(2 - low))), dtype=np.float64)


def _root(values: Floats) -> Floats:
    return np.asarray(np.sqrt(np.maximum(values, 0.0)), dtype=np.float64)


def _from_zero(values: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(values)])


def _from_anchor(rows: Floats, anchor: int) -> Floats:
    """Sum rows from the anchor outwards: positive after it, negative before it, zero at it."""
    out = np.zeros((len(rows) + 1, rows.shape[1]))
    out[anchor + 1 :] = np.cumsum(rows[anchor:], axis=0)
    out[:anchor] = -np.cumsum(rows[:anchor][::-1], axis=0)[::-1]
    return out


def _undefined(values: Floats, sizes: Floats) -> Floats:
    """Put NaN into rows and columns whose vector is zero."""
    zero = ~(sizes > 0)
    values = values.copy()
    values[zero, :] = np.nan
    values[:, zero] = np.nan
    return values
