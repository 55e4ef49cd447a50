"""One spawned process that does one task after the other, and ends when its driver does."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

from thalweg.engines.outcome import Outcome, attempt, failed

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""What matrix libraries ask for the number of their threads, when they are loaded."""
PATIENCE = 5.0
"""Seconds that a worker gets to end by itself."""
READY = b"ready"

_environment = threading.Lock()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for as long as processes are started, and put back what was there."""
    with _environment:
        before = {name: os.environ.get(name) for name in values}
        os.environ.update(values)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


class Worker:
    """A process and the line to it.

    Args:
        threads: Threads of its matrix library.

    Attributes:
        line: Takes tasks, gives answers.
        process: The process.
        ready: Whether it has come up.
    """

    def __init__(self, threads: int) -> None:
        context = get_context("spawn")
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), name="thalweg-worker")
        self.ready = False
        with environment(dict.fromkeys(THREADS, str(threads))):
            self.process.start()
        theirs.close()  # so that the end of the process is the end of the line

    def send(self, payload: bytes) -> bool:
        """Give it a task; False if it is gone."""
        try:
            self.line.send_bytes(payload)
        except OSError:
            return False
        return True

    def receive(self) -> bytes | None:
        """Return its message, or None if it ended before it had sent one."""
        try:
            return self.line.recv_bytes()
        except (EOFError, OSError):
            return None

    def end(self, *, kill: bool = False) -> None:
        """Let it end, by force if ``kill`` or if it takes too long."""
        self.line.close()
        if not kill:
            self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()

    def fate(self) -> str:
        """Say how the process ended."""
        self.process.join(PATIENCE)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"process {self.process.pid} was ended by {signal.Signals(-code).name}"
        return f"process {self.process.pid} ended with exit code {code}"


def serve(line: Connection) -> None:
    """Do the tasks that come over ``line`` until it is closed. Runs in the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the driver decides
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()
    try:
        line.send_bytes(READY)
        while True:
            line.send_bytes(_answer(line.recv_bytes()))
    except (EOFError, OSError):
        return  # the driver closed the line


def _answer(payload: bytes) -> bytes:
    try:
        function, args, kwargs = pickle.loads(payload)
        return pickle.dumps(attempt(function, args, kwargs), pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # the task cannot be loaded here, or its value cannot be sent
        return pickle.dumps(failed(error))


def _follow(sentinel: Any) -> None:
    """End with the driver, also in the middle of a task, so that no process is left behind."""
    wait([sentinel])
    os._exit(1)


def answer_of(message: bytes) -> Outcome:
    """Read a worker's answer; one that cannot be read is an error."""
    try:
        found = pickle.loads(message)
    except Exception as error:
        return failed(error)
    return found if isinstance(found, Outcome) else Outcome(error=TypeError(f"a worker answered {found!r}"))
