"""What a phase diagram will cost, and how far it is."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping

from rich.console import Console

from thalweg.cli.meter import BarMeter, LineMeter, Pace, RunMeter, duration
from thalweg.cli.phase_options import Told
from thalweg.phases.early_network import network_runs

PRODUCTS, GRADIENTS, FORWARDS, BARRIER = 95, 160, 35, 550
"""What one cell takes by bisection, on average over digits; the grid takes about `GRID` times as much."""
GRID = 20
PRODUCT, FORWARD = 2.5, 0.4
"""Cost of a Hessian product and of a forward pass in gradients."""
START = 6.0
"""Seconds until the processes of an engine are at work."""


class BySize(Pace):
    """The time that is left by the sizes of the networks that are still to come: the largest come first."""

    left = math.nan

    def __str__(self) -> str:
        return f"about {duration(self.left)} left" if math.isfinite(self.left) else "-- left"


class PhaseMeter(RunMeter):
    """Cells that are done, those that failed, and the time that is left."""

    noun, unit = "cell", "cells"

    def init(self, steps: int, start: int = 0) -> None:
        """So many are to come."""
        super().init(max(steps, 1), start)
        self._pace: BySize = BySize(max(steps, 1), start, self._clock, self.unit)

    def step(self, values: Mapping[str, float]) -> None:
        """One more is done."""
        self._pace.left = float(values.get("seconds_left", math.nan))
        super().step(values)

    def _text(self, values: Mapping[str, float]) -> str:
        failed, took = int(values.get("failed", 0)), float(values.get("seconds", 0.0))
        text = f"the last one took {duration(took)}"
        return f"{text}, {failed} failed" if failed else text


class PhaseBar(PhaseMeter, BarMeter):
    """A bar that is redrawn in place."""


class PhaseLines(PhaseMeter, LineMeter):
    """A line at every tenth."""


def phase_meter(console: Console) -> PhaseMeter:
    """Return a bar for a terminal, lines for a file or a pipe."""
    return (PhaseBar if console.is_terminal else PhaseLines)(console)


def workers_of(told: Told) -> int:
    """Processes that will work: those asked for, or one for each core that this process may use."""
    if told.workers is not None:
        return told.workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def predicted(told: Told) -> float:
    """Seconds that the sweep takes, from a few steps of each network here: products, gradients and forward passes.

    Raises:
        ThalwegError: The data or a network cannot be built.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        each = {}
        for depth in told.depths:
            for width in told.widths:
                runs = network_runs(depth, width, (0,), spec=told.spec)
                runs.first_losses([(0, 0.5)])  # the first one allocates, and takes the first gradient
                began = time.perf_counter()
                runs.run([(0, 0.5)])
                each[depth, width] = (time.perf_counter() - began) / told.steps
    finally:
        torch.set_num_threads(before)
    gradients = PRODUCTS * PRODUCT + GRADIENTS + (FORWARDS + (0 if told.no_barrier else BARRIER)) * FORWARD
    gradients *= GRID if told.mode == "grid" else 1
    if told.saturation:
        gradients += sum(100 / 2.0**x for x in (-1 + 0.2 * k for k in range(26))) * 1.5
    total = sum(each.values()) * told.seeds * gradients
    longest = max(each.values()) * gradients
    return max(total / workers_of(told), longest) + START
