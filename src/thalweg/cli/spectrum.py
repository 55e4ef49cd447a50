"""``thalweg spectrum``: the curvature at a checkpoint, with its evidence and what it cost."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from thalweg.cli.config import threads
from thalweg.cli.console import complain, say, talk, warnings_as_notes
from thalweg.cli.interrupt import CtrlC
from thalweg.cli.meter import duration
from thalweg.cli.plan import Plan
from thalweg.cli.spectrum_options import Told, parse
from thalweg.cli.stages import Stopped, stage_meter
from thalweg.cli.subject import Subject, subject
from thalweg.cli.subject_config import as_run
from thalweg.cli.survey import Survey
from thalweg.errors import ThalwegError
from thalweg.runs.files import inside

if TYPE_CHECKING:
    import xarray as xr

STOPPING = "Stopping; what the stages before found is kept. Ctrl-C again leaves at once."


def main(arguments: Sequence[str]) -> int:
    """Measure as the options say; return the exit code."""
    told, run, file = parse(arguments)
    plan, step = told.plan(), told.step_number
    console = talk(stderr=told.json)
    with warnings_as_notes():
        found = subject(run, file, told.settings, step, told.model_file).first(told.samples)
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
        except ThalwegError:
            if written.done:
                say(f"What the stages before found is kept in {target}", console)
            raise
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
