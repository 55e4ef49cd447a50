"""Grams where only some checkpoints can be had at a time: blocks of them wait in memory for all others to pass by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.trajectories.prefetch import read
from thalweg.trajectories.products import Products
from thalweg.trajectories.tiles import Layout, PartsOf, Source, Tile, layout

Checkpoint = dict[str, Tensor]
CHUNK = 2**16
"""Elements of the rows that are laid side by side at a time."""
OVERHEAD = 20 * 2**20
"""Bytes for chunks of all the rows, and for threads and small things."""


def checkpoint_reads(checkpoints: int, resident: int) -> int:
    """Return how many checkpoints are read in all: ``sum over j of (T - j B)``, about ``T^2 / (2 B)``.

    Args:
        checkpoints: T.
        resident: B.

    Example:
        >>> checkpoint_reads(154, 8), 154**2 // 16, checkpoint_reads(154, 153)
        (1560, 1482, 154)
    """
    return sum(checkpoints - first for first in range(0, checkpoints - 1, resident))


def resident_sums(
    source: Source,
    resident: int,
    *,
    budget: int | None = None,
    parts: PartsOf | None = None,
    exact: bool = False,
    fetch: Callable[[int], None] | None = None,
    done: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Compute the sums of `grams` with ``resident + 3`` checkpoints in memory, reading one checkpoint at a time.

    A block of B increments is held while every later checkpoint passes once, with the one before it; then the next
    block is. Every pair of increments meets once.

    Args:
        source: The trajectory; at any moment only the checkpoint being read need be reachable.
        resident: B, increments in memory.
        budget: Bytes that may be held; None for any.
        parts: As in `grams`.
        exact: As in `grams`.
        fetch: Is told the index of a checkpoint before it is read, for example to bring it here and drop another.
        done: Is told the bytes of each checkpoint that was read.

    Returns:
        ``G``, ``c``, ``m``, ``unchanged``, ``bytes_read`` and ``flops`` as in `Grams`.

    Raises:
        InvalidInput: ``resident`` is no number of checkpoints, or they do not fit into the budget.
        NonFinite: A checkpoint has NaN or infinite values.
    """
    count = len(source)
    layouts = [layout(tensor, parts) for tensor in source.tensors]
    size = sum(one.numel * one.dtype.itemsize for one in layouts)
    if resident < 1:
        raise InvalidInput(explain(f"resident is {resident}", "some have to wait", "Pass at least 1"))
    resident = min(resident, count - 1)
    need = (resident + 3) * size + OVERHEAD
    if budget is not None and need > budget:
        raise InvalidInput(
            explain(
                f"{resident} increments of {size} bytes each take {need} bytes, of {budget} allowed",
                "they wait in memory whole, with three checkpoints more",
                f"Pass resident={max(1, (budget - OVERHEAD) // max(1, size) - 3)} or less, or a larger budget",
            )
        )
    units = sum(len(one.labels) for one in layouts)
    g, c = np.zeros((units, count - 1, count - 1)), np.zeros((units, count - 1))
    m, unchanged = np.zeros(units), np.zeros((units, count - 1))
    sizes = np.maximum(1, np.array([n for one in layouts for n in one.sizes()]))
    spent = {"reads": 0, "flops": 0}

    def load(index: int) -> Checkpoint:
        if fetch:
            fetch(index)
        spent["reads"] += 1
        found = {one.name: _read(source, one, index) for one in layouts}
        if done:
            done(size)
        return found

    def multiply(points: list[Checkpoint], indices: list[int], last: int | None) -> tuple[np.ndarray, np.ndarray]:
        moments, same = [], []
        for one in layouts:
            products = Products([source.steps[i] for i in indices], one, exact=exact, last=last)
            for start in range(0, one.numel, CHUNK):
                stop = min(start + CHUNK, one.numel)
                products.add(torch.stack([point[one.name][start:stop] for point in points]), start, stop)
            products.finish()
            moments.append(products.moments)
            same.append(products.unchanged)
            spent["flops"] += products.flops
        return np.concatenate(moments), np.concatenate(same) / sizes[:, None]

    for low in range(0, count - 1, resident):
        high = min(low + resident, count - 1)
        block, indices = [load(index) for index in range(low, high + 1)], list(range(low, high + 1))
        moments, same = multiply(block, indices, None)
        g[:, low:high, low:high], unchanged[:, low:high] = moments[:, 1:, 1:], same
        if low == 0:
            m, c[:, :high] = moments[:, 0, 0], moments[:, 0, 1:]
        before = block[-1]
        for index in range(high + 1, count):
            now = load(index)
            # The rows are the first point of the block, its increments, a jump that nobody asked for, and the new one.
            moments, same = multiply([*block, before, now], [*indices, index - 1, index], 1)
            column = moments[:, 1 : high - low + 1, 0]
            g[:, low:high, index - 1] = column
            g[:, index - 1, low:high] = column
            if low == 0:
                c[:, index - 1] = moments[:, 0, 0]
            before = now
    assert spent["reads"] == checkpoint_reads(count, resident)
    own = {"bytes_read": spent["reads"] * size, "flops": spent["flops"]}
    return {"g": g, "c": c, "m": m, "unchanged": unchanged, **own}


def _read(source: Source, one: Layout, index: int) -> Tensor:
    return read(source, Tile(one, 0, one.numel, 1), index)
