"""``thalweg run``: train, record, measure, and write the page."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from thalweg.cli.config import (
    MAY_CHANGE,
    RunConfig,
    build,
    differences,
    from_dict,
    read_toml,
    resolve,
    threads,
    to_dict,
)
from thalweg.cli.console import complain, say, talk, warnings_as_notes
from thalweg.cli.interrupt import CtrlC
from thalweg.cli.meter import duration, make_meter
from thalweg.cli.summary import headlines
from thalweg.errors import InvalidInput, NonFinite, ThalwegError, explain
from thalweg.runs import Run, RunFolder, open_run, train

DESCRIPTION = """Train a model, record every step, follow the leading curvature, and write one page about it.

Without options: handwritten digits, a tanh MLP, full-batch gradient descent whose sharpness rises to the edge
of stability and stays there. Settings come from the defaults, then --quick, then --config, then the other
options. Errors are told in one line; thalweg run --debug shows the traceback too.

examples:
  thalweg run
  thalweg run --quick --out runs/first
  thalweg run --model.width 128 --rule.name adam --rule.lr 1e-3 --steps 500 --track.every 5
  thalweg run --config mine.toml --seed 1
  thalweg run --resume runs/first --steps 3000

mine.toml:
  steps = 800
  [rule]
  name = "heavy_ball"
  lr = 0.05
"""

QUICK = {"steps": 400, "rule": {"lr": 0.2}, "track": {"eigenvalues": 2, "every": 4}}
"""The default run in some seconds: a larger learning rate has a lower threshold, which is reached sooner."""

STOPPING = "Stopping after this step; Ctrl-C again leaves at once."


@dataclass(frozen=True)
class Told:
    """What ``thalweg run`` is told.

    Attributes:
        out: Run folder to write (default: runs/DATA-MODEL-RULE-N).
        config: TOML file with settings; options on the command line win over it.
        resume: Run folder to continue, with its own settings; only --steps and --report may be given too.
        replace: Delete the run that is in the folder already.
        quick: Start from a shortened form of the default run.
        settings: The settings of the run.
    """

    out: Path | None = None
    config: Path | None = None
    resume: Path | None = None
    replace: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    settings: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def parse(arguments: Sequence[str]) -> Told:
    """Read the options, on top of the file or run folder that they name.

    Raises:
        InvalidInput: The file or the run cannot be used, or options contradict each other.
        SystemExit: Help was asked for, or an option is unknown.
    """
    settings, source = RunConfig(), _peek(arguments, "--resume")
    file, quick = _peek(arguments, "--config"), "--quick" in arguments
    if source is not None:
        if file is not None or quick or "--replace" in arguments or _peek(arguments, "--out") is not None:
            raise InvalidInput(
                explain(
                    "--resume stands beside --config, --quick, --out or --replace",
                    "a continued run keeps its folder and its settings",
                    f"Use `thalweg run --resume {source}`, with --steps for more steps",
                )
            )
        settings = _settings_of(source)
    if quick:
        settings = from_dict(QUICK, "--quick")
    if file is not None:
        settings = read_toml(Path(file), settings)
    told = tyro.cli(
        Told,
        args=arguments,
        prog="thalweg run",
        description=DESCRIPTION,
        default=Told(settings=settings),
    )
    if told.resume is None:
        return dataclasses.replace(told, settings=resolve(told.settings))
    changed = [path for path in differences(settings, told.settings) if path not in MAY_CHANGE]
    if changed:
        raise InvalidInput(
            explain(
                f"--resume {told.resume} is given together with --{changed[0]}",
                "the steps to come would be those of a different run",
                "Leave the option out, or start a new run with --out",
            )
        )
    return told


def _settings_of(source: str) -> RunConfig:
    """The settings that the run in folder ``source`` was begun with."""
    run = open_run(source)
    if not run.manifest.config:
        raise InvalidInput(
            explain(
                f"The run in {source} holds no settings of `thalweg run`",
                "it was recorded from Python, whose model and data the command line cannot rebuild",
                "Continue it there: train(..., folder=..., resume=True)",
            )
        )
    return from_dict(run.manifest.config, str(run.folder.manifest))


def main(arguments: Sequence[str]) -> int:
    """Train as the options say; return the exit code."""
    told = parse(arguments)
    console = talk()
    with warnings_as_notes():
        return _run(told, console)


def _run(told: Told, console: Console) -> int:
    settings = told.settings
    folder = told.resume or told.out or free_folder(Path("runs"), settings)
    if told.resume is None:
        RunFolder(folder).check_free(replace=told.replace)  # before the data is loaded
    problem, rule, measures = build(settings)
    kept = to_dict(settings)
    if told.resume is not None:  # whether to report is a matter of this call, not of the run
        kept["report"] = open_run(folder).manifest.config.get("report", True)
    say(f"{settings.data.name}, {problem.samples:,} samples; {settings.model.name}, {problem.dimension:,} parameters")
    say(f"{rule.describe()}; {settings.steps:,} steps, recorded in {folder}")
    began, ctrl_c = time.monotonic(), CtrlC(STOPPING)
    try:
        with threads(settings, problem):
            run = train(
                problem,
                rule,
                settings.steps,
                folder=folder,
                batch_size=settings.batch_size,
                seed=settings.seed,
                measures=measures,
                checkpoint_every=settings.checkpoint_every,
                meter=make_meter(console, ctrl_c.listen),
                resume=told.resume is not None,
                replace=told.replace,
                config=kept,
                on_interrupt="return",
            )
    except NonFinite:
        if settings.report and (page := _page_of_a_failure(folder)):
            say(f"Report of the steps before: {page}")
        raise
    if ctrl_c.presses > 1:  # whoever presses twice does not wait for a report
        say(f"Left at once. {go_on(folder)}")
        return 130
    return _finish(run, settings, time.monotonic() - began)


def _finish(run: Run, settings: RunConfig, seconds: float) -> int:
    stopped = run.state == "interrupted"
    say(f"{'Stopped' if stopped else 'Finished'} at step {run.steps} of {settings.steps}, {duration(seconds)}.")
    for line in headlines(run.data):
        say(line)
    if settings.report:
        from thalweg.cli.map_run import refresh
        from thalweg.report import write_report  # Plotly takes a while to load

        if not stopped and (note := refresh(run)):
            complain(note, "note")
        say(f"Report: {write_report(run)}")
    if stopped:
        say(go_on(run.path))
    return 130 if stopped else 0


def go_on(folder: Path) -> str:
    """Tell how to continue the run in ``folder``."""
    return f"Go on with: thalweg run --resume {shlex.quote(str(folder))}"


def free_folder(parent: Path, settings: RunConfig) -> Path:
    """Return the first free ``parent/DATA-MODEL-RULE-N``."""
    stem = f"{settings.data.name}-{settings.model.name}-{settings.rule.name}"
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return parent / f"{stem}-{number}"


def _page_of_a_failure(folder: Path) -> Path | None:
    from thalweg.report import write_report

    try:
        return write_report(folder)
    except ThalwegError:
        return None  # the run's own error is the one to show


def _peek(arguments: Sequence[str], name: str) -> str | None:
    """The value of an option that decides on the defaults of all others, before these are parsed."""
    for number, argument in enumerate(arguments):
        if argument == name and number + 1 < len(arguments):
            return arguments[number + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None
