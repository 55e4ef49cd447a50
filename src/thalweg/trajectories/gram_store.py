"""Finished tensors on disk, so that an interrupted Gram goes on where it was."""

from __future__ import annotations

import hashlib
import json
import time
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


PAUSE = 1.0
"""Seconds of work after which what is finished is written: so much may be lost with the process."""
TOGETHER = 4 * 2**20
"""Bytes of results after which they are written, too."""


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
    """A directory of finished tensors in safetensors files, written whole or not at all.

    A tensor is used only if version, checksum and key fit; others are computed anew. What `add` is given is written
    once a second, all of it in one file, as writing a file to the disk takes longer than the work on a small tensor.

    Args:
        directory: Made if it does not exist.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._waiting: list[tuple[Partial, str]] = []
        self._since = time.monotonic()
        self._used: set[Path] = set()
        self._index: dict[tuple[str, str], tuple[Path, int]] | None = None
        self._read: tuple[Path | None, dict[str, torch.Tensor], Any] = (None, {}, None)
        with storing(directory):
            directory.mkdir(parents=True, exist_ok=True)

    def path(self, tensor: str) -> Path:
        """The file of a tensor on its own; its name is a digest, as a tensor may be called anything."""
        return self.directory / f"gram-{_digest(tensor.encode())}.safetensors"

    def save(self, partial: Partial, key: str) -> None:
        """Write a finished tensor.

        Raises:
            StorageError: It cannot be written; what was there before stays.
        """
        write_tensors(self.path(partial.tensor), _arrays(partial), json.dumps(_note(partial, key)))

    def add(self, partial: Partial, key: str) -> None:
        """Write a finished tensor within `PAUSE` of work, or with `flush`.

        Raises:
            StorageError: Finished tensors cannot be written.
        """
        self._waiting.append((partial, key))
        held = sum(one.moments.nbytes + one.unchanged.nbytes for one, _ in self._waiting)
        if held > TOGETHER or time.monotonic() - self._since > PAUSE:
            self.flush()

    def flush(self) -> None:
        """Write what waits.

        Raises:
            StorageError: It cannot be written.
        """
        waiting, self._waiting = self._waiting, []
        self._since = time.monotonic()
        if len(waiting) == 1:
            self.save(*waiting[0])
        elif waiting:
            arrays = {f"{i}.{name}": one for i, (done, _) in enumerate(waiting) for name, one in _arrays(done).items()}
            write_tensors(self._free(), arrays, json.dumps([_note(done, key) for done, key in waiting]), owned=True)

    def load(self, tensor: str, key: str) -> Partial | None:
        """Return a finished tensor, or None if there is none of this key that is whole."""
        alone = self.path(tensor)
        if alone.exists():
            found = _partial(*_opened(alone), "", tensor, key)
            if found is not None:
                return found
        if self._index is None:
            self._index = self._listed()
        if (tensor, key) not in self._index:
            return None
        path, place = self._index[tensor, key]
        if self._read[0] != path:
            self._read = (path, *_opened(path))
        _, arrays, notes = self._read
        found = _partial(arrays, notes[place] if notes else None, f"{place}.", tensor, key)
        if found is not None:
            self._used.add(path)
        return found

    def _listed(self) -> dict[tuple[str, str], tuple[Path, int]]:
        """Return where each tensor is that was written with others."""
        found: dict[tuple[str, str], tuple[Path, int]] = {}
        for path in sorted(self.directory.glob("grams-*.safetensors")):
            try:
                for i, one in enumerate(_opened(path, "none")[1] or ()):
                    found[str(one["tensor"]), str(one["key"])] = path, i
            except (KeyError, TypeError):
                continue  # not as we write it: its place is used again
        return found

    def _free(self) -> Path:
        """Return a file that holds nothing that was used, so that files of old results do not pile up."""
        number = 0
        while (path := self.directory / f"grams-{number}.safetensors") in self._used:
            number += 1
        self._used.add(path)
        return path


def _arrays(partial: Partial) -> dict[str, torch.Tensor]:
    arrays = {"moments": partial.moments, "unchanged": partial.unchanged}
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def _note(partial: Partial, key: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "key": key,
        "tensor": partial.tensor,
        "range": [partial.start, partial.stop],
        "bad": [[one.step, one.elements] for one in partial.bad],
        "flops": partial.flops,
        "checksum": _checksum(partial),
    }


def _opened(path: Path, prefix: str = "") -> tuple[dict[str, torch.Tensor], Any]:
    """Return what a file holds, and what it says of it; nothing if it is damaged."""
    try:
        arrays, text = read_tensors(path, prefix)
        return arrays, json.loads(text)
    except (RunFolderError, ValueError):
        return {}, None


def _partial(arrays: dict[str, torch.Tensor], note: Any, prefix: str, tensor: str, key: str) -> Partial | None:
    """Return a tensor of a file, or None if it is not whole, or of another key: it is computed again."""
    try:
        if note["schema"] != SCHEMA or note["key"] != key or note["tensor"] != tensor:
            return None
        partial = Partial(
            tensor,
            int(note["range"][0]),
            int(note["range"][1]),
            arrays[f"{prefix}moments"].numpy(),
            arrays[f"{prefix}unchanged"].numpy(),
            tuple(Bad(int(step), tensor, int(count)) for step, count in note["bad"]),
            flops=int(note["flops"]),
            reused=True,
        )
        return partial if _checksum(partial) == note["checksum"] else None
    except (KeyError, TypeError, ValueError, IndexError):
        return None


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
