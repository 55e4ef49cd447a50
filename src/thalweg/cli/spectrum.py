"""``thalweg spectrum``: the curvature at a checkpoint, with its evidence and what it cost."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from thalweg.cli.config import differences, threads
from thalweg.cli.console import complain, say, warnings_as_notes
from thalweg.cli.interrupt import CtrlC
from thalweg.cli.meter import duration
from thalweg.cli.stages import Stopped, stage_meter
from thalweg.cli.subject import MAY_DIFFER, Subject, SubjectConfig, as_run, locate, settings_of, subject
from thalweg.cli.survey import Ends, OperatorName, Plan, Survey
from thalweg.errors import InvalidInput, ThalwegError, explain
from thalweg.operators.hessian import LayoutName
from thalweg.runs import Run
from thalweg.runs.files import inside

if TYPE_CHECKING:
    import xarray as xr

DESCRIPTION = """Measure the curvature of the loss at a checkpoint: the leading eigenvalues of the Hessian from both
ends with their residuals, its trace and spectral density with standard errors, and the share of each layer.

PATH is a run folder, a checkpoint file in one, or a state dict (safetensors, or torch.save of tensors only). A run
knows its model and data. For a state dict, describe them with --data and --model as for thalweg run, or with
--model-file path.py:function, which runs that file, as python would. Results go to analyses/ in the run folder, or
beside --out: a netCDF file, which xarray opens, and a page.

examples:
  thalweg spectrum runs/quickstart
  thalweg spectrum runs/quickstart --step 400 --k 10 --no-per-layer
  thalweg spectrum runs/adam --preconditioned
  thalweg spectrum weights.safetensors --data.name digits --model.width 128 --model.depth 3 --rule.lr 0.1
  thalweg spectrum weights.pt --model-file mine.py:problem --budget 500 --json

