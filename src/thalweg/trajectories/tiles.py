"""How a trajectory is cut: tensors into parts, parts into blocks, files into tiles that are read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain

BLOCK = 2**11
"""Elements of a part that one product sums over: short enough for a float32 sum to err by less than 1e-7, measured, and
long enough for a fast one.

Blocks are counted from the start of each part, whatever is read at a time, so that the tile length cannot change a
single bit of the result.
"""


class Stored(Protocol):
    """A tensor of the checkpoints: what is known without reading it."""

    @property
    def name(self) -> str:
        """Its name, the same in all checkpoints."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> torch.dtype:
        """How it is stored."""

    @property
    def numel(self) -> int:
        """How many elements it has."""


class Source(Protocol):
    """What is needed of a trajectory: an ordered sequence of checkpoints of which any range can be read."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Step of each checkpoint, ascending."""

    @property
    def tensors(self) -> tuple[Any, ...]:
        """The selected tensors (`Stored`), in one order for all checkpoints."""

    @property
    def schedule(self) -> Mapping[str, Any]:
        """Numbers that are known at the steps, by name."""

    def __len__(self) -> int: ...

    def read(self, index: int, name: str, start: int, stop: int) -> Tensor:
        """Read the elements ``[start, stop)`` of a flattened tensor of checkpoint ``index``."""

    def fingerprint(self, index: int) -> str:
        """Return a text that changes when the files of checkpoint ``index`` do."""


Ranges = Mapping[str, Sequence[tuple[int, int]]]
"""Parts of a flattened tensor by label: ranges of elements, in the order in which they make up the part."""

PartsOf = Callable[[Any], Ranges | None]
"""Gives the parts of a tensor, or None for one that is whole."""


@dataclass(frozen=True)
class Layout:
    """A tensor and its parts.

    Attributes:
        name: The tensor.
        shape: Its shape.
        dtype: How it is stored.
        labels: Its parts, ``("",)`` for a tensor that is whole.
        pieces: ``(start, stop, part)`` in ascending order: disjoint, and all of the tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    labels: tuple[str, ...]
    pieces: tuple[tuple[int, int, int], ...]

    @property
    def numel(self) -> int:
        """How many elements the tensor has."""
        return self.pieces[-1][1] if self.pieces else 0

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the parts: that of the tensor, with the label in brackets if it has parts."""
        return tuple(f"{self.name}[{label}]" if label else self.name for label in self.labels)

    def cut(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield the pieces of ``[start, stop)``, counted from ``start``."""
        for first, last, part in self.pieces:
            low, high = max(first, start), min(last, stop)
            if low < high:
                yield low - start, high - start, part

    def sizes(self, start: int = 0, stop: int | None = None) -> list[int]:
        """How many elements of ``[start, stop)`` each part has."""
        found = [0] * len(self.labels)
        for low, high, part in self.cut(start, self.numel if stop is None else stop):
            found[part] += high - low
        return found

    def divisible(self) -> bool:
        """Whether the tensor may be split at any multiple of `BLOCK` without cutting a block of a part."""
        return all(start % BLOCK == 0 for start, _, _ in self.pieces)


def layout(tensor: Stored, parts: PartsOf | None = None) -> Layout:
    """Describe a tensor and its parts.

    Args:
        tensor: The tensor.
        parts: Gives its parts; None for tensors that are whole.

    Raises:
        InvalidInput: The parts overlap, leave something out, or reach beyond the tensor.

    Example:
        >>> from types import SimpleNamespace
        >>> fused = SimpleNamespace(name="qk", shape=(4, 2), dtype=torch.float16, numel=8)
        >>> found = layout(fused, lambda t: {"Q": [(0, 2), (4, 6)], "K": [(2, 4), (6, 8)]})
        >>> found.units, found.pieces[:3]
        (('qk[Q]', 'qk[K]'), ((0, 2, 0), (2, 4, 1), (4, 6, 0)))
    """
    ranges = parts(tensor) if parts else None
    if not ranges:
        whole = ((0, tensor.numel, 0),) if tensor.numel else ()
        return Layout(tensor.name, tuple(tensor.shape), tensor.dtype, ("",), whole)
    labels = tuple(ranges)
    pieces = sorted((int(a), int(b), labels.index(label)) for label in labels for a, b in ranges[label])
    at = 0
    for start, stop, part in pieces:
        if start != at or stop <= start:
            raise _parts_wrong(tensor, f"part {labels[part]!r} has the range [{start}, {stop}) after element {at}")
        at = stop
    if at != tensor.numel:
        raise _parts_wrong(tensor, f"they end at element {at} of {tensor.numel}")
    return Layout(tensor.name, tuple(tensor.shape), tensor.dtype, labels, tuple(pieces))


def _parts_wrong(tensor: Stored, found: str) -> InvalidInput:
    return InvalidInput(
        explain(
            f"The parts of {tensor.name!r} do not make up the tensor: {found}",
            "inner products add up to the whole only if each element is in one part",
            "Correct the function given as parts=",
        )
    )


@dataclass(frozen=True)
class Tile:
    """The same range of one tensor in all checkpoints.

    Attributes:
        layout: The tensor.
        start: First element.
        stop: One past the last.
        copies: How many checkpoints it is read from.
    """

    layout: Layout
    start: int
    stop: int
    copies: int

    @property
    def row_bytes(self) -> int:
        """Bytes read from one checkpoint."""
        return (self.stop - self.start) * self.layout.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Bytes read from all checkpoints together."""
        return self.copies * self.row_bytes


def tiles(one: Layout, copies: int, read_bytes: int, start: int = 0, stop: int | None = None) -> list[Tile]:
    """Cut ``[start, stop)`` of a tensor into tiles of at most ``read_bytes`` per checkpoint, equal but for the last.

    Example:
        >>> whole = Layout("w", (10,), torch.float16, ("",), ((0, 10, 0),))
        >>> [(t.start, t.stop) for t in tiles(whole, copies=3, read_bytes=8)]
        [(0, 4), (4, 8), (8, 10)]
    """
    stop = one.numel if stop is None else stop
    length = max(1, read_bytes // one.dtype.itemsize)
    return [Tile(one, at, min(at + length, stop), copies) for at in range(start, stop, length)]
