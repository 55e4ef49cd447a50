"""The weights of one checkpoint: a file, shards with an index, or a distributed folder, whatever the format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from thalweg.runs.sources.archives import read_archive
from thalweg.runs.sources.distributed import TABLE, read_distributed
from thalweg.runs.sources.headers import read_header
from thalweg.runs.sources.names import clean
from thalweg.runs.sources.steps import SUFFIXES, stem
from thalweg.runs.sources.stored import FileMark, OnDisk, Unreadable

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
MAIN = ("model", "pytorch_model", "weights", "consolidated", "diffusion_pytorch_model", "adapter_model")
"""Stems of the file with the weights, where a folder holds others too."""
OTHERS = ("optimizer", "optim", "scheduler", "scaler", "rng_state", "random_states", "training_args", "train_state")
"""Stems of files that torch.save wrote and that hold no weights."""


@dataclass(frozen=True)
class Weights:
    """Where the weights of one checkpoint are.

    Attributes:
        place: The file or folder that is the checkpoint.
        files: Its files of weights; of a distributed folder, none.
        index: The JSON file that lists them, or None.
    """

    place: Path
    files: tuple[Path, ...] = ()
    index: Path | None = None

    def read(self) -> tuple[dict[str, OnDisk], tuple[FileMark, ...]]:
        """Find the tensors by name, without reading them, and the files they lie in.

        Raises:
            Unreadable: A file is missing, cut short or damaged, or holds something that is not read.
        """
        if not self.files and self.index is None:
            tensors, paths = read_distributed(self.place)
            return clean(tensors), tuple(FileMark.of(path) for path in paths)
        listed = _listed(self.index) if self.index else {}
        files = tuple(sorted({self.place / name for name in listed.values()})) if self.index else self.files
        _complete(files)
        found: dict[str, OnDisk] = {}
        for path in files:
            for name, tensor in (read_header if path.suffix == ".safetensors" else read_archive)(path).items():
                if name in found:
                    raise Unreadable(path, f"it holds {name!r}, as another shard does")
                found[name] = tensor
        for name, shard in listed.items():
            if name not in found:
                raise Unreadable(self.place / shard, f"it lacks {name!r}, which the index says it holds")
        marks = tuple(FileMark.of(path) for path in ([self.index] if self.index else []) + list(files))
        return clean(found), marks


def _listed(index: Path) -> dict[str, str]:
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        listed = {str(name): str(shard) for name, shard in shards.items()}
    except FileNotFoundError as error:
        raise Unreadable(index, "it does not exist") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unreadable(index, f"it is no index of shards ({type(error).__name__}: {error})") from error
    for shard in listed.values():
        parts = PurePosixPath(shard)
        if parts.is_absolute() or ".." in parts.parts:
            raise Unreadable(index, f"it names the file {shard!r}, which leads out of the folder")
    if not listed:
        raise Unreadable(index, "it lists no tensor")
    return listed


def _complete(files: tuple[Path, ...]) -> None:
    """Raise where files are numbered "2 of 3" and one is missing."""
    for path in files:
        tail = path.name.removesuffix(path.suffix).removeprefix(stem(path.name)).strip("-_.")
        if tail:
            count = int(tail.rsplit("-of-", 1)[1])
            if count != len([other for other in files if stem(other.name) == stem(path.name)]):
                raise Unreadable(path, f"of its {count} shards {len(files)} are there")


def weight_files(folder: Path) -> dict[str, list[Path]]:
    """Group the files of weights in a folder by stem and suffix; the shards of one checkpoint form one group."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        kind = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
        if kind is None or path.name.startswith(".") or path.is_dir() or stem(path.name).startswith(OTHERS):
            continue
        groups.setdefault(stem(path.name) + kind, []).append(path)
    return groups


def weights_in(folder: Path, depth: int = 1) -> Weights | None:
    """Return the weights that a folder holds as one checkpoint, or None where it is none.

    An index counts first, then ``model`` and its like, then an only file; safetensors before files of torch.save;
    then a distributed checkpoint; then an only subfolder that is one.
    """
    for name in INDEXES:
        if (folder / name).is_file():
            return Weights(folder, index=folder / name)
    groups = weight_files(folder)
    for suffix in SUFFIXES:
        here = {name.removesuffix(suffix): files for name, files in groups.items() if name.endswith(suffix)}
        for name in MAIN:
            if name in here:
                return Weights(folder, tuple(here[name]))
    if (folder / TABLE).is_file():
        return Weights(folder)
    if len(groups) == 1:
        return Weights(folder, tuple(next(iter(groups.values()))))
    if groups or not depth:
        return None
    inner = [found for child in subfolders(folder) if (found := weights_in(child, depth - 1)) is not None]
    return inner[0] if len(inner) == 1 else None


def subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder that are not hidden."""
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def read_json(path: Path) -> Mapping[str, Any]:
    """Read a JSON object that is a help where it is there, and none where it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
