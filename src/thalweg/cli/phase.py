"""``thalweg phase``: the phase diagram of early training over depth and width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from thalweg.cli.console import complain, say, talk, warnings_as_notes
from thalweg.cli.meter import duration
from thalweg.cli.phase_meter import phase_meter, predicted, workers_of
from thalweg.cli.phase_options import Told, parse

if TYPE_CHECKING:
    from thalweg.sweeps.run_result import Sweep

SHOWN = 5
"""Failed cells that are named."""


def main(arguments: Sequence[str]) -> int:
    """Measure and draw as the options say; return the exit code."""
    told = parse(arguments)
    with warnings_as_notes():
        return _phase(told, talk())


def _phase(told: Told, console: Console) -> int:
    from thalweg.engines import as_engine
    from thalweg.phases.diagram_cells import cell_work
    from thalweg.sweeps.sweep import sweep

    _describe(told)
    if told.plan:
        return 0
    meter = phase_meter(console)
    try:
        with as_engine(told.engine, workers=told.workers, address=told.address) as engine:
            found = sweep(
                told.measure,
                told.cells,
                told.folder,
                engine=engine,
                cost=cell_work,
                retry_failed=told.retry_failed,
                meter=meter,
            )
    except KeyboardInterrupt:
        say(f"Stopped. Finished cells are kept in {told.folder}: the same command goes on from there.")
        return 130
    return _finish(told, found)


def _describe(told: Told) -> None:
    """Say what will be done, and what it will take."""
    plan = told.cells
    samples = "all samples" if told.all_samples else f"{told.samples:,} samples"
    depths, widths = (", ".join(map(str, sizes)) for sizes in (told.depths, told.widths))
    say(f"{told.model} of depth {depths} and width {widths}, {told.init} initialisation, {told.seeds} seeds each")
    say(f"{told.data}, {samples}, {told.loss}; runs of {told.steps} steps, c on a grid of 2^{told.grid_step:g}")
    count = workers_of(told)
    seconds = predicted(told)
    where = "a Ray cluster" if told.engine == "ray" else f"{count} process{'es' if count > 1 else ''}"
    say(f"{len(plan)} cells, about {duration(seconds)} on {where}; results in {told.folder}")


def _finish(told: Told, found: Sweep) -> int:
    from thalweg.phases.diagram_cells import diagram_of
    from thalweg.report.phase_page import write_phase_page

    for record in found.failed[:SHOWN]:
        complain(f"{record.cell} failed: {record.error}", "note")
    if len(found.failed) > SHOWN:
        complain(f"and {len(found.failed) - SHOWN} more cells failed", "note")
    if not any(record.status == "done" for record in found.records):
        complain("no cell succeeded")
        return 1
    seconds = found.status().seconds
    diagram = diagram_of(found.table(), {**facts(told), "cell_seconds": seconds})
    say("")
    say(diagram.table())
    say("")
    say(diagram.sentence)
    say(f"Work in all cells: {duration(seconds)}")
    say(f"Results: {diagram.save(told.folder / 'phases.nc')}")
    say(f"Page: {write_phase_page(told.folder / 'phases.nc', told.folder / 'phases.html')}")
    return 0


def facts(told: Told) -> dict[str, Any]:
    """What a diagram's file says about where it comes from."""
    measure = told.measure
    return {
        "name": f"{told.model} on {told.data}",
        "model": told.model,
        "init": told.init,
        "data": told.data,
        "samples": "all" if told.all_samples else told.samples,
        "loss": told.loss,
        "batch_size": "all" if told.batch_size is None else told.batch_size,
        "steps": told.steps,
        "dtype": told.dtype,
        "search": told.mode,
        "grid_step": told.grid_step,
        "window": told.window,
        "eps_sharp": measure.eps_sharp,
        "tol": measure.spec.tol,
        "engine": told.engine,
    }
