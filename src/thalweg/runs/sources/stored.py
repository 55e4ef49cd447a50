"""A tensor where it lies: pieces of files, of which any contiguous range is read with nothing around it.

Ranges are read from the file, not mapped into memory: a mapped file that is cut short kills the process at the
next touch, where a read returns an error that names the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

VECTORS = 512
"""Ranges that lie one after the other and are read by one call to the system, which takes at least so many."""


class Unreadable(Exception):
    """A file cannot be read; who knows which checkpoint and tensor it belongs to says so in an error of ours.

    Attributes:
        path: The file.
        reason: Why.
        place: Which of several ranges was not there.
    """

    def __init__(self, path: Path, reason: str, place: int = 0) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason, self.place = path, reason, place


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor.

    Attributes:
        name: Its name, without the prefixes of wrappers.
        shape: Its shape; ``()`` for a scalar.
        dtype: As stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored values."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class FileMark:
    """A file as it was when its header was read."""

    path: Path
    size: int
    mtime_ns: int

    def __reduce__(self) -> tuple[type[FileMark], tuple[Path, int, int]]:
        """Send the whole path: the process that receives it may be in another directory."""
        return FileMark, (self.path.absolute(), self.size, self.mtime_ns)

    @classmethod
    def of(cls, path: Path) -> FileMark:
        """Look at the file at ``path``.

        Raises:
            Unreadable: There is none.
        """
        try:
            found = path.stat()
        except OSError as error:
            raise Unreadable(path, _reason(error)) from error
        return cls(path, found.st_size, found.st_mtime_ns)

    def fill(self, out: Tensor, offset: int, *, drop: bool = False) -> int:
        """Read ``out.nbytes`` bytes at ``offset`` into the 1-D tensor ``out``; return how many.

        Raises:
            Unreadable: The file is gone, shorter, or not the one whose header was read.
        """
        if not out.numel():
            return 0
        return self.fill_all([(offset, memoryview(out.view(torch.uint8).numpy().data))], drop=drop)

    def fill_all(self, ranges: Sequence[tuple[int, memoryview]], *, drop: bool = False) -> int:
        """Read at each offset as many bytes as its buffer has; return how many in all.

        Ranges of which one begins where the one before it ends are read together. Each call opens the file for itself,
        so that threads share nothing and a replaced file is noticed.

        Args:
            ranges: Offset, and memory of bytes, none of it empty; by rising offset.
            drop: Tell the system not to keep what was read.

        Raises:
            Unreadable: The file is gone, shorter, or not the one whose header was read.
        """
        total = at = 0
        try:
            with open(self.path, "rb", buffering=0) as handle:
                found = os.fstat(handle.fileno())
                if (found.st_size, found.st_mtime_ns) != (self.size, self.mtime_ns):
                    raise Unreadable(self.path, "it was changed after the trajectory had been opened")
                while at < len(ranges):
                    end, stop = at, ranges[at][0]
                    while end < len(ranges) and ranges[end][0] == stop and end - at < VECTORS:
                        stop += len(ranges[end][1])
                        end += 1
                    self._fill(handle.fileno(), ranges[at][0], [part for _, part in ranges[at:end]], at)
                    if drop and hasattr(os, "posix_fadvise"):
                        os.posix_fadvise(handle.fileno(), ranges[at][0], stop - ranges[at][0], os.POSIX_FADV_DONTNEED)
                    total += stop - ranges[at][0]
                    at = end
        except OSError as error:
            raise Unreadable(self.path, _reason(error), min(at, len(ranges) - 1)) from error
        return total

    def _fill(self, descriptor: int, offset: int, parts: list[memoryview], place: int) -> None:
        """Read one stretch of the file into several buffers."""
        first = 0
        while first < len(parts):
            count = _read_at(descriptor, parts[first:], offset)
            if not count:
                raise Unreadable(self.path, f"it ends after {offset} bytes", place + first)
            offset += count
            while first < len(parts) and count >= len(parts[first]):
                count -= len(parts[first])
                first += 1
            if count:
                parts[first] = parts[first][count:]


def _read_at(descriptor: int, parts: Sequence[memoryview], offset: int) -> int:
    """Read into the buffers, one after the other, and return how many bytes came."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, parts, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)  # Windows: each call has a descriptor of its own
    found = os.read(descriptor, len(parts[0]))
    parts[0][: len(found)] = found
    return len(found)


def _reason(error: OSError) -> str:
    return "it does not exist" if isinstance(error, FileNotFoundError) else error.strerror or str(error)


