"""``thalweg regimes``: cut a run, or somebody's log, into regimes, and say why."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from thalweg.cli.console import complain, say, talk, warnings_as_notes
from thalweg.cli.options import columns_of
from thalweg.errors import InvalidInput, explain

if TYPE_CHECKING:
    from rich.console import Console

    from thalweg.phases.regimes_result import Regimes

DESCRIPTION = """Cut a run into regimes: transient, saturation, sharpening, edge of stability, reduction, divergence.

Takes a run folder of thalweg, or a CSV file (also as Weights & Biases exports it) with a loss, and, if it was measured,
sharpness and learning rate. Columns are guessed by name; the guesses are shown.

examples:
  thalweg regimes runs/quickstart
  thalweg regimes log.csv --rule heavy_ball --momentum 0.9 --lr 0.05
  thalweg regimes wandb.csv --columns loss=train/nll sharpness=hessian/top --batch-size 32 --samples 50000
"""


@dataclass(frozen=True)
class Told:
    """What ``thalweg regimes`` is told.

    Attributes:
        source: A run folder, or a CSV file.
        columns: For a CSV file: which column is what, as in loss=train/nll; step, loss, sharpness, learning_rate,
            batch_sharpness, threshold.
        rule: For a CSV file: gd, heavy_ball, ema, nesterov, adam, adamw, rmsprop (default: gd is assumed).
        momentum: For a CSV file: momentum, or beta1.
        weight_decay: For a CSV file: weight decay.
        kappa: For a CSV file: threshold times learning rate, in place of the rule's.
        lr: For a CSV file without such a column: the learning rate.
        batch_size: For a CSV file: samples of a mini-batch (default: all).
        samples: For a CSV file: samples of the data.
        transient: Length of the early transient, in steps.
        out: Where to write the page (default: regimes.html in the run folder, or beside the file).
        json: Print segments and events as JSON in place of tables.
    """

    source: Annotated[Path, tyro.conf.Positional]
    columns: tuple[str, ...] = ()
    rule: str | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    kappa: float | None = None
    lr: float | None = None
    batch_size: int | None = None
    samples: int | None = None
    transient: float = 10.0
    out: Path | None = None
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def main(arguments: Sequence[str]) -> int:
    """Segment, print, write the page; return the exit code."""
    told = tyro.cli(Told, args=arguments, prog="thalweg regimes", description=DESCRIPTION)
    from thalweg.report.regimes_page import write_regimes_page

    console = talk(stderr=told.json)
    notes: tuple[str, ...] = ()
    with warnings_as_notes():
        if told.source.is_dir():
            regimes, target = _run(told), told.source / "regimes.html"
        else:
            regimes, notes = _log(told)
            target = told.source.with_name(f"{told.source.stem}-regimes.html")
        for note in (*notes, *regimes.notes):
            complain(note, "note")
        if told.json:
            print(json.dumps(as_json(regimes), indent=2, allow_nan=False))
        else:
            show(regimes, console)
        name = told.source.resolve().name
        say(f"Page: {write_regimes_page(regimes, told.out or target, name)}", console)
    return 0


def _run(told: Told) -> Regimes:
    from thalweg.phases.regimes_run import regimes_of

    given = [
        flag
        for flag, value in (
            ("--columns", told.columns),
            ("--rule", told.rule),
            ("--kappa", told.kappa),
            ("--lr", told.lr),
            ("--batch-size", told.batch_size),
            ("--samples", told.samples),
        )
        if value
    ]
    if given:
        raise InvalidInput(
            explain(f"{given[0]} was given with a run folder", "the run recorded it", f"Leave {given[0]} out")
        )
    return regimes_of(told.source, transient=told.transient)


def _log(told: Told) -> tuple[Regimes, tuple[str, ...]]:
    from thalweg.phases.regimes import segment
    from thalweg.phases.thresholds import limit
    from thalweg.runs.logs import read_log

    log = read_log(told.source, columns_of(told.columns))
    arguments = log.arguments()
    if told.lr is not None:
        arguments["learning_rate"] = told.lr
    bound = limit(told.rule, kappa=told.kappa, momentum=told.momentum, weight_decay=told.weight_decay)
    found = segment(
        **arguments,
        rule=bound if told.rule is not None or told.weight_decay else None,
        kappa=told.kappa,
        batch_size=told.batch_size,
        samples=told.samples,
        transient=told.transient,
    )
    return found, log.notes


def show(regimes: Regimes, console: Console) -> None:
    """Print the segments and events as tables, and the text."""
    from rich.table import Table

    table = Table(title="Regimes", title_justify="left", box=None, pad_edge=False)
    for head in ("regime", "steps", "sharpness", "ratio", "events/1,000", "confidence"):
        table.add_column(head, justify="left" if head in ("regime", "steps") else "right", no_wrap=True)
    for s in regimes.segments:
        ratio = s.batch_ratio if math.isfinite(s.batch_ratio) else s.ratio
        table.add_row(
            s.label,
            f"{s.start:,}-{s.end:,}",
            _or_dash(10**s.change if math.isfinite(s.change) else math.nan, "x {:.3g}"),
            _or_dash(ratio, "{:.2f}"),
            _or_dash(s.rate, "{:.2g}"),
            _or_dash(s.confidence, "{:.0%}"),
        )
    console.print(table)
    if regimes.catapults:
        events = Table(title="Excursions of the loss", title_justify="left", box=None, pad_edge=False)
        for head in ("event", "opened", "closed", "peak", "ratio"):
            events.add_column(head, justify="left" if head == "event" else "right", no_wrap=True)
        for e in regimes.catapults[:20]:
            closed = "never" if e.closed is None else f"{e.closed:,}"
            events.add_row(e.label, f"{e.opened:,}", closed, f"x {e.height:.3g}", _or_dash(e.ratio, "{:.2f}"))
        console.print(events)
        if len(regimes.catapults) > 20:
            say(f"and {len(regimes.catapults) - 20} more", console)
    from thalweg.phases.regimes_words import explanation

    say(explanation(regimes, notes=False), console)


def as_json(regimes: Regimes) -> dict[str, Any]:
    """Return the result in JSON's own types; NaN becomes null."""
    from dataclasses import asdict

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {
        "segments": [{key: plain(value) for key, value in row.items()} for row in regimes.table()],
        "excursions": [{key: plain(value) for key, value in asdict(e).items()} for e in regimes.catapults],
        "flags": list(regimes.flags),
        "notes": list(regimes.notes),
        "text": regimes.text,
    }


def _or_dash(value: float, pattern: str) -> str:
    return pattern.format(value) if math.isfinite(value) else "-"
