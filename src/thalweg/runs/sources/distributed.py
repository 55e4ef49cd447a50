"""Folders of ``torch.distributed.checkpoint``: boxes of tensors in the files of several ranks, and a table of them.

The table, ``.metadata``, is a pickle, which torch's own reader executes. Here it is described and never run; the
boxes are archives of ``torch.save`` at known offsets of the ranks' files, and are opened when
they are first read.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import torch

from thalweg.runs.sources.archives import DTYPES, WRAPPERS, Archive
from thalweg.runs.sources.pickles import Record, Refused, kind_of, read_pickle
from thalweg.runs.sources.stored import FileMark, OnDisk, Piece, TensorInfo, Unreadable

TABLE = ".metadata"
Box: TypeAlias = "tuple[FileMark, int, int, tuple[int, ...], tuple[int, ...]]"
"""A file, where in it and how many bytes, and which box of the tensor: its origin and its shape."""
_HERE = "torch.distributed.checkpoint."
_CLASSES = (
    "Metadata",
    "TensorStorageMetadata",
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "TensorProperties",
    "MetadataIndex",
    "StorageMeta",
    "_MEM_FORMAT_ENCODING",
)
ADMITTED = frozenset(
    [f"{_HERE}metadata.{name}" for name in _CLASSES]
    + [f"{_HERE}filesystem.{name}" for name in ("_StorageInfo", "_StoragePrefix")]
    + [
        f"torch.distributed._shard.sharded_tensor.metadata.{name}"
        for name in ("TensorProperties", "MEM_FORMAT_ENCODING")
    ]
    + [f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in ("Path", "PosixPath", "WindowsPath")]
    + [*DTYPES, "torch.Size", "torch.serialization._get_layout", "collections.OrderedDict"]
)
"""All that may occur in ``.metadata``: it is described, and never called."""


def read_distributed(folder: Path) -> tuple[dict[str, OnDisk], tuple[Path, ...]]:
    """Find the tensors of a distributed checkpoint; no weights are read.

    Where the state was saved as ``{"model": ..., "optim": ...}``, the part under a name of a model's is taken.

    Args:
        folder: The folder with ``.metadata`` and the files of the ranks.

    Returns:
        The tensors by name, and the files they lie in with the table first.

    Raises:
        Unreadable: The table is damaged or names what has no business in it, a file is missing or too short, boxes do
            not cover their tensor, or a stream was transformed (compressed) by an extension.
    """
    path = folder / TABLE
    try:
        table = read_pickle(path.read_bytes(), ADMITTED)
        tensors, places = _attributes(table, "state_dict_metadata"), _attributes(table, "storage_data")
        planned = table.get("planner_data")
        stored = {_key(index): info for index, info in places.items()}
        marks = {
            name: _mark(folder, name) for name in sorted({str(info.get("relative_path")) for info in stored.values()})
        }
        names = _names(list(tensors), planned if isinstance(planned, Mapping) else {})
        found = {
            name: _tensor(name, flat, tensors[flat], stored, marks)
            for flat, name in names.items()
            if kind_of(tensors[flat]).endswith(".TensorStorageMetadata")
        }
    except Refused as error:
        raise Unreadable(
            path,
            f"it names {error}, which is no part of such a table, and thalweg never executes what a file says: get the "
            "checkpoint again from where it was trained",
        ) from error
    except OSError as error:
        raise Unreadable(path, error.strerror or str(error)) from error
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise Unreadable(path, f"it is damaged ({type(error).__name__}: {error})") from error
    used = sorted({str(info.get("relative_path")) for (flat, _), info in stored.items() if flat in names})
    return found, (path, *(folder / name for name in used))


def _attributes(thing: Any, name: str) -> Mapping[Any, Any]:
    value = thing.get(name) if isinstance(thing, Record) else None
    if not isinstance(value, Mapping):
        raise ValueError(f"it has no {name}")
    return value


def _size(value: Any) -> tuple[int, ...]:
    sizes = value.args[0] if kind_of(value) == "torch.Size" else value
    if not isinstance(sizes, (tuple, list)) or not all(type(n) is int and n >= 0 for n in sizes):
        raise ValueError("a size is none")
    return tuple(sizes)


def _key(index: Record) -> tuple[str, tuple[int, ...] | None]:
    offset = index.get("offset")
    return str(index.get("fqn")), None if offset is None else _size(offset)


def _mark(folder: Path, name: str) -> FileMark:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise ValueError(f"the file name {name!r} leads out of the folder")
    return FileMark.of(folder / name)


def _names(flat: list[str], planned: Mapping[Any, Any]) -> dict[str, str]:
    """Map names in the file to those of the model: of several parts, the one filed under a wrapper's name."""
    paths = {name: planned.get(name) for name in flat}
    for wrapper in WRAPPERS:
        inner = {
            name: ".".join(map(str, path[1:]))
            for name, path in paths.items()
            if isinstance(path, tuple) and len(path) > 1 and path[0] == wrapper
        }
        if inner:
            return inner
    heads = {name.split(".", 1)[0] for name in flat}
    if heads & {"optim", "optimizer", "optimizers", "optimizer_state_dict"}:
        for wrapper in WRAPPERS:
            if wrapper in heads:
                return {name: name.split(".", 1)[1] for name in flat if name.startswith(f"{wrapper}.")}
    return {name: name for name in flat}


