"""Reading ahead: the next tiles come from the disk while this one is multiplied, within a fixed number of bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from thalweg.errors import StorageError, explain
from thalweg.trajectories.tiles import Source, Tile


def prefetch(
    source: Source, wanted: Sequence[Tile], capacity: int, *, readers: int = 1
) -> Generator[tuple[Tile, list[Tensor]], None, None]:
    """Yield each tile with its rows, one row a checkpoint, while threads read the following ones.

    A tile counts against ``capacity`` from the moment its reading begins until the next one is asked for, so that
    never more than ``capacity`` bytes of rows exist (or one tile, if that is more). Whoever asks must drop the rows.

    Args:
        source: Where to read.
        wanted: The tiles, in the order in which they are yielded.
        capacity: Bytes that may be held or under way.
        readers: Threads. With more than one, the rows of a tile are shared among them, and ``source.read`` must allow
            to be called by several threads.

    Raises:
        StorageError: A row came back shorter or longer than asked for. What ``source.read`` raises comes through.
    """
    pool = ThreadPoolExecutor(readers, thread_name_prefix="thalweg-read")
    ahead: deque[tuple[Tile, list[Future[list[Tensor]]]]] = deque()
    held, following = 0, 0
    try:
        for tile in wanted:
            while following < len(wanted) and (not ahead or held + wanted[following].bytes <= capacity):
                new = wanted[following]
                split = [range(r, new.copies, readers) for r in range(min(readers, new.copies))]
                ahead.append((new, [pool.submit(_rows, source, new, share) for share in split]))
                held += new.bytes
                following += 1
            _, futures = ahead.popleft()
            shares = [future.result() for future in futures]
            rows = [shares[index % len(shares)][index // len(shares)] for index in range(tile.copies)]
            del futures, shares
            yield tile, rows
            del rows
            held -= tile.bytes
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _rows(source: Source, tile: Tile, indices: range) -> list[Tensor]:
    return [read(source, tile, index) for index in indices]


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