exit codes: 0 done, 1 the measurement failed, 2 wrong input, 130 stopped with Ctrl-C (what was found is kept)
"""

STOPPING = "Stopping; what the stages before found is kept. Ctrl-C again leaves at once."


@dataclass(frozen=True)
class Told:
    """What ``thalweg spectrum`` is told.

    Attributes:
        path: Run folder, checkpoint file, or state dict.
        step: Step whose checkpoint to look at: a number (negative: from the end of those that exist), or last.
        k: Eigenvalues to find at each end; 0 finds none.
        ends: Which ends of the spectrum (default: both; of gauss-newton and fisher, never negative, the largest).
        density: Estimate the spectral density.
        trace: Estimate the trace.
        per_layer: Examine the block of each layer.
        target: Relative standard error at which an estimate is good enough.
        tol: Relative residual at which an eigenpair is good enough (default: 1e-4, in float64 1e-7).
        operator: hessian, gauss-newton (its positive part), or fisher (of the data's own labels).
        preconditioned: See the curvature as the run's optimizer does, so that Adam's compares with its threshold.
        layout: How products with the Hessian are computed; auto chooses by memory.
        budget: Products with the operator in all, at most.
        samples: Measure on the first so many samples only.
        model_file: Your own problem, as path.py:function; the file is executed.
        out: netCDF file to write; the page goes beside it (default: analyses/spectrum-STEP.nc in the run folder,
            NAME-spectrum.nc here for a state dict).
        json: Print the results as JSON; progress then goes to standard error.
        settings: The problem of a state dict.
    """

    path: Annotated[Path, tyro.conf.Positional]
    step: str = "last"
    k: int = 4
    ends: Ends | None = None
    density: bool = True
    trace: bool = True
    per_layer: bool = True
    target: float = 0.05
    tol: float | None = None
    operator: OperatorName = "hessian"
    preconditioned: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    layout: LayoutName = "auto"
    budget: int | None = None
    samples: int | None = None
    model_file: str | None = None
    out: Path | None = None
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    settings: Annotated[SubjectConfig, tyro.conf.arg(name="")] = field(default_factory=SubjectConfig)

    @property
    def step_number(self) -> int | None:
        """The step, or None for the last.

        Raises:
            InvalidInput: It is neither a number nor ``last``.
        """
        if self.step == "last":
            return None
        try:
            return int(self.step)
        except ValueError:
            raise InvalidInput(
                explain(f"--step is {self.step!r}", "it names a step of the run", "Pass a whole number, or last")
            ) from None

    def plan(self) -> Plan:
        """What to measure.

        Raises:
            InvalidInput: A number is out of range, or nothing is to be measured.
        """
        shared = [f.name for f in dataclasses.fields(Plan) if f.name != "seed"]
        plan = Plan(**{name: getattr(self, name) for name in shared}, seed=self.settings.seed)
        for name, good, wanted in (
            ("k", plan.k >= 0, "it counts eigenvalues"),
            ("target", 0 < plan.target < math.inf, "a relative standard error is positive"),
            ("tol", plan.tol is None or 0 < plan.tol < 1, "a relative residual lies between 0 and 1"),
            ("budget", plan.budget is None or plan.budget >= 1, "it counts products"),
            ("samples", self.samples is None or self.samples >= 1, "it counts samples"),
        ):
            if not good:
                raise InvalidInput(explain(f"--{name} is {getattr(self, name)}", wanted, "Correct the number"))
        if not (plan.k or plan.density or plan.trace or plan.per_layer):
            raise InvalidInput(
                explain(
                    "--k 0, --no-density, --no-trace and --no-per-layer leave nothing",
                    "there is nothing to measure",
                    "Leave one of them out",
                )
            )
        return plan


def parse(arguments: Sequence[str]) -> tuple[Told, Run | None, Path | None]:
    """Read the options, on top of the settings of the run that they name.

    Raises:
        InvalidInput: There is nothing at the path, or an option contradicts the run.
        RunFolderError: The path is a folder, and no run.
        SystemExit: Help was asked for, or an option is unknown.
    """

    def read(default: SubjectConfig) -> Told:
        return tyro.cli(
            Told,
            args=arguments,
            prog="thalweg spectrum",
            description=DESCRIPTION,
            default=Told(path=tyro.MISSING, settings=default),
        )

    told = read(SubjectConfig())
    run, file = locate(told.path)
    if run is None:
        return told, None, file
    own = settings_of(run)
    if own is None:
        if told.model_file is None:
            raise InvalidInput(
                explain(
                    f"The run in {run.path} holds no settings of `thalweg run`",
                    "it was recorded from Python, whose model and data the command line cannot rebuild",
                    "Name a function that returns its Problem: --model-file path.py:function",
                )
            )
        return told, run, file
    told = read(own)
    changed = [path for path in differences(own, told.settings) if path.split(".")[0] not in MAY_DIFFER]
    if changed or told.model_file is not None:
        option = changed[0].replace("_", "-") if changed else "model-file"
        raise InvalidInput(
            explain(
                f"{told.path} is given together with --{option}",
                "a run has its own problem, and its weights mean nothing in another",
                "Leave the option out; to measure another loss, pass the checkpoint file as a state dict",
            )
        )
    return told, run, file


def main(arguments: Sequence[str]) -> int:
    """Measure as the options say; return the exit code."""
    told, run, file = parse(arguments)
    plan, step = told.plan(), told.step_number
    console = Console(stderr=True) if told.json else Console()
    with warnings_as_notes():
        found = subject(run, file, told.settings, step, told.model_file)
        if told.samples is not None:
            whole = found.problem.samples
            part = found.problem.subset(slice(0, told.samples))
            note = f"Measured on {part.samples:,} of {whole:,} samples."
            found = dataclasses.replace(found, problem=part, notes=(*found.notes, note))
        with threads(as_run(told.settings), found.problem):
            return _measure(told, plan, found, console)


def _measure(told: Told, plan: Plan, found: Subject, console: Console) -> int:
    from thalweg.runs.interrupts import Interrupts

    problem = found.problem
    target = told.out.with_suffix(".nc") if told.out is not None else _target(found, plan)
    say(f"{found.source}; {problem.dimension:,} parameters, {problem.samples:,} samples", console)
    began, stopped = time.monotonic(), False
    written = _Written(target)
    with Interrupts() as interrupts:
        ctrl_c = CtrlC(STOPPING)
        ctrl_c.listen()
        survey = Survey(found, plan, stage_meter(console), lambda: interrupts.asked)
        try:
            for _ in survey.run():
                written.write(survey.data)
        except Stopped:
            stopped = True
            if survey.partly:
                written.write(survey.data)
    data = survey.data
    if stopped:
        where = f"kept in {target}" if written.done else "nothing was finished"
        if written.spared:
            where = f"not written, as {target} is complete"
        say(f"Stopped before {survey.missing[0]}, {duration(time.monotonic() - began)}: {where}.", console)
    if written.done:
        _show(told, data, target, found, console)
    if told.json:
        print(json.dumps(as_json(data), indent=2, allow_nan=False))
    return 130 if stopped else 0


def _target(found: Subject, plan: Plan) -> Path:
    kind = "" if plan.operator == "hessian" else f"-{plan.operator}"
    kind += "-preconditioned" if plan.preconditioned else ""
    if found.run is None:
        return Path(f"{found.name}-spectrum{kind}.nc")
    return inside(found.run.path, found.run.path / "analyses" / f"spectrum{kind}-{found.step}.nc")


class _Written:
    """Writes the result after each stage, so that even a kill leaves what is known; spares a complete older one."""

    def __init__(self, path: Path) -> None:
        self.path, self.done, self.spared = path, False, False

    def write(self, data: xr.Dataset) -> None:
        from thalweg.runs.analyses import read_analysis, write_analysis

        if data.attrs["missing"] and not self.done:
            try:
                self.spared = read_analysis(self.path, "spectrum").attrs.get("complete") == "yes"
            except ThalwegError:
                self.spared = False
            if self.spared:
                return
        write_analysis(self.path, data, "spectrum")
        self.done, self.spared = True, False


def _show(told: Told, data: xr.Dataset, target: Path, found: Subject, console: Console) -> None:
    """Say what was found, and draw the pages."""
    from thalweg.report.spectrum_page import write_spectrum_page
    from thalweg.report.spectrum_words import caveats, headline

    for sentence in headline(data):
        say(sentence, console)
    for note in caveats(data):
        complain(note, "note")
    say(f"Results: {target}", console)
    say(f"Page: {write_spectrum_page(target)}", console)
    run = found.run
    if run is None or told.out is not None or run.folder.in_use() or not (run.path / "report.html").is_file():
        return
    from thalweg.report import write_report

    say(f"Report: {write_report(run)}", console)


def as_json(data: xr.Dataset) -> dict[str, Any]:
    """Return the results in JSON's own types: numbers and lists by name, with units; NaN becomes null."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    variables = {
        str(name): {"value": plain(variable.values.tolist()), "units": variable.attrs.get("units", "")}
        for name, variable in data.variables.items()
    }
    facts = {key: plain(value) for key, value in data.attrs.items() if value is not None}
    return {"facts": facts, "variables": variables}
