"""A recorded run: labelled data, checkpoints and provenance, also while it is still going on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import xarray as xr
from torch import Tensor

from thalweg.runs import tables
from thalweg.runs.checkpoints import Checkpoints
from thalweg.runs.folder import RunFolder
from thalweg.runs.manifest import Manifest, State, read_manifest
from thalweg.runs.metrics import Event


@dataclass(frozen=True)
class Run:
    """What a run folder holds. Every attribute is read from disk when asked for, so that it is up to date.

    Attributes:
        path: The run folder.
    """

    path: Path
    _keep: object = field(default=None, repr=False, compare=False)

    @property
    def folder(self) -> RunFolder:
        """The folder's paths."""
        return RunFolder(self.path)

    @property
    def manifest(self) -> Manifest:
        """Configuration, seeds, versions, fingerprints, machine, state."""
        return read_manifest(self.folder.manifest)

    @property
    def state(self) -> State:
        """``running``, ``finished``, ``failed`` or ``interrupted``; killed without a word is interrupted, too."""
        state = self.manifest.state
        return "interrupted" if state == "running" and not self.folder.in_use() else state

    @property
    def steps(self) -> int:
        """The last recorded step; 0 is the start."""
        return max(tables.last_step(self.folder.metrics), 0)

    @property
    def data(self) -> xr.Dataset:
        """All metrics in one snapshot; keep it in a variable, as each access reads the file.

        Coordinate ``step``; variables ``(step,)`` or ``(step, eigenvalue)`` with attributes ``units`` and
        ``long_name``; NaN where something was not measured. ``attrs`` say which run it is.
        """
        dataset = tables.read_dataset(self.folder.metrics)
        manifest = self.manifest
        facts = {key: value for key, value in manifest.problem.items() if isinstance(value, (str, int, float))}
        return dataset.assign_attrs(
            facts
            | {
                "name": manifest.name,
                "rule": str(manifest.loop.get("rule", {}).get("type", "unknown")),
                "optimizer": manifest.rule,
                "steps": manifest.steps,
                "state": self.state,
                "seed": manifest.seeds.get("run", 0),
                "created": manifest.created,
                "thalweg": manifest.packages.get("thalweg", "unknown"),
                "torch": manifest.packages.get("torch", "unknown"),
            }
        )

    @property
    def events(self) -> list[Event]:
        """What happened on the way: divergence, measures that did not converge."""
        return tables.read_events(self.folder.metrics)

    @property
    def checkpoints(self) -> list[int]:
        """The steps whose weights are kept."""
        return Checkpoints(self.folder.checkpoints).steps()

    def checkpoint(self, step: int) -> dict[str, Tensor]:
        """Return the weights ``w_step`` by parameter name.

        Args:
            step: One of ``checkpoints``; a negative number counts from the end of that list.

        Returns:
            One CPU tensor per parameter.

        Raises:
            InvalidInput: This step has no checkpoint.
            RunFolderError: The file is damaged.
        """
        known = self.checkpoints if step < 0 else []
        return Checkpoints(self.folder.checkpoints).read(known[step] if -len(known) <= step < 0 else step)

    def __repr__(self) -> str:
        manifest = self.manifest
        return f"Run({str(self.path)!r}, {self.state}, {self.steps} of {manifest.steps} steps, {manifest.rule})"


def open_run(path: str | Path) -> Run:
    """Open a run folder for reading; the run may still be going on.

    Args:
        path: The folder that `train` or ``thalweg run`` wrote.

    Returns:
        A `Run`, whose ``data`` is an ``xarray.Dataset``.

    Raises:
        RunFolderError: The path is no run folder, or its manifest is damaged.
        SchemaError: A newer thalweg wrote it.

    Example:
        >>> import thalweg as tw
        >>> try:
        ...     open_run("nowhere")
        ... except tw.errors.RunFolderError as error:
        ...     print(str(error).split(".")[0])
        The path nowhere does not exist
    """
    folder = RunFolder.open(path)
    folder.check_links()
    return Run(folder.root)
