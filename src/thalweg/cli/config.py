"""The configuration of a run: every setting, its default, and what is built from it."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from thalweg.cli.rule import RuleConfig, build_rule, resolve_rule
from thalweg.cli.structure import leaves, overlay, to_plain
from thalweg.errors import InvalidInput, explain
from thalweg.problem.data import DataConfig
from thalweg.problem.data.load import LossName
from thalweg.problem.zoo import ModelConfig

if TYPE_CHECKING:
    from thalweg.problem import Problem
    from thalweg.rules import Rule
    from thalweg.runs import Measure

T = TypeVar("T")

LayoutChoice = Literal["auto", "double_backward", "linearised", "forward_reverse", "difference"]

EDGE_MODEL = ModelConfig(name="mlp", depth=4, width=64, activation="tanh", init_scale=0.45)
"""The default: small initial weights, so that sharpness starts far below the threshold and has a way to rise."""


@dataclass(frozen=True)
class TrackConfig:
    """Which leading eigenvalues of the Hessian to follow.

    Attributes:
        eigenvalues: How many, at least; 0 measures none.
        every: Steps between two measurements.
        threshold: Follow also every eigenvalue above this fraction of the stability threshold.
        max: Follow at most so many.
        tol: Relative residual at which an eigenpair counts as found.
        samples: Measure the curvature of the first so many samples only; default all.
        layout: How products with the Hessian are computed; auto chooses by memory.
    """

    eigenvalues: int = 4
    every: int = 1
    threshold: float | None = None
    max: int = 20
    tol: float = 1e-3
    samples: int | None = None
    layout: LayoutChoice = "auto"


@dataclass(frozen=True)
class ProbeConfig:
    """What `thalweg stationarity` needs to judge whether training has settled.

    Attributes:
        every: Steps between two probes of the gradient level; 0 probes none.
        batches: Fresh mini-batches in a probe.
        batch_size: Samples in one; default that of the run, or 64.
        observables: Steps between two snapshots of loss, norms and sketches on fixed samples; default a tenth of every.
    """

    every: int = 0
    batches: int = 16
    batch_size: int | None = None
    observables: int | None = None


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run.

    Attributes:
        steps: Updates to do.
        batch_size: Samples in a mini-batch; default all data at every step.
        loss: mse (half the squared error to one-hot classes, summed over classes), mse_mean (its mean over
            classes), or cross_entropy.
        dtype: float32, or float64 for reference runs.
        device: Where to compute, as torch names it.
        threads: Threads of the processor. Default one for a small MLP, where more would mostly wait for each
            other, else torch's own choice.
        seed: Root of all random numbers of the run.
        chunk: Samples evaluated at a time: bounds memory, changes no result. Default all at once.
        checkpoint_every: Steps between two kept sets of weights; default first and last only.
        report: Whether to write report.html at the end.
        data: What to learn from.
        model: What learns.
        rule: How it learns.
        track: What to measure on the way.
        probe: How to probe whether training has settled.
    """

    steps: int = 1500
    batch_size: int | None = None
    loss: LossName = "mse"
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    threads: int | None = None
    seed: int = 0
    chunk: int | None = None
    checkpoint_every: int | None = None
    report: bool = True
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=lambda: EDGE_MODEL)
    rule: RuleConfig = field(default_factory=RuleConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)


SAMPLES = 64
"""In a mini-batch of a probe, where the run has none of its own."""
MAY_CHANGE = ("steps", "report")
"""Settings that a continued run may be given anew; any other would make it a different run."""


def read_toml(path: Path, base: RunConfig) -> RunConfig:
    """Return ``base`` with the settings of the TOML file at ``path``.

    Raises:
        InvalidInput: The file cannot be read, is no TOML, or has a key that is no setting.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidInput(
            explain(f"{path} cannot be read: {reason}", "--config names a TOML file", "Correct the path")
        ) from error
    except ValueError as error:  # TOML's errors and those of UTF-8
        raise InvalidInput(
            explain(
                f"{path} is not valid TOML: {error}",
                "settings are written as key = value, in tables such as [rule]",
                "Correct this line",
            )
        ) from error
    return overlay(base, table, str(path))


def from_dict(table: Mapping[str, Any], source: str) -> RunConfig:
    """Return the configuration that `to_dict` turned into ``table``; what is missing takes its default.

    Args:
        table: As the manifest of a run holds it.
        source: What to call it in an error.

    Raises:
        InvalidInput: A key is unknown, or a value has the wrong type.

    Example:
        >>> config = RunConfig(steps=5)
        >>> from_dict(to_dict(config), "a manifest") == config
        True
    """
    return overlay(RunConfig(), table, source)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return ``config`` as nested dicts of JSON's own types."""
    table: dict[str, Any] = to_plain(config)
    return table


