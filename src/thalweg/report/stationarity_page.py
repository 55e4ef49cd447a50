"""The page of a verdict on stationarity, and its sections in the page of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.errors import ThalwegError
from thalweg.report.frame import framed, write_page
from thalweg.report.numbers import number
from thalweg.report.shell import caveat_list, figure_section, table

if TYPE_CHECKING:
    import xarray as xr

    from thalweg.stationarity.verdict import Verdict

ENOUGH = 20
"""Probes of the gradient below which a run's own page has no such sections."""
SEE_LOSS = (
    "The shaded window is what the verdict is about: the second half of the last stretch at constant settings. Dotted "
    "lines mark where settings changed."
)
SEE_LEVEL = (
    "Dots are the squared gradient norm with its noise taken out; the dotted line above them is the usual estimate, "
    "which noise lifts. The band is the mean over the window with its 95 % interval, the dashed line the floor above "
    "which the gradient counts as bounded away from zero."
)
SEE_LAG = "How alike snapshots of the loss are, against the lag between them; the dotted line is tau, their memory."
SEE_MEAN = (
    "The mean loss over ever longer stretches of the window, with two standard errors. A mean that has a limit stops "
    "moving, and none need exist."
)
KINDS = {
    "invariant regime": "accent",
    "stationary point": "good",
    "settled loss, growing gradient": "warn",
    "settled loss, falling gradient": "good",
    "still training": "plain",
    "unstable": "bad",
    "undecided": "warn",
}


def stationarity_sections(data: xr.Dataset, manifest: Mapping[str, Any]) -> list[str]:
    """Return the sections of a run's own page, as HTML; nothing where the gradient was not probed often enough.

    Args:
        data: The run's data.
        manifest: Its manifest as a mapping.
    """
    from thalweg.stationarity.assess import assess_history
    from thalweg.stationarity.logs import of_data

    name = "gradient_unbiased"
    if name not in data or int(np.isfinite(data[name].to_numpy()).sum()) < ENOUGH:
        return []
    try:
        found = assess_history(of_data(data, manifest))
    except ThalwegError:  # a run's page does not depend on it
        return []
    return [] if found.loss is None else sections(found)


def sections(verdict: Verdict) -> list[str]:
    """Return the sections of a verdict: what it says with its evidence, and a figure for each part of it."""
    from thalweg.stationarity import verdict_figure as figures

    head = f"{verdict.kind[0].upper()}{verdict.kind[1:]}: {verdict.words} {verdict.advice}"
    first = figure_section(
        "stationarity",
        "Has it settled?",
        SEE_LOSS,
        head,
        figures.loss_figure(verdict),
        more=evidence_table(verdict) + open_list(verdict),
    )
    level = verdict.level
    said = "" if level is None or math.isnan(level.unbiased) else level.why
    return [
        part
        for part in (
            first,
            figure_section("gradient-level", "Gradient level", SEE_LEVEL, said, figures.level_figure(verdict)),
            figure_section(
                "autocorrelation",
                "Memory of the loss",
                SEE_LAG,
                _memory(verdict),
                figures.autocorrelation_figure(verdict),
                against="the lag",
            ),
            figure_section(
                "doubling",
                "Time averages",
                SEE_MEAN,
                "",
                figures.mean_figure(verdict),
                against="snapshots, logarithmic",
            ),
        )
        if part
    ]


def evidence_table(verdict: Verdict) -> str:
    """Return the evidence as an HTML table; nothing without."""
    if not verdict.evidence:
        return ""
    window = f", {verdict.window}" if verdict.window is not None else ""
    rows = [(row.name, row.value, row.says) for row in verdict.evidence]
    return table(("evidence", "value", "says"), rows, caption=f"What the verdict is made of{window}", wordy=True)


def open_list(verdict: Verdict) -> str:
    """Return what is undecided, and the steps that would decide it."""
    return caveat_list(
        found.reason
        + ("" if found.more_steps is None else f" At least about {found.more_steps:,} more steps would decide it.")
        for found in verdict.undecided
    )


def write_stationarity_page(verdict: Verdict, out: str | Path, name: str = "run") -> Path:
    """Write the page of a verdict: one file that opens without a network.

    Args:
        verdict: What `assess` found.
        out: Where to write.
        name: Its heading.

    Returns:
        The path of the page.

    Raises:
        StorageError: It cannot be written; nothing is left behind.
    """
    return write_page(out, render_stationarity(verdict, name))


def render_stationarity(verdict: Verdict, name: str = "run") -> str:
    """Return the page as text."""
    from thalweg import __version__

    return framed(
        "Stationarity",
        name,
        [f"{verdict.window}" if verdict.window is not None else "no window"],
        sections(verdict),
        verdicts=[(verdict.kind, KINDS[verdict.kind])],
        caveats=verdict.notes,
        numbers=_tiles(verdict),
        version=__version__,
    )


def _memory(verdict: Verdict) -> str:
    loss = verdict.loss
    if loss is None or math.isnan(loss.ess):
        return ""
    return f"{loss.n:,} snapshots are worth {loss.ess:,.0f} independent ones: tau is {loss.tau:.3g} snapshots."


def _tiles(verdict: Verdict) -> list[tuple[str, str, str]]:
    cells: list[tuple[str, str, str]] = [("verdict", verdict.kind, "of this window")]
    if verdict.loss is not None and verdict.loss.mean is not None:
        cells.append(("mean loss", number(verdict.loss.mean.value), f"± {verdict.loss.mean.standard_error:.1g}"))
    level = verdict.level
    if level is not None and not math.isnan(level.unbiased):
        floor = "floor unknown" if math.isnan(level.floor) else f"floor {number(level.floor)}"
        cells.append(("squared gradient norm", number(level.unbiased), floor))
    if verdict.descent is not None:
        cells.append(("descent ratio Q", f"{verdict.descent.ratio:.2f}", "1: smooth descent, 0: none is left"))
    if verdict.more_steps is not None:
        cells.append(("steps to decide", f"{verdict.more_steps:,}", "at the same settings"))
    return cells
