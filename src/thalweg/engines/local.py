"""Processes of this machine as an executor; one that is killed costs only the task it was at."""

from __future__ import annotations

import atexit
import math
import pickle
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import wait
from time import monotonic
from types import TracebackType
from typing import Any

from thalweg.engines.outcome import Outcome, WorkerLost, deliver, late, lost, name_of
from thalweg.engines.worker import READY, Worker, answer_of, cores
from thalweg.errors import DistributedError, InvalidInput, explain

STARTS = 3
"""Workers in a row that may end before they have come up."""
LONGEST = 3600.0
"""Seconds of one wait: the system counts milliseconds, and not for ever."""


@dataclass
class Task:
    """A call that was asked for."""

    future: Future[Any]
    payload: bytes
    name: str
    limit: float | None = None
    attempts: int = 0
    deadline: float = math.inf


class LocalEngine(Executor):
    """Spawned processes of this machine, with the interface of `concurrent.futures`.

    A worker that is killed costs the task it was at and nothing else: another process takes its place and the task is
    tried again. A task that has lost ``retries + 1`` workers fails with `WorkerLost`, and the others go on. Workers are
    spawned, not forked, when there is work for them, so a script that uses this needs
    ``if __name__ == "__main__":``. Functions, arguments and results are pickled. `limited` gives tasks a time limit.

    Leaving the ``with`` block waits for all tasks; leaving it by Ctrl-C ends the workers at once, as does the end of
    the program.

    Args:
        workers: Processes; None takes the cores that this process may use.
        threads: Threads of the matrix library in each.
        retries: How often a task is tried again after its worker was lost.

    Raises:
        InvalidInput: A number is too small.

    Example:
        >>> with LocalEngine(workers=1) as engine:
        ...     list(engine.map(pow, [2, 3], [5, 2]))
        [32, 9]
    """

    def __init__(self, workers: int | None = None, *, threads: int = 1, retries: int = 2) -> None:
        for name, value, least in (("workers", workers, 1), ("threads", threads, 1), ("retries", retries, 0)):
            if value is not None and value < least:
                raise InvalidInput(
                    explain(f"{name} is {value}", f"it must be {least} or more", f"Pass {name} >= {least}")
                )
        self.workers = workers or cores()
        self.threads, self.retries = threads, retries
        self._pool = _Pool(self.workers, threads, retries)
        atexit.register(self._pool.kill)  # before multiprocessing waits for its children
        weakref.finalize(self, _Pool.close, self._pool, False).atexit = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Ask for ``fn(*args, **kwargs)``; see `concurrent.futures.Executor.submit`.

        Returns:
            The future. It fails with `InvalidInput` if the call cannot be pickled, with `WorkerLost` if it takes down
            every worker that tries it, and with what ``fn`` raises, the worker's trace in a note.

        Raises:
            RuntimeError: The engine was shut down.
        """
        return self._submit(None, fn, args, kwargs)

    def limited(self, seconds: float) -> Limited:
        """Return an executor on the same workers whose tasks may take so long; leaving it leaves the engine running.

        The time begins when a worker is given the task, with the import of its function there; what waits for a worker
        waits for free. A task that takes longer loses its worker, and is tried again as after a crash; in the end it
        fails with `TimedOut`. The other tasks go on.

        Raises:
            InvalidInput: The time is not positive.
        """
        return Limited(self, seconds)

    def _submit(
        self, limit: float | None, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            payload = pickle.dumps((fn, args, kwargs), pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            future.set_exception(_unsendable(name_of(fn), error))
            return future
        self._pool.add(Task(future, payload, name_of(fn), limit))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers when all tasks are done; with ``cancel_futures`` those that have not begun are cancelled."""
        self._pool.close(cancel_futures)
        if wait:
            try:
                self._pool.join()
            except BaseException:  # Ctrl-C while waiting
                self._pool.kill()
                raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is not None and not issubclass(kind, Exception):
            self._pool.kill()
        self.shutdown(wait=True, cancel_futures=kind is not None)
        return None

    def __repr__(self) -> str:
        return f"LocalEngine(workers={self.workers}, threads={self.threads}, retries={self.retries})"


class Limited(Executor):
    """A `LocalEngine` whose tasks have a time limit; made by `LocalEngine.limited`.

    Args:
        engine: It; used, and not shut down.
        seconds: That each attempt at a task may take.

    Example:
        >>> with LocalEngine(workers=1) as engine:
        ...     engine.limited(600).submit(pow, 2, 5).result()
        32
    """

    def __init__(self, engine: LocalEngine, seconds: float) -> None:
        if not seconds > 0:
            raise InvalidInput(explain(f"seconds is {seconds}", "a task takes some time", "Pass seconds > 0"))
        self._engine, self.seconds = engine, seconds

    @property
    def workers(self) -> int:
        """Processes of the engine."""
        return self._engine.workers

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Ask for ``fn(*args, **kwargs)``; see `LocalEngine.submit`."""
        return self._engine._submit(self.seconds, fn, args, kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the engine to its owner."""

    def __repr__(self) -> str:
        return f"{self._engine!r}.limited({self.seconds:g})"


