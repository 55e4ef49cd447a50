"""``thalweg glass``: which curvature matters in which layers, at which step length."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table

from thalweg.cli.config import threads
from thalweg.cli.console import complain, say, talk, warnings_as_notes
from thalweg.cli.glass_meter import GlassMeter
from thalweg.cli.glass_options import Place, Told, parse, start
from thalweg.cli.meter import duration
from thalweg.cli.spectrum import as_json
from thalweg.cli.subject import Subject
from thalweg.cli.subject_config import as_run
from thalweg.glass.printed import density_word, label_word, value_word
from thalweg.runs.files import inside

if TYPE_CHECKING:
    import xarray as xr

    from thalweg.glass.look import Glass


TINY = 1e-300
LEAST = 9
"""Characters of a layer's name that are shown, however narrow the terminal is."""
WORDS = ("layer", "says", "matters")
"""Columns of the table that hold words."""


def main(arguments: Sequence[str]) -> int:
    """Measure as the options say; return the exit code."""
    told, place = parse(arguments)
    console = talk(stderr=told.json)
    with warnings_as_notes():
        rows = [_measure(told, place, step, console) for step in place.steps]
        from thalweg.report.glass_page import write_glass_page

        target = rows[-1][0]
        history = [path for path, _ in rows] if place.run is None or told.out is not None else None
        say(f"Page: {write_glass_page(target, history=history)}", console)
    if told.json:
        found = [as_json(data) for _, data in rows]
        print(json.dumps(found[0] if len(found) == 1 else found, indent=2, allow_nan=False))
    return 0


def _measure(told: Told, place: Place, step: int | None, console: Console) -> tuple[Path, xr.Dataset]:
    """Look at one step, say what was found, and write it."""
    from thalweg.glass.look import look
    from thalweg.glass.stored import KIND, glass_dataset
    from thalweg.runs.analyses import write_analysis

    found, rule, state = start(told, place, step)
    problem = found.problem
    say(f"{found.source}; {problem.dimension:,} parameters, {problem.samples:,} samples", console)
    began = time.monotonic()
    meter = GlassMeter(console, told.batches)
    try:
        with threads(as_run(told.settings), problem):
            glass = look(
                problem,
                found.w,
                update=rule,
                state=state,
                sigma=told.sigma,
                batches=told.batches,
                batch_size=told.batch_size or _own_size(found),
                lengths=told.lengths,
                seed=told.settings.seed,
                progress=meter,
            )
    finally:
        meter.close()
    spent = time.monotonic() - began
    facts = {
        "name": found.name,
        "source": found.source,
        "step": found.step,
        "optimizer": rule.describe() if rule is not None else None,
        "model": type(problem.model).__name__,
        "dimension": problem.dimension,
        "samples": problem.samples,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "device": str(problem.device),
        "seed": told.settings.seed,
        "torch": torch.__version__,
        "seconds": round(spent, 2),
        "notes": "\n".join((*found.notes, *glass.notes)),
    }
    data = glass_dataset(glass, facts)
    target = told.out.with_suffix(".nc") if told.out is not None else _target(found, place)
    write_analysis(target, data, KIND)
    _show(glass, console)
    for note in (*found.notes, *glass.notes):
        complain(note, "note")
    say(f"Measured in {duration(spent)}. Results: {target}", console)
    return target, data


def _own_size(found: Subject) -> int | None:
    """The mini-batches of the run, where it has them and the data here is large enough."""
    size = found.run.manifest.loop.get("batch_size") if found.run is not None else None
    known = found.problem._batches.samples
    return size if isinstance(size, int) and known is not None and size < known else None


def _target(found: Subject, place: Place) -> Path:
    if found.run is None:
        return Path(f"{'initial' if place.file is None else found.name}-glass.nc")
    return inside(found.run.path, found.run.path / "analyses" / f"glass-{found.step}.nc")


def _show(glass: Glass, console: Console) -> None:
    """Print the answer and its evidence by layer."""
    say("", console)
    say(glass.text, console)
    say("", console)
    heads = ("layer", "density", "s.e.", "1st", "2nd", "says", "leak", "up to", "matters")
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    rows = []
    for row, power, layer in zip(glass.density.layers, glass.exponents.layers, glass.layers):
        cells = (
            density_word(row, power),
            f"{row.rho_error / row.rho:.0%}" if density_word(row, power)[0].isdigit() else "",
            value_word(power.first, power.first_error),
            value_word(power.second, power.second_error),
            label_word(power),
            f"{row.leakage:.0%}",
            f"{layer.crossover:.0e}" if layer.crossover else "-",
            layer.curvature,
        )
        rows.append((row.name, *cells))
    rest = sum(max(len(head), *(len(line[i]) for line in rows)) + 1 for i, head in enumerate(heads) if i)
    for head in heads:
        table.add_column(head, justify="left" if head in WORDS else "right", no_wrap=True)
    for line in rows:
        table.add_row(_short(line[0], max(console.width - rest, LEAST)), *line[1:])
    console.print(table, highlight=False, markup=False)
    say("", console)
    change = glass.change
    if change is None:
        return
    table = Table(box=None, pad_edge=False)
    for head in ("updates", "change", "Hessian", "deviation", "glass", "mean too", "bound"):
        table.add_column(head, justify="right", no_wrap=True)
    e, m = change.expected, change.measured
    for i, t in enumerate(e.lengths):
        table.add_row(
            f"{t:g}",
            f"{m.change[i]:+.2e}",
            f"{e.linear[i] + e.hessian[i]:+.2e}",
            f"{change.size[i]:.1e} ± {change.size_error[i] / max(change.size[i], TINY):.0%}",
            f"{e.glass[i]:.1e} ± {e.glass_error[i] / e.glass[i]:.0%}" if glass.glassy and e.glass[i] else "none",
            f"{e.deviation[i]:.1e}" if glass.glassy else "none",
            f"{e.jensen[i]:.1e}" if glass.glassy else "none",
        )
    console.print(table, highlight=False, markup=False)
    say("", console)


def _short(name: str, most: int) -> str:
    """Cut a long name in its middle; its end tells layers apart."""
    return name if len(name) <= most else f"{name[: most // 3]}…{name[len(name) - most + most // 3 + 1 :]}"
