"""The settings of the problem that ``thalweg spectrum`` looks at."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from thalweg.cli.config import EDGE_MODEL, RunConfig, from_dict
from thalweg.cli.rule import RuleConfig
from thalweg.problem.data import DataConfig
from thalweg.problem.data.load import LossName
from thalweg.problem.zoo import ModelConfig
from thalweg.runs import Run

IF_GIVEN = tyro.conf.arg(metavar="INT", help_behavior_hint="")


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
    threads: Annotated[int | None, IF_GIVEN] = None
    seed: int = 0
    chunk: Annotated[int | None, IF_GIVEN] = None

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


def as_run(settings: SubjectConfig) -> RunConfig:
    """Return ``settings`` as the configuration of a run, which is what builds problems."""
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    return RunConfig(**(values | {"dtype": settings.dtype or "float32"}))
