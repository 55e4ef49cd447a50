r"""Short measurements on a few samples, and what they say about many.

The operations of a loss and its derivatives are the same at every batch size ``b``, and the bytes alive after each of
them are affine in ``b``: some tensors have one row per sample, the others none. So two probes give, for every
operation ``i``, ``m_i(b) = a_i + c_i b``, and the peak at any size is ``max_i m_i(b)``: also where another operation
is the worst one than in the probes. Loops whose length depends on the size (chunks of tokens) are taken as a whole.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from thalweg._rng import generator
from thalweg.problem.batches import map_tensors, tensors_in
from thalweg.problem.graphs import accumulate, forget_values, linearise
from thalweg.problem.guards import no_autocast
from thalweg.problem.live import LiveBytes
from thalweg.problem.losses import leading_size

if TYPE_CHECKING:
    from thalweg.problem.problem import Problem

Order = Literal["value", "gradient", "product"]
Phase = Literal["value", "gradient", "record", "multiply"]
PHASES: dict[Order, tuple[Phase, ...]] = {
    "value": ("value",),
    "gradient": ("gradient",),
    "product": ("record", "multiply"),
}
Events = list[tuple[str, int]]

AGREEMENT = 0.02
"""Relative difference between a probe and what smaller ones predicted of it, above which a larger one follows."""
QUICK = 0.5
"""A probe that took less than this many seconds is repeated, to time it without the counting."""
TIMED = 0.05
"""A probe shorter than this many seconds says nothing about the time of a larger batch."""
REPEATS = 5
"""Times that a probe shorter than `TIMED` is repeated at most, of which the fastest counts."""
PATIENCE = 60.0
"""Seconds of probing after which a disagreement is reported rather than looked into."""


@dataclass(frozen=True)
class Probe:
    """What one batch of ``size`` samples took.

    Attributes:
        size: Samples.
        events: For each phase, the bytes alive after each operation, above those alive before the first phase.
        kept: Bytes of the recorded graph, or 0.
        seconds: Of each phase.
    """

    size: int
    events: dict[Phase, Events]
    kept: int
    seconds: dict[Phase, float]

    @property
    def peak(self) -> int:
        """Most bytes alive in any phase."""
        return max(most(events) for events in self.events.values())


class Growth:
    """Bytes and seconds of one batch as functions of its size, through the two probes next to it.

    Args:
        probes: By increasing size; beyond the largest, the last two are used. One alone bounds: ``m(b) <= b m(1)``.
    """

    def __init__(self, probes: Sequence[Probe]) -> None:
        self.probes = tuple(probes)
        self._far = probes[-1]
        self._near = probes[-2] if len(probes) > 1 else None
        self._lines: dict[Phase, list[tuple[int, int]]] = {
            phase: [] if self._near is None else segments(self._near.events[phase], events)
            for phase, events in self._far.events.items()
        }

    @cached_property
    def _smaller(self) -> Growth | None:
        """What all probes but the largest say: a chunk may be full in that one, and not in smaller batches."""
        return Growth(self.probes[:-1]) if len(self.probes) > 2 else None

    def bytes(self, phase: Phase, size: int) -> int:
        """Most bytes alive during ``phase`` of a batch of ``size`` samples, the graph it has recorded included."""
        if self._near is None:
            return self._line(0, most(self._far.events[phase]), size)
        if self._smaller and size <= self._near.size:
            return self._smaller.bytes(phase, size)
        return max(self._line(near, far, size) for near, far in self._lines[phase])

    def kept(self, size: int) -> int:
        """Bytes of the graph of a batch."""
        if self._smaller and self._near and size <= self._near.size:
            return self._smaller.kept(size)
        return self._line(self._near.kept if self._near else 0, self._far.kept, size)

    def seconds(self, phase: Phase, size: int) -> float:
        """Seconds of ``phase``: between probes on a line, beyond them at least a quarter of proportional."""
        far = self._far.seconds[phase]
        if self._near is None or size >= self._far.size:
            near = self._near.seconds[phase] if self._near else 0.0
            start = self._near.size if self._near else 0
            slope = max(far - near, 0.25 * far * (1 - start / self._far.size)) / (self._far.size - start)
            return far + slope * (size - self._far.size)
        above = next(one for one in self.probes if one.size >= size)
        below = max((one for one in self.probes if one.size <= size), key=lambda one: one.size, default=above)
        share = (size - below.size) / max(above.size - below.size, 1)
        return below.seconds[phase] + share * (above.seconds[phase] - below.seconds[phase])

    def peak(self, size: int) -> int:
        """Most bytes alive in any phase."""
        return max(self.bytes(phase, size) for phase in self._far.events)

    def _line(self, near: int, far: int, size: int) -> int:
        start = self._near.size if self._near else 0
        slope = max(far - near, 0) / (self._far.size - start)
        return max(near, far) if size == self._far.size else round(max(near + slope * (size - start), 0))


def most(events: Events) -> int:
    """Largest number of bytes among ``events``."""
    return max((size for _, size in events), default=0)


def segments(a: Events, b: Events) -> list[tuple[int, int]]:
    """Pair up stretches of two runs of the same program, and return the most bytes alive in each.

    Operations that occur equally often in both are the posts between which the runs are compared. In runs that do the
    same this is every operation; a loop with more turns in one of them falls between two posts.
    """
    first, second = Counter(name for name, _ in a), Counter(name for name, _ in b)
    posts = {name for name, count in first.items() if second[name] == count}
    if [n for n, _ in a if n in posts] != [n for n, _ in b if n in posts]:
        posts = set()

    def cut(events: Events) -> list[int]:
        found, top = [], 0
        for name, size in events:
            top = max(top, size)
            if name in posts:
                found.append(top)
                top = 0
        return [*found, top]

    return list(zip(cut(a), cut(b)))


def probe(problem: Problem, w: Tensor, batch: Any, order: Order) -> Probe:
    """Run one batch through value, gradient or product, counting bytes; then perhaps once more, timing it."""
    v = torch.randn(w.shape, generator=generator(0, "plan")).to(w)
    out = torch.zeros_like(w)
    counted = _run(problem, w, v, out, batch, order, LiveBytes())
    if sum(counted.seconds.values()) > QUICK:
        return counted
    runs = [_run(problem, w, v, out, batch, order, None).seconds]
    while len(runs) < REPEATS and sum(map(_total, runs)) < TIMED:  # short ones suffer most from what else runs
        runs.append(_run(problem, w, v, out, batch, order, None).seconds)
    return Probe(counted.size, counted.events, counted.kept, min(runs, key=_total))


def _total(seconds: dict[Phase, float]) -> float:
    return sum(seconds.values())


def grow(problem: Problem, w: Tensor, order: Order, allowed: int, largest: int) -> Growth:
    """Probe 1, 2, 4, ... samples until the last probe was as those before predicted, and took a while.

    Args:
        problem: What to evaluate.
        w: The point, shape ``(P,)``.
        order: How far to differentiate.
        allowed: Bytes that a probe may be expected to take. The first is not asked.
        largest: Samples of the largest batch that is of interest.
    """
    found: list[Probe] = []
    count = 1
    while True:
        expected = Growth(found).peak(count) if found else 0
        found.append(probe(problem, w, first_samples(problem, count), order))
        last = found[-1]
        foreseen = len(found) > 2 and abs(last.peak - expected) <= AGREEMENT * last.peak
        if last.size != count:  # a batch that cannot be cut
            return Growth([last])
        following = min(2 * count, largest)
        enough = foreseen and sum(last.seconds.values()) > TIMED
        if enough or following == count or Growth(found).peak(following) > allowed:
            return Growth(found)
        if not foreseen and sum(sum(one.seconds.values()) for one in found) > PATIENCE:
            return Growth(found)
        count = following


def first_samples(problem: Problem, count: int) -> Any:
    """Return ``count`` samples as one batch: the first, or those of a loader's largest batch, whole if indivisible."""
    source = problem._batches
    if source.samples is not None:
        index = torch.arange(min(count, source.samples))
        return problem._place(next(iter(source.subset(index).recut(len(index)))))
    batch = problem._place(max(source, key=lambda batch: leading_size(batch) or 0))
    size = leading_size(batch)
    if any(t.ndim == 0 or t.shape[0] != size for t in tensors_in(batch)):
        return batch
    return map_tensors(lambda t: t[:count], batch)


