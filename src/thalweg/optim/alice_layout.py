"""Where the numbers of a parameter lie: shards, memory order, and pieces that fit into a processor's cache.

All arithmetic of the optimizer is element-wise. It therefore works on each process's own piece of a sharded tensor, on
flat views in memory order (contiguous or channels-last alike), and on the CPU block by block, so that a chain of
twenty operations reads and writes main memory once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor

BLOCK = 1 << 17
"""Numbers in a block on the CPU: what operations write stays in a cache, of second or third level, until it is read.
Measured from 2**14 to 2**18, smaller blocks cost more in starting operations than they save (2**15 a fifth in all)."""


def block_size() -> int:
    """Return how many numbers are worked on at once on the CPU; operations share them out among the threads."""
    return BLOCK * max(1, torch.get_num_threads())


def local(tensor: Tensor) -> Tensor:
    """Return this process's own piece of a sharded tensor, and any other tensor itself."""
    piece = getattr(tensor, "to_local", None)
    return tensor if piece is None else piece()


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return what averages of gradients of ``dtype`` are kept in: float32 for half precision."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def memory_order(tensor: Tensor) -> tuple[int, ...] | None:
    """Return the order of dimensions in which the tensor is contiguous, or None where it has gaps or overlaps."""
    strides = tensor.stride()
    order = tuple(sorted(range(tensor.dim()), key=lambda i: (-strides[i], i)))
    if tensor.is_contiguous():
        return tuple(range(tensor.dim()))
    return order if tensor.permute(order).is_contiguous() else None


def flat(tensor: Tensor, order: tuple[int, ...] | None) -> Tensor:
    """Return a view of the tensor in memory order, or a copy where it lies in another order (gradients may)."""
    return tensor if order is None or tensor.dim() == 1 else tensor.permute(order).reshape(-1)


def same_layout(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return state in the memory order of its parameter: itself, or a copy where the parameter has changed its own."""
    if local(tensor).stride() == local(parameter).stride():
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


def blocks(tensors: Sequence[Tensor | None]) -> Iterator[tuple[int, list[Tensor | None]]]:
    """Cut flat tensors of equal length alike; yield each block's start with its views.

    Tensors on other devices than the CPU, and those that have no flat view, come in one piece.
    """
    leader = tensors[0]
    assert leader is not None
    count = leader.numel()
    if count == 0:
        return
    size = block_size()
    if leader.device.type != "cpu" or leader.dim() != 1 or count <= size:
        yield 0, list(tensors)
        return
    # All views of a tensor at once, which costs a third of one at a time.
    parts = [repeat(None) if t is None else torch.split(t, size) for t in tensors]
    for number, views in enumerate(zip(*parts)):
        yield number * size, list(views)


def shard(parameter: Tensor) -> tuple[int, tuple[int, ...]]:
    """Say which stretch of the whole tensor's numbers this process holds.

    Returns:
        The offset of its first number in the whole tensor's logical order, and an empty tuple; where the piece is no
        single stretch (a cut along another dimension than the first, or several cuts), 0 and the coordinates of this
        process among the pieces. Replicas get equal answers.
    """
    placements = getattr(parameter, "placements", None)
    if placements is None:
        return 0, ()
    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    here = mesh.get_coordinate()
    cuts = [(i, placement) for i, placement in enumerate(placements) if placement.is_shard()]
    if here is None or not cuts:
        return 0, ()
    along, placement = cuts[0]
    if len(cuts) > 1 or placement.dim != 0 or type(placement).__name__ != "Shard":
        return 0, tuple(here[i] for i, _ in cuts)
    rows = parameter.shape[0]
    first = min(rows, here[along] * -(-rows // mesh.size(along)))
    return first * (parameter.numel() // rows if rows else 0), ()
