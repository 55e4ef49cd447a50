"""The time in which regimes are seen: logarithmic, by the flow the steps make, anew after a change of the rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thalweg.phases.regimes_curves import Curves

Floats = NDArray[np.float64]

JUMP = 1.5
"""A change of the learning rate by this factor from one record to the next begins another stretch."""
CALM = 1.1
"""It is a jump only where the records beside it change by less than this factor."""
ENOUGH = 8
"""Measurements that a stretch needs to be cut by itself."""


@dataclass(frozen=True)
class Stretch:
    """Measurements between two jumps of the learning rate.

    Attributes:
        begin: Step at which it begins.
        chosen: Indices of its measurements, ``(k,)``.
        clock: Time since ``begin`` at each, in steps of the largest rate in the stretch, ``(k,)``.
        first: Whether it starts with the run.
    """

    begin: int
    chosen: NDArray[np.int64]
    clock: Floats
    first: bool


def jumps(curves: Curves) -> list[int]:
    """Return the steps from which on the learning rate is another, by a jump."""
    rate = curves.rate
    if rate is None or len(rate) < 3:
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.abs(np.diff(np.log(rate)))
    size[~np.isfinite(size)] = 0.0  # a warm-up from zero
    quiet = np.concatenate([[0.0], size, [0.0]])
    there = (size > np.log(JUMP)) & (quiet[:-2] < np.log(CALM)) & (quiet[2:] < np.log(CALM))
    return [int(step) for step in curves.steps[1:][there]]


def stretches(curves: Curves) -> tuple[list[Stretch], list[int]]:
    r"""Return the stretches, and the jumps that had too few measurements behind them to begin one.

    Within a stretch the clock is ``\sum \eta_t / \max \eta``: plain steps at a fixed rate, and the time of the gradient
    flow otherwise, so that a warm-up does not count as long as what follows.
    """
    ignored, edges = [], [0]
    for step in jumps(curves):
        behind = int((curves.at >= step).sum())
        between = int(((curves.at >= edges[-1]) & (curves.at < step)).sum())
        if min(behind, between) < ENOUGH:
            ignored.append(step)
        else:
            edges.append(step)
    found = []
    for begin, end in zip(edges, [*edges[1:], np.iinfo(np.int64).max]):
        chosen = np.flatnonzero((curves.at >= begin) & (curves.at < end))
        found.append(Stretch(begin, chosen, _clock(curves, begin, int(end), curves.at[chosen]), begin == 0))
    return found, ignored


def _clock(curves: Curves, begin: int, end: int, at: NDArray[np.int64]) -> Floats:
    if curves.rate is None:
        return at.astype(np.float64) - begin
    inside = (curves.steps >= begin) & (curves.steps < end)
    steps, rate = curves.steps[inside].astype(np.float64), curves.rate[inside]
    if not len(steps) or not rate.max() > 0:
        return at.astype(np.float64) - begin
    speed = rate / rate.max()
    # The clock runs at the rate of a record until the next one; outside the records, at that of the nearest.
    times = (steps[0] - begin) * speed[0] + np.concatenate([[0.0], np.cumsum(speed[:-1] * np.diff(steps))])
    before, after = np.minimum(at - steps[0], 0) * speed[0], np.maximum(at - steps[-1], 0) * speed[-1]
    found: Floats = np.interp(at, steps, times) + before + after
    return found