def _tensor(
    name: str,
    flat: str,
    entry: Record,
    stored: Mapping[tuple[str, tuple[int, ...] | None], Record],
    marks: Mapping[str, FileMark],
) -> OnDisk:
    properties = entry.get("properties")
    state = getattr(properties, "state", None)
    kind = state[0] if isinstance(state, tuple) and state else properties.get("dtype")
    info = TensorInfo(name, _size(entry.get("size")), DTYPES[kind_of(kind)])
    boxes: list[Box] = []
    for chunk in entry.get("chunks"):
        origin, shape = _size(chunk.get("offsets")), _size(chunk.get("sizes"))
        place = stored.get((flat, origin)) or stored.get((flat, None))
        if place is None:
            raise ValueError(f"nothing says where {flat!r} at {origin} lies")
        if place.get("transform_descriptors"):
            raise ValueError(f"{flat!r} was written through an extension, as compressed data are; save without one")
        mark, start, length = marks[str(place.get("relative_path"))], place.get("offset"), place.get("length")
        if type(start) is not int or type(length) is not int or start < 0 or length < 0:
            raise ValueError(f"the place of {flat!r} is none")
        if start + length > mark.size:
            raise Unreadable(mark.path, f"it is cut short: {mark.size} bytes, and {flat} ends at {start + length}")
        if len(origin) != len(info.shape) or len(shape) != len(info.shape):
            raise ValueError(f"a box of {flat!r} has another number of axes")
        if any(o + n > whole for o, n, whole in zip(origin, shape, info.shape)):
            raise ValueError(f"a box of {flat!r} reaches out of it")
        boxes.append((mark, start, length, origin, shape))
    if not _cover([box[3:] for box in boxes], info.shape):
        raise ValueError(f"the boxes of {flat!r} do not cover it once")

    return OnDisk(info, partial(_pieces, boxes, info.dtype))


def _pieces(boxes: list[Box], dtype: torch.dtype) -> tuple[Piece, ...]:
    return tuple(
        Archive(mark, start, length).single(origin, shape, dtype)
        for mark, start, length, origin, shape in boxes
        if prod(shape)
    )


def _cover(boxes: list[tuple[tuple[int, ...], tuple[int, ...]]], shape: tuple[int, ...]) -> bool:
    """Whether boxes cover a tensor exactly once: they add up to it, and no two share an element."""
    boxes = [(origin, sizes) for origin, sizes in boxes if prod(sizes)]
    if sum(prod(sizes) for _, sizes in boxes) != prod(shape):
        return False
    if len(boxes) < 2:
        return True
    low = np.array([origin for origin, _ in boxes])
    high = low + np.array([sizes for _, sizes in boxes])
    shared = np.all(np.maximum(low[:, None], low) < np.minimum(high[:, None], high), axis=-1)
    return int(shared.sum()) == len(boxes)  # each with itself