@dataclass(frozen=True)
class Piece:
    """A box of a tensor, and where in a file it lies.

    Attributes:
        file: The file.
        offset: Bytes before its first element.
        origin: Where in the tensor the box begins.
        shape: Its extent.
        strides: Elements from one entry to the next along each axis, as stored.
    """

    file: FileMark
    offset: int
    origin: tuple[int, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor of this shape.

    Example:
        >>> contiguous((2, 3, 4))
        (12, 4, 1)
    """
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


class Stored(Protocol):
    """Something that gives ranges of one flattened tensor."""

    @property
    def info(self) -> TensorInfo:
        """Name, shape and dtype."""

    @property
    def same(self) -> Hashable:
        """Equal for two names of one stored tensor, or None where that cannot be told."""

    def read(self, start: int, stop: int, *, drop: bool = False) -> tuple[Tensor, int]:
        """Return elements ``[start, stop)`` of the flattened tensor, and the bytes that were read for them."""


@dataclass(frozen=True)
class OnDisk:
    """A tensor in one or several files.

    Attributes:
        info: Name, shape and dtype.
        find: Returns its pieces, which together cover it once; called when it is first read.
        same: What two names of one stored tensor have in common.
    """

    info: TensorInfo
    find: Callable[[], tuple[Piece, ...]]
    same: Hashable = None

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """Where it lies."""
        return self.find()

    def read(self, start: int, stop: int, *, drop: bool = False) -> tuple[Tensor, int]:
        """Return elements ``[start, stop)`` of the flattened tensor, and the bytes that were read for them.

        Pieces that hold whole rows in order are read to the byte. Of others (a tensor saved as a transpose or with
        channels last, a shard of columns) the rows that contain the range are read.
        """
        spans = self.spans(start, stop)
        if spans is None:
            return self._gather(start, stop, drop)
        out = torch.empty(stop - start, dtype=self.info.dtype)
        size = self.info.dtype.itemsize
        count = 0
        for file, offset, low, high in spans:
            count += file.fill(out[low // size : high // size], offset, drop=drop)
        return out, count

    def spans(self, start: int, stop: int) -> list[tuple[FileMark, int, int, int]] | None:
        """Return where ``[start, stop)`` lies: file, offset, and the bytes ``[low, high)`` of the range that are there.

        None for a tensor of which a range is not a stretch of bytes.
        """
        if self.intervals is None:
            return None
        found, size = [], self.info.dtype.itemsize
        for piece, (low, high) in zip(self.pieces, self.intervals):
            a, b = max(start, low), min(stop, high)
            if a < b:
                found.append((piece.file, piece.offset + (a - low) * size, (a - start) * size, (b - start) * size))
        return found

    @cached_property
    def intervals(self) -> tuple[tuple[int, int], ...] | None:
        """Elements of the flattened tensor that each piece is, or None where one of them is no such range."""
        found = [self._interval(piece) for piece in self.pieces]
        return None if None in found else tuple(one for one in found if one is not None)

    def _interval(self, piece: Piece) -> tuple[int, int] | None:
        """Elements ``[low, high)`` of the flattened tensor that the piece is, or None where it is not such a range."""
        if any(piece.origin[1:]) or piece.shape[1:] != self.info.shape[1:]:
            return None
        if any(n > 1 and a != b for n, a, b in zip(piece.shape, piece.strides, contiguous(piece.shape))):
            return None
        low = piece.origin[0] * prod(self.info.shape[1:]) if piece.origin else 0
        return low, low + prod(piece.shape)

    def _gather(self, start: int, stop: int, drop: bool) -> tuple[Tensor, int]:
        row = prod(self.info.shape[1:])
        if start == stop or not row:
            return torch.empty(0, dtype=self.info.dtype), 0
        first, last = start // row, -(-stop // row)
        rows = torch.empty((last - first, *self.info.shape[1:]), dtype=self.info.dtype)
        count = 0
        for piece in self.pieces:
            a, b = max(first, piece.origin[0]), min(last, piece.origin[0] + piece.shape[0])
            if a >= b or not prod(piece.shape):
                continue
            shape = (b - a, *piece.shape[1:])
            span = 1 + sum((n - 1) * stride for n, stride in zip(shape, piece.strides))
            raw = torch.empty(span, dtype=self.info.dtype)
            skipped = (a - piece.origin[0]) * piece.strides[0]
            count += piece.file.fill(raw, piece.offset + skipped * self.info.dtype.itemsize, drop=drop)
            box = tuple(slice(o, o + n) for o, n in zip(piece.origin[1:], piece.shape[1:]))
            rows[(slice(a - first, b - first), *box)] = raw.as_strided(shape, piece.strides)
        return rows.reshape(-1)[start - first * row : stop - first * row].clone(), count


@dataclass(frozen=True)
class InMemory:
    """A tensor that is there already.

    Attributes:
        info: Name, shape and dtype.
        tensor: The values; they are not copied before they are read.
        same: What two names of one stored tensor have in common.
    """

    info: TensorInfo
    tensor: Tensor
    same: Hashable = None

    def read(self, start: int, stop: int, *, drop: bool = False) -> tuple[Tensor, int]:
        """Return a copy of elements ``[start, stop)`` of the flattened tensor, and its bytes."""
        flat = self.tensor.detach()
        piece = flat.view(-1)[start:stop] if flat.is_contiguous() else flat.reshape(-1)[start:stop]
        copied = piece.to("cpu", copy=True)
        return copied, copied.numel() * copied.element_size()