def misfit(growth: Growth) -> float | None:
    """Relative error with which the probes before the last two predicted the last; None for fewer than three."""
    if len(growth.probes) < 3:
        return None
    last = growth.probes[-1]
    return Growth(growth.probes[:-1]).peak(last.size) / last.peak - 1


def _run(
    problem: Problem, w: Tensor, v: Tensor, out: Tensor, batch: Any, order: Order, counter: LiveBytes | None
) -> Probe:
    marks = [0]
    times = [time.perf_counter()]
    kept = 0

    def done() -> None:
        if w.is_cuda:
            torch.cuda.synchronize(w.device)
        times.append(time.perf_counter())
        marks.append(len(counter.events) if counter else 0)

    def work() -> None:
        nonlocal kept
        if order == "value":
            with torch.no_grad():
                problem.loss(problem.layout.split(w), batch)
        elif order == "gradient":
            leaves = [leaf.requires_grad_() for leaf in problem.layout.split(w.detach())]
            _, parts, _ = problem._batch_gradient(leaves, batch)
            for place, part in zip(problem.layout.split(out), parts):
                place.add_(part)
        else:
            with no_autocast(problem.device):
                graph = forget_values(linearise(problem, w, batch))
                done()
                kept = counter.live if counter else 0
                accumulate(out[None], graph, v[None], 1.0)
        done()

    _within(counter, work)
    names = PHASES[order]
    events = counter.events if counter else []
    return Probe(
        size=leading_size(batch) or 1,
        events={name: events[a:b] for name, (a, b) in zip(names, pairwise(marks))},
        kept=kept,
        seconds={name: b - a for name, (a, b) in zip(names, pairwise(times))},
    )


def _within(counter: LiveBytes | None, work: Callable[[], None]) -> None:
    if counter is None:
        work()
    else:
        with counter:
            work()
