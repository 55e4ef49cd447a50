"""The checkpoints of a run folder, and the numbers recorded at their steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from thalweg.errors import InvalidInput, RunFolderError, ThalwegError, explain
from thalweg.runs.checkpoints import Checkpoints
from thalweg.runs.folder import RunFolder
from thalweg.runs.run import open_run
from thalweg.runs.sources.headers import read_header
from thalweg.runs.sources.sequence import Checkpoint
from thalweg.runs.sources.stored import FileMark, OnDisk, Stored, TensorInfo, Unreadable


@dataclass
class InRun:
    """A tensor of one step in a file that a running training replaces by a longer one as it adds steps.

    What was written of a step stays as it is, so that a file that changed is looked into again; a folder in which
    another run was begun is refused.

    Attributes:
        run: The run folder.
        created: When its run was begun.
        file: The file.
        key: Name of the tensor in the file.
        found: Where it was when the file was last looked into.
        same: Nothing is known of ties.
    """

    run: Path
    created: str
    file: Path
    key: str
    found: OnDisk
    same: None = None

    @property
    def info(self) -> TensorInfo:
        """Name, shape and dtype."""
        return self.found.info

    def read(self, start: int, stop: int, *, drop: bool = False) -> tuple[Tensor, int]:
        """Return elements ``[start, stop)`` of the flattened tensor, and the bytes that were read for them."""
        for _ in range(3):
            try:
                return self.found.read(start, stop, drop=drop)
            except Unreadable:
                self.found = self._again()
        return self.found.read(start, stop, drop=drop)

    def _again(self) -> OnDisk:
        try:
            created = open_run(self.run).manifest.created
        except ThalwegError as error:
            raise Unreadable(self.run, f"it is no run folder any more ({error})") from error
        if created != self.created:
            raise Unreadable(self.run, "another run was begun in the folder")
        found = read_header(self.file).get(self.key)
        if found is None or (found.info.shape, found.info.dtype) != (self.info.shape, self.info.dtype):
            raise Unreadable(self.file, f"it no longer holds {self.key!r}")
        return found


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, by what lies in it."""
    folder = RunFolder(path)
    return folder.begun and folder.checkpoints.is_dir()


def read_run(path: Path, wanted: Callable[[int], bool]) -> tuple[list[Checkpoint], dict[str, np.ndarray]]:
    """Open the checkpoints of a run, also while it is going on.

    Args:
        path: The run folder.
        wanted: Which steps to take.

    Returns:
        The checkpoints in the order of steps, and each recorded scalar at their steps, NaN where it was not measured.

    Raises:
        RunFolderError: The folder is no run's, or a file in it is damaged.
        InvalidInput: The run has no such checkpoint.
    """
    run = open_run(path)
    created = run.manifest.created
    found: list[Checkpoint] = []
    try:
        for _, file in Checkpoints(run.folder.checkpoints).files():
            steps: dict[int, dict[str, Stored]] = {}
            for name, tensor in read_header(file).items():
                head, _, tail = name.partition("/")
                if head.isdecimal() and tail:
                    steps.setdefault(int(head), {})[tail] = InRun(path, created, file, name, tensor)
            mark = FileMark.of(file)
            found += [
                Checkpoint(step, f"{file} at {step}", steps[step], (mark,), len(steps) > 1)
                for step in sorted(steps)
                if wanted(step)
            ]
    except Unreadable as error:
        raise RunFolderError(
            explain(
                f"The file {error.path} cannot be read: {error.reason}",
                "thalweg writes such files whole or not at all",
                "Restore it from a copy, or delete it and use the checkpoints that remain",
            )
        ) from error
    if not found:
        raise InvalidInput(
            explain(
                f"The run {path} has no checkpoint that was asked for",
                f"it keeps {len(run.checkpoints)}",
                "Train with a smaller checkpoint_every, or ask for other steps",
            )
        )
    return found, _scalars(path, [checkpoint.step for checkpoint in found])


def _scalars(path: Path, steps: list[int]) -> dict[str, np.ndarray]:
    try:
        data = open_run(path).data
    except ThalwegError:  # checkpoints can be read without the metrics beside them
        return {}
    scalars = data[[name for name, values in data.data_vars.items() if values.dims == ("step",)]]
    aligned = scalars.reindex(step=steps)
    return {str(name): np.asarray(values.values, dtype=float) for name, values in aligned.data_vars.items()}
