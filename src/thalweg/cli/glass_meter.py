"""Progress of ``thalweg glass``: batches done, in place on a terminal, every ten seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.status import Status

from thalweg.cli.console import say
from thalweg.cli.meter import PATIENCE


class GlassMeter:
    """Tells what is measured and how far it is.

    Args:
        console: Where to write.
        batches: Batches of each measurement.
        clock: Seconds from any origin.
    """

    def __init__(self, console: Console, batches: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._batches, self._clock = console, batches, clock
        self._last = clock()
        self._status: Status | None = None

    def __call__(self, what: str, done: int) -> None:
        """So many batches of ``what`` are done."""
        text = f"{what}: {done} of {self._batches} batches"
        if self._console.is_terminal:
            if self._status is None:
                self._status = self._console.status(text)
                self._status.start()
            self._status.update(text)
        elif self._clock() - self._last >= PATIENCE:
            self._last = self._clock()
            say(text, self._console)

    def close(self) -> None:
        """Take the line away."""
        if self._status is not None:
            self._status.stop()
            self._status = None
