"""Progress of a sweep: cells, failures, and the remaining time, weighted with what cells cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite

from rich.console import Console

from thalweg.cli.meter import BarMeter, LineMeter, Pace, RunMeter, duration


class _Left(Pace):
    """Says the remaining time that the sweep tells, as cells differ in size."""

    seconds = float("nan")

    def __str__(self) -> str:
        return f"{duration(self.seconds)} left" if isfinite(self.seconds) else "-- left"


class SweepMeter(RunMeter):
    """What the two meters share."""

    noun, unit = "cell", "cells"

    def init(self, steps: int, start: int = 0) -> None:
        """The sweep has ``steps`` cells, ``start`` of which were finished before."""
        super().init(steps, start)
        self._pace = _Left(steps, start, self._clock, self.unit)

    def step(self, values: Mapping[str, float]) -> None:
        """Show a cell that is finished."""
        assert isinstance(self._pace, _Left)
        self._pace.seconds = values["seconds_left"]
        super().step(values)

    def _text(self, values: Mapping[str, float]) -> str:
        failed = int(values["failed"])
        return f"last cell {values['seconds']:.3g} s" + (f", {failed} failed" if failed else "")


class SweepBar(SweepMeter, BarMeter):
    """A bar that is redrawn in place."""


class SweepLines(SweepMeter, LineMeter):
    """A line at every tenth of the cells."""


def sweep_meter(console: Console, at_work: Callable[[], None] | None = None) -> SweepMeter:
    """Return a bar for a terminal, lines for a file or a pipe; ``at_work`` is called after the first cell."""
    return (SweepBar if console.is_terminal else SweepLines)(console, at_work)
