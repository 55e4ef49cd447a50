"""A word to the user who pressed Ctrl-C: that it was heard, and what happens now."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType


def announce(message: str) -> None:
    """Write ``message`` to standard error at the next Ctrl-C, then let the handler in charge act on it.

    To be called while the training loop's own handler is in place: that one finishes the step at the first
    signal, raises at the second, and puts Python's handler back at the end, which ends the announcing too.
    Where nothing but Python's handler is there, nothing is announced.

    Args:
        message: One line.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # signals belong to the main thread
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or handler is signal.default_int_handler:
        return
    told = False

    def tell(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(2, f"\n{message}\n".encode())  # a print could interrupt another print half-way
        handler(number, frame)

    signal.signal(signal.SIGINT, tell)
