"""A Gram on many processes or machines: ranges of tensors as tasks, results added in a fixed order."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from thalweg.errors import InvalidInput, RunFolderError, StorageError, explain
from thalweg.runs.meter import Meter, Silent
from thalweg.runs.sources import Trajectory
from thalweg.trajectories.gram_result import Grams
from thalweg.trajectories.gram_store import GramStore, Partial
from thalweg.trajectories.gram_sums import combine
from thalweg.trajectories.gram_tasks import GramTask, run_task, tasks
from thalweg.trajectories.products import Bad
from thalweg.trajectories.tiles import PartsOf, Source

SHARE = 2**30
"""Bytes that one task reads, if nothing else is asked for: seconds of work, whatever the number of workers."""


def grams_on(
    executor: Executor,
    trajectory: Source,
    *,
    budget: int | None = None,
    device: torch.device | str | None = None,
    tile: int | None = None,
    directory: str | Path | None = None,
    parts: PartsOf | None = None,
    exact: bool = False,
    on_bad: str = "raise",
    readers: int = 1,
    split: int | None = None,
    meter: Meter | None = None,
) -> Grams:
    r"""Compute what `grams` does, ``G = sum_r sum_(i in r) U_ai U_bi`` over ranges r of tensors, one task each.

    Workers read the files themselves, so these must have the same paths there; what comes back is ``T^2`` numbers per
    tensor and range. Ranges are added in their order, whatever order they come in, so the result is the same each time,
    and differs from that of `grams` by rounding in float64 alone; where no tensor is split, not at all.

    Args:
        executor: Where tasks run: an engine of ours, or any other with the interface of `concurrent.futures`.
        trajectory: T checkpoints.
        budget: Bytes that one task may hold.
        device: Where workers multiply.
        tile: Elements read at a time from one checkpoint; None lets the budget decide.
        directory: Where finished tasks are kept, on this machine; a call that was interrupted goes on where it was if
            ``split`` is the same.
        parts: As in `grams`.
        exact: As in `grams`.
        on_bad: As in `grams`.
        readers: Threads that read in each task.
        split: Elements after which a tensor is split; None splits so that a task reads up to 1 GiB.
        meter: Shows progress: a step is a task that is done, by whichever worker.

    Raises:
        RunFolderError: A worker cannot read a file; the message names its host and the path.
        NonFinite: A checkpoint has NaN or infinite values.
        WorkerLost: A task took down every worker that tried it.
        InvalidInput: The budget is too small, or an argument is wrong. Whatever is raised, tasks that have not begun
            are cancelled, and those that were done stay in ``directory``.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> path = Trajectory.from_arrays(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
        >>> with ThreadPoolExecutor(2) as executor:
        ...     grams_on(executor, path).increments().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    began = time.perf_counter()
    if len(trajectory) < 2 or on_bad not in ("raise", "skip") or (split is not None and split < 1):
        raise InvalidInput(
            explain(
                f"There are {len(trajectory)} checkpoints, on_bad is {on_bad!r} and split is {split!r}",
                "it takes two checkpoints to move",
                'Pass two or more, on_bad="raise" or "skip", and split >= 1 or None',
            )
        )
    prints = tuple(trajectory.fingerprint(index) for index in range(len(trajectory)))
    widest = max((tensor.dtype.itemsize for tensor in trajectory.tensors), default=1)
    work = tasks(
        trajectory,
        budget=budget,
        device=device,
        tile=tile,
        parts=parts,
        exact=exact,
        on_bad=on_bad,
        split=split or SHARE // (len(trajectory) * widest),
        fingerprints=prints,
    )
    kept = _Kept(GramStore(Path(directory)) if directory is not None else None)
    found = list(_collect(executor, work, kept, readers, meter or Silent()))
    _each_byte_once(work, found)
    return replace(combine(trajectory, found, parts=parts, fingerprints=prints), seconds=time.perf_counter() - began)


def _collect(
    executor: Executor, work: Sequence[GramTask], kept: _Kept, readers: int, meter: Meter
) -> Iterator[Partial]:
    """Yield the result of each task when it is there."""
    size = 0
    missing = []
    reused = []
    for task in work:
        partial = kept.load(task)
        if partial is None:
            missing.append(task)
        else:
            reused.append(partial)
    yield from reused
    meter.init(len(work), len(reused))
    done = len(reused)
    driver = _where()
    try:
        with _submitted(executor, missing, readers, driver) as futures:
            try:
                for future in as_completed(list(futures)):
                    partial = _own(future.result())
                    task = futures.pop(future)
                    kept.save(task, partial)
                    done, size = done + 1, size + partial.bytes_read
                    meter.step({"step": done, "bytes": size})
                    yield partial
            except BaseException:  # what the others have done by now is not lost
                for future, task in futures.items():
                    if future.done() and not future.cancelled() and future.exception() is None:
                        kept.save(task, _own(future.result()))
                raise
    finally:
        meter.close()


@contextmanager
def _submitted(
    executor: Executor, work: Sequence[GramTask], readers: int, driver: str
) -> Iterator[dict[Future[Partial], GramTask]]:
    """Ask for all tasks; cancel what is left of them when the block is left."""
    futures: dict[Future[Partial], GramTask] = {}
    try:
        for task in work:
            futures[executor.submit(on_worker, replace(task, source=_narrow(task)), readers, driver)] = task
        yield futures
    finally:
        for future in futures:
            future.cancel()


def on_worker(task: GramTask, readers: int, driver: str) -> Partial:
    """Do a task where it is, with the host in the message if its files are not there. Runs on workers.

    Raises:
        RunFolderError: A file cannot be read.
    """
    try:
        return run_task(task, readers=readers)
    except RunFolderError as error:
        if _where() == driver:
            raise
        raise RunFolderError(
            explain(
                f"On the host {socket.gethostname()}: {str(error).split('. ')[0]}",
                "workers read the checkpoints themselves, under the paths that these have on the driver",
                "Mount the files there under the same path, or keep tasks to the machines that have them",
            )
        ) from error


def _own(partial: Partial) -> Partial:
    """Copy the arrays of a result, which may be read-only views of memory that an engine shares among processes."""
    return replace(partial, moments=np.array(partial.moments), unchanged=np.array(partial.unchanged))


def _where() -> str:
    return f"{socket.gethostname()} {os.getpid()}"


def _narrow(task: GramTask) -> Source:
    """Return the trajectory of one tensor: what travels with a task should not grow with the model."""
    name = task.layout.name
    return task.source.select(lambda other: other == name) if isinstance(task.source, Trajectory) else task.source


@dataclass(frozen=True)
class _Kept:
    """Finished tasks on disk; a range of a tensor is kept under a name of its own."""

    store: GramStore | None

    def load(self, task: GramTask) -> Partial | None:
        found = self.store.load(_name(task), task.key) if self.store else None
        if found is None or (found.start, found.stop) != (task.start, task.stop):
            return None
        return replace(found, tensor=task.layout.name, bad=_called(found, task.layout.name))

    def save(self, task: GramTask, partial: Partial) -> None:
        if self.store:
            name = _name(task)
            self.store.save(replace(partial, tensor=name, bad=_called(partial, name)), task.key)


def _called(partial: Partial, name: str) -> tuple[Bad, ...]:
    return tuple(replace(one, tensor=name) for one in partial.bad)


def _name(task: GramTask) -> str:
    return task.layout.name if task.whole else f"{task.layout.name}[{task.start}:{task.stop}]"


def _each_byte_once(work: Sequence[GramTask], found: Sequence[Partial]) -> None:
    reused = sum(partial.reused for partial in found)
    counted = sum(partial.bytes_read for partial in found)
    again = {(partial.tensor, partial.start) for partial in found if partial.reused}
    expected = sum(task.bytes for task in work if (task.layout.name, task.start) not in again)
    if counted != expected or len(found) != len(work):
        raise StorageError(
            explain(
                f"{len(found)} of {len(work)} tasks, {reused} of them kept, read {counted} bytes of {expected}",
                "every byte is to be read once",
                "Report this, please",
            )
        )
