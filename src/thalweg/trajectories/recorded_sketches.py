"""The projections that a recorder kept, as sketchers: estimates of the path between and beyond the checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from thalweg.errors import InvalidInput, RunFolderError, explain
from thalweg.runs.checkpoints import Checkpoints
from thalweg.runs.run import open_run
from thalweg.runs.sources import TensorInfo
from thalweg.trajectories.sketch import Sketcher
from thalweg.trajectories.tiles import layout


def recorded_sketches(path: str | Path) -> Sketcher:
    """Read all projections of a recorded run, due steps and bursts alike, as one sequence of points.

    Args:
        path: The run folder that a `Recorder` with ``bursts`` or with ``keep`` other than ``"all"`` wrote.

    Returns:
        A sketcher, whose ``grams`` estimates the inner products of all increments.

    Raises:
        InvalidInput: The run has no projections.
        RunFolderError: It is no run folder, or damaged.

    Example:
        >>> from thalweg.runs.recorder import Recorder
        >>> model = torch.nn.Linear(30, 10)
        >>> with Recorder("runs/mine", model, every=5, keep="sketches", sketch=128) as recorder:
        ...     for _ in range(10):
        ...         with torch.no_grad():
        ...             _ = model.weight.add_(0.01)
        ...         recorder.step()
        >>> found = recorded_sketches("runs/mine").grams()
        >>> found.steps.tolist(), len(found.names)
        ([0, 5, 10], 2)
    """
    return _read(path, None)


def recorded_bursts(path: str | Path) -> list[Sketcher]:
    """Read the bursts of a recorded run: each run of steps in a row, with the point that it starts from.

    Args:
        path: As for `recorded_sketches`.

    Returns:
        One sketcher a burst, in the order of steps; those with a single increment are left out.

    Raises:
        InvalidInput: The run has no projections.
        RunFolderError: It is no run folder, or damaged.
    """
    steps = np.array(Checkpoints(open_run(path).folder.sketches).steps())
    rows = np.split(steps, np.flatnonzero(np.diff(steps) > 1) + 1)
    return [_read(path, row.tolist()) for row in rows if len(row) > 2]


def _read(path: str | Path, steps: Sequence[int] | None) -> Sketcher:
    run = open_run(path)
    kept = Checkpoints(run.folder.sketches)
    chosen = kept.steps() if steps is None else list(steps)
    if not chosen:
        raise InvalidInput(
            explain(
                f"The run in {path} has no projections",
                "it was recorded without bursts and with all its checkpoints",
                "Open it with trajectory(...), or record it with bursts=(64, 1000)",
            )
        )
    try:
        loop = run.manifest.loop
        made = Sketcher(int(loop["projection"]["size"]), int(loop["projection"]["seed"]))
        made.layouts = [
            layout(TensorInfo(name, tuple(shape), getattr(torch, dtype))) for name, shape, dtype in loop["tensors"]
        ]
        ends = np.cumsum([min(size, made.k) for one in made.layouts for size in one.sizes()])
        for number, step in enumerate(chosen):
            found = kept.read(step)
            vector = found["projection"].numpy()
            if len(vector) != ends[-1]:
                raise ValueError(f"step {step} has {len(vector)} numbers instead of {ends[-1]}")
            if number == 0:
                made.m = found["squares"].numpy()
            made.steps.append(step)
            made.points.append(np.split(vector, ends[:-1]))
            made.bytes_read += vector.nbytes + found["squares"].numpy().nbytes
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunFolderError(
            explain(
                f"The projections in {path} cannot be read: {type(error).__name__}: {error}",
                "manifest.json says how they were made, and must be the one that was written with them",
                "Restore the folder from a copy; its checkpoints can be read without them",
            )
        ) from error
    return made
