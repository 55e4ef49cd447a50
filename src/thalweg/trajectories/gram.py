"""Inner products of all increments of a trajectory, in one pass over its files and within a memory budget."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thalweg.errors import InvalidInput, StorageError, explain
from thalweg.runs.meter import Meter
from thalweg.trajectories.gram_plan import gram_plan
from thalweg.trajectories.gram_result import Grams as Grams
from thalweg.trajectories.gram_result import mean_squares, quantum
from thalweg.trajectories.gram_store import GramStore, Partial
from thalweg.trajectories.gram_tasks import GramTask, run_tasks, tasks
from thalweg.trajectories.products import Bad
from thalweg.trajectories.tiles import Layout, PartsOf, Source, layout


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

    Returns:
        The sums, with what they cost.

    Raises:
        NonFinite: A checkpoint has NaN or infinite values; it names the step and the tensor.
        InvalidInput: The budget is too small, and how much it takes; or an argument is wrong.
        StorageError: A file is truncated, or ``directory`` cannot be written. Finished tensors stay there.

    Example:
        >>> from thalweg.runs.sources.trajectory import Trajectory
        >>> found = grams(Trajectory.from_arrays(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])))
        >>> found.increments().tolist(), found.kernel().tolist()
        ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 1.0]])
    """
    began = time.perf_counter()
    prints = _fingerprints(trajectory)
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
    prints = _fingerprints(trajectory)
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
    facts = _facts(trajectory, layouts, g, c, old.m, prints)
    return Grams(**facts, unchanged=unchanged, **spent.facts(), seconds=time.perf_counter() - began)


def combine(
    trajectory: Source,
    partials: Iterable[Partial],
    *,
    parts: PartsOf | None = None,
    fingerprints: tuple[str, ...] | None = None,
) -> Grams:
    """Add the results of tasks to `Grams`, by tensors and ranges in their order, whatever order they come in.

    Args:
        trajectory: What the tasks were made of.
        partials: One result for each of them.
        parts: As given to `tasks`.
        fingerprints: Of the checkpoints, if they are known already.

    Raises:
        InvalidInput: A range is missing, or is there twice.
    """
    layouts = [layout(tensor, parts) for tensor in trajectory.tensors]
    units, points = sum(len(one.labels) for one in layouts), len(trajectory)
    g, c, m = np.empty((units, points - 1, points - 1)), np.empty((units, points - 1)), np.empty(units)
    unchanged, spent, at = np.empty((units, points - 1)), Spent(), 0
    for one, mine in gather(layouts, partials, spent):
        to = at + len(one.labels)
        moments = sum_of([partial.moments for partial in mine])
        g[at:to], c[at:to], m[at:to] = moments[:, 1:, 1:], moments[:, 0, 1:], moments[:, 0, 0]
        unchanged[at:to] = sum_of([partial.unchanged for partial in mine]) / np.maximum(1, one.sizes())[:, None]
        at = to
    return Grams(**_facts(trajectory, layouts, g, c, m, fingerprints), unchanged=unchanged, **spent.facts())


@dataclass
class Spent:
    """What the partial results have in common, added up."""

    bytes_read: int = 0
    flops: int = 0
    reused: int = 0
    bad: list[Bad] = field(default_factory=list)

    def add(self, partial: Partial) -> None:
        """Count one."""
        self.bytes_read += partial.bytes_read
        self.flops += 0 if partial.reused else partial.flops
        self.reused += partial.reused
        self.bad += partial.bad

    def facts(self) -> dict[str, Any]:
        """As `Grams` names them."""
        own = {"bytes_read": self.bytes_read, "flops": self.flops, "reused": self.reused}
        return {**own, "bad": tuple(self.bad)}


