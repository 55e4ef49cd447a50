"""The header of a safetensors file: names, shapes, dtypes and byte ranges, checked against the file's length."""

from __future__ import annotations

import json
from functools import partial
from math import prod
from pathlib import Path

import torch

from thalweg.runs.sources.stored import FileMark, OnDisk, Piece, TensorInfo, Unreadable, contiguous

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
"""The format's names of dtypes, and torch's."""

LONGEST = 100 << 20
"""Bytes of a header beyond which the format calls a file damaged."""


def read_header(path: Path) -> dict[str, OnDisk]:
    """Read names, shapes, dtypes and places of all tensors in a safetensors file; no weights are read.

    Args:
        path: The file.

    Returns:
        The tensors by name. Those of a dtype that torch does not have (of less than a byte) are bytes.

    Raises:
        Unreadable: The file is missing, truncated, damaged, or of another format.
    """
    mark = FileMark.of(path)
    head = torch.empty(min(8, mark.size), dtype=torch.uint8)
    mark.fill(head, 0)
    length = int.from_bytes(bytes(head.tolist()), "little")
    if mark.size < 8 or length > LONGEST:
        raise Unreadable(path, "it does not begin as a safetensors file does")
    if 8 + length > mark.size:
        raise Unreadable(path, f"it is cut short: {mark.size} bytes of a header of {8 + length}")
    raw = torch.empty(length, dtype=torch.uint8)
    mark.fill(raw, 8)
    try:
        entries = json.loads(raw.numpy().tobytes())
        entries.pop("__metadata__", None)
        return {str(name): _tensor(mark, 8 + length, name, entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unreadable(path, f"its header is damaged ({error})") from error


def _tensor(mark: FileMark, start: int, name: str, entry: dict[str, object]) -> OnDisk:
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError(f"{name} has no shape or no place")
    if not all(type(n) is int and n >= 0 for n in [*shape, *offsets]):
        raise ValueError(f"{name} has sizes that are none")
    if start + offsets[1] > mark.size:
        raise Unreadable(mark.path, f"it is cut short: {mark.size} bytes, and {name} ends at {start + offsets[1]}")
    dtype = getattr(torch, DTYPES.get(str(entry["dtype"]), ""), None)
    if dtype is None:
        dtype, shape = torch.uint8, [offsets[1] - offsets[0]]
    info = TensorInfo(name, tuple(shape), dtype)
    if offsets[1] - offsets[0] != prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has {offsets[1] - offsets[0]} bytes for the shape {info.shape}")
    piece = Piece(mark, start + offsets[0], (0,) * len(shape), info.shape, contiguous(info.shape))
    return OnDisk(info, partial(tuple, (piece,)))
