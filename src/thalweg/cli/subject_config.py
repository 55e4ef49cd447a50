"""The settings of a problem that is looked at, and what may be changed of a run's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from thalweg.cli.config import EDGE_MODEL, RunConfig, differences, from_dict
from thalweg.cli.options import if_given
from thalweg.cli.rule import RuleConfig
from thalweg.errors import InvalidInput, explain
from thalweg.problem.data import DataConfig
from thalweg.problem.data.load import LossName
from thalweg.problem.zoo import ModelConfig
from thalweg.runs import Run


@dataclass(frozen=True)
class Computing:
    """How to compute. Any other setting of a run says what its loss is, and is not open to change.

    Attributes:
        dtype: float32, or float64 for more digits; by default as the run, or the model of --model-file, else float32.
        device: Where to compute, as torch names it.
        threads: Threads of the processor; by default as in thalweg run.
        seed: Root of all random vectors; by default as the run.
        chunk: Samples evaluated at a time: bounds memory, changes no result; by default all at once.
    """

    dtype: Annotated[
        Literal["float32", "float64"] | None, tyro.conf.arg(metavar="{float32,float64}", help_behavior_hint="")
    ] = None
    device: str = "cpu"
    threads: Annotated[int | None, if_given("INT")] = None
    seed: int = 0
    chunk: Annotated[int | None, if_given("INT")] = None

    @classmethod
    def names(cls) -> set[str]:
        """The names of these settings."""
        return {f.name for f in dataclasses.fields(Computing)}


@dataclass(frozen=True)
class SubjectConfig(Computing):
    """The problem that a checkpoint belongs to. A run knows its own.

    Attributes:
        loss: mse (half the squared error to one-hot classes, summed over classes), mse_mean (its mean over
            classes), or cross_entropy.
        data: Data that the loss is averaged over.
        model: Model that the checkpoint is of.
        rule: Update rule, for the distance to its edge of stability; for a state dict only with --rule.lr.
    """

    loss: LossName = "mse"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=lambda: EDGE_MODEL)
    rule: RuleConfig = field(default_factory=RuleConfig)


def settings_of(run: Run) -> SubjectConfig | None:
    """Return the settings that the run was made with; None where it was recorded from Python."""
    if not run.manifest.config:
        return None
    config = from_dict(run.manifest.config, str(run.folder.manifest))
    return SubjectConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(SubjectConfig)})


def settings_beside(run: Run, model_file: str | None) -> SubjectConfig | None:
    """Return the settings that the run was made with; None where only the problem of ``model_file`` is known.

    Raises:
        InvalidInput: The run was recorded from Python, and there is no such file.
    """
    own = settings_of(run)
    if own is None and model_file is None:
        raise InvalidInput(
            explain(
                f"The run in {run.path} holds no settings of `thalweg run`",
                "it was recorded from Python, whose model and data the command line cannot rebuild",
                "Name a function that returns its Problem: --model-file path.py:function",
            )
        )
    return own


def refuse_changes(
    path: str | Path | None,
    own: SubjectConfig,
    now: SubjectConfig,
    model_file: str | None,
    *,
    remedy: str,
    why: str = "a run has its own problem, and its weights mean nothing in another",
    free: Collection[str] = (),
) -> None:
    """Refuse options that contradict the run at ``path``, but for those in ``free`` and of how to compute.

    Raises:
        InvalidInput: Settings of the run are changed, or another problem is named beside it.
    """
    may = {*free, *Computing.names()}
    changed = [name for name in differences(own, now) if name.split(".")[0] not in may]
    if changed or model_file is not None:
        option = changed[0].replace("_", "-") if changed else "model-file"
        raise InvalidInput(explain(f"{path} is given together with --{option}", why, remedy))


def as_run(settings: SubjectConfig) -> RunConfig:
    """Return ``settings`` as the configuration of a run, which is what builds problems."""
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    return RunConfig(**(values | {"dtype": settings.dtype or "float32"}))
