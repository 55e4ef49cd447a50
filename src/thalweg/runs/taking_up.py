"""Taking up a recorded run again: at which step, and whether the model is where the record says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from thalweg.errors import RunFolderError, explain
from thalweg.runs.checkpoints import Checkpoints
from thalweg.runs.folder import RunFolder
from thalweg.runs.manifest import Manifest, first_difference, now, read_manifest


def continued(
    folder: RunFolder,
    wanted: Manifest,
    tensors: Mapping[str, Tensor],
    start: int | None,
    dtype: torch.dtype | None,
) -> tuple[Manifest, bool]:
    """Return the folder's manifest set to go on, its last ``resumed`` entry the step, and whether that has weights.

    Args:
        folder: The run.
        wanted: The manifest of a new run with the settings of now.
        tensors: The weights of now.
        start: Step to go on from; None: the last checkpoint's.
        dtype: What weights are stored in.

    Raises:
        RunFolderError: It was not recorded by a recorder, or from other tensors or with another projection; or the
            weights at ``start`` are not those of now.
    """
    folder.check_links()
    old = read_manifest(folder.manifest)
    if "recorder" not in old.loop:
        raise _refuse(folder, "it was not written by a recorder", "Continue it with what wrote it")
    for name in ("tensors", "projection"):
        difference = first_difference(old.loop.get(name), wanted.loop[name], name)
        if difference:
            raise _refuse(folder, difference, "Record the same model with the same settings, or take another folder")
    kept = Checkpoints(folder.checkpoints)
    steps = kept.steps()
    step = start if start is not None else steps[-1] if steps else 0
    there = step in steps
    if there:
        recorded = kept.read(step)
        for name, tensor in tensors.items():
            stored = tensor.to(dtype or tensor.dtype)
            if name not in recorded or recorded[name].dtype != stored.dtype or not _same(recorded[name], stored):
                raise _refuse(
                    folder,
                    f"{name!r} of the model is not what was recorded at step {step}",
                    "Load the weights of that step first, or say with start= how many updates the model has had",
                )
    entry: dict[str, Any] = {"step": step, "moment": now()}
    return (
        dataclasses.replace(
            old,
            steps=max(wanted.steps, old.steps_done),
            steps_done=step,
            config=wanted.config,
            loop=wanted.loop,
            packages=wanted.packages,
            machine=wanted.machine,
            error="",
            resumed=[*old.resumed, entry],
        ),
        there,
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _refuse(folder: RunFolder, why: str, remedy: str) -> RunFolderError:
    return RunFolderError(
        explain(f"The run in {folder.root} cannot be continued: {why}", "its steps would not fit", remedy)
    )
