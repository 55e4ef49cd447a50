"""What a streaming Gram will read, compute and hold, before it starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from thalweg.errors import InvalidInput, explain
from thalweg.trajectories.prefetch import TOGETHER, extent
from thalweg.trajectories.products import buffer_length
from thalweg.trajectories.tiles import BLOCK, Layout, PartsOf, Source, Tile, layout, tiles

READ = 8 * 2**20
"""Bytes of one read, if memory allows: disks and network stores reach their bandwidth with such reads."""
LEAST_READ = 2**13
"""Bytes below which a read is not made smaller."""
DEFAULT_BUDGET = 2**30
"""Bytes that are used when no budget is given and less does not force smaller reads."""
OVERHEAD = 2**20
"""Bytes for threads and small things; measured, in a process that has multiplied matrices before."""
SLACK = 0.15
"""Share of the result that the allocator takes besides, as it is made of many pieces; measured."""


@dataclass(frozen=True)
class GramPlan:
    """What `grams` will do.

    Attributes:
        read_bytes: Bytes read at a time from one checkpoint.
        capacity: Bytes of rows that may be held or under way: this tile and the next.
        peak_bytes: Memory that it takes in all, above what the process holds before.
        least_bytes: The least budget with which it can be done.
        total_bytes: Bytes that will be read, each once.
        flops: Floating-point operations of the products, counted as a full product; the symmetric one needs half.
        checkpoints: T.
        parameters: Elements of one checkpoint.
        result_bytes: Bytes of the result.
    """

    read_bytes: int
    capacity: int
    peak_bytes: int
    least_bytes: int
    total_bytes: int
    flops: int
    checkpoints: int
    parameters: int
    result_bytes: int

    def __repr__(self) -> str:
        return (
            f"GramPlan: {self.checkpoints} checkpoints of {self.parameters:,} parameters; reads "
            f"{self.total_bytes / 2**30:.3g} GiB once, {self.read_bytes / 2**20:.3g} MiB at a time; "
            f"{self.flops / 1e12:.3g} TFLOP; peak memory {self.peak_bytes / 2**20:.0f} MiB above the process's own "
            f"(at least {self.least_bytes / 2**20:.0f} MiB)"
        )


def gram_plan(
    source: Source,
    budget: int | None = None,
    *,
    parts: PartsOf | None = None,
    exact: bool = False,
    tile: int | None = None,
    last: int | None = None,
    device: torch.device | None = None,
) -> GramPlan:
    """Choose the length of a tile so that the whole work fits into ``budget`` bytes.

    With T checkpoints, buffers of B elements and reads of r bytes it holds up to ``2 T r`` bytes of rows (the tile
    being multiplied and the next one; less where the tensors are shorter), ``(1 + open parts) T B`` numbers for each
    precision, and twice the result ``units T^2 x 8``. All of it is counted above what the process holds before, on the
    host.

    Args:
        source: The trajectory.
        budget: Bytes; None takes 1 GiB, or what reads of the least size need.
        parts: As in `grams`.
        exact: As in `grams`.
        tile: Elements of a tile, if it is to be this and no other.
        last: Only that many new checkpoints are computed.
        device: Where the products are computed.

    Raises:
        InvalidInput: The budget is too small; the message names the least one.
    """
    return plan_of([layout(t, parts) for t in source.tensors], len(source), budget, exact, tile, last, device)


def plan_of(
    layouts: list[Layout],
    copies: int,
    budget: int | None = None,
    exact: bool = False,
    tile: int | None = None,
    last: int | None = None,
    device: torch.device | None = None,
) -> GramPlan:
    """As `gram_plan`, for tensors whose parts are known."""
    total = sum(one.numel * one.dtype.itemsize for one in layouts)
    largest = max((one.numel * one.dtype.itemsize for one in layouts), default=0)
    columns = copies if last is None else last
    units = sum(len(one.labels) for one in layouts)
    result = units * copies * columns * 8
    on_cpu = device is None or device.type == "cpu"
    buffers = _buffers(layouts, copies, exact) if on_cpu else 0
    fixed = OVERHEAD + buffers + int((2 + SLACK) * result)

    def two(read: int) -> int:  # rows of two tiles of the largest tensor
        return 2 * (copies * min(read, largest) + 64)

    least = fixed + two(LEAST_READ)
    if tile is not None:
        if tile < 1:
            raise InvalidInput(explain(f"The tile length is {tile}", "a tile has elements", "Pass tile >= 1"))
        read = tile * max((one.dtype.itemsize for one in layouts), default=1)
        least = fixed + two(read)
    room = (max(DEFAULT_BUDGET, least) if budget is None else budget) - fixed
    if tile is None:
        read = READ if two(READ) <= room else min(READ, max(LEAST_READ, (room - 128) // (2 * copies)))
    capacity = max(two(read), min(2 * TOGETHER, room))
    rows = extent((one for each in layouts for one in _shown(each, copies, read)), capacity)
    if budget is not None and budget < least:
        raise InvalidInput(
            explain(
                f"The budget is {budget / 2**20:.1f} MiB",
                f"{copies} checkpoints with {units} tensors need at least {least / 2**20:.1f} MiB: "
                f"{(2 + SLACK) * result / 2**20:.1f} for the result, the rest for one block of every checkpoint",
                f"Allow at least {least} bytes" + ("" if tile is None else ", or leave the tile length open"),
            )
        )
    parameters = sum(one.numel for one in layouts)
    return GramPlan(
        read_bytes=min(read, largest) if largest else read,
        capacity=capacity,
        peak_bytes=fixed + rows,
        least_bytes=least,
        total_bytes=copies * total,
        flops=2 * copies * columns * parameters,
        checkpoints=copies,
        parameters=parameters,
        result_bytes=result,
    )


def _shown(one: Layout, copies: int, read: int) -> list[Tile]:
    """Return the tiles of a tensor, or of a long one the first and the last: the others lie where these do."""
    length = max(1, read // one.dtype.itemsize)
    whole = one.numel // length * length
    if one.numel <= 6 * length:
        return tiles(one, copies, read)
    return [*tiles(one, copies, read, 0, 4 * length), *tiles(one, copies, read, whole)]


def _buffers(layouts: list[Layout], copies: int, exact: bool) -> int:
    """Bytes of the blocks of each precision: of every part that is open at once, and of differences.

    A tensor longer than one buffer takes two more, as one buffer is filled while the other is multiplied.
    """
    length = max((buffer_length(one) for one in layouts), default=0)
    wide = [exact or one.dtype == torch.float64 for one in layouts]
    found = 0
    for width in (4, 8):
        mine = [one for one, is_wide in zip(layouts, wide) if is_wide == (width == 8)]
        if mine:
            turns = 2 if any(one.numel >= length for one in mine) else 0
            found += copies * length * (1 + turns + max(len(one.labels) for one in mine)) * width
    return found + copies * min(BLOCK, length) * 8
