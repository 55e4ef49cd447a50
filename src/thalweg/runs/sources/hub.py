"""Repositories of the Hugging Face hub with one revision a step, as Pythia and OLMo publish them."""

from __future__ import annotations

import importlib
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from thalweg.errors import InvalidInput, MissingExtra, StorageError, explain
from thalweg.runs.sources.layouts import Entry, Found
from thalweg.runs.sources.steps import StepRule, number
from thalweg.runs.sources.weights import weights_in

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
PREFIX = "hf://"
SAFE = ("*.safetensors", "*.safetensors.index.json", "config.json")
TORCH = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "config.json")


def repository(source: object) -> str | None:
    """Return the repository that a source names: ``hf://OWNER/NAME``, or ``OWNER/NAME`` where no folder OWNER is.

    Example:
        >>> repository("hf://EleutherAI/pythia-70m"), repository("EleutherAI/pythia-70m"), repository("a/b/c")
        ('EleutherAI/pythia-70m', 'EleutherAI/pythia-70m', None)
    """
    if not isinstance(source, str):
        return None
    name = source.removeprefix(PREFIX)
    if not _NAME.fullmatch(name) or ".." in name:
        return None
    return name if source.startswith(PREFIX) or not Path(name.split("/", 1)[0]).exists() else None


def fetch(
    name: str,
    rule: StepRule | None = None,
    wanted: Callable[[int], bool] = lambda step: True,
    told: Callable[[str, int, int], None] = lambda revision, place, count: None,
) -> Found:
    """Download the revisions of a repository that have a step, one after the other.

    What the cache has is not downloaded again, so that an interrupted download goes on where it was. Of weights in
    two formats only safetensors are fetched.

    Args:
        name: ``OWNER/NAME``.
        rule: How to read a step from a revision's name.
        wanted: Which steps to take.
        told: Called before each download with the revision, its place from 0, and how many there are.

    Raises:
        MissingExtra: huggingface_hub is not installed.
        InvalidInput: The hub cannot be reached, has no such repository, or no revision of it has a step.
        StorageError: The revisions do not fit on the disk.
    """
    hub = _hub()
    try:
        refs = hub.HfApi().list_repo_refs(name)
        revisions = sorted({str(ref.name) for ref in [*refs.branches, *refs.tags]})
        steps = number(revisions, rule).steps
        chosen = sorted((s, r) for s, r in zip(steps, revisions) if s is not None and wanted(s))
        if not chosen:
            raise InvalidInput(
                explain(
                    f"No revision of {name} is a checkpoint: it has {_some(revisions)}",
                    "a revision needs a step in its name, and to be among those that were asked for",
                    "Pass a rule with steps=, or another repository",
                )
            )
        _check_disk(hub, name, [revision for _, revision in chosen])
        entries, notes = [], []
        for place, (_, revision) in enumerate(chosen):
            told(revision, place, len(chosen))
            siblings = [str(s.rfilename) for s in hub.HfApi().model_info(name, revision=revision).siblings]
            patterns = SAFE if any(s.endswith(".safetensors") for s in siblings) else TORCH
            folder = Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
            found = weights_in(folder)
            if found is None:
                notes.append(f"The revision {revision} of {name} holds no weights.")
            else:
                entries.append(Entry(revision, found))
    except (InvalidInput, StorageError):
        raise
    except Exception as error:  # the client's errors are of several libraries
        raise InvalidInput(
            explain(
                f"{name} is no path here, and the hub did not give it: {type(error).__name__}: {_line(error)}",
                "by a name OWNER/NAME it is looked for on the hub",
                "Check the spelling and the network; what was downloaded is kept and not fetched again",
            )
        ) from error
    return Found(tuple(entries), tuple(notes))


def _check_disk(hub: Any, name: str, revisions: list[str]) -> None:
    """Refuse what cannot fit, going by the size of the first revision; what is in the cache already counts as free."""
    files = hub.HfApi().model_info(name, revision=revisions[0], files_metadata=True).siblings
    safe = [int(f.size or 0) for f in files if str(f.rfilename).endswith(".safetensors")]
    each = sum(safe) or sum(int(f.size or 0) for f in files if str(f.rfilename).endswith(".bin"))
    cache = Path(hub.constants.HF_HUB_CACHE)
    owned = cache / f"models--{name.replace('/', '--')}" / "blobs"
    there = sum(path.stat().st_size for path in owned.iterdir() if path.is_file()) if owned.is_dir() else 0
    existing = next(path for path in [cache, *cache.parents] if path.exists())
    free = shutil.disk_usage(existing).free
    missing = each * len(revisions) - there
    if missing > free:
        raise StorageError(
            explain(
                f"{len(revisions)} revisions of {name} take {each * len(revisions) / 1e9:.1f} GB, of which {cache} "
                f"lacks {missing / 1e9:.1f} GB and has room for {free / 1e9:.1f} GB",
                "all checkpoints are read side by side, so all must be on the disk",
                "Take fewer with only=, or set HF_HOME to a larger disk",
            )
        )


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise MissingExtra(
            explain(
                "huggingface_hub is not installed",
                "it downloads checkpoints from the hub",
                "Install it: pip install 'thalweg[hf]'",
            )
        ) from error


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no reason given")
