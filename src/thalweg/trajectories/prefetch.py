"""Reading ahead: the next tiles come from the disk while this one is multiplied, within a fixed number of bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from thalweg.errors import StorageError, explain
from thalweg.trajectories.tiles import Source, Tile

ALIGNED = 64


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
        count = -(-count // ALIGNED) * ALIGNED
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


def ring_bytes(copies: int, row_bytes: int) -> int:
    """Return the bytes of a ring for two tiles of ``copies`` rows."""
    return 2 * -(-copies * row_bytes // ALIGNED) * ALIGNED


def prefetch(
    source: Source, wanted: Sequence[Tile], capacity: int, *, readers: int = 1
) -> Generator[tuple[Tile, Tensor], None, None]:
    """Yield each tile with its rows, ``(checkpoints, elements)``, while threads read the following ones.

    The rows lie in one buffer of ``capacity`` bytes that is used again and again, so that neither the speed of the disk
    nor the allocator decides how much memory is taken. A tile's rows are valid until the next one is asked for.

    Args:
        source: Where to read.
        wanted: The tiles, in the order in which they are yielded.
        capacity: Bytes of the buffer; it is made larger if a single tile needs more.
        readers: Threads. With more than one, the rows of a tile are shared among them, and ``source.read`` must allow
            to be called by several threads.

    Raises:
        StorageError: A row came back shorter or longer than asked for. What ``source.read`` raises comes through.
    """
    largest = max((tile.bytes for tile in wanted), default=0)
    total = sum(-(-tile.bytes // ALIGNED) * ALIGNED for tile in wanted)
    ring = Ring(max(min(capacity, total), -(-largest // ALIGNED) * ALIGNED))
    buffer = torch.empty(ring.size, dtype=torch.uint8)
    pool = ThreadPoolExecutor(readers, thread_name_prefix="thalweg-read")
    ahead: deque[tuple[Tensor, list[Future[None]]]] = deque()
    following = 0
    try:
        for tile in wanted:
            while following < len(wanted):
                new = wanted[following]
                offset = ring.take(new.bytes)
                if offset is None:
                    break
                rows = buffer[offset : offset + new.bytes].view(new.layout.dtype).view(new.copies, -1)
                shares = [range(r, new.copies, readers) for r in range(min(readers, new.copies))]
                ahead.append((rows, [pool.submit(_fill, rows, source, new, share) for share in shares]))
                following += 1
            rows, futures = ahead.popleft()
            for future in futures:
                future.result()
            yield tile, rows
            ring.give_back()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _fill(rows: Tensor, source: Source, tile: Tile, indices: range) -> None:
    for index in indices:
        rows[index].copy_(read(source, tile, index))


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
