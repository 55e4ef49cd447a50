"""Work in stages: progress by products, and a Ctrl-C that keeps what the stages before have found."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from torch import Tensor

from thalweg.cli.meter import PATIENCE, TwoLines
from thalweg.operators import Operator


class Stopped(Exception):
    """The user asked to stop; the stage under way is given up."""


class Watched(Operator):
    """``A`` itself, telling of every product, so that progress can be shown and work be stopped in between.

    Args:
        inner: ``A``.
        tick: Called before each product with the number done so far; may raise.
    """

    def __init__(self, inner: Operator, tick: Callable[[int], None]) -> None:
        super().__init__(inner.size, inner.dtype, inner.device, inner.space)
        self.inner, self._tick = inner, tick

    def _matvec(self, v: Tensor) -> Tensor:
        self._tick(self.products - 1)
        return self.inner.matvec(v)

    def _matmat(self, block: Tensor) -> Tensor:
        self._tick(self.products - block.shape[1])
        return self.inner.matmat(block)


class StageMeter:
    """What the two meters share: begin a stage, count products, end it with what it found.

    Args:
        console: Where to write.
        clock: Seconds from any origin.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self._clock = console, clock
        self._stage, self._began = "", clock()

    def begin(self, stages: int) -> None:
        """So many stages are to come."""

    def stage(self, name: str) -> None:
        """A stage begins."""
        self._stage, self._began = name, self._clock()

    def tick(self, products: int) -> None:
        """So many products are done in this stage."""

    def finish(self, found: str) -> None:
        """The stage ended, and found this."""
        self._say(f"{self._stage}: {found}")

    def close(self) -> None:
        """All is done."""

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class LineStages(StageMeter):
    """A line at the end of each stage, and one every `PATIENCE` seconds within."""

    def stage(self, name: str) -> None:
        """A stage begins."""
        super().stage(name)
        self._last = self._began

    def tick(self, products: int) -> None:
        """So many products are done in this stage."""
        now = self._clock()
        if now - self._last >= PATIENCE:
            self._last = now
            self._say(f"{self._stage}: {products:,} products so far, {now - self._began:.0f} s")


class BarStages(StageMeter):
    """A bar over the stages, and below it the products of the one under way."""

    _progress: Progress | None = None

    def begin(self, stages: int) -> None:
        """So many stages are to come."""
        columns = BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.fields[pace]}")
        self._progress = TwoLines(*columns, console=self.console, expand=True, transient=True)
        self._task: TaskID = self._progress.add_task("", total=stages, pace="", text="")
        self._progress.start()

    def stage(self, name: str) -> None:
        """A stage begins."""
        super().stage(name)
        self.tick(0)

    def tick(self, products: int) -> None:
        """So many products are done in this stage."""
        if self._progress is not None:
            seconds = self._clock() - self._began
            rate = f"{products / seconds:.0f} products/s" if products and seconds > 1 else ""
            self._progress.update(self._task, pace=rate, text=f"{self._stage}: {products:,} products")

    def finish(self, found: str) -> None:
        """The stage ended, and found this."""
        super().finish(found)
        if self._progress is not None:
            self._progress.advance(self._task)

    def close(self) -> None:
        """Take the bar away; the lines stay."""
        if self._progress is not None:
            self._progress.stop()


def stage_meter(console: Console) -> StageMeter:
    """Return a bar for a terminal, lines for a file or a pipe."""
    return (BarStages if console.is_terminal else LineStages)(console)
