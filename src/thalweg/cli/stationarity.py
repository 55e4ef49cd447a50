"""``thalweg stationarity``: has a run settled, and on what; from its folder, or from somebody's log."""

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

if TYPE_CHECKING:
    from rich.console import Console

    from thalweg.stationarity.verdict import Verdict

DESCRIPTION = """Say whether training has settled: still training, a stationary point, or an invariant regime.

Takes a run folder of thalweg, or a CSV file (also as Weights & Biases exports it) with a loss and, if it was measured,
learning rate, gradient_unbiased (the unbiased squared gradient norm), and other observables. The second half of the
last stretch at constant settings is looked at.

examples:
  thalweg stationarity runs/quickstart
  thalweg stationarity log.csv --columns loss=train/nll --floor 1e-3
  thalweg stationarity runs/long --window 20000 40000
"""


@dataclass(frozen=True)
class Told:
    """What ``thalweg stationarity`` is told.

    Attributes:
        source: A run folder, or a CSV file.
        columns: For a CSV file: which column is what, as in loss=train/nll; step, loss, learning_rate.
        window: First and last step to look at (default: half of the last stretch at constant settings).
        segment: Which stretch, from 0, or back from -1.
        skip: Share of the stretch, at its start, that is left out.
        floor: Squared gradient norm that counts as bounded away from zero (default: 5 % of the level at the start).
        seed: Of the permutations.
        out: Where to write the page (default: stationarity.html in the run folder, or beside the file).
        json: Print the verdict as JSON in place of a table.
    """

    source: Annotated[Path, tyro.conf.Positional]
    columns: tuple[str, ...] = ()
    window: tuple[int, int] | None = None
    segment: int = -1
    skip: float = 0.5
    floor: float | None = None
    seed: int = 0
    out: Path | None = None
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def main(arguments: Sequence[str]) -> int:
    """Assess, print, write the page; return the exit code."""
    told = tyro.cli(Told, args=arguments, prog="thalweg stationarity", description=DESCRIPTION)
    from thalweg.report.stationarity_page import write_stationarity_page
    from thalweg.stationarity.assess import assess

    console = talk(stderr=told.json)
    folder = told.source.is_dir()
    with warnings_as_notes():
        verdict = assess(
            told.source,
            window=told.window,
            segment=told.segment,
            skip=told.skip,
            floor=told.floor,
            columns=columns_of(told.columns) if not folder or told.columns else None,
            seed=told.seed,
        )
        for note in verdict.notes:
            complain(note, "note")
        if told.json:
            print(json.dumps(as_json(verdict), indent=2, allow_nan=False))
        else:
            show(verdict, console)
        beside = told.source.with_name(f"{told.source.stem}-stationarity.html")
        target = told.out or (told.source / "stationarity.html" if folder else beside)
        say(f"Page: {write_stationarity_page(verdict, target, told.source.resolve().name)}", console)
    return 0


def show(verdict: Verdict, console: Console) -> None:
    """Print the verdict, its evidence, what is open, and the advice."""
    from rich.table import Table

    where = f" ({verdict.window})" if verdict.window is not None else ""
    say(f"{verdict.kind.upper()}{where}", console)
    say(verdict.words, console)
    if verdict.evidence:
        table = Table(title="Evidence", title_justify="left", box=None, pad_edge=False)
        for head in ("evidence", "value", "says"):
            table.add_column(head, overflow="fold")
        for row in verdict.evidence:
            table.add_row(row.name, row.value, row.says)
        console.print(table, markup=False, highlight=False)
    for found in verdict.undecided:
        more = "" if found.more_steps is None else f" At least about {found.more_steps:,} more steps would decide it."
        say(f"Open: {found.reason}{more}", console)
    say(f"Advice: {verdict.advice}", console)


def as_json(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict in JSON's own types; what is not finite becomes null."""
    window, level, loss = verdict.window, verdict.level, verdict.loss

    def plain(value: float) -> float | None:
        return value if math.isfinite(value) else None

    found: dict[str, Any] = {
        "verdict": verdict.kind,
        "words": verdict.words,
        "advice": verdict.advice,
        "window": None if window is None else [window.start, window.stop],
        "settings": {} if window is None else dict(window.settings),
        "loss": None if loss is None else loss.state,
        "gradient": None,
        "evidence": verdict.table(),
        "undecided": [{"reason": x.reason, "more_steps": x.more_steps} for x in verdict.undecided],
        "notes": list(verdict.notes),
    }
    if level is not None:
        found["gradient"] = {
            "state": level.state,
            "probes": level.probes,
            "unbiased": plain(level.unbiased),
            "interval": [plain(level.interval[0]), plain(level.interval[1])],
            "biased": plain(level.biased),
            "noise": plain(level.noise),
            "floor": plain(level.floor),
        }
    return found
