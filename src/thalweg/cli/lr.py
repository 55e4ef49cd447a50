"""``thalweg lr``: the largest stable first step, warm-up or not, and the distance to divergence, with evidence."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from thalweg.cli.config import threads
from thalweg.cli.console import complain, say, talk, warnings_as_notes
from thalweg.cli.lr_options import parse, start
from thalweg.cli.meter import duration
from thalweg.cli.subject_config import as_run

if TYPE_CHECKING:
    from thalweg.phases.rates import LearningRateReport


def main(arguments: Sequence[str]) -> int:
    """Answer as the options say; return the exit code."""
    told, place = parse(arguments)
    console = talk(stderr=told.json)
    with warnings_as_notes():
        found = start(told, place)
        problem, rule = found.problem, found.rule
        assert rule is not None  # start() made one
        say(f"{found.source}; {problem.dimension:,} parameters, {problem.samples:,} samples", console)
        say(f"{rule.describe()}, before its first step", console)
        began = time.monotonic()
        with threads(as_run(told.settings), problem):
            from thalweg.phases.rates import first_step

            report = first_step(
                problem,
                rule,
                found.w,
                warmup_steps=told.warmup_steps,
                steps=told.steps,
                tol=told.tol,
                seed=told.settings.seed,
            )
        _show(report, console)
        say(f"Measured in {duration(time.monotonic() - began)}.", console)
        for note in (*found.notes, *report.notes):
            complain(note, "note")
    if told.out is not None:
        told.out.parent.mkdir(parents=True, exist_ok=True)
        report.plot().write_html(told.out, include_plotlyjs=True)
        say(f"Figure: {told.out}", console)
    if told.json:
        print(json.dumps(as_json(report), indent=2, allow_nan=False))
    return 0


def _show(report: LearningRateReport, console: Console) -> None:
    say("", console)
    say(report.describe(), console)
    say("", console)
    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("what", "value", "how"):
        table.add_column(column, no_wrap=column != "how")
    for row in report.evidence():
        table.add_row(*row)
    console.print(table, highlight=False, markup=False)
    say("", console)


def as_json(report: LearningRateReport) -> dict[str, Any]:
    """Return the numbers in JSON's own types; what is infinite or not known becomes null."""

    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    names = (
        "name",
        "target",
        "learning_rate",
        "bracket",
        "sharpness",
        "residual",
        "local_limit",
        "directional",
        "quadratic",
        "c1",
        "quadratic_c1",
        "anharmonicity",
        "divergence",
        "divergence_bracket",
        "steps",
        "cutoff",
        "start",
        "saved_share",
        "saved",
        "loss",
        "points",
        "runs",
        "products",
        "gradients",
        "forwards",
    )
    facts = {name: plain(getattr(report, name)) for name in names}
    warmup = report.warmup.name.lower() if report.warmup else None
    return {"answer": report.describe(), "warmup": warmup, "stop": report.stop.name.lower(), **facts}
