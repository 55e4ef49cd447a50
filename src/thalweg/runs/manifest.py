"""What a run is: configuration, seeds, versions, fingerprints, machine, state."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import torch

from thalweg.errors import RunFolderError, SchemaError, explain
from thalweg.runs.files import write_text

SCHEMA = 1
"""Version of the run folder as a whole. Raise it, and add a reader below, when a file changes its meaning."""

State = Literal["running", "finished", "failed", "interrupted"]
STATES = ("running", "finished", "failed", "interrupted")


@dataclass(frozen=True)
class Manifest:
    """The contents of ``manifest.json``.

    Attributes:
        name: Name of the run, that of its folder unless told otherwise.
        rule: The update rule in one line.
        steps: Updates that the run is meant to do.
        steps_done: Updates done when this file was last written; the metrics may be ahead.
        state: ``running``, ``finished``, ``failed`` or ``interrupted``.
        config: The configuration that the caller handed over.
        loop: What the training loop itself was told: rule, batch size, measures, intervals.
        seeds: Root seeds by name.
        fingerprints: Digests of the model and of the data.
        problem: Size, dtype, device and other plain facts about the problem.
        packages: Versions of what computes.
        machine: Platform, processor, threads.
        created: Moment of creation, UTC, ISO 8601.
        resumed: One entry per continuation: its first step and moment.
        error: What stopped a failed run.
        schema: Version of the folder's layout.
    """

    name: str
    rule: str
    steps: int
    steps_done: int = 0
    state: State = "running"
    config: dict[str, Any] = field(default_factory=dict)
    loop: dict[str, Any] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    problem: dict[str, Any] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=lambda: package_versions())
    machine: dict[str, Any] = field(default_factory=lambda: machine())
    created: str = field(default_factory=lambda: now())
    resumed: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    schema: int = SCHEMA

    def write(self, path: Path) -> None:
        """Replace the file at ``path`` atomically."""
        write_text(path, json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n")


def read_manifest(path: Path) -> Manifest:
    """Read ``manifest.json`` at ``path``, of this schema or an earlier one.

    Raises:
        RunFolderError: The file is missing or damaged.
        SchemaError: A newer thalweg wrote it.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise not_a_run(path.parent) from error
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise _damaged(path, "it has no schema version")
    if schema > SCHEMA:
        raise SchemaError(
            explain(
                f"The file {path} has schema {schema}",
                f"this thalweg ({version('thalweg')}) reads schemas up to {SCHEMA}",
                "Upgrade thalweg: pip install --upgrade thalweg",
            )
        )
    if schema not in _READERS:
        raise _damaged(path, f"there never was a schema {schema}")
    try:
        return _READERS[schema](raw)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _read_1(raw: dict[str, Any]) -> Manifest:
    known = {f.name: f for f in dataclasses.fields(Manifest)}
    chosen = {name: value for name, value in raw.items() if name in known}
    manifest = Manifest(**chosen)
    for name, f in known.items():
        kind = {"str": str, "int": int, "State": str}.get(str(f.type), list if name == "resumed" else dict)
        if not isinstance(getattr(manifest, name), kind):
            raise ValueError(f"{name} is a {type(getattr(manifest, name)).__name__}, not a {kind.__name__}")
    if manifest.state not in STATES:
        raise ValueError(f"the state is {manifest.state!r}")
    return manifest


_READERS = {1: _read_1}


def not_a_run(folder: Path) -> RunFolderError:
    """Return the error for a path that is no run folder."""
    found = f"The path {folder} " + ("is not a run folder" if folder.exists() else "does not exist")
    return RunFolderError(
        explain(
            found,
            "a run folder holds a manifest.json and a metrics.sqlite",
            "Pass the folder that train(..., folder=...) or `thalweg run --out` wrote",
        )
    )


def _damaged(path: Path, reason: str) -> RunFolderError:
    return RunFolderError(
        explain(
            f"The file {path} is damaged: {reason}",
            "it must be the JSON object that thalweg wrote",
            "Restore it from a copy; metrics.sqlite and checkpoints/ beside it are intact on their own",
        )
    )


def plain(thing: Any) -> Any:
    """Describe ``thing`` in JSON's own types, so that equal settings give equal descriptions.

    Dataclasses become a mapping with their class under ``type``; what JSON cannot say becomes its ``repr``.

    Example:
        >>> plain({"lr": 0.5, "shape": (2, 3), "dtype": torch.float64})
        {'lr': 0.5, 'shape': [2, 3], 'dtype': 'torch.float64'}
    """
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = [f for f in dataclasses.fields(thing) if f.init and f.compare]
        return {"type": type(thing).__name__} | {f.name: plain(getattr(thing, f.name)) for f in fields}
    if isinstance(thing, Enum):
        return plain(thing.value)
    if isinstance(thing, Mapping):
        return {str(key): plain(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [plain(value) for value in thing]
    if isinstance(thing, (set, frozenset)):
        return sorted((plain(value) for value in thing), key=repr)
    if isinstance(thing, float):
        return thing if isfinite(thing) else repr(thing)
    if thing is None or isinstance(thing, (bool, int, str)):
        return thing
    if isinstance(thing, Path):
        return str(thing)
    if callable(thing):
        return getattr(thing, "__qualname__", type(thing).__qualname__)
    return repr(thing)


def first_difference(old: Any, new: Any, where: str = "") -> str | None:
    """Name the first place where two plain descriptions differ, or return None.

    Example:
        >>> first_difference({"rule": {"lr": 0.1}}, {"rule": {"lr": 0.2}})
        'rule.lr is 0.1 in the folder and 0.2 now'
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            found = first_difference(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
            if found:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (a, b) in enumerate(zip(old, new)):
            found = first_difference(a, b, f"{where}[{number}]")
            if found:
                return found
        return None
    return None if old == new else f"{where} is {old!r} in the folder and {new!r} now"


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages whose numbers end up in a run."""
    found = {"python": platform.python_version()}
    for name in ("thalweg", "torch", "numpy", "scipy", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def machine() -> dict[str, Any]:
    """Platform, processor and threads: what the last bit of a sum can depend on. No host, no user."""
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }


def now() -> str:
    """The moment, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
