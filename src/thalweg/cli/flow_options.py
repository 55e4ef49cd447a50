"""The options of ``thalweg flow``: of a new problem, or on top of the run whose checkpoint they name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from thalweg.cli.config import EDGE_MODEL, RunConfig, differences, from_dict, read_toml
from thalweg.cli.rule import RuleConfig
from thalweg.cli.structure import near
from thalweg.errors import InvalidInput, explain
from thalweg.problem.data import DataConfig
from thalweg.problem.data.load import LossName
from thalweg.problem.zoo import ModelConfig
from thalweg.runs import Run, open_run

DESCRIPTION = """Forecast the time-averaged path of an optimizer by its central flow, beside the optimizer itself.

START is RUN@STEP: a run folder and one of its checkpoints. The run's own problem, rule and its state go on from there; RUN alone means from its start. Without START the problem and the rule are those of the options, as thalweg run --help explains them. Results go into analyses/ of the run, or to --out: a netCDF file, which xarray opens, and a page.

The rule may be another than the run's in its numbers (--rule.lr and so on): its state goes on from the checkpoint, and so does the optimizer beside the flow. A forecast that was interrupted goes on with --resume, and one that is complete is extended by it to a longer --time.

The theory is that of full-batch training with a smooth loss; what it does not cover is refused with the reason.

examples:
  thalweg flow --rule.lr 0.4 --time 400
  thalweg flow runs/first@200 --time 100
  thalweg flow --from runs/first@last --time 50 --processes discrete central
  thalweg flow --from runs/first@200 --rule.lr 0.3 --time 100
  thalweg flow runs/first@200 --time 300 --resume
  thalweg flow --rule.name rmsprop --rule.beta2 0.9 --warm-start 20 --time 200 --out flows/rmsprop

