"""Executors whose jobs have to be asked, as submitit's, with the interface of `concurrent.futures`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from types import TracebackType
from typing import Any

from thalweg.errors import InvalidInput, explain


class Polled(Executor):
    """An executor over an object that submits jobs and gives no futures: each job is asked now and then.

    A job has ``done()`` and ``result()``, which raises what the job raised; ``cancel()`` is called if there is one.

    Args:
        executor: Has ``submit(function, *arguments)``, which returns a job. It is used, and not shut down.
        every: Seconds between two looks at all jobs.

    Raises:
        InvalidInput: There is no ``submit``, or ``every`` is not positive.

    Example:
        >>> class Job:
        ...     def __init__(self, value):
        ...         self.result = lambda: value
        ...     def done(self):
        ...         return True
        >>> class Queue:
        ...     def submit(self, function, *arguments):
        ...         return Job(function(*arguments))
        >>> with Polled(Queue(), every=0.01) as engine:
        ...     engine.submit(divmod, 7, 3).result()
        (2, 1)
    """

    def __init__(self, executor: Any, every: float = 5.0) -> None:
        if not callable(getattr(executor, "submit", None)) or not every > 0:
            raise InvalidInput(
                explain(
                    f"Got {executor!r}, every {every} seconds",
                    "it must have submit(), and the time must be positive",
                    "Pass an executor such as submitit's",
                )
            )
        self._executor, self._every = executor, every
        self._jobs: dict[Future[Any], Any] = {}
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a job; see `concurrent.futures.Executor.submit`.

        Raises:
            RuntimeError: It was shut down.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            job, future = self._executor.submit(fn, *args, **kwargs), Future[Any]()
            self._jobs[future] = job
            if self._thread is None:
                self._thread = threading.Thread(target=self._poll, name="thalweg-polled", daemon=True)
                self._thread.start()
        return future

    def _poll(self) -> None:
        while True:
            with self._lock:
                jobs = dict(self._jobs)
                if self._closed and not jobs:
                    return
            for future, job in jobs.items():
                if future.cancelled():
                    getattr(job, "cancel", lambda: None)()
                    future.set_running_or_notify_cancel()
                elif not self._finished(future, job):
                    continue
                with self._lock:
                    del self._jobs[future]
            self._changed.wait(self._every)
            self._changed.clear()

    def _finished(self, future: Future[Any], job: Any) -> bool:
        """Hand on what a job gave, if it is done."""
        try:
            if not job.done():
                return False
            value, error = job.result(), None
        except Exception as raised:
            value, error = None, raised
        if not future.set_running_or_notify_cancel():
            return True
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
        return True

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the jobs, or cancel them; the executor underneath is left to its owner."""
        with self._lock:
            self._closed = True
            pending = list(self._jobs) if cancel_futures else []
        for future in pending:
            future.cancel()
        self._changed.set()
        if wait and self._thread is not None:
            self._thread.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self.shutdown(wait=True, cancel_futures=kind is not None)
        return None
