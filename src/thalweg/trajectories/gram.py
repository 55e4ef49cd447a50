"""Inner products of all increments of a trajectory, in one pass over its files and within a memory budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thalweg.errors import InvalidInput, StorageError, explain
from thalweg.runs.meter import Meter
from thalweg.trajectories.gram_plan import gram_plan
from thalweg.trajectories.gram_result import Grams as Grams
from thalweg.trajectories.gram_store import GramStore, Partial
from thalweg.trajectories.gram_sums import Spent, combine, described, fingerprints_of, gather, sum_of
from thalweg.trajectories.gram_tasks import GramTask, run_tasks, tasks
from thalweg.trajectories.resident import checkpoint_reads, resident_sums
from thalweg.trajectories.sketch import Sketcher
from thalweg.trajectories.tiles import PartsOf, Source, layout


def grams(
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
    meter: Meter | None = None,
    resident: int | None = None,
    fetch: Callable[[int], None] | None = None,
    sketch: int | None = None,
    seed: int = 0,
) -> Grams:
    """Compute ``<U_a, U_b>``, ``<theta_1, U_a>`` and ``<theta_1, theta_1>`` per tensor, reading every byte once.

    For each tensor, a range of elements is read from all T checkpoints at once; increments are formed from the raw
    numbers, multiplied in blocks of 2^11 elements in float32, and added in float64, while threads read the next range.
    The blocks do not depend on what is read at a time, so the result does not either, to the last bit. Relative to
    the lengths of the two increments, products of half-precision files err by less than 1e-7, those of float32 files by
    some 2e-7 (``exact`` removes it).

    Args:
        trajectory: T checkpoints.
        budget: Bytes of memory above what the process holds already; see `gram_plan`. None takes up to 1 GiB.
        device: Where to multiply; None is the CPU.
        tile: Elements read at a time from one checkpoint; None lets the budget decide.
        directory: Where finished tensors are kept, so that an interrupted call goes on where it was. Results of other
            files, steps or settings in it are not used.
        parts: Gives, for a tensor, ranges of its elements by label, for example queries, keys and values of a fused
            projection; None for a tensor that is whole.
        exact: Multiply in float64 whatever is stored; float64 files are always multiplied so.
        on_bad: ``"raise"`` stops at a NaN or an infinity; ``"skip"`` leaves the element out in all checkpoints and
            says so in ``Grams.bad``.
        readers: Threads that read; more than one needs a trajectory that several threads may read.
        meter: Shows progress: a step is a tile.
        resident: B, where not all files can be reached at once: B increments wait in memory while the later checkpoints
            pass by one at a time, about ``T^2 / (2 B)`` checkpoint reads (`checkpoint_reads`); a step of the meter is
            one of them. ``tile``, ``device``, ``directory`` and ``readers`` do not apply.
        fetch: With ``resident``: is told the index of each checkpoint before it is read.
        sketch: k, for estimates from random projections to k dimensions that read each checkpoint once, one after the
            other (`Sketcher`); a step of the meter is a checkpoint.
        seed: Of the projections.

    Returns:
        The sums, with what they cost.

    Raises:
        NonFinite: A checkpoint has NaN or infinite values; it names the step and the tensor.
        InvalidInput: The budget is too small, and how much it takes; or an argument is wrong.
        StorageError: A file is truncated, or ``directory`` cannot be written. Finished tensors stay there.

    Example:
        >>> from thalweg.runs.sources import Trajectory
        >>> found = grams(Trajectory.from_arrays(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])))
        >>> found.increments().tolist(), found.kernel().tolist()
        ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 1.0]])
    """
    began = time.perf_counter()
    prints = fingerprints_of(trajectory)
    if sketch is not None or resident is not None:
        asked = {
            "tile": tile,
            "directory": directory,
            "device": device,
            "on_bad": None if on_bad == "raise" else on_bad,
        }
        useless = [name for name, value in asked.items() if value is not None]
        if sketch is not None and resident is not None:
            useless.append("resident")
        if useless:
            raise InvalidInput(
                explain(
                    f"{'resident' if sketch is None else 'sketch'} does not go with {useless[0]}",
                    "it reads whole checkpoints one after the other, on the CPU",
                    "Leave one of them out",
                )
            )
        _enough(trajectory)
        found = _one_by_one(trajectory, prints, parts, exact, budget, meter, resident, fetch, sketch, seed)
        return replace(found, seconds=time.perf_counter() - began)
    work = _work(trajectory, budget, device, tile, parts, exact, on_bad, prints)
    store = GramStore(Path(directory)) if directory is not None else None
    partials = _run(work, store, readers, meter)
    found = combine(trajectory, partials, parts=parts, fingerprints=prints)
    return replace(found, seconds=time.perf_counter() - began)


def extend(
    old: Grams,
    trajectory: Source,
    *,
    budget: int | None = None,
    device: torch.device | str | None = None,
    parts: PartsOf | None = None,
    exact: bool = False,
    on_bad: str = "raise",
    readers: int = 1,
    meter: Meter | None = None,
) -> Grams:
    """Add the checkpoints at the end of ``trajectory`` that ``old`` does not have.

    ``<U_new, U_a>`` is needed for every earlier increment, so all T checkpoints are read again: no bytes are saved.
    What is saved is arithmetic: n new checkpoints cost ``2 T n P`` operations and not ``2 T^2 P``. Where the bytes
    matter, keep a `Sketcher`, which reads the new checkpoint alone, and gives estimates.

    Args:
        old: Of the first checkpoints of ``trajectory``.
        trajectory: Those and the new ones.
        budget: As in `grams`, as are ``device``, ``parts``, ``exact``, ``on_bad``, ``readers`` and ``meter``.
        device: See there.
        parts: As for ``old``.
        exact: See there.
        on_bad: See there.
        readers: See there.
        meter: See there.

    Raises:
        InvalidInput: ``old`` is of other checkpoints or tensors, or is an estimate.
    """
    began = time.perf_counter()
    new = len(trajectory) - len(old)
    prints = fingerprints_of(trajectory)
    units = tuple(name for tensor in trajectory.tensors for name in layout(tensor, parts).units)
    reason = ""
    if old.sketch is not None:
        reason = "it holds estimates, which only their sketcher can extend"
    elif new < 1 or tuple(trajectory.steps[: len(old)]) != tuple(int(step) for step in old.steps):
        reason = "its steps are not the first steps of the trajectory, with new ones after them"
    elif units != old.names:
        reason = "its tensors or their parts are others"
    elif old.fingerprints and old.fingerprints != prints[: len(old)]:
        reason = "the files of its checkpoints have changed since"
    elif old.bad:
        reason = "elements were left out of it that are not known any more"
    if reason:
        raise InvalidInput(
            explain("The result cannot be extended", reason, "Compute grams(trajectory) from the beginning")
        )
    work = _work(trajectory, budget, device, None, parts, exact, on_bad, prints, last=new)
    layouts = [layout(tensor, parts) for tensor in trajectory.tensors]
    first, spent, at = len(old) - 1, Spent(), 0
    g = np.zeros((len(units), first + new, first + new))
    c, unchanged = np.empty((len(units), first + new)), np.empty((len(units), first + new))
    g[:, :first, :first], c[:, :first], unchanged[:, :first] = old.G, old.c, old.unchanged
    for one, mine in gather(layouts, _run(work, None, readers, meter), spent):
        to = at + len(one.labels)
        moments = sum_of([partial.moments for partial in mine])
        g[at:to, :, first:], c[at:to, first:] = moments[:, 1:, :], moments[:, 0, :]
        g[at:to, first:, :first] = moments[:, 1 : first + 1, :].transpose(0, 2, 1)
        same = sum_of([partial.unchanged for partial in mine])[:, first:]
        unchanged[at:to, first:] = same / np.maximum(1, one.sizes())[:, None]
        at = to
    facts = described(trajectory, layouts, g, c, old.m, prints)
    return Grams(**facts, unchanged=unchanged, **spent.facts(), seconds=time.perf_counter() - began)


def _work(
    trajectory: Source,
    budget: int | None,
    device: torch.device | str | None,
    tile: int | None,
    parts: PartsOf | None,
    exact: bool,
    on_bad: str,
    prints: tuple[str, ...],
    last: int | None = None,
) -> list[GramTask]:
    _enough(trajectory)
    if on_bad not in ("raise", "skip"):
        raise InvalidInput(explain(f"on_bad is {on_bad!r}", "it says what to do", 'Pass "raise" or "skip"'))
    where = torch.device(device or "cpu")
    plan = gram_plan(trajectory, budget, parts=parts, exact=exact, tile=tile, last=last, device=where)
    how: dict[str, Any] = {"parts": parts, "exact": exact, "on_bad": on_bad, "last": last, "plan": plan}
    how["fingerprints"] = prints
    return tasks(trajectory, device=where, **how)


def _enough(trajectory: Source) -> None:
    if len(trajectory) < 2:
        raise InvalidInput(
            explain(f"The trajectory has {len(trajectory)} checkpoint(s)", "it takes two to move", "Pass more of them")
        )


def _one_by_one(
    trajectory: Source,
    prints: tuple[str, ...],
    parts: PartsOf | None,
    exact: bool,
    budget: int | None,
    meter: Meter | None,
    resident: int | None,
    fetch: Callable[[int], None] | None,
    sketch: int | None,
    seed: int,
) -> Grams:
    total = len(trajectory) if resident is None else checkpoint_reads(len(trajectory), resident)
    with _progress(meter, total) as done:
        if resident is not None:
            how: dict[str, Any] = {"budget": budget, "parts": parts, "exact": exact, "fetch": fetch, "done": done}
            sums = resident_sums(trajectory, resident, **how)
            layouts = [layout(tensor, parts) for tensor in trajectory.tensors]
            known = described(trajectory, layouts, sums.pop("g"), sums.pop("c"), sums.pop("m"), prints)
            return Grams(**known, **sums)
        sketcher = Sketcher(sketch or 0, seed, parts)
        for index in range(len(trajectory)):
            before = sketcher.bytes_read
            sketcher.read(trajectory, index)
            done(sketcher.bytes_read - before)
        schedule = {name: np.asarray(values) for name, values in trajectory.schedule.items()}
        return replace(sketcher.grams(), schedule=schedule, fingerprints=prints)


@contextmanager
def _progress(meter: Meter | None, total: int) -> Iterator[Callable[[int], None]]:
    """Yield what is told the bytes of each step done."""
    if meter is None:
        yield lambda size: None
        return
    meter.init(total)
    count = [0, 0]

    def done(size: int) -> None:
        count[0] += 1
        count[1] += size
        meter.step({"step": count[0], "bytes": count[1]})

    try:
        yield done
    finally:
        meter.close()


def _run(work: list[GramTask], store: GramStore | None, readers: int, meter: Meter | None) -> list[Partial]:
    with _progress(meter, sum(len(task.tiles()) for task in work)) as done:
        return _checked(work, list(run_tasks(work, _capacity(work), readers=readers, store=store, done=done)))


def _capacity(work: list[GramTask]) -> int:
    return work[0].capacity if work else 0


def _checked(work: list[GramTask], partials: list[Partial]) -> list[Partial]:
    """See that every byte was read once: the counters must meet what the files hold."""
    expected = sum(task.bytes for task, partial in zip(work, partials) if not partial.reused)
    counted = sum(partial.bytes_read for partial in partials)
    if counted != expected:
        raise StorageError(
            explain(f"{counted} bytes were read of {expected}", "every byte is to be read once", "Report this, please")
        )
    return partials
