"""The work of a segmentation: cut into straight pieces, name them, let other settings vote, gather the evidence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from thalweg.phases.catapults import Catapult, Excursions
from thalweg.phases.partition import partition
from thalweg.phases.regimes_clock import Stretch, stretches
from thalweg.phases.regimes_curves import Curves
from thalweg.phases.regimes_labels import Piece, best_order
from thalweg.phases.regimes_result import RegimeLabel, Regimes, Segment
from thalweg.phases.regimes_turns import deciding, mend, noise

Floats = NDArray[np.float64]

GRID = 80
"""Points of a stretch, uniform in the logarithm of time."""
TRANSIENT = 10.0
"""How long the early transient lasts, in steps of the largest rate."""
PENALTIES = (0.5, 1.0, 2.0)
TRANSIENTS = (5.0, 10.0, 20.0)
"""Settings that the result is held against."""
FEWEST = 8
"""Measurements of sharpness below which nothing is said."""
SHORTEST = 20
"""Steps below which nothing is said."""
UNRELATED = 0.6
"""Squared differences of neighbours over twice the variance, above which the order of time shows in nothing."""


@dataclass(frozen=True)
class _Cut:
    """Pieces of a whole run, and the piece of each measurement."""

    pieces: list[Piece]
    owner: NDArray[np.int64]


class Segmenter:
    """Makes `Regimes` from curves and excursions; see `thalweg.phases.regimes.segment`."""

    def __init__(self, curves: Curves, found: Excursions, penalty: float, transient: float) -> None:
        self.curves, self.found, self.penalty, self.transient = curves, found, penalty, transient
        self.flags: list[str] = []
        self.parts: list[Stretch] = []
        self.notes = list(curves.notes)
        self.end = next((event.opened for event in found.events if event.label == "diverged"), None)
        self.alive = np.flatnonzero(curves.at < self.end) if self.end is not None else np.arange(len(curves.at))

    def result(self) -> Regimes:
        """Cut, name, vote and describe."""
        labels, agreement = self._labels()
        segments = self._segments(labels, agreement)
        if self.end is not None:
            segments.append(self._described("diverged", self.end, int(self.curves.steps[-1]), None, np.nan))
            self.flags.append("diverged")
        edges = [s for s in segments if s.label == "edge of stability"]
        befores = {s.start: max((o.end for o in segments if o.end < s.start), default=s.start - 1) for s in edges}
        outside = [e for e in self.found.events if not any(befores[s.start] < e.opened <= s.end for s in edges)]
        self._remarks(segments, outside)
        everything = list(labels) + ["diverged"] * (len(self.curves.at) - len(self.alive))
        whole = np.concatenate([agreement, np.ones(len(everything) - len(agreement))])
        return Regimes(
            tuple(segments), tuple(outside), tuple(self.flags), tuple(self.notes), self.curves, tuple(everything),
            whole, self.found.delta,
        )  # fmt: skip

    def _labels(self) -> tuple[list[RegimeLabel], Floats]:
        """Return the regime of each measurement before a divergence, and how many settings agree on it."""
        count = len(self.alive)
        reason = self._too_little()
        if reason is not None:
            self.flags.append(reason)
            early = self.end is not None and self.end <= 1.6 * self.transient
            only: RegimeLabel = "transient" if early and count else "undetermined"
            return [only] * count, np.full(count, 1.0 if early else np.nan)
        parts, ignored = stretches(replace(self.curves, at=self.curves.at[self.alive]))
        self.parts = parts
        for part in parts[1:]:
            self.flags.append(f"rate changed at {part.begin}")
        for step in ignored:
            self.notes.append(
                f"The rate jumps at step {step}, with too few measurements beside it to begin anew there."
            )
        labels = self._run(parts, self.penalty, self.transient)
        votes = np.zeros(count)
        for factor in PENALTIES:
            cut = self._cut(parts, self.penalty * factor)
            for length in TRANSIENTS:
                other = self._name(cut, self.transient * length / TRANSIENT)
                votes += [a == b for a, b in zip(labels, other)]
        return labels, votes / (len(PENALTIES) * len(TRANSIENTS))

    def _too_little(self) -> str | None:
        at, y = self.curves.at[self.alive], np.log10(self.curves.sharpness[self.alive])
        if not self.curves.known:
            return "no sharpness"
        if len(at) < FEWEST or at[-1] - at[0] < SHORTEST:
            span = at[-1] - at[0] if len(at) else 0
            self.notes.append(
                f"Too little data: {FEWEST} measurements of sharpness over {SHORTEST} steps are the least, and "
                f"there are {len(at)} over {span}."
            )
            return "too little data"
        spread = float(np.var(y))
        if spread > 0.1**2 and float(np.mean(np.diff(y) ** 2)) > UNRELATED * 2 * spread:
            self.notes.append("Neighbouring values of sharpness have nothing to do with each other: is the order of "
                              "time lost?")  # fmt: skip
            return "no order in time"
        return None

    def _run(self, parts: list[Stretch], penalty: float, transient: float) -> list[RegimeLabel]:
        return self._name(self._cut(parts, penalty), transient)

    def _cut(self, parts: list[Stretch], penalty: float) -> _Cut:
        """Cut each stretch into straight pieces."""
        pieces: list[Piece] = []
        owner = np.zeros(len(self.alive), dtype=np.int64)
        for number, part in enumerate(parts):
            chosen = self.alive[part.chosen]
            x, y = np.log10(1 + part.clock), np.log10(self.curves.sharpness[chosen])
            distinct = np.concatenate([[True], np.diff(x) > 0])  # at a rate of zero the clock stands
            grid = np.linspace(x[0], x[-1], GRID)
            values = np.interp(grid, x[distinct], y[distinct])
            cost = penalty * 9 * noise(x[distinct], y[distinct]) ** 2 * np.log(GRID)
            cut = partition(grid, values, penalty=cost)
            ends = np.array(cut.bounds[1:-1], dtype=np.int64)
            owner[part.chosen] = len(pieces) + np.searchsorted((grid[ends - 1] + grid[ends]) / 2, x, side="right")
            for k, (i, j) in enumerate(zip(cut.bounds, cut.bounds[1:])):
                mine = np.flatnonzero(owner[part.chosen] == len(pieces))
                own = chosen[mine]
                slope = float(cut.lines[k, 0])
                ratio, rising = deciding(x, *self._ratios(chosen), grid[i:j], mine)
                pieces.append(
                    Piece(
                        start=10 ** grid[i] - 1,
                        end=10 ** grid[j - 1] - 1,
                        slope=slope,
                        change=slope * float(grid[j - 1] - grid[i]),
                        ratio=ratio,
                        points=j - i,
                        first=part.first,
                        opens=k == 0 and number > 0,
                        steady=self._steady(own),
                        thrown=self._thrown(own),
                        approaching=rising,
                    )
                )
        return _Cut(pieces, owner)

    def _name(self, cut: _Cut, transient: float) -> list[RegimeLabel]:
        states = best_order(cut.pieces, transient)
        named: list[RegimeLabel] = [states[index] for index in cut.owner]
        risen = False
        for index, label in enumerate(named):
            risen = risen or label in ("sharpening", "edge of stability")
            if label == "reduction" and risen:
                named[index] = "late reduction"
        for part in self.parts:
            chosen = self.alive[part.chosen]
            x, y = np.log10(1 + part.clock), np.log10(self.curves.sharpness[chosen])
            since = np.log10(1 + transient) if part.first else 0.0
            mended = mend([named[index] for index in part.chosen], x, y, *self._ratios(chosen), since=since)
            for index, label in zip(part.chosen, mended):
                named[index] = label
        return named

    def _ratios(self, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
        """Return which of these measurements have a ratio that decides, of batches where batches were used, and it."""
        values = (self.curves.ratio if self.curves.full_batch else self.curves.batch_ratio)[chosen]
        usable = np.flatnonzero(np.isfinite(values) & (values > 0))
        return usable, np.log10(values[usable])

    def _steady(self, own: NDArray[np.int64]) -> bool | None:
        rises = self._rises(own)
        return None if not np.isfinite(rises) else rises < 0.01

    def _rises(self, own: NDArray[np.int64]) -> float:
        """Return the share of recorded steps between these measurements at which the loss rose."""
        if not len(own):
            return np.nan
        inside = self._inside(int(self.curves.at[own[0]]), int(self.curves.at[own[-1]]))
        return _rising(inside) if len(inside) > 10 else np.nan

    def _inside(self, start: int, end: int) -> Floats:
        return self.curves.loss[(self.curves.steps >= start) & (self.curves.steps <= end)]

    def _thrown(self, own: NDArray[np.int64]) -> bool:
        """Whether a mini-batch loss was thrown up at least twice while the rate stood still."""
        curves = self.curves
        if curves.full_batch or curves.rate is None or len(own) < 2 or np.isfinite(curves.batch_ratio[own]).any():
            return False
        start, end = int(curves.at[own[0]]), int(curves.at[own[-1]])
        rates = curves.rate[(curves.steps >= start) & (curves.steps <= end)]
        fixed = len(rates) > 0 and rates.max() <= 1.01 * rates.min()
        return fixed and sum(start <= e.opened <= end for e in self.found.events) >= 2

    def _segments(self, labels: list[RegimeLabel], agreement: Floats) -> list[Segment]:
        if not labels:
            last = int(self.curves.steps[-1]) if self.end is None else self.end - 1
            early = self.end is not None and self.end <= 1.6 * self.transient
            return [self._described("transient" if early else "undetermined", 0, max(last, 0), None, np.nan)]
        found, begin = [], 0
        begins = {part.begin for part in self.parts} - {0}
        at = self.curves.at[self.alive]
        keys = [(label, sum(step <= at[i] for step in begins)) for i, label in enumerate(labels)]
        for (label, _), group in groupby(keys):
            size = len(list(group))
            own = self.alive[begin : begin + size]
            sure = float(np.mean(agreement[begin : begin + size]))
            begin += size
            found.append(self._described(label, int(at[begin - size]), int(at[begin - 1]), own, sure))
        return found

    def _described(
        self, label: RegimeLabel, start: int, end: int, own: NDArray[np.int64] | None, sure: float
    ) -> Segment:
        """Return a segment with its evidence."""
        curves = self.curves
        events = sum(start <= event.opened <= end for event in self.found.events)
        inside = self._inside(start, end)
        told = Segment(
            label,
            start,
            end,
            events=events,
            rate=1000 * events / (end - start) if end > start else np.nan,
            rises=_rising(inside),
            loss=(float(inside[0]), float(inside[-1])) if len(inside) else (np.nan, np.nan),
            confidence=sure,
        )
        if own is None or not len(own):
            return told
        y = np.log10(curves.sharpness[own])
        clock = np.log10(1 + self._since(curves.at[own]))
        slope = float(np.polyfit(clock, y, 1)[0]) if len(own) > 1 and np.ptp(clock) > 0 else np.nan
        return replace(
            told,
            slope=slope,
            change=float(y[-1] - y[0]),
            ratio=_median(curves.ratio[own]),
            batch_ratio=_median(curves.batch_ratio[own]),
            measured=len(own),
        )

    def _since(self, at: NDArray[np.int64]) -> Floats:
        """Return the clock of measurements of one stretch."""
        known = self.curves.at[self.alive]
        for part in reversed(self.parts):
            if at[0] >= part.begin:
                lookup = dict(zip(known[part.chosen].tolist(), part.clock.tolist()))
                return np.array([lookup[step] for step in at.tolist()])
        return at.astype(np.float64)

    def _remarks(self, segments: list[Segment], outside: list[Catapult]) -> None:
        """Add what should be kept in mind."""
        curves = self.curves
        if not curves.full_batch:
            self.flags.append("mini-batch")
            if any(s.label == "edge of stability" and not 0.85 <= s.batch_ratio <= 1.3 for s in segments):
                self.notes.append(
                    "The edge is called from sharpness that rests while the loss is thrown up at a fixed rate, not "
                    "from its ratio to the threshold."
                )
            elif not np.isfinite(curves.batch_ratio).any():
                self.notes.append(
                    "Mini-batches: the sharpness of all data stays below the threshold at the edge, so that it cannot "
                    "decide. Batch sharpness can."
                )
        if any(np.isfinite(s.confidence) and s.confidence < 0.5 for s in segments):
            self.flags.append("uncertain")
        heavy = curves.limit is not None and curves.limit.momentum and not curves.limit.preconditioned
        if heavy and len(curves.ratio) and curves.at[0] == 0 and curves.limit is not None:
            start = float(curves.ratio[0]) * curves.limit.kappa / 2
            if start > 1 and np.isfinite(start):
                self.notes.append(f"Before its momentum builds up the optimizer steps like plain descent: the start is "
                                  f"at {start:.3g} of 2 / lr.")  # fmt: skip


def _rising(loss: Floats) -> float:
    return float((loss[1:] > loss[:-1]).mean()) if len(loss) > 1 else np.nan


def _median(values: Floats) -> float:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else np.nan
