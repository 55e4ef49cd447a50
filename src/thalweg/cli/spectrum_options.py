"""The options of ``thalweg spectrum``: on top of the settings of the run that they name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from thalweg.cli.options import FLAG, if_given
from thalweg.cli.plan import Ends, OperatorName, Plan
from thalweg.cli.subject import locate
from thalweg.cli.subject_config import Computing, SubjectConfig, refuse_changes, settings_beside
from thalweg.errors import InvalidInput, explain
from thalweg.operators.hessian import LayoutName
from thalweg.runs import Run

DESCRIPTION = """Measure the curvature of the loss at a checkpoint: leading eigenvalues at both ends, trace, density, layers.

PATH is a run folder, a checkpoint file in one, or a state dict: safetensors, or torch.save of tensors only. A run knows its model and data. For a state dict, describe them with --loss, --data, --model and --rule, which thalweg run --help explains, or with --model-file. Results go into analyses/ of the run, or beside --out: a netCDF file, which xarray opens, and a page.

examples:
  thalweg spectrum runs/quickstart
  thalweg spectrum runs/quickstart --step 400 --k 10 --no-per-layer
  thalweg spectrum runs/adam --preconditioned
  thalweg spectrum weights.safetensors --data.name digits --model.width 128 --model.depth 3 --rule.lr 0.1
  thalweg spectrum weights.pt --model-file mine.py:problem --budget 500 --json

exit codes: 0 done, 1 the measurement failed, 2 wrong input, 130 stopped with Ctrl-C (what was found is kept)
"""  # noqa: E501  (a paragraph is one line: tyro breaks no others as they stand here)


@dataclass(frozen=True)
class Options:
    """What ``thalweg spectrum`` is told, whatever the problem.

    Attributes:
        path: Run folder, checkpoint file, or state dict.
        step: Step whose checkpoint to look at: a number (negative: from the end of those that exist), or last.
        k: Eigenvalues to find at each end; 0 finds none.
        ends: Which ends of the spectrum; by default both, and of gauss-newton and fisher, which are never negative,
            the largest.
        density: Estimate the spectral density.
        trace: Estimate the trace.
        per_layer: Examine the block of each layer.
        target: Relative standard error at which a trace is good enough.
        tol: Relative residual at which an eigenpair is good enough; by default 1e-4, in float64 1e-7.
        operator: hessian, gauss-newton (its positive part), or fisher (of the data's own labels).
        preconditioned: See the curvature as the run's optimizer does, so that Adam's compares with its threshold.
        layout: How products with the Hessian are computed; auto chooses by memory.
        budget: Products with the operator in all, at most.
        samples: Measure on the first so many samples only.
        model_file: Your own problem, as path.py:function; the file is executed, as python would.
        out: netCDF file to write, with the page beside it; by default analyses/spectrum-STEP.nc in the run folder,
            NAME-spectrum.nc here for a state dict.
        json: Print the results as JSON; progress then goes to standard error.
    """

    path: Annotated[Path, tyro.conf.Positional]
    step: str = "last"
    k: int = 4
    ends: Annotated[Ends | None, if_given("{both,largest,smallest}")] = None
    density: bool = True
    trace: bool = True
    per_layer: bool = True
    target: float = 0.05
    tol: Annotated[float | None, if_given("FLOAT")] = None
    operator: OperatorName = "hessian"
    preconditioned: Annotated[bool, *FLAG] = False
    layout: LayoutName = "auto"
    budget: Annotated[int | None, if_given("INT")] = None
    samples: Annotated[int | None, if_given("INT")] = None
    model_file: Annotated[str | None, if_given("FILE:FUNCTION")] = None
    out: Annotated[Path | None, if_given("PATH")] = None
    json: Annotated[bool, *FLAG] = False


@dataclass(frozen=True)
class Short(Options):
    """The options that ``--help`` shows.

    Attributes:
        settings: How to compute.
    """

    settings: Annotated[Computing, tyro.conf.arg(name="")] = field(default_factory=Computing)


@dataclass(frozen=True)
class Told(Options):
    """All options.

    Attributes:
        settings: The problem of a state dict.
    """

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
        if self.samples is not None and self.samples < 1:
            raise InvalidInput(explain(f"--samples is {self.samples}", "it counts samples", "Correct the number"))
        shared = [f.name for f in dataclasses.fields(Plan) if f.name != "seed"]
        return Plan(**{name: getattr(self, name) for name in shared}, seed=self.settings.seed)


def parse(arguments: Sequence[str]) -> tuple[Told, Run | None, Path | None]:
    """Read the options, on top of the settings of the run that they name.

    Raises:
        InvalidInput: There is nothing at the path, or an option contradicts the run.
        RunFolderError: The path is a folder, and no run.
        SystemExit: Help was asked for, or an option is unknown.
    """
    if {"-h", "--help"} & set(arguments):
        _read(Short(path=tyro.MISSING), ["--help"])
    told = _read(Told(path=tyro.MISSING), arguments)
    run, file = locate(told.path)
    if run is None:
        return told, None, file
    own = settings_beside(run, told.model_file)
    if own is None:
        return told, run, file
    told = _read(Told(path=tyro.MISSING, settings=own), arguments)
    refuse_changes(
        told.path,
        own,
        told.settings,
        told.model_file,
        remedy="Leave the option out; to measure another loss, pass the checkpoint file as a state dict",
    )
    return told, run, file


T = TypeVar("T", bound=Options)


def _read(default: T, arguments: Sequence[str]) -> T:
    return tyro.cli(type(default), args=arguments, prog="thalweg spectrum", description=DESCRIPTION, default=default)
