"""Files of ``torch.save``: where each tensor of a state dict lies, found without running what the file says.

Such a file is a zip archive whose records are not compressed: ``data.pkl`` names tensors by storage, offset, shape
and strides, and ``data/KEY`` holds the bytes of a storage. Both are read here directly, to the byte and lazily.
"""

from __future__ import annotations

import copy
import io
import struct
import zipfile
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from thalweg.runs.sources.pickles import Record, Refused, kind_of, read_pickle
from thalweg.runs.sources.stored import FileMark, OnDisk, Piece, TensorInfo, Unreadable

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "network", "net")
"""Names under which training scripts file the weights beside other things."""

STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
}
DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_UNTYPED = ("torch.storage.UntypedStorage", "torch.UntypedStorage")
_REBUILD = "torch._utils._rebuild_"
ADMITTED = frozenset(
    [f"torch.{name}Storage" for name in STORAGES]
    + [f"torch.storage.{name}Storage" for name in STORAGES]
    + [_REBUILD + tail for tail in ("tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state")]
    + [*DTYPES, *_UNTYPED, "torch._tensor._rebuild_from_type_v2", "torch.Tensor", "torch.nn.parameter.Parameter"]
    + ["torch.Size", "torch.device", "torch.serialization._get_layout", "collections.OrderedDict"]
    + ["collections.Counter", "collections.defaultdict", "builtins.set", "_codecs.encode"]
)
"""All that may occur in ``data.pkl``: it is described, and never called."""


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: torch.dtype | None


@dataclass(frozen=True)
class _Found:
    """A tensor as ``data.pkl`` describes it; offset and strides in elements."""

    key: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Archive:
    """One archive: a file, or a stretch of a file that holds several.

    Args:
        mark: The file.
        start: Where the archive begins.
        length: Its bytes; default to the end.

    Raises:
        Unreadable: It is no such archive, or damaged.
    """

    def __init__(self, mark: FileMark, start: int = 0, length: int | None = None) -> None:
        self.mark, self.start = mark, start
        self.length = mark.size - start if length is None else length
        if _bytes(mark, start, min(4, self.length)) != b"PK\x03\x04":
            raise Unreadable(
                mark.path,
                "it is no zip archive of torch.save: if torch older than 1.6 wrote it, convert it once with "
                "torch.save(torch.load(path, weights_only=True), path)",
            )
        try:
            with zipfile.ZipFile(_View(mark, start, self.length)) as opened:
                self._records = {name.split("/", 1)[-1]: opened.getinfo(name) for name in opened.namelist()}
        except (zipfile.BadZipFile, ValueError, OSError, struct.error, NotImplementedError) as error:
            raise Unreadable(mark.path, f"it is cut short or damaged ({error})") from error
        if "byteorder" in self._records and self.record("byteorder") != b"little":
            raise Unreadable(mark.path, "it was written in big-endian order")

    def only(self, name: str) -> Archive:
        """Return this archive with one record: what is sent with a tensor should not grow with the others."""
        other = copy.copy(self)
        other._records = {name: self._records[name]} if name in self._records else {}
        return other

    def place(self, name: str) -> tuple[int, int]:
        """Return where in the file a record begins, and its bytes."""
        found = self._records.get(name)
        if found is None:
            raise Unreadable(self.mark.path, f"it is damaged: it has no record {name!r}")
        if found.compress_type != zipfile.ZIP_STORED:
            raise Unreadable(self.mark.path, f"its record {name!r} is compressed, as torch.save never does")
        head = self.start + found.header_offset
        if head + 30 > self.start + self.length:
            raise Unreadable(self.mark.path, f"it is damaged: {name!r} lies beyond its end")
        signature, *_, a, b = struct.unpack("<4s22xHH", _bytes(self.mark, head, 30))
        begin = head + 30 + a + b
        if signature != b"PK\x03\x04" or begin + found.file_size > self.start + self.length:
            raise Unreadable(self.mark.path, f"it is damaged: {name!r} lies beyond its end")
        return begin, found.file_size

    def record(self, name: str) -> bytes:
        """Return the bytes of a record."""
        begin, length = self.place(name)
        return _bytes(self.mark, begin, length)

    def contents(self) -> Any:
        """Return what ``data.pkl`` describes.

        Raises:
            Unreadable: It names something that is no part of a state dict; nothing of it was run.
        """
        try:
            return read_pickle(self.record("data.pkl"), ADMITTED, _persistent)
        except Refused as error:
            raise Unreadable(
                self.mark.path,
                f"it holds more than tensors, it names {error}, and thalweg never executes what a file says: save "
                "the weights alone with torch.save(model.state_dict(), path)",
            ) from error
        except ValueError as error:
            raise Unreadable(self.mark.path, f"its table of tensors is damaged ({error})") from error

    def piece(self, found: _Found, origin: tuple[int, ...]) -> Piece:
        """Return where a tensor lies, checked against the length of its storage."""
        begin, length = self.place(f"data/{found.key}")
        last = found.offset + sum((n - 1) * stride for n, stride in zip(found.shape, found.strides))
        if 0 not in found.shape and (last + 1) * found.dtype.itemsize > length:
            raise Unreadable(self.mark.path, f"it is damaged: a tensor goes beyond its storage {found.key!r}")
        return Piece(self.mark, begin + found.offset * found.dtype.itemsize, origin, found.shape, found.strides)

    def single(self, origin: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype) -> Piece:
        """Return where the only tensor of an archive lies, which must be of this shape and dtype."""
        found = describe(self.contents())
        if found is None or found.shape != shape or found.dtype != dtype:
            raise Unreadable(
                self.mark.path, f"it is damaged: it has no {dtype} tensor of shape {shape} at {self.start}"
            )
        return self.piece(found, origin)


