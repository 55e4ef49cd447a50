"""Stretches of constant settings, found from what was logged, and the window in one of them that is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import InvalidInput, explain
from thalweg.stationarity import objections

Floats = NDArray[np.float64]
Steps = NDArray[np.int64]

SETTINGS = ("learning_rate", "batch_size", "weight_decay", "momentum")
"""Logged columns that must hold still in a window."""
SKIP = 0.5
"""Share of a segment, at its start, that a window leaves out."""


@dataclass(frozen=True)
class Window:
    """A stretch of steps at constant settings.

    Attributes:
        start: First step.
        stop: Last step, included.
        settings: What held: learning rate, batch size, weight decay, as far as they were logged.
        epochs: Whole epochs that it consists of; None: epochs are not known, or it was not cut by them.
    """

    start: int
    stop: int
    settings: Mapping[str, float] = field(default_factory=dict)
    epochs: int | None = None

    @property
    def steps(self) -> int:
        """Steps from start to stop."""
        return self.stop - self.start

    def holds(self, steps: Steps) -> NDArray[np.bool_]:
        """Return which steps lie inside."""
        return np.asarray((steps >= self.start) & (steps <= self.stop))

    def after(self, skip: float) -> Window:
        """Return the part that is left when a share at the start is dropped."""
        return Window(self.start + round(skip * self.steps), self.stop, self.settings)

    def __repr__(self) -> str:
        held = ", ".join(f"{name.replace('_', ' ')} {value:.6g}" for name, value in self.settings.items())
        whole = f", {self.epochs:,} whole epochs" if self.epochs else ""
        return f"steps {self.start:,} to {self.stop:,}{whole}" + (f" at {held}" if held else "")


def segments(
    steps: Sequence[int] | Steps, settings: Mapping[str, Sequence[float] | Floats], *, tolerance: float = 1e-6
) -> tuple[Window, ...]:
    """Cut a run wherever a setting changes: learning rate, batch size, decay.

    A setting that is not logged at a step is the one before. A change of less than ``tolerance`` of its value since
    the segment began is rounding.

    Args:
        steps: Increasing, shape ``(n,)``.
        settings: Values at these steps by name, each ``(n,)``, NaN where not logged.
        tolerance: Relative.

    Returns:
        Segments in order; together they cover all steps.

    Raises:
        InvalidInput: Shapes that do not fit, steps that do not increase, or none.

    Example:
        >>> for found in segments([0, 10, 20, 30], {"learning_rate": [0.1, 0.1, 0.01, 0.01]}):
        ...     print(found)
        steps 0 to 10 at learning rate 0.1
        steps 20 to 30 at learning rate 0.01
    """
    at = np.asarray(steps, dtype=np.int64)
    columns = {name: np.asarray(values, dtype=np.float64) for name, values in settings.items()}
    if at.ndim != 1 or not len(at) or (np.diff(at) <= 0).any() or any(x.shape != at.shape for x in columns.values()):
        raise InvalidInput(
            explain(
                f"There are {at.size} steps, and settings of shapes {[x.shape for x in columns.values()]}",
                "a schedule has one value of each setting at each step, and steps increase",
                "Give arrays of one length, in the order of steps",
            )
        )
    known = {name: filled(values) for name, values in columns.items() if np.isfinite(values).any()}
    cuts = [0]
    reference = {name: values[0] for name, values in known.items()}
    moving = [name for name, values in known.items() if np.ptp(values) > 0]
    changes = np.zeros(len(at), dtype=bool)
    for name in moving:
        changes[1:] |= np.diff(known[name]) != 0
    for i in np.flatnonzero(changes):
        if any(abs(known[name][i] - reference[name]) > tolerance * abs(reference[name]) for name in moving):
            cuts.append(int(i))
            reference = {name: values[i] for name, values in known.items()}
    ends = [*cuts[1:], len(at)]
    return tuple(
        Window(int(at[a]), int(at[b - 1]), {name: float(values[a]) for name, values in known.items()})
        for a, b in zip(cuts, ends)
    )


def epoch_starts(steps: Steps, epoch: Floats) -> Steps | None:
    """Return the steps at which epochs begin, from a column that counts them, in whole numbers or in parts.

    Args:
        steps: Increasing, shape ``(n,)``.
        epoch: At these steps, NaN where not logged.

    Returns:
        The first step of each epoch, without that of the first, which may have begun before the log; and after the last
        step, where that ends an epoch by its length. None where the column goes back, or a row is an epoch or longer.

    Example:
        >>> epoch_starts(np.arange(8), np.array([0, 0, 0, 1, 1, 1, 2, 2.0])).tolist()
        [3, 6]
    """
    if not np.isfinite(epoch).any():
        return None
    count = np.floor(filled(epoch) + 1e-9)
    if (np.diff(count) < 0).any():
        return None
    turns = np.flatnonzero(np.diff(count) > 0) + 1
    if len(turns) < 2 or np.median(np.diff(turns)) < 2 or (np.diff(count) > 1).any():
        return None
    starts, length = steps[turns], int(np.median(np.diff(steps[turns])))
    end = int(steps[-1]) + int(np.median(np.diff(steps)))
    return np.append(starts, end) if end - starts[-1] == length else starts


def whole_epochs(window: Window, starts: Steps | None, earliest: int = 0) -> Window:
    """Return a window of whole epochs in place of one that cuts them.

    Where samples are drawn without replacement, losses within an epoch hang together, and the epoch is the period of
    the chain. Parts of an epoch in the halves and quarters of a window, which are compared, would be taken for change.
    It ends with the last epoch that is whole, and is no shorter than before: its start moves back, by up to a quarter
    of the window. The number of epochs is a multiple of four if that allows it, else of two, else any.

    Args:
        window: The window.
        starts: Steps at which epochs begin, an end included; None: not known.
        earliest: The start is not put before this step.

    Returns:
        The window as it is where that is not possible with two epochs or more.

    Example:
        >>> whole_epochs(Window(105, 250), np.arange(0, 301, 10))
        steps 90 to 249, 16 whole epochs
    """
    if starts is None:
        return window
    ends = starts[starts <= window.stop + 1]
    counts = np.arange(2, int((ends >= earliest).sum()))
    if not len(counts):
        return window
    first = ends[-1 - counts]
    long = (ends[-1] - first > window.steps) & (window.start - first <= 0.25 * window.steps)
    for multiple in (4, 2, 1):
        fits = np.flatnonzero(long & (counts % multiple == 0))
        if len(fits):
            return Window(int(first[fits[0]]), int(ends[-1]) - 1, window.settings, int(counts[fits[0]]))
    return window


def change_inside(window: Window, found: Sequence[Window]) -> str | None:
    """Return why a window is not of one piece, or None where it is.

    Args:
        window: The window.
        found: Segments of the run.
    """
    pieces = [piece for piece in found if piece.stop >= window.start and piece.start <= window.stop]
    if len(pieces) < 2:
        return None
    first, second = pieces[0].settings, pieces[1].settings
    name = next(name for name in first if first[name] != second[name])
    return objections.rate_changes(window.start, window.stop, pieces[1].start, name, first[name], second[name])


def filled(values: Floats) -> Floats:
    """Fill gaps with the value before, at the start with the one after.

    Example:
        >>> filled(np.array([np.nan, 1.0, np.nan, 2.0])).tolist()
        [1.0, 1.0, 1.0, 2.0]
    """
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return values
    place = np.clip(np.searchsorted(known, np.arange(len(values)), side="right") - 1, 0, len(known) - 1)
    return np.asarray(values[known[place]])
