"""Reading ahead: the next tiles come from the disk while this one is multiplied, within a fixed number of bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from thalweg.errors import StorageError, explain
from thalweg.trajectories.tiles import Source, Tile

ALIGNED = 64
TOGETHER = 4 * 2**20
"""Bytes of small tiles that are read together."""


class Ring:
    """Bytes that are taken and given back in the same order, each share in one piece.

    Example:
        >>> ring = Ring(256)
        >>> ring.take(100), ring.take(100), ring.take(100)
        (0, 128, None)
        >>> ring.give_back()
        >>> ring.take(100)
        0
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken: deque[tuple[int, int]] = deque()

    def take(self, count: int) -> int | None:
        """Return the offset of ``count`` bytes, or None while there is no room."""
        count = _aligned(count)
        first = self.taken[0][0] if self.taken else 0
        last = self.taken[-1][1] if self.taken else 0
        if self.taken and last <= first:  # it has come round: the room is between
            offset = last if first - last >= count else None
        elif self.size - last >= count:
            offset = last
        else:
            offset = 0 if self.taken and first >= count else None
        if offset is not None:
            self.taken.append((offset, offset + count))
        return offset

    def give_back(self) -> None:
        """Give back what was taken first."""
        self.taken.popleft()


def batches(wanted: Iterable[Tile], capacity: int) -> Iterator[list[Tile]]:
    """Put tiles that follow one another together, as long as they are small and two such batches fit.

    A read of a few bytes costs as much as one of some thousands.

    Example:
        >>> from thalweg.trajectories.tiles import Layout
        >>> bias = Layout("b", (8,), torch.float16, ("",), ((0, 8, 0),))
        >>> [len(batch) for batch in batches([Tile(bias, 0, 8, 4)] * 5, capacity=256)]
        [2, 2, 1]
    """
    batch: list[Tile] = []
    size, limit = 0, min(TOGETHER, capacity // 2)
    for tile in wanted:
        if batch and size + _aligned(tile.bytes) > limit:
            yield batch
            batch, size = [], 0
        batch.append(tile)
        size += _aligned(tile.bytes)
    if batch:
        yield batch


def extent(wanted: Iterable[Tile], capacity: int) -> int:
    """Return how many bytes of a buffer of ``capacity`` bytes `prefetch` will write to."""
    sizes, ring, found = *_sized(list(batches(wanted, capacity)), capacity), 0
    for size in sizes:
        while (offset := ring.take(size)) is None:
            ring.give_back()
        found = max(found, offset + size)
    return found


def _sized(work: Sequence[Sequence[Tile]], capacity: int) -> tuple[list[int], Ring]:
    """Return the bytes of each batch, and the ring that they pass through."""
    sizes = [sum(_aligned(tile.bytes) for tile in batch) for batch in work]
    return sizes, Ring(max(min(capacity, sum(sizes)), max(sizes, default=0)))


def _aligned(count: int) -> int:
    return -(-count // ALIGNED) * ALIGNED


def prefetch(
    source: Source, wanted: Sequence[Tile], capacity: int, *, readers: int = 1
) -> Generator[tuple[Tile, Tensor], None, None]:
    """Yield each tile with its rows, ``(checkpoints, elements)``, while threads read the following ones.

    The rows lie in one buffer of ``capacity`` bytes that is used again and again, so that neither the speed of the disk
    nor the allocator decides how much memory is taken. A tile's rows are valid until the next one is asked for.

    Args:
        source: Where to read. If it has ``read_into`` as a `thalweg.runs.sources.Trajectory` has, it writes to the
            buffer itself, several small tensors at once.
        wanted: The tiles, in the order in which they are yielded.
        capacity: Bytes of the buffer; it is made larger if a single tile needs more.
        readers: Threads. With more than one, the rows of a tile are shared among them, and ``source.read`` must allow
            to be called by several threads.

    Raises:
        StorageError: A row came back shorter or longer than asked for. What ``source.read`` raises comes through.
    """
    work = list(batches(wanted, capacity if hasattr(source, "read_into") else 0))
    sizes, ring = _sized(work, capacity)
    buffer = torch.empty(ring.size, dtype=torch.uint8)
    pool = ThreadPoolExecutor(readers, thread_name_prefix="thalweg-read")
    ahead: deque[tuple[list[Tensor], list[Future[None]]]] = deque()
    following = 0
    try:
        for batch in work:
            while following < len(work):
                offset = ring.take(sizes[following])
                if offset is None:
                    break
                new = work[following]
                rows = list(_views(buffer, offset, new))
                shares = [range(r, new[0].copies, readers) for r in range(min(readers, new[0].copies))]
                ahead.append((rows, [pool.submit(_fill, rows, source, new, share) for share in shares]))
                following += 1
            rows, futures = ahead.popleft()
            for future in futures:
                future.result()
            yield from zip(batch, rows)
            ring.give_back()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _views(buffer: Tensor, offset: int, batch: Sequence[Tile]) -> Iterator[Tensor]:
    """Yield the rows of each tile of a batch that lies at ``offset``."""
    for tile in batch:
        yield buffer[offset : offset + tile.bytes].view(tile.layout.dtype).view(tile.copies, tile.stop - tile.start)
        offset += _aligned(tile.bytes)


def _fill(rows: Sequence[Tensor], source: Source, batch: Sequence[Tile], indices: range) -> None:
    into: Callable[..., None] | None = getattr(source, "read_into", None)
    if into is None:
        for index in indices:
            for tile, place in zip(batch, rows):
                place[index].copy_(read(source, tile, index))
        return
    filled = [(tile, place) for tile, place in zip(batch, rows) if place.numel()]
    memory = [memoryview(place.view(torch.uint8).view(-1).numpy().data) for _, place in filled]
    for index in indices:
        wanted = []
        for (tile, _), whole in zip(filled, memory):
            width = tile.row_bytes
            wanted.append((tile.layout.name, tile.start, tile.stop, whole[index * width : (index + 1) * width]))
        into(index, wanted)


def read(source: Source, tile: Tile, index: int) -> Tensor:
    """Read the row of one checkpoint, and see that it is whole.

    Raises:
        StorageError: It is not.
    """
    row = source.read(index, tile.layout.name, tile.start, tile.stop)
    if row.dim() != 1 or row.numel() != tile.stop - tile.start or row.dtype != tile.layout.dtype:
        raise StorageError(
            explain(
                f"Reading {tile.layout.name!r} at step {source.steps[index]} gave {row.numel()} elements of {row.dtype}"
                f" where {tile.stop - tile.start} of {tile.layout.dtype} were asked for",
                "the file is truncated, or changed since the trajectory was opened",
                "Check the file, and open the trajectory again",
            )
        )
    return row
