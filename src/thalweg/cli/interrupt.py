"""A word to the user who pressed Ctrl-C: that it was heard, and what happens now."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class CtrlC:
    """Tells the user at the first Ctrl-C what will happen, and counts how often it was pressed.

    The training loop has a handler of its own, which finishes the step at the first signal, breaks it off at the
    second, and puts Python's handler back at the end. This one stands before it and passes every signal on.

    Args:
        message: What to write to standard error at the first signal, one line.

    Attributes:
        presses: Signals so far, from `listen` to the end of training.
    """

    def __init__(self, message: str) -> None:
        self.presses = 0
        self._message = message
        self._handler: Callable[[int, FrameType | None], Any] | None = None

    def listen(self) -> None:
        """Stand before the handler in charge; to be called while training is under way."""
        if threading.current_thread() is not threading.main_thread():
            return  # signals belong to the main thread
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler) and handler is not signal.default_int_handler:
            self._handler = handler
            signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.presses += 1
        if self.presses == 1:
            os.write(2, f"\n{self._message}\n".encode())  # a print could interrupt another print half-way
        assert self._handler is not None  # listen() set it
        self._handler(number, frame)