exit codes: 0 done, 1 the forecast failed, 2 wrong input, 130 stopped with Ctrl-C (what is done is kept for --resume)
"""  # noqa: E501  (a paragraph is one line: tyro breaks no others as they stand here)

OPEN = ("dtype", "device", "threads", "chunk")
"""What may be given beside a run: how to compute. The numbers of the rule may be asked about too (rule.*)."""


@dataclass(frozen=True)
class FlowConfig:
    """What to forecast. A run knows its own problem and rule.

    Attributes:
        loss: mse (half the squared error to one-hot classes, summed over classes), mse_mean (its mean over
            classes), or cross_entropy.
        dtype: float32, or float64 for reference forecasts.
        device: Where to compute, as torch names it.
        threads: Threads of the processor; by default as in thalweg run.
        seed: Root of all random numbers: initial weights and data.
        chunk: Samples evaluated at a time: bounds memory, changes no result. Default all at once.
        data: What to learn from.
        model: What learns.
        rule: How it learns.
    """

    loss: LossName = "mse"
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    threads: int | None = None
    seed: int = 0
    chunk: int | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=lambda: EDGE_MODEL)
    rule: RuleConfig = field(default_factory=RuleConfig)

    def as_run(self, steps: int) -> RunConfig:
        """Return the configuration of a run of ``steps`` steps, which is what builds problems and rules."""
        return RunConfig(steps=steps, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)})


@dataclass(frozen=True)
class Told:
    """What ``thalweg flow`` is told.

    Attributes:
        start: Run folder and step to start from, as RUN@STEP; STEP is a number or last.
        from_: The same as START.
        time: Units of time to forecast, each one step of the rule.
        mode: map (the rule's exact step and the penalty, few gradients), flow (the differential equation itself,
            in long steps) or reference (Euler substeps of the equation, slow).
        processes: What runs side by side: discrete, midpoint, central, stable; by default all that the rule has.
        warm_start: Steps of the rule itself before the flows begin; rules with averages of squares need a few.
        sigma: Width of the Gaussian, in steps, that loss curves are smoothed with before they are compared.
        out: netCDF file to write, with the page beside it; by default analyses/flow-STEP.nc in the run folder,
            DATA-MODEL-RULE-flow.nc here without a run.
        replace: Replace the forecast that is there already.
        resume: Go on with the forecast that was interrupted, or extend it to a longer time.
        save_every: Units of time between two savings of what --resume needs; by default every few seconds.
        config: TOML file with settings, as for thalweg run; options on the command line win over it.
        settings: What to forecast.
    """

    start: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[START]", help_behavior_hint="")] = None
    from_: Annotated[str | None, tyro.conf.arg(name="from", metavar="RUN@STEP", help_behavior_hint="")] = None
    time: int = 500
    mode: str = "map"
    processes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[PROCESS [PROCESS ...]]", help_behavior_hint="")] = ()
    warm_start: int = 0
    sigma: float = 20.0
    out: Path | None = None
    replace: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    save_every: int | None = None
    config: Path | None = None
    settings: Annotated[FlowConfig, tyro.conf.arg(name="")] = field(default_factory=FlowConfig)


@dataclass(frozen=True)
class Start:
    """Where a forecast starts that goes on from a run.

    Attributes:
        run: The run.
        config: The settings that it was made with.
        step: The step whose checkpoint is meant; negative counts from the end of those that there are.
        changed: Settings of the rule that are asked about, with their values in the run and now.
    """

    run: Run
    config: RunConfig
    step: int
    changed: dict[str, tuple[object, object]] = field(default_factory=dict)


def parse(arguments: Sequence[str]) -> tuple[Told, Start | None]:
    """Read the options, on top of the run or the file that they name.

    Raises:
        InvalidInput: The run or the file cannot be used, or options contradict each other.
        RunFolderError: The path is no run.
        SystemExit: Help was asked for, or an option is unknown.
    """
    told = _read(Told(), arguments)
    where = told.start if told.start is not None else told.from_
    _check(told)
    if where is None:
        if told.config is None:
            return told, None
        whole = read_toml(told.config, RunConfig())
        _full_batch(whole, str(told.config))
        return _read(Told(settings=_part(whole)), arguments), None
    start = _located(where)
    own = _part(start.config)
    told = _read(Told(settings=own), arguments)
    changed = [path for path in differences(own, told.settings) if path not in OPEN]
    strange = [path for path in changed if not path.startswith("rule.") or path == "rule.name"]
    if strange or told.config is not None:
        option = strange[0].replace("_", "-") if strange else "config"
        why = "a run has its own problem, and the forecast is to go on from there"
        if option == "rule.name":
            why = "the state of one rule is not that of another, and the forecast is to go on from it"
        raise InvalidInput(
            explain(
                f"{where} is given together with --{option}", why, "Leave the option out, or forecast without the run"
            )
        )
    return told, dataclasses.replace(start, changed=_changed(own, told.settings, changed))


def _changed(own: FlowConfig, now: FlowConfig, paths: Sequence[str]) -> dict[str, tuple[object, object]]:
    """Return what of the rule is asked about, by its path: in the run, and now."""

    def at(config: FlowConfig, path: str) -> object:
        found: object = config
        for name in path.split("."):
            found = getattr(found, name)
        return found

    return {path: (at(own, path), at(now, path)) for path in paths if path.startswith("rule.")}


def _check(told: Told) -> None:
    from thalweg.flows.forecast import PROCESSES

    if told.start is not None and told.from_ is not None:
        raise InvalidInput(explain("START and --from are both given", "they mean the same", "Leave one of them out"))
    unknown = [name for name in told.processes if name not in PROCESSES]
    if unknown:
        matches = near(unknown[0], list(PROCESSES))
        raise InvalidInput(
            explain(
                f"There is no process {unknown[0]!r}",
                f"those that run side by side are {', '.join(PROCESSES)}",
                f"Perhaps {matches[0]} was meant" if matches else "Choose among these",
            )
        )
    if told.resume and told.replace:
        raise InvalidInput(
            explain(
                "--resume and --replace are both given", "one goes on, the other begins anew", "Leave one of them out"
            )
        )
    numbers = (("time", told.time, 1), ("warm-start", told.warm_start, 0), ("save-every", told.save_every, 1))
    for name, value, least in numbers:
        if value is not None and value < least:
            raise InvalidInput(explain(f"--{name} is {value}", f"it is at least {least}", "Correct the number"))
    if not (math.isfinite(told.sigma) and told.sigma > 0):
        raise InvalidInput(explain(f"--sigma is {told.sigma}", "a width is positive", "Correct the number"))


def _located(where: str) -> Start:
    """Find the run and the step that ``RUN@STEP`` means."""
    path, _, text = where.rpartition("@")
    if not path or Path(where).is_dir():
        path, text = where, "0"
    try:
        step = -1 if text == "last" else int(text)
    except ValueError:
        raise InvalidInput(
            explain(f"{where!r} names the step {text!r}", "a step is a whole number, or last", "Write RUN@STEP")
        ) from None
    run = open_run(path)
    if not run.manifest.config:
        raise InvalidInput(
            explain(
                f"The run in {run.path} holds no settings of `thalweg run`",
                "it was recorded from Python, whose model and data the command line cannot rebuild",
                "Forecast it there: thalweg.flows.forecast.central_flow(problem, rule, time, w=..., state=...)",
            )
        )
    config = from_dict(run.manifest.config, str(run.folder.manifest))
    _full_batch(config, f"The run in {run.path}")
    return Start(run, config, step)


def _full_batch(config: RunConfig, source: str) -> None:
    if config.batch_size is not None:
        raise InvalidInput(
            explain(
                f"{source} trains on mini-batches of {config.batch_size} samples",
                "the central flow is the theory of full-batch training, and says nothing about their noise",
                "Forecast a run without batch_size",
            )
        )


def _part(config: RunConfig) -> FlowConfig:
    return FlowConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(FlowConfig)})


def _read(default: Told, arguments: Sequence[str]) -> Told:
    return tyro.cli(Told, args=arguments, prog="thalweg flow", description=DESCRIPTION, default=default)