class _Pool:
    """The workers, and the thread that gives them tasks."""

    def __init__(self, size: int, threads: int, retries: int) -> None:
        self.size, self.threads, self.retries = size, threads, retries
        self.waiting: deque[Task] = deque()
        self.at: dict[Worker, Task | None] = {}
        self.lock = threading.Lock()
        self.closed = self.killed = self.nudged = False
        self.stillborn = 0
        self.woken, self.wake = get_context("spawn").Pipe(duplex=False)
        self.thread: threading.Thread | None = None

    def add(self, task: Task) -> None:
        with self.lock:
            if self.closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self.waiting.append(task)
            if self.thread is None:
                self.thread = threading.Thread(target=self.run, name="thalweg-engine", daemon=True)
                self.thread.start()
            self._nudge()

    def close(self, cancel: bool) -> None:
        with self.lock:
            self.closed = True
            if cancel:
                for task in self.waiting:
                    task.future.cancel()
            self._nudge()

    def kill(self) -> None:
        """End everything now; tasks that were begun fail, others are cancelled."""
        self.close(cancel=True)
        with self.lock:
            self.killed = True
            self._nudge()
        self.join()

    def join(self) -> None:
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join()
        atexit.unregister(self.kill)

    def _nudge(self) -> None:
        """Wake the thread, once until it has woken: a pipe that is full would block."""
        if self.thread is not None and not self.nudged:
            self.nudged = True
            self.wake.send_bytes(b"")

    def run(self) -> None:
        """Give tasks to workers until there is nothing more to come. Runs in the thread."""
        try:
            while not self.killed:
                self._give()
                with self.lock:
                    busy = any(task is not None for task in self.at.values())
                    if self.closed and not busy and not self.waiting:
                        break
                self._take()
        except Exception as error:  # no process can be started, for example: leave nobody waiting for ever
            self.killed = True
            self._fail_all(DistributedError(f"The local engine failed: {error!r}."))
        finally:
            self.closed = True
            self._fail_all(WorkerLost("The engine was stopped in the middle of this task."))
            for worker in self.at:
                worker.line.close()
            for worker in self.at:
                worker.end(kill=self.killed)
            self.at.clear()
            atexit.unregister(self.kill)

    def _give(self) -> None:
        while True:
            with self.lock:
                while self.waiting and self.waiting[0].attempts == 0:
                    if not self.waiting[0].future.cancelled():
                        break
                    self.waiting.popleft().future.set_running_or_notify_cancel()
                if not self.waiting:
                    return
                idle = next((w for w, task in self.at.items() if task is None and w.ready), None)
                if idle is None:
                    coming = sum(1 for w in self.at if not w.ready)
                    more = min(self.size - len(self.at), len(self.waiting) - coming)
                    task = None
                else:
                    task, more = self.waiting.popleft(), 0
            if idle is None or task is None:
                for _ in range(more):
                    self.at[Worker(self.threads)] = None
                return
            if task.attempts == 0 and not task.future.set_running_or_notify_cancel():
                continue
            task.attempts += 1
            if task.limit is not None:
                task.deadline = monotonic() + task.limit
            self.at[idle] = task
            if not idle.send(task.payload):
                self._lose(idle)

    def _take(self) -> None:
        by_line = {worker.line: worker for worker in self.at}
        for line in wait([self.woken, *by_line], self._until_late()):
            if line is self.woken:
                with self.lock:
                    self.woken.recv_bytes()
                    self.nudged = False
                continue
            worker = by_line[line]  # type: ignore[index]
            message = worker.receive()
            if message is None:
                self._lose(worker)
            elif message == READY:
                worker.ready, self.stillborn = True, 0
            else:
                task, self.at[worker] = self.at[worker], None
                if task is not None:
                    deliver(task.future, answer_of(message))
        for worker, task in list(self.at.items()):
            # one that has answered in the meantime is not late
            if task is not None and monotonic() >= task.deadline and not worker.line.poll():
                self._lose(worker, late=True)

    def _until_late(self) -> float | None:
        """Seconds until the first task is late; None where none can be."""
        first = min((task.deadline for task in self.at.values() if task is not None), default=math.inf)
        return min(LONGEST, max(0.0, first - monotonic())) if first < math.inf else None

    def _lose(self, worker: Worker, *, late: bool = False) -> None:
        """Take a worker that ended, or whose task takes too long, out of the list, and see to the task."""
        task = self.at.pop(worker)
        fate = "" if late else worker.fate()
        worker.end(kill=True)
        if not worker.ready:
            self.stillborn += 1
            if self.stillborn >= STARTS:
                self._fail_all(_stillborn(fate))
        elif task is not None and task.attempts > self.retries:
            error = _late(task) if late else lost(task.name, task.attempts, fate)
            deliver(task.future, Outcome(error=error))
        elif task is not None:
            with self.lock:
                self.waiting.appendleft(task)

    def _fail_all(self, error: Exception) -> None:
        with self.lock:
            held = [task for task in self.at.values() if task is not None]
            queued, self.waiting = list(self.waiting), deque()
        for worker in self.at:
            self.at[worker] = None
        for task in queued:
            if task.attempts or task.future.set_running_or_notify_cancel():
                held.append(task)
        for task in held:
            if not task.future.done():
                task.future.set_exception(error)


def _late(task: Task) -> WorkerLost:
    assert task.limit is not None  # or it could not be late
    return late(task.name, task.attempts, task.limit)


def _unsendable(name: str, error: Exception) -> InvalidInput:
    return InvalidInput(
        explain(
            f"The call of {name} cannot be sent to another process: {error}",
            "functions, arguments and results are pickled",
            "Pass a function that is defined at the top of a module, and plain values",
        )
    )


def _stillborn(fate: str) -> WorkerLost:
    return WorkerLost(
        explain(
            f"Workers end before they have come up ({STARTS} in a row); the last: {fate}",
            "a spawned process first imports the main script again",
            'Put what starts the engine under `if __name__ == "__main__":`, and see what the workers wrote',
        )
    )
