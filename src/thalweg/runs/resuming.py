"""Whether a run may be continued, and taking it up exactly where its saved position stands."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

from thalweg.errors import InvalidInput, NumericalWarning, RunFolderError, explain
from thalweg.problem import Problem
from thalweg.runs.checkpoints import CheckpointWriter
from thalweg.runs.folder import RunFolder
from thalweg.runs.manifest import Manifest, first_difference, now, plain, read_manifest
from thalweg.runs.metrics import MetricsWriter
from thalweg.runs.state import Position, load_position
from thalweg.runs.stepper import Stepper


def describe(measure: Any) -> dict[str, Any]:
    """Describe a measure in plain types: its fields if it is a dataclass, else what the protocol asks."""
    if dataclasses.is_dataclass(measure):
        return dict(plain(measure))
    return {"type": type(measure).__name__, "name": measure.name, "every": measure.every}


def facts(problem: Problem) -> dict[str, Any]:
    """State what kind of problem it is, so that two can be compared and one be put into words."""
    return {
        "model": type(problem.model).__name__,
        "parameters": problem.dimension,
        "samples": problem.samples,
        "dtype": str(problem.dtype),
        "device": str(problem.device),
        "summary": repr(problem),
    }


def continued(folder: RunFolder, wanted: Manifest) -> Manifest:
    """Return the folder's manifest, set to go on as ``wanted`` says.

    Raises:
        RunFolderError: It was made with other settings, or on another model or data; the message names the
            first difference.
        InvalidInput: It has already gone further than ``wanted.steps``.
    """
    folder.check_links()
    old = read_manifest(folder.manifest)
    _compare(folder, old, wanted)
    if wanted.steps < old.steps_done:
        raise InvalidInput(
            explain(
                f"The run in {folder.root} has done {old.steps_done} steps and is to end at {wanted.steps}",
                "a run is continued, never shortened",
                f"Pass at least {old.steps_done} steps, or take another folder (--out)",
            )
        )
    if old.state == "finished" and old.steps == wanted.steps:
        return old
    return dataclasses.replace(
        old,
        steps=wanted.steps,
        config=wanted.config,
        packages=wanted.packages,
        machine=wanted.machine,
        state="running",
        error="",
    )


def restore(
    folder: RunFolder, stepper: Stepper, metrics: MetricsWriter, checkpoints: CheckpointWriter
) -> tuple[Position, dict[str, Any]]:
    """Bring rows, checkpoints and measures back to the saved position, from which all is computed again.

    Returns:
        The position, and the entry for the manifest's ``resumed``.

    Raises:
        RunFolderError: The saved position is damaged, or rows that precede it are missing.
    """
    position = load_position(folder.state, stepper.problem.device)
    if position is None:  # killed before the first saving
        position = stepper.begin()
    else:
        stepper.restore(position)
    metrics.truncate(position.step)
    if metrics.last_step() != position.step - 1:
        raise RunFolderError(
            explain(
                f"The metrics in {folder.root} end at step {metrics.last_step()}",
                f"the saved position is step {position.step}, and every step before it must have its row",
                "Restore metrics.sqlite from a copy, or start again in another folder (--out)",
            )
        )
    checkpoints.truncate(position.step)
    return position, {"step": position.step, "moment": now()}


def _compare(folder: RunFolder, old: Manifest, new: Manifest) -> None:
    for what, before, after in (
        ("configuration", _lasting(old.config), _lasting(new.config)),
        ("training", old.loop | {"seeds": old.seeds}, new.loop | {"seeds": new.seeds}),
        ("problem", old.problem, new.problem),
        ("fingerprint of the", old.fingerprints, new.fingerprints),
    ):
        difference = first_difference(before, after)
        if difference:
            raise RunFolderError(
                explain(
                    f"The run in {folder.root} cannot be continued: {what} {difference}",
                    "the steps to come would not belong to the steps that are there",
                    "Resume with the same settings, model seed and data, or take another folder (--out)",
                )
            )
    threads = {"threads": old.machine.get("threads")}, {"threads": new.machine.get("threads")}
    changed = first_difference(old.packages, new.packages) or first_difference(*threads)
    if changed:
        warnings.warn(
            explain(
                f"The run in {folder.root} goes on in another environment: {changed}",
                "sums may then be rounded differently",
                "Read the metrics as one run, but do not expect them bit for bit",
            ),
            NumericalWarning,
            stacklevel=4,
        )


def _lasting(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without ``steps``, which may grow."""
    return {key: value for key, value in config.items() if key != "steps"}
