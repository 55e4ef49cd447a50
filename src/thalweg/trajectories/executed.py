"""The Gram of a trajectory by whoever executes tasks: threads, processes, or many machines."""

from __future__ import annotations

import time
from concurrent.futures import Executor, as_completed
from dataclasses import replace
from pathlib import Path

import torch

from thalweg.runs.meter import Meter, Silent
from thalweg.trajectories.gram_result import Grams
from thalweg.trajectories.gram_store import GramStore, Partial
from thalweg.trajectories.gram_sums import combine, fingerprints_of
from thalweg.trajectories.gram_tasks import run_task, tasks
from thalweg.trajectories.tiles import PartsOf, Source


def grams_by(
    executor: Executor,
    trajectory: Source,
    *,
    budget: int | None = None,
    device: torch.device | str | None = None,
    directory: str | Path | None = None,
    parts: PartsOf | None = None,
    exact: bool = False,
    on_bad: str = "raise",
    split: int | None = None,
    meter: Meter | None = None,
) -> Grams:
    """Compute what `thalweg.trajectories.gram.grams` computes, with tasks that an executor runs.

    Results are added in the order of tensors whatever order they come in, so the sum does not depend on it.

    Args:
        executor: Whatever has ``submit(function, argument)`` and returns futures; where it runs, the files of the
            trajectory have the same paths.
        trajectory: T checkpoints.
        budget: Bytes that one task may hold.
        device: Where a task multiplies.
        directory: Where finished tensors are kept; those that are there are not computed again.
        parts: As in `grams`.
        exact: As in `grams`.
        on_bad: As in `grams`.
        split: Elements after which a tensor becomes several tasks; None leaves tensors whole. Only whole tensors are
            kept in ``directory``.
        meter: Shows progress: a step is a task.

    Raises:
        ThalwegError: That of the first task that failed; the finished ones are kept, the waiting ones given up.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> from thalweg.runs.sources import Trajectory
        >>> path = Trajectory.from_arrays(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
        >>> with ThreadPoolExecutor(1) as pool:
        ...     grams_by(pool, path).increments().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    began, prints = time.perf_counter(), fingerprints_of(trajectory)
    work = tasks(
        trajectory,
        budget=budget,
        device=device,
        parts=parts,
        exact=exact,
        on_bad=on_bad,
        split=split,
        fingerprints=prints,
    )
    store = GramStore(Path(directory)) if directory is not None else None
    found: list[Partial | None] = [
        store.load(one.layout.name, one.key) if store is not None and one.whole else None for one in work
    ]
    show, done, size = meter or Silent(), 0, 0
    show.init(len(work))
    waiting = {executor.submit(run_task, one): place for place, one in enumerate(work) if found[place] is None}
    done = len(work) - len(waiting)
    try:
        for future in as_completed(waiting):
            place = waiting[future]
            partial = future.result()
            found[place] = partial
            if store is not None and work[place].whole:
                store.save(partial, work[place].key)
            done, size = done + 1, size + partial.bytes_read
            show.step({"step": done, "bytes": size})
    finally:
        for future in waiting:
            future.cancel()
        show.close()
    sums = combine(trajectory, [p for p in found if p is not None], parts=parts, fingerprints=prints)
    return replace(sums, seconds=time.perf_counter() - began)
