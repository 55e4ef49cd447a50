"""Finished tensors on disk, so that an interrupted Gram goes on where it was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thalweg.errors import RunFolderError
from thalweg.runs.files import read_tensors, storing, write_tensors
from thalweg.trajectories.products import Bad

SCHEMA = 1
"""Version of these files. Raise it when a number changes its meaning; files of another version are not used."""


@dataclass(frozen=True, eq=False)
class Partial:
    """What one tensor, or a range of it, adds to the Grams.

    Attributes:
        tensor: Its name.
        start: First element of the range.
        stop: One past the last.
        moments: ``(parts, T, columns)``: inner products of theta_1 and the increments; all columns or the last ones.
        unchanged: ``(parts, T-1)``: elements that two neighbours have in common.
        bad: What was left out.
        bytes_read: Bytes that were read for it.
        flops: Floating-point operations of the products.
        reused: Whether it came from a directory of finished tensors.
    """

    tensor: str
    start: int
    stop: int
    moments: np.ndarray = field(repr=False)
    unchanged: np.ndarray = field(repr=False)
    bad: tuple[Bad, ...] = ()
    bytes_read: int = 0
    flops: int = 0
    reused: bool = False


class GramStore:
    """A directory of finished tensors, one safetensors file each, written whole or not at all.

    A file is used only if its version, its checksum and its key fit; others are written anew.

    Args:
        directory: Made if it does not exist.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with storing(directory):
            directory.mkdir(parents=True, exist_ok=True)

    def path(self, tensor: str) -> Path:
        """The file of a tensor; its name is a digest, as a tensor may be called anything."""
        return self.directory / f"gram-{_digest(tensor.encode())}.safetensors"

    def save(self, partial: Partial, key: str) -> None:
        """Write a finished tensor.

        Raises:
            StorageError: It cannot be written; what was there before stays.
        """
        note = {
            "schema": SCHEMA,
            "key": key,
            "tensor": partial.tensor,
            "range": [partial.start, partial.stop],
            "bad": [[one.step, one.elements] for one in partial.bad],
            "flops": partial.flops,
            "checksum": _checksum(partial),
        }
        arrays = {"moments": torch.from_numpy(partial.moments), "unchanged": torch.from_numpy(partial.unchanged)}
        write_tensors(self.path(partial.tensor), arrays, json.dumps(note))

    def load(self, tensor: str, key: str) -> Partial | None:
        """Return a finished tensor, or None if there is none of this key that is whole."""
        path = self.path(tensor)
        if not path.exists():
            return None
        try:
            arrays, text = read_tensors(path)
            note: dict[str, Any] = json.loads(text)
            if note["schema"] != SCHEMA or note["key"] != key or note["tensor"] != tensor:
                return None
            found = Partial(
                tensor,
                int(note["range"][0]),
                int(note["range"][1]),
                arrays["moments"].numpy(),
                arrays["unchanged"].numpy(),
                tuple(Bad(int(step), tensor, int(count)) for step, count in note["bad"]),
                flops=int(note["flops"]),
                reused=True,
            )
        except (RunFolderError, KeyError, TypeError, ValueError):
            return None  # damaged: it is computed again
        return found if _checksum(found) == note["checksum"] else None


def _checksum(partial: Partial) -> str:
    parts = (partial.moments.astype("<f8").tobytes(), partial.unchanged.astype("<f8").tobytes())
    return _digest(b"|".join([str(partial.moments.shape).encode(), *parts]))


def key_of(*facts: object) -> str:
    """Return a digest of everything that a result depends on.

    Example:
        >>> key_of("w", (3, 4), 1) == key_of("w", (3, 4), 1), key_of("w", (3, 4), 1) == key_of("w", (3, 4), 2)
        (True, False)
    """
    return _digest(repr(facts).encode())


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()
