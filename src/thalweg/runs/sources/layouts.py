"""What lies at a path: the checkpoints of a folder, a pattern, a cache of the hub or a list, by their names."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path

from thalweg.errors import InvalidInput, explain
from thalweg.runs.sources.steps import SUFFIXES, stem
from thalweg.runs.sources.weights import Weights, subfolders, weight_files, weights_in


@dataclass(frozen=True)
class Entry:
    """One checkpoint that was found.

    Attributes:
        name: What its step is read from.
        weights: Where its tensors are.
    """

    name: str
    weights: Weights


@dataclass(frozen=True)
class Found:
    """Checkpoints in no order yet.

    Attributes:
        entries: All of them.
        notes: Sentences on what lies there and is no checkpoint.
    """

    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()


def find(source: str | Path | Sequence[str | Path]) -> Found:
    """Find the checkpoints at a path, a glob, or each of several paths.

    Raises:
        InvalidInput: There is none.
    """
    if not isinstance(source, (str, Path)):
        return _several([Path(path) for path in source], "The list")
    path = Path(source).expanduser()
    if not path.exists() and glob.has_magic(str(path)):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        return _several([match for match in matches if match.is_dir() or match.name.endswith(SUFFIXES)], str(source))
    if not path.exists():
        raise InvalidInput(
            explain(
                f"The path {path} does not exist",
                "checkpoints are read from a run folder, a folder of checkpoints, a glob, a list of paths, or the hub "
                "by the name of a repository",
                "Check the spelling; quote a glob, so that the shell leaves it alone",
            )
        )
    if path.is_file():
        return Found((Entry(path.name, Weights(path.parent, (path,))),))
    if (path / "snapshots").is_dir() and path.name.startswith("models--"):
        return _cache(path)
    return _folder(path)


def _folder(folder: Path) -> Found:
    children = [(child, weights_in(child)) for child in subfolders(folder)]
    inner = [Entry(child.name, found) for child, found in children if found is not None]
    notes = [f"{child.name}/ holds no checkpoint." for child, found in children if found is None]
    own = weights_in(folder, depth=0)
    if own is None:
        loose = [Entry(name, Weights(folder, tuple(files))) for name, files in weight_files(folder).items()]
        inner += loose
    elif not inner or (own.index is None and not own.files):
        return Found((Entry(folder.name, own) if own.index or len(own.files) != 1 else _only(own),))
    else:
        inner += [Entry("the weights in the folder itself", own)]
    if not inner:
        raise _nothing(f"The folder {folder}")
    return Found(tuple(inner), tuple(notes))


def _only(own: Weights) -> Entry:
    """Name a checkpoint of one file after the file if that has a number, else after the folder."""
    name = own.files[0].name
    return Entry(name if any(c.isdigit() for c in stem(name)) else own.place.name, own)


def _several(paths: list[Path], what: str) -> Found:
    """Take each path for a checkpoint; shards of one are joined. Names are what the paths do not have in common."""
    entries: dict[tuple[Path, str], list[Path]] = {}
    folders: dict[Path, Weights] = {}
    notes: list[str] = []
    for path in paths:
        if path.is_dir():
            found = weights_in(path)
            if found is None:
                notes.append(f"{path} holds no checkpoint.")
            else:
                folders[path] = found
        elif path.is_file():
            entries.setdefault((path.parent, stem(path.name) + path.suffix), []).append(path)
        else:
            raise InvalidInput(
                explain(f"The path {path} does not exist", f"{what} names it", "Check the spelling, or leave it out")
            )
    listed = list(folders.items())
    listed += [(parent / name, Weights(parent, tuple(sorted(files)))) for (parent, name), files in entries.items()]
    if not listed:
        raise _nothing(what)
    base = Path(commonpath([path.absolute().parent for path, _ in listed]))
    names = [path.absolute().relative_to(base).as_posix() for path, _ in listed]
    return Found(tuple(Entry(name, weights) for name, (_, weights) in zip(names, listed)), tuple(notes))


def _cache(folder: Path) -> Found:
    """Read a repository in the hub's local cache: each revision that was asked for by name is a checkpoint."""
    refs = folder / "refs"
    entries, notes, seen = [], [], set()
    for ref in sorted(path for path in refs.rglob("*") if path.is_file()) if refs.is_dir() else []:
        name, commit = ref.relative_to(refs).as_posix(), ref.read_text(encoding="utf-8").strip()
        place = folder / "snapshots" / commit
        seen.add(commit)
        found = weights_in(place) if commit.isalnum() and place.is_dir() else None
        if found is None:
            notes.append(f"The revision {name} holds no weights here: it was not downloaded, or in part.")
        else:
            entries.append(Entry(name, found))
    notes += [
        f"The snapshot {path.name} has no name, it was downloaded by its commit."
        for path in subfolders(folder / "snapshots")
        if path.name not in seen
    ]
    if not entries:
        raise _nothing(f"The cache {folder}")
    return Found(tuple(entries), tuple(notes))


def _nothing(what: str) -> InvalidInput:
    return InvalidInput(
        explain(
            f"{what} holds no checkpoint",
            f"a checkpoint is a file that ends in {_list(SUFFIXES)}, a folder with such a file or with shards and "
            "their index, or a folder of torch.distributed.checkpoint",
            "Pass the folder above the checkpoints, or a glob such as 'runs/*/model.safetensors'",
        )
    )


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)
