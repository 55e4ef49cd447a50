"""Progress of a run: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from math import isfinite

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

WINDOW = 20.0
"""Seconds over which the rate is averaged."""

PATIENCE = 15.0
"""Seconds after which a plain line is printed even if the run has not advanced by a tenth."""


class Pace:
    """Rate and remaining time from the steps of the last `WINDOW` seconds.

    Args:
        steps: Steps of the whole run.
        start: Step at which the clock starts.
        clock: Seconds from any origin.
        unit: What is counted, in the plural.
    """

    def __init__(self, steps: int, start: int, clock: Callable[[], float], unit: str = "steps") -> None:
        self._steps, self._clock, self._unit = steps, clock, unit
        self._marks = deque([(clock(), start)])

    def mark(self, step: int) -> None:
        """Note that ``step`` is recorded, and with it ``step + 1`` rows."""
        now = self._clock()
        self._marks.append((now, step + 1))
        while len(self._marks) > 2 and now - self._marks[0][0] > WINDOW:
            self._marks.popleft()

    @property
    def rate(self) -> float:
        """Steps a second; 0 where nothing is known yet."""
        (first, low), (last, high) = self._marks[0], self._marks[-1]
        return (high - low) / (last - first) if last > first else 0.0

    def __str__(self) -> str:
        if not self.rate:
            return f"-- {self._unit}/s"
        left = (self._steps + 1 - self._marks[-1][1]) / self.rate
        rate = f"{self.rate:.0f} {self._unit}/s" if self.rate >= 10 else f"{self.rate:.2g} {self._unit}/s"
        return f"{rate}, {duration(left)} left"


class RunMeter:
    """What the two meters share; `train` calls `init`, `step` for every step, and `close`.

    Args:
        console: Where to write.
        at_work: Called once, when the first step is done and training is under way.
        clock: Seconds from any origin.
    """

    noun, unit = "step", "steps"
    """What is counted, one and many of it."""

    def __init__(
        self,
        console: Console,
        at_work: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console, self._at_work, self._clock = console, at_work, clock
        self._sharpness = ""

    def init(self, steps: int, start: int = 0) -> None:
        """Training is to reach ``steps`` and begins after ``start``."""
        self._steps, self._pace = steps, Pace(steps, start, self._clock, self.unit)
        self._open(start)

    def step(self, values: Mapping[str, float]) -> None:
        """Show a recorded step."""
        step = int(values["step"])
        self._pace.mark(step)
        self._show(step, self._text(values))
        if self._at_work is not None:
            self._at_work()
            self._at_work = None

    def close(self) -> None:
        """Training ended."""

    def _open(self, start: int) -> None:
        """Begin to draw."""

    def _show(self, step: int, text: str) -> None:
        raise NotImplementedError

    def _text(self, values: Mapping[str, float]) -> str:
        sharpness, threshold = values.get("sharpness", float("nan")), values.get("stability_threshold")
        if isfinite(sharpness):  # between two measurements the last one stands
            relative = f" ({sharpness / threshold:.0%} of the threshold)" if threshold else ""
            self._sharpness = f", sharpness {sharpness:.4g}{relative}"
        return f"loss {values['loss']:.4g}{self._sharpness}"


class TwoLines(Progress):
    """A bar across the terminal, and what was measured below it: both fit into 80 columns."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """The bar, then the text of each task."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text(task.fields["text"], no_wrap=True, overflow="ellipsis")


class BarMeter(RunMeter):
    """A bar that is redrawn in place."""

    _progress: Progress | None = None

    def _open(self, start: int) -> None:
        columns = BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.fields[pace]}")
        self._progress = TwoLines(*columns, console=self.console, expand=True)
        self._task: TaskID = self._progress.add_task("", total=self._steps, completed=start, pace="", text="")
        self._progress.start()

    def _show(self, step: int, text: str) -> None:
        assert self._progress is not None  # init came first
        self._progress.update(self._task, completed=step, pace=str(self._pace), text=text)

    def close(self) -> None:
        """Leave the last state of the bar on the screen; nothing where training failed before it began."""
        if self._progress is not None:
            self._progress.stop()


class LineMeter(RunMeter):
    """One line at every tenth of the run, and when `PATIENCE` seconds passed without one."""

    def _open(self, start: int) -> None:
        self._tenth, self._last = start * 10 // max(self._steps, 1), self._clock()

    def _show(self, step: int, text: str) -> None:
        now, tenth = self._clock(), step * 10 // max(self._steps, 1)
        if tenth == self._tenth and now - self._last < PATIENCE:
            return
        self._tenth, self._last = tenth, now
        line = f"{self.noun} {step}/{self._steps} ({step / max(self._steps, 1):.0%}), {self._pace}: {text}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def make_meter(console: Console, at_work: Callable[[], None] | None = None) -> RunMeter:
    """Return a bar for a terminal, lines for a file or a pipe."""
    return (BarMeter if console.is_terminal else LineMeter)(console, at_work)


def duration(seconds: float) -> str:
    """Say a time span in at most two units.

    Example:
        >>> duration(8.4), duration(75), duration(7260)
        ('8 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
