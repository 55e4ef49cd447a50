"""The work of a Gram as independent pieces: plain values in, plain values out, added in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import torch

from thalweg.trajectories.gram_plan import GramPlan, gram_plan
from thalweg.trajectories.gram_store import GramStore, Partial, key_of
from thalweg.trajectories.prefetch import prefetch
from thalweg.trajectories.products import BUFFER, Bad, Products, Workspace, buffer_length
from thalweg.trajectories.tiles import BLOCK, Layout, PartsOf, Source, Tile, layout, tiles


@dataclass(frozen=True)
class GramTask:
    """A range of one tensor in all checkpoints; it can be pickled if its trajectory can.

    Attributes:
        source: The trajectory.
        layout: The tensor and its parts.
        start: First element.
        stop: One past the last.
        read_bytes: Bytes read at a time from one checkpoint.
        capacity: Bytes of rows that may be held or under way.
        exact: Products in float64.
        device: Where to multiply, for example ``"cpu"``.
        on_bad: ``"raise"`` or ``"skip"``.
        last: Only the last so many increments.
        key: Digest of everything that the result depends on.
    """

    source: Source
    layout: Layout
    start: int
    stop: int
    read_bytes: int
    capacity: int
    exact: bool = False
    device: str = "cpu"
    on_bad: str = "raise"
    last: int | None = None
    key: str = ""

    @property
    def bytes(self) -> int:
        """Bytes that it reads."""
        return (self.stop - self.start) * self.layout.dtype.itemsize * len(self.source)

    @property
    def whole(self) -> bool:
        """Whether it is a whole tensor."""
        return self.start == 0 and self.stop == self.layout.numel

    def products(self, workspace: Workspace | None = None) -> Products:
        """Return an empty accumulator for it."""
        return Products(
            self.source.steps,
            self.layout,
            exact=self.exact,
            device=torch.device(self.device),
            on_bad=self.on_bad,
            last=self.last,
            workspace=workspace,
        )

    def tiles(self) -> list[Tile]:
        """Return what it reads."""
        return tiles(self.layout, len(self.source), self.read_bytes, self.start, self.stop)

    def partial(self, products: Products, bytes_read: int) -> Partial:
        """Return its result."""
        name, steps = self.layout.name, self.source.steps
        bad = tuple(Bad(steps[index], name, count) for index, count in sorted(products.bad.items()))
        found = products.moments, products.unchanged, bad, bytes_read, products.flops
        return Partial(name, self.start, self.stop, *found)


def tasks(
    source: Source,
    *,
    budget: int | None = None,
    device: torch.device | str | None = None,
    tile: int | None = None,
    parts: PartsOf | None = None,
    exact: bool = False,
    on_bad: str = "raise",
    last: int | None = None,
    split: int | None = None,
    plan: GramPlan | None = None,
    fingerprints: tuple[str, ...] | None = None,
) -> list[GramTask]:
    """Split the work of `grams` into independent pieces, one a tensor, or smaller ones.

    ``combine(source, [run_task(task) for task in tasks(source)])`` is `grams`, in whatever order and on whatever
    machines the tasks run. The trajectory travels with the tasks, so its files must have the same paths there.

    Args:
        source: The trajectory.
        budget: Bytes that one task may hold.
        device: Where to multiply.
        tile: Elements read at a time from one checkpoint.
        parts: Parts of fused tensors, as in `grams`.
        exact: Products in float64.
        on_bad: As in `grams`.
        last: Only that many new checkpoints, as in `extend`.
        split: Elements after which a tensor is split, rounded down to blocks; None leaves tensors whole. Tensors whose
            parts do not consist of blocks stay whole.
        plan: A plan made before, instead of ``budget`` and ``tile``.
        fingerprints: Of the checkpoints, if they are known already.
    """
    where = torch.device(device or "cpu")
    if plan is None:
        plan = gram_plan(source, budget, parts=parts, exact=exact, tile=tile, last=last, device=where)
    prints = fingerprints or tuple(source.fingerprint(index) for index in range(len(source)))
    found, blocks = [], (BLOCK, BUFFER[where.type == "cpu"])
    for tensor in source.tensors:
        one = layout(tensor, parts)
        length = max(1, one.numel)
        if split is not None and one.divisible():
            length = max(BLOCK, split // BLOCK * BLOCK)
        key = key_of(tuple(source.steps), prints, one, blocks, exact, on_bad, last, where.type)
        for at in range(0, max(1, one.numel), length):
            stop = min(at + length, one.numel)
            how = exact, str(where), on_bad, last, key
            found.append(GramTask(source, one, at, stop, plan.read_bytes, plan.capacity, *how))
    return found


def run_task(task: GramTask, *, readers: int = 1) -> Partial:
    """Do one task. Its result is small: T^2 numbers for each part of the tensor.

    Raises:
        NonFinite: A checkpoint has NaN or infinite values, unless the task says to skip them.
    """
    return next(run_tasks([task], task.capacity, readers=readers))


def run_tasks(
    work: Sequence[GramTask],
    capacity: int,
    *,
    readers: int = 1,
    store: GramStore | None = None,
    done: Callable[[int], None] | None = None,
) -> Iterator[Partial]:
    """Do tasks one after the other, reading ahead across them; yield each result when it is there.

    Args:
        work: The tasks, of one trajectory.
        capacity: Bytes of rows that may be held or under way.
        readers: Threads that read.
        store: Where finished tensors are kept; whole tensors that are there are not read.
        done: Is told the bytes of every tile that is done with.
    """
    found = [store.load(t.layout.name, t.key) if store and t.whole else None for t in work]
    missing = [task for task, partial in zip(work, found) if partial is None]
    if not work:
        return
    wanted = [tile for task in missing for tile in task.tiles()]
    on_cpu = torch.device(work[0].device).type == "cpu"
    workspace = Workspace(max(buffer_length(task.layout, on_cpu=on_cpu) for task in work), threaded=on_cpu)
    with ExitStack() as stack:
        if store:
            stack.callback(store.flush)  # whatever ends the work
        stack.enter_context(closing(workspace))
        rows = stack.enter_context(closing(prefetch(work[0].source, wanted, capacity, readers=readers)))
        for task, partial in zip(work, found):
            if partial is None:
                products, count = task.products(workspace), 0
                for _ in range(len(task.tiles())):
                    tile, points = next(rows)
                    products.add(points, tile.start, tile.stop)
                    count += points.numel() * points.itemsize
                    if done:
                        done(tile.bytes)
                products.finish()
                partial = task.partial(products, count)
                if store and task.whole:
                    store.add(partial, task.key)
            yield partial
