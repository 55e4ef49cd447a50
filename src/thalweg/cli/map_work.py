"""What ``thalweg map`` does between its options and its words: open, group, compute, store."""

from __future__ import annotations

import hashlib
import importlib
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.cli.map_options import Told
from thalweg.errors import InvalidInput, MissingExtra, explain
from thalweg.runs import Run, open_run
from thalweg.runs.files import inside
from thalweg.runs.meter import Meter
from thalweg.runs.sources import Trajectory, trajectory
from thalweg.runs.sources.recorded import is_run

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from thalweg.trajectories.gram_result import Grams
    from thalweg.trajectories.map import TrajectoryMap
    from thalweg.trajectories.nulls import Decay

LEAST = 3
"""Checkpoints that a map needs: with two there is no turn, and no null."""


@dataclass(frozen=True)
class Target:
    """Where results go.

    Attributes:
        data: The map, netCDF.
        grams: Inner products of all tensors, netCDF.
        page: The page.
        tensors: Folder of finished tensors.
    """

    data: Path
    grams: Path
    page: Path
    tensors: Path


@dataclass(frozen=True)
class Opened:
    """A source, opened.

    Attributes:
        path: Its checkpoints.
        run: The run, if it is one.
        name: What to call it.
    """

    path: Trajectory
    run: Run | None
    name: str

    @property
    def fingerprint(self) -> str:
        """Digest of all checkpoints and tensors, which changes when one of them does."""
        facts = [self.path.fingerprint(index) for index in range(len(self.path))]
        facts += [one.name for one in self.path.tensors]
        return hashlib.blake2b("\n".join(facts).encode(), digest_size=16).hexdigest()


def open_source(told: Told) -> Opened:
    """Open the checkpoints that are asked for.

    Raises:
        InvalidInput: There are none, fewer than three, or they do not fit together.
        RunFolderError: One is damaged.
    """
    source: Any = told.source[0] if len(told.source) == 1 else list(told.source)
    run = open_run(source) if isinstance(source, str) and is_run(Path(source)) else None
    path = trajectory(
        source,
        steps=told.step_rule,
        only=told.wants,
        select=told.select or None,
        missing=told.missing,
        drop_pages=run is None,  # a long sequence must not push everything else out of the system's memory
    )
    if told.every != 1:
        path = path.window(range(0, len(path), told.every))
    if told.heads is not None:
        path.config["num_attention_heads"] = told.heads
    if len(path) < LEAST:
        raise InvalidInput(
            explain(
                f"{told.source[0]} has {len(path)} checkpoint{'s' if len(path) > 1 else ''} of those asked for",
                f"a map needs {LEAST}: with fewer there is no turn, and nothing to compare with",
                "Train with --checkpoint-every, or take more steps" if run else "Take more steps, or another source",
            )
        )
    name = run.manifest.name if run is not None else _name(told.source[0])
    return Opened(path, run, name)


def target(told: Told, opened: Opened) -> Target:
    """Say where results go.

    Raises:
        RunFolderError: The run's folder of analyses is a link to elsewhere.
    """
    if opened.run is not None and told.out is None:
        folder = inside(opened.run.path, opened.run.path / "analyses")
        kind = ("-part" if told.partial else "") + ("-sketch" if told.sketch is not None else "")
        step = opened.path.steps[-1]
        data = folder / f"trajectory{kind}-{step}.nc"
        return Target(data, folder / f"gram{kind}-{step}.nc", data.with_suffix(".html"), folder / f"tensors{kind}")
    folder = told.out if told.out is not None else Path(f"{opened.name}-map")
    return Target(folder / "trajectory.nc", folder / "gram.nc", folder / "map.html", folder / "tensors")


def anchor_of(told: Told, path: Trajectory) -> int:
    """Return the place of the anchor.

    Raises:
        InvalidInput: No checkpoint has this step.
    """
    if told.anchor is None:
        return 0
    if told.anchor not in path.steps:
        near = sorted(path.steps, key=lambda step: abs(step - (told.anchor or 0)))[:3]
        raise InvalidInput(
            explain(
                f"--anchor is {told.anchor}",
                "no checkpoint has this step",
                f"The nearest are {', '.join(map(str, sorted(near)))}",
            )
        )
    return path.steps.index(told.anchor)