def read_archive(path: Path) -> dict[str, OnDisk]:
    """Find the tensors of the state dict in a file of ``torch.save``; no weights are read.

    The state dict is looked for at the top, and up to two levels under the names in ``WRAPPERS``.

    Raises:
        Unreadable: The file is missing, cut short, damaged, not of the zip format, holds other things than tensors
            and plain values, or holds no state dict.
    """
    archive = Archive(FileMark.of(path))
    found = _state_dict(archive.contents())
    if not found:
        places = ", ".join(WRAPPERS)
        raise Unreadable(path, f"it holds no state dict: tensors by name are looked for at its top and under {places}")
    return {name: _on_disk(archive, name, tensor) for name, tensor in found.items()}


def _on_disk(archive: Archive, name: str, found: _Found) -> OnDisk:
    info = TensorInfo(name, found.shape, found.dtype)
    same: Hashable = (archive.mark.path, found) if 0 not in found.shape else None
    return OnDisk(info, partial(_pieces, archive.only(f"data/{found.key}"), found), same)


def _pieces(archive: Archive, found: _Found) -> tuple[Piece, ...]:
    return (archive.piece(found, (0,) * len(found.shape)),)


def _state_dict(loaded: Any, depth: int = 2) -> dict[str, _Found]:
    if not isinstance(loaded, Mapping):
        return {}
    tensors = {name: tensor for name, value in loaded.items() if (tensor := describe(value)) is not None}
    inner = next((loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
    if inner is not None and depth:
        return _state_dict(inner, depth - 1)
    return {name: tensor for name, tensor in tensors.items() if isinstance(name, str)}


def describe(thing: Any) -> _Found | None:
    """Return where the tensor lies that ``thing`` of a pickle would have become, or None where it is no tensor."""
    for _ in range(3):
        if not isinstance(thing, Record) or not isinstance(thing.args, tuple):
            return None
        kind, args = kind_of(thing), thing.args
        if kind.startswith(_REBUILD + "parameter") and args:
            thing = args[0]
        elif kind == "torch._tensor._rebuild_from_type_v2" and len(args) == 4 and isinstance(args[2], tuple):
            if not (isinstance(args[0], type) and issubclass(args[0], Record)):
                return None
            thing = args[0](*args[2])
        else:
            break
    if not kind.startswith(_REBUILD + "tensor") or len(args) < 4 or not isinstance(args[0], _Storage):
        return None
    dtype = DTYPES.get(kind_of(args[6])) if kind.endswith("_v3") and len(args) > 6 else args[0].dtype
    shape, strides = (_sizes(value) for value in args[2:4])
    if dtype is None or shape is None or strides is None or len(shape) != len(strides):
        return None
    return _Found(args[0].key, dtype, args[1], shape, strides) if type(args[1]) is int and args[1] >= 0 else None


def _sizes(value: Any) -> tuple[int, ...] | None:
    if kind_of(value) == "torch.Size" and isinstance(value, Record) and len(value.args) == 1:
        value = value.args[0]
    good = isinstance(value, (tuple, list)) and all(type(n) is int and n >= 0 for n in value)
    return tuple(value) if good else None


def _persistent(pid: Any) -> _Storage:
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
        raise ValueError("a reference that is no storage")
    name = kind_of(pid[1]).rsplit(".", 1)[-1].removesuffix("Storage")
    return _Storage(str(pid[2]), STORAGES.get(name))


def _bytes(mark: FileMark, offset: int, length: int) -> bytes:
    raw = torch.empty(length, dtype=torch.uint8)
    mark.fill(raw, offset)
    return raw.numpy().tobytes()


class _View(io.RawIOBase):
    """A stretch of a file as a file, for the zip reader, which reads the directory at its end alone."""

    def __init__(self, mark: FileMark, start: int, length: int) -> None:
        self._mark, self._start, self._length, self._at = mark, start, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        at = offset + (0, self._at, self._length)[whence]
        if at < 0:
            raise OSError("before the beginning")
        self._at = at
        return at

    def read(self, size: int | None = -1) -> bytes:
        rest = max(self._length - self._at, 0)
        count = rest if size is None or size < 0 else min(size, rest)
        data = _bytes(self._mark, self._start + self._at, count)
        self._at += count
        return data