def resolve(config: RunConfig) -> RunConfig:
    """Fill in the settings whose default depends on others."""
    return dataclasses.replace(config, rule=resolve_rule(config.rule, config.steps))


def differences(old: T, new: T) -> list[str]:
    """Return the dotted paths of the settings that differ."""
    return [path for path in leaves(old) if _get(old, path) != _get(new, path)]


def build(config: RunConfig) -> tuple[Problem, Rule, list[Measure]]:
    """Make what `thalweg.train` needs.

    Args:
        config: The settings.

    Returns:
        The problem on all data, the update rule, and the measures.

    Raises:
        InvalidInput: Settings do not fit each other; the message names them.
        MissingExtra: The data needs a package that is not installed.
    """
    from thalweg.runs import FullLoss, Spectrum

    rule = build_rule(config.rule, config.steps)  # first: it is quick, and data may be slow to load
    problem = build_problem(config)
    track = config.track
    measures: list[Measure] = []
    if track.eigenvalues:
        measures.append(
            Spectrum(
                k=track.eigenvalues,
                every=track.every,
                threshold=track.threshold,
                max_k=track.max,
                tol=track.tol,
                samples=track.samples,
                layout=track.layout,
                seed=config.seed,
            )
        )
    if config.batch_size is not None:
        measures.append(FullLoss(every=track.every))
    return problem, rule, measures + _probes(config, problem.samples)


def _probes(config: RunConfig, samples: int) -> list[Measure]:
    """The measures of `ProbeConfig`."""
    probe = config.probe
    if not probe.every:
        return []
    from thalweg.runs.gradient_probe import GradientProbe
    from thalweg.stationarity.observables import Observables, Promise

    size = probe.batch_size or config.batch_size or min(SAMPLES, samples)
    often = probe.observables or max(1, probe.every // 10)
    return [
        GradientProbe(size, every=probe.every, batches=probe.batches),
        Observables(every=often),
        Promise(every=often, batch_size=config.batch_size),
    ]


def build_problem(config: RunConfig, *, check: bool = True) -> Problem:
    """Make the problem of a run: its data, its model drawn from ``seed``, its loss.

    Args:
        config: What describes it.
        check: Evaluate it twice on all its data, to see that it is a fixed function.

    Raises:
        InvalidInput: Data, model, loss or device do not fit each other.
        MissingExtra: The data needs a package that is not installed.
    """
    import torch

    from thalweg.problem import Problem
    from thalweg.problem.data import load_data, loss_for
    from thalweg.problem.zoo import build_model

    try:
        device = torch.device(config.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch reports a missing accelerator by either
        reason = str(error).splitlines()[0]
        raise InvalidInput(
            explain(f"The device {config.device!r} cannot be used", reason, "Use --device cpu, or one torch sees here")
        ) from error
    data = load_data(config.data)
    model = build_model(config.model, data, config.seed).to(device)
    loss = loss_for(config.loss, data)
    dtype = {"float32": torch.float32, "float64": torch.float64}[config.dtype]
    return Problem(model, loss, data.pair(), batch_size=config.chunk, device=device, dtype=dtype, check=check)


SMALL = 10**8
"""Multiplications in one pass over the data below which a second thread costs an MLP more than it gains."""


@contextmanager
def threads(config: RunConfig, problem: Problem) -> Iterator[None]:
    """Compute with the number of threads that ``config`` asks for, and go back to the former one."""
    import torch

    former = torch.get_num_threads()
    small = config.model.name == "mlp" and problem.dimension * problem.samples < SMALL
    count = config.threads if config.threads is not None else 1 if small else former
    if count < 1:
        raise InvalidInput(
            explain(f"threads is {count}", "at least one thread computes", "Leave it out, or give a positive number")
        )
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def _get(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config