def decay_for(told: Told, opened: Opened) -> Decay | None:
    """Return the weight decay for the decay null: as told, else as the run has it."""
    from thalweg.trajectories.nulls import Decay
    from thalweg.trajectories.recorded import decay_of

    if told.weight_decay is not None:
        decay = Decay(told.weight_decay, told.momentum, not told.decoupled, told.learning_rate)
        decay.exposure(opened.path.steps, opened.path.schedule.get("learning_rate"))  # an error now, not at the end
        return decay
    if opened.run is None:
        return None
    return decay_of(opened.run, opened.path.steps[0], opened.path.steps[-1])


def compute(told: Told, opened: Opened, where: Target, meter: Meter | None = None, *, keep: bool = True) -> Grams:
    """Compute the inner products, on this machine or by the engine that is asked for.

    Args:
        told: How.
        opened: Of what.
        where: Where finished tensors are.
        meter: Shows progress.
        keep: Whether finished tensors are kept.

    Raises:
        ThalwegError: Of `thalweg.trajectories.gram.grams`; finished tensors are kept.
    """
    from thalweg.trajectories.distributed import grams_on
    from thalweg.trajectories.gram import grams
    from thalweg.trajectories.grouping import fused_parts

    path = opened.path
    common: dict[str, Any] = {"parts": fused_parts(path), "exact": told.exact, "meter": meter}
    if told.sketch is not None:
        return grams(path, sketch=told.sketch, **common)
    common["budget"] = told.share
    if told.resident is not None:
        return grams(path, resident=told.resident, **common)
    common |= {"device": told.device, "directory": where.tensors if keep else None}
    common["on_bad"] = "skip" if told.not_finite == "skip" else "raise"
    if not told.spread:
        return grams(path, **common)
    with _executor(told) as executor:
        return grams_on(executor, path, **common)


def mapped(told: Told, opened: Opened, found: Grams) -> TrajectoryMap:
    """Return the map of inner products, its groups, and what was skipped."""
    from dataclasses import replace

    from thalweg.trajectories.map import trajectory_map
    from thalweg.trajectories.recorded import bursts_of

    made = trajectory_map(
        found,
        groups=None if told.groups == "none" else told.groups,
        anchor=anchor_of(told, opened.path),
        weights=told.weights,
        decay=decay_for(told, opened),
    )
    called = {name: f"layer {name}" if told.groups == "layer" and name.isdecimal() else name for name in made.groups}
    named: dict[str, Any] = {
        "paths": {called[name]: one for name, one in made.paths.items()},
        "unchanged": {called[name]: one for name, one in made.unchanged.items()},
    }
    bursts = () if opened.run is None else bursts_of(opened.run)
    return replace(made, notes=(*opened.path.gaps, *made.notes), bursts=bursts, **named)


def facts(told: Told, opened: Opened, found: Grams) -> dict[str, object]:
    """Return what the file of a map says beside its numbers."""
    path = opened.path
    return {
        "name": opened.name,
        "source": ", ".join(told.source),
        "run": opened.run.manifest.name if opened.run is not None else None,
        "steps_read_from": path.rule,
        "selected": " ".join(told.select) or None,
        "parameters": path.numel,
        "tensors": len(path.tensors),
        "dtypes": " ".join(dict.fromkeys(str(one.dtype).removeprefix("torch.") for one in path.tensors)),
        "groups": told.groups,
        "bytes_read": found.bytes_read,
        "seconds": found.seconds,
        "flops": float(found.flops),
        "tensors_reused": found.reused,
        "stop": found.stop,
        "device": told.device,
        "engine": told.engine,
        "fingerprint": opened.fingerprint,
    }


def _executor(told: Told) -> AbstractContextManager[Executor]:
    """Return what executes the tasks."""
    if told.engine == "local":
        from thalweg.engines import LocalEngine

        return LocalEngine(told.workers)
    try:
        engine: Any = importlib.import_module("thalweg.engines.ray").RayEngine
    except ImportError as error:
        raise MissingExtra(
            explain(f"--engine ray cannot be used: {error}", "Ray is an optional part", "pip install 'thalweg[ray]'")
        ) from error
    made: AbstractContextManager[Executor] = engine(address=told.address, workers=told.workers)
    return made


def _name(source: str) -> str:
    """What a source may be called as a file: ``pythia-70m``."""
    last = re.sub(r"[^\w.-]+", "-", Path(source.rstrip("/")).name).strip("-.")
    return last if re.search(r"\w", last) else (re.sub(r"[^\w.-]+", "-", Path(source).resolve().name) or "trajectory")
