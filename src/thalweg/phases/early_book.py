"""What is known about short runs on a grid of ``c``: nothing is run twice that need not be."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from thalweg.errors import NonFinite, explain
from thalweg.phases.early import Array, EarlyCurves, EarlyRuns, Row
from thalweg.phases.labels import Window, diverges, loss_rises, sharpness_rises, sharpness_steps

Point = tuple[int, int]
"""Place of a seed, and point ``k`` of the grid ``c = 2^(start + k step)``."""


class Book:
    """Curves by seed and grid point, and the indicators read off them.

    A run that diverges counts as one whose loss and sharpness rise.

    Args:
        runs: Does the runs.
        start: ``log2 c`` of grid point 0.
        step: Distance of grid points in ``log2 c``.
        window: Which steps count.
        eps_sharp: Relative rise of sharpness that does not count.
    """

    def __init__(self, runs: EarlyRuns, start: float, step: float, window: Window, eps_sharp: float) -> None:
        self.runs, self.start, self.step, self.window, self.eps_sharp = runs, start, step, window, eps_sharp
        self.losses: dict[Point, Array] = {}
        self.sharpness: dict[Point, Array] = {}
        self.first: dict[Point, float] = {}
        """Sharpness after the first step, of runs that may not have been made further."""
        self.risen: set[Point] = set()
        """Runs whose sharpness is known to rise, by a lower bound that is no curve."""
        self.every = tuple(range(1, runs.steps + 1))

    def x(self, k: int) -> float:
        """``log2 c`` of a grid point."""
        return round(self.start + k * self.step, 12)

    def c(self, k: int) -> float:
        """``c`` of a grid point."""
        return float(2.0 ** self.x(k))

    def train(self, points: Sequence[Point]) -> None:
        """Have the losses of these runs."""
        self._run([p for p in dict.fromkeys(points) if p not in self.losses], ())

    def measure(self, points: Sequence[Point], steps: Collection[int], watch: bool = False) -> None:
        """Have the sharpness of these runs at the given steps, but for runs that diverge, which need none.

        With ``watch`` a run that is seen to rise is stopped, and nothing but that is kept of it.

        Raises:
            NonFinite: A sharpness is NaN although the run has not diverged.
        """
        wanted = {p: self._missing(p, steps) for p in dict.fromkeys(points)}
        for missing in sorted({m for m in wanted.values() if m}):
            self._run([p for p, m in wanted.items() if m == missing], missing, watch)
        for i, k in [p for p in points if p not in self.risen]:
            left = self._missing((i, k), steps)
            if left:
                raise NonFinite(
                    explain(
                        f"The sharpness of seed {self.runs.seeds[i]} at c = {self.c(k):.4g} is NaN after step "
                        f"{left[0]}, at a loss of {self.losses[i, k][left[0]]:.4g}",
                        "whether it rises cannot be told, and the run has not diverged",
                        "Evaluate in float64, or lower the cutoff of the loss",
                    )
                )

    def diverged(self, points: Sequence[Point]) -> list[bool]:
        """Whether each run exceeds the cutoff."""
        self.train(points)
        return [diverges(self.losses[p], self.runs.cutoff) for p in points]

    def loss_rose(self, points: Sequence[Point]) -> list[bool]:
        """Whether the loss of each run rises within the window, or it diverges."""
        gone = self.diverged(points)
        return [out or loss_rises(self.losses[p], self.window) for p, out in zip(points, gone)]

    def first_rose(self, points: Sequence[Point]) -> list[bool]:
        """Whether the first step raises the loss: a forward pass each."""
        after = self.runs.first_losses(self._rows(points))
        return [not bool(value <= self.runs.loss0[i]) for (i, _), value in zip(points, after)]

    def sharpness_rose(self, points: Sequence[Point]) -> list[bool]:
        """Whether the sharpness of each run rises within the window, or it diverges."""
        if self.window == "paper":
            self.measure([p for p in points if p not in self.risen], self.every, watch=True)
            return [bool(self.known_rise(p)) for p in points]
        self.train(points)
        inside = [range(1, 1 + sharpness_steps(self.losses[p], self.window)) for p in points]
        for steps in sorted(set(inside), key=len):
            some = [p for p, own in zip(points, inside) if own == steps and p not in self.risen]
            self.measure(some, steps, watch=True)
        return [bool(self.known_rise(p)) for p in points]

    def sharpness_rose_first(self, points: Sequence[Point]) -> list[bool]:
        """The same by the first step alone, which is in every window."""
        left = [p for p in dict.fromkeys(points) if p not in self.risen]
        values = self.runs.sharpness_at(self._rows(left), [1] * len(left), self._levels(left)) if left else ()
        for p, value in zip(left, values):
            if not bool(value <= self._level(p)):  # NaN: diverged
                self.risen.add(p)
                continue
            self.first[p] = float(value)
            if p in self.sharpness:
                self.sharpness[p][1] = value
        return [p in self.risen for p in points]

    def known_rise(self, point: Point) -> bool | None:
        """Whether the sharpness rises, as far as it was measured; None where that does not tell."""
        if point in self.risen:
            return True
        if diverges(self.losses[point], self.runs.cutoff):
            return True
        return sharpness_rises(self.losses[point], self.sharpness[point], self.window, self.eps_sharp)

    def barrier_stands(self, points: Sequence[Point], count: int) -> list[bool]:
        """Whether the segment to the end of each run passes above the initial loss; few points first, then all."""
        found = {p: p in self.losses and diverges(self.losses[p], self.runs.cutoff) for p in points}
        for fine in dict.fromkeys((min(11, count), count)):
            left = [p for p in points if not found[p]]
            if left:
                heights = self.runs.barrier(self._rows(left), fine)
                found.update({p: not bool(height <= 1.0) for p, height in zip(left, heights)})
        return [found[p] for p in points]

    def curves(self) -> EarlyCurves:
        """All runs, by seed and ``c``."""
        points = sorted(self.losses)
        empty = np.empty((0, self.runs.steps + 1))
        return EarlyCurves(
            tuple((i, self.c(k)) for i, k in points),
            np.stack([self.losses[p] for p in points]) if points else empty,
            np.stack([self.sharpness[p] for p in points]) if points else empty,
        )

    def _missing(self, point: Point, steps: Collection[int]) -> tuple[int, ...]:
        if point not in self.losses:
            return tuple(t for t in steps if t != 1 or point not in self.first)
        if diverges(self.losses[point], self.runs.cutoff):
            return ()
        return tuple(t for t in steps if np.isnan(self.sharpness[point][t]))

    def _rows(self, points: Sequence[Point]) -> list[Row]:
        return [(i, self.c(k)) for i, k in points]

    def _level(self, point: Point) -> float:
        """Sharpness that counts as risen when it is exceeded."""
        return float((1 + self.eps_sharp) * self.runs.sharpness0[point[0]])

    def _levels(self, points: Sequence[Point]) -> list[float]:
        return [self._level(p) for p in points]

    def _run(self, points: Sequence[Point], measure: Collection[int], watch: bool = False) -> None:
        if not points:
            return
        found = self.runs.run(self._rows(points), measure, self._levels(points) if watch else None)
        for p, loss, sharpness in zip(points, found.loss, found.sharpness):
            if watch and np.any(sharpness[1:] > self._level(p)):
                self.risen.add(p)
                continue
            old = self.sharpness.get(p)
            self.losses.setdefault(p, np.asarray(loss, dtype=np.float64))
            new = np.array(sharpness, dtype=np.float64)
            if np.isnan(new[1]):
                new[1] = self.first.get(p, np.nan)
            self.sharpness[p] = new if old is None else np.where(np.isnan(old), new, old)
