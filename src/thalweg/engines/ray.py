"""A Ray cluster, or a small one that is started here, as an executor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, wait
from types import TracebackType
from typing import Any

from thalweg.engines.outcome import Outcome, WorkerLost, attempt, deliver, lost, name_of
from thalweg.engines.session import enter
from thalweg.engines.worker import cores
from thalweg.errors import DistributedError, InvalidInput, explain


class RayEngine(Executor):
    """Ray tasks, with the interface of `concurrent.futures`.

    Without an address it starts Ray on this machine, reachable from it alone, and ends it. With one it joins that
    cluster, and leaves it. Where this process is connected already, that connection is used and left as it is. Ray puts
    a task on another worker if the one it was on is lost, on another machine if need be.

    Functions, arguments and results travel by Ray's pickling, lambdas included; thalweg must be installed, in the same
    version of Python, wherever tasks run. Nothing is uploaded. A future is not ``running()`` before it is done, and to
    cancel it ends the task even if it had begun.

    Args:
        address: Of a cluster: ``"HOST:PORT"`` of its head, or ``"auto"`` for the one that runs on this machine; None
            starts one here, on as many cores as there are ``workers``.
        workers: Processes of the Ray that is started here; None takes the cores that this process may use.
        cpus: Cores that a task takes; its matrix library gets as many threads.
        gpus: GPUs that a task takes.
        resources: Custom resources that a task takes, as the nodes that have the files may offer one.
        retries: How often a task is tried again after its worker was lost.
        options: Further options of Ray's tasks, for example ``{"scheduling_strategy": "SPREAD"}``.

    Raises:
        MissingExtra: Ray is not installed.
        InvalidInput: An argument is wrong, or this process is connected to another cluster.
        DistributedError: Nothing answers at ``address``, or Ray does not start.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        cpus: float = 1,
        gpus: float = 0,
        resources: Mapping[str, float] | None = None,
        retries: int = 2,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if (workers is not None and (workers < 1 or address is not None)) or cpus < 0 or gpus < 0 or retries < 0:
            raise InvalidInput(
                explain(
                    f"Got workers={workers}, cpus={cpus}, gpus={gpus}, retries={retries}, address={address!r}",
                    "these are counts, and the workers of a cluster that is joined are what it has",
                    "Pass workers >= 1 without an address, and the others >= 0",
                )
            )
        self._session = enter(address, workers or cores(), resources or {})
        self.retries = retries
        self._cpus, self._gpus = cpus, gpus
        chosen = {"num_cpus": cpus, "num_gpus": gpus, "resources": dict(resources or {}) or None}
        self._remote = self._session.ray.remote(attempt).options(
            **chosen, max_retries=retries, retry_exceptions=False, **(options or {})
        )
        self._open: dict[Future[Any], Any] = {}
        self._lock = threading.Lock()
        self._closed = self._left = False

    @property
    def workers(self) -> int:
        """Cores of the cluster as it is now."""
        return int(self._session.ray.cluster_resources().get("CPU", 0))

    @property
    def slots(self) -> int:
        """Tasks that run at a time, as far as cores and GPUs decide, as the cluster is now."""
        has = self._session.ray.cluster_resources()
        asked = (("CPU", self._cpus), ("GPU", self._gpus))
        return max(1, min((int(has.get(name, 0) / amount) for name, amount in asked if amount > 0), default=1))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Ask for ``fn(*args, **kwargs)``; see `concurrent.futures.Executor.submit`.

        Returns:
            The future. It fails with `WorkerLost` if the task took down every worker that tried it, with
            `DistributedError` if Ray fails otherwise, and with what ``fn`` raises, the worker's trace in a note.

        Raises:
            RuntimeError: The engine was shut down.
        """
        future: Future[Any] = Future()
        name = name_of(fn)
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            try:
                reference = self._remote.remote(fn, args, kwargs)
            except (TypeError, ValueError) as error:  # what Ray raises where it cannot pickle
                future.set_exception(
                    InvalidInput(
                        explain(
                            f"The call of {name} cannot be sent to another process: {str(error).splitlines()[0]}",
                            "functions, arguments and results are pickled",
                            "Pass plain values",
                        )
                    )
                )
                return future
            self._open[future] = reference
        future.add_done_callback(self._stop)
        reference.future().add_done_callback(lambda found: self._take(future, found, name))
        return future

    def _take(self, future: Future[Any], found: Future[Any], name: str) -> None:
        """Hand on what Ray has. Runs in a thread of Ray's."""
        with self._lock:
            mine = self._open.pop(future, None)
        if mine is None or not future.set_running_or_notify_cancel():
            return
        try:
            outcome = found.result()
        except BaseException as error:
            outcome = Outcome(error=self._explained(error, name))
        deliver(future, outcome)

    def _stop(self, future: Future[Any]) -> None:
        """Tell Ray that nobody waits for a task any more."""
        if future.cancelled():
            with self._lock:
                reference = self._open.pop(future, None)
            if reference is not None:
                future.set_running_or_notify_cancel()
                self._session.ray.cancel(reference, force=True)

    def _explained(self, error: BaseException, name: str) -> BaseException:
        kinds = self._session.ray.exceptions
        gone = (kinds.WorkerCrashedError, kinds.NodeDiedError, kinds.OutOfMemoryError, kinds.ObjectLostError)
        last = (str(error).strip() or repr(error)).splitlines()[-1].strip()
        if isinstance(error, gone):
            return lost(name, self.retries + 1, last)
        found = DistributedError(
            explain(
                f"Ray could not do {name}: {last}",
                "the task did not come to its end",
                "See that thalweg and the modules of the task are installed on every node",
            )
        )
        found.__cause__ = error
        return found

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave Ray when all tasks are done; with ``cancel_futures`` they are cancelled."""
        with self._lock:
            self._closed = True
            pending = list(self._open)
        if cancel_futures:
            for future in pending:
                future.cancel()
        if wait:
            self._finish(pending)
        else:
            threading.Thread(target=self._finish, args=(pending,), name="thalweg-ray", daemon=True).start()

    def _finish(self, pending: list[Future[Any]]) -> None:
        try:
            wait(pending)
        finally:  # also at Ctrl-C
            with self._lock:
                left, self._left = self._left, True
                forgotten, self._open = list(self._open), {}
            if not left:
                self._session.leave()
            for future in forgotten:  # nobody is to wait for ever
                if future.set_running_or_notify_cancel():
                    future.set_exception(WorkerLost("The engine was stopped in the middle of this task."))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self.shutdown(wait=True, cancel_futures=kind is not None)
        return None

    def __repr__(self) -> str:
        return f"RayEngine(at {self._session.ray.get_runtime_context().gcs_address}, retries={self.retries})"