def gather(
    layouts: Sequence[Layout], partials: Iterable[Partial], spent: Spent
) -> Iterator[tuple[Layout, list[Partial]]]:
    """Yield each tensor with its results in the order of their ranges.

    Raises:
        InvalidInput: They do not cover it once, or there are no tensors, or results of others.
    """
    by_name: dict[str, list[Partial]] = {}
    for partial in partials:
        by_name.setdefault(partial.tensor, []).append(partial)
    foreign = [name for name in by_name if name not in {one.name for one in layouts}]
    if foreign or not layouts:
        found = f"There is a result for {foreign[0]!r}" if foreign else "The trajectory has no tensors"
        why = "the trajectory has no such tensor" if foreign else "there is nothing to measure"
        raise InvalidInput(explain(found, why, "Pass the trajectory that the tasks were made of"))
    for one in layouts:
        mine = sorted(by_name.get(one.name, []), key=lambda partial: partial.start)
        ends = [0, *(partial.stop for partial in mine)]
        if [partial.start for partial in mine] != ends[:-1] or ends[-1] != one.numel or not mine:
            ranges = [(partial.start, partial.stop) for partial in mine]
            raise InvalidInput(
                explain(
                    f"The results for {one.name!r} cover the ranges {ranges} of {one.numel} elements",
                    "every element must be there once",
                    "Pass the result of each task once",
                )
            )
        for partial in mine:
            spent.add(partial)
        yield one, mine


def sum_of(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Add in the order given."""
    total = arrays[0]
    for array in arrays[1:]:
        total = total + array
    return total


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
    if len(trajectory) < 2:
        raise InvalidInput(
            explain(f"The trajectory has {len(trajectory)} checkpoint(s)", "it takes two to move", "Pass more of them")
        )
    if on_bad not in ("raise", "skip"):
        raise InvalidInput(explain(f"on_bad is {on_bad!r}", "it says what to do", 'Pass "raise" or "skip"'))
    where = torch.device(device or "cpu")
    plan = gram_plan(trajectory, budget, parts=parts, exact=exact, tile=tile, last=last, device=where)
    how: dict[str, Any] = {"parts": parts, "exact": exact, "on_bad": on_bad, "last": last, "plan": plan}
    how["fingerprints"] = prints
    return tasks(trajectory, device=where, **how)


def _run(work: list[GramTask], store: GramStore | None, readers: int, meter: Meter | None) -> list[Partial]:
    if meter is None:
        return _checked(work, list(run_tasks(work, _capacity(work), readers=readers, store=store)))
    meter.init(sum(len(task.tiles()) for task in work))
    count = [0, 0]

    def done(size: int) -> None:
        count[0] += 1
        count[1] += size
        meter.step({"step": count[0], "bytes": count[1]})

    try:
        return _checked(work, list(run_tasks(work, _capacity(work), readers=readers, store=store, done=done)))
    finally:
        meter.close()


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


def _fingerprints(trajectory: Source) -> tuple[str, ...]:
    return tuple(trajectory.fingerprint(index) for index in range(len(trajectory)))


def _facts(
    trajectory: Source,
    layouts: Sequence[Layout],
    g: np.ndarray,
    c: np.ndarray,
    m: np.ndarray,
    prints: tuple[str, ...] | None,
) -> dict[str, Any]:
    pairs = [(one, label) for one in layouts for label in one.labels]
    sizes = np.array([size for one in layouts for size in one.sizes()], dtype=np.int64)
    squares = mean_squares(g, c, m) / np.maximum(1, sizes)
    return {
        "steps": np.array(trajectory.steps, dtype=np.int64),
        "names": tuple(name for one in layouts for name in one.units),
        "tensors": tuple(one.name for one, _ in pairs),
        "parts": tuple(label for _, label in pairs),
        "shapes": tuple(one.shape for one, _ in pairs),
        "dtypes": tuple(str(one.dtype).removeprefix("torch.") for one, _ in pairs),
        "sizes": sizes,
        "G": g,
        "c": c,
        "m": m,
        "quantum": np.array([quantum(one.dtype, square) for (one, _), square in zip(pairs, squares)]),
        "schedule": {name: np.asarray(values) for name, values in trajectory.schedule.items()},
        "fingerprints": prints or _fingerprints(trajectory),
    }
