"""The page of a segmentation, and its section in the page of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.errors import ThalwegError
from thalweg.report.frame import framed, write_page
from thalweg.report.numbers import fixed, number, share
from thalweg.report.shell import figure_section, table

if TYPE_CHECKING:
    import xarray as xr

    from thalweg.phases.catapults import Catapult
    from thalweg.phases.regimes_result import Regimes

TITLE = "Regimes"
SEE = (
    "Time is logarithmic, as the first steps decide as much as the last thousand. Bands are regimes: sharpness settles "
    "(transient), rests (saturation), rises (sharpening), and may stay at the threshold (edge of stability) or fall "
    "again. Where bands meet between two measurements, the border is drawn halfway."
)
ENOUGH = 8
"""Measurements of sharpness below which a run's own page has no such section."""
MOST_EVENTS = 12


def regimes_sections(data: xr.Dataset, manifest: Mapping[str, Any]) -> list[str]:
    """Return the section of a run's own page, as HTML; nothing where too little was measured to say anything.

    Args:
        data: The run's data.
        manifest: Its manifest as a mapping.
    """
    from thalweg.phases.regimes_run import regimes_of_data

    if "sharpness" not in data or int(np.isfinite(data["sharpness"].to_numpy()).sum()) < ENOUGH:
        return []
    try:
        found = regimes_of_data(data, manifest)
    except ThalwegError:  # a run's page does not depend on it
        return []
    return [] if set(found.order) <= {"undetermined"} else [section(found)]


def section(regimes: Regimes) -> str:
    """Return figure, finding and tables as one section."""
    from thalweg.phases.regimes_words import summary

    more = segment_table(regimes) + event_table(regimes.catapults)
    return figure_section(
        "regimes", TITLE, SEE, summary(regimes), regimes.plot(), against="the step, logarithmic", more=more
    )


def segment_table(regimes: Regimes) -> str:
    """Return the segments with their evidence as an HTML table."""
    heads = (
        "regime",
        "steps",
        "measured",
        "sharpness",
        "of threshold",
        "loss rose",
        "excursions / 1,000",
        "confidence",
    )
    rows = []
    batchy = any(np.isfinite(s.batch_ratio) for s in regimes.segments)
    for s in regimes.segments:
        ratio = s.batch_ratio if batchy else s.ratio
        cells = (
            s.label,
            f"{s.start:,}-{s.end:,}",
            f"{s.measured:,}",
            f"x {number(10**s.change)}" if np.isfinite(s.change) else "",
            fixed(ratio) if np.isfinite(ratio) else "",
            f"{share(s.rises)} of steps" if np.isfinite(s.rises) else "",
            number(s.rate) if np.isfinite(s.rate) else "",
            share(s.confidence) if np.isfinite(s.confidence) else "",
        )
        rows.append(cells)
    kind = "batch sharpness" if batchy else "sharpness"
    return table(heads, rows, caption=f"Segments; the ratio is the median of {kind} over its threshold")


def event_table(events: tuple[Catapult, ...]) -> str:
    """Return the excursions of the loss as an HTML table, the highest ones where there are many; nothing without."""
    if not events:
        return ""
    shown = sorted(sorted(events, key=lambda e: -e.height)[:MOST_EVENTS], key=lambda e: e.opened)
    rows = [
        (
            e.label,
            f"{e.opened:,}",
            f"{e.peak:,}",
            "never" if e.closed is None else f"{e.closed:,}",
            f"x {number(e.height)}" if np.isfinite(e.height) else "not finite",
            f"x {number(e.after / e.before)}" if np.isfinite(e.after) and e.before > 0 else "",
            fixed(e.ratio) if np.isfinite(e.ratio) else "",
        )
        for e in shown
    ]
    most = f", the {MOST_EVENTS} highest of {len(events)}" if len(events) > MOST_EVENTS else ""
    heads = ("event", "opened", "peak", "closed", "loss", "sharpness", "of threshold")
    return table(heads, rows, caption=f"Excursions of the loss{most}")


def write_regimes_page(regimes: Regimes, out: str | Path, name: str = "run") -> Path:
    """Write the page of a segmentation: one file that opens without a network.

    Args:
        regimes: What `segment` found.
        out: Where to write.
        name: Its heading.

    Returns:
        The path of the page.

    Raises:
        StorageError: It cannot be written; nothing is left behind.
    """
    return write_page(out, render_regimes(regimes, name))


def render_regimes(regimes: Regimes, name: str = "run") -> str:
    """Return the page as text."""
    from thalweg import __version__

    curves = regimes.curves
    kind = curves.limit.name if curves.limit is not None else "optimizer"
    flags = [(flag, "warn") for flag in regimes.flags if flag != "diverged"]
    kinds = {"edge of stability": "accent", "diverged": "bad"}
    sure = [(s.label, kinds.get(s.label, "plain")) for s in regimes.segments]
    return framed(
        "Regimes",
        name,
        [kind, f"{len(curves.steps):,} losses, {len(curves.at):,} measurements of sharpness"],
        [section(regimes)],
        verdicts=[*sure, *flags],
        caveats=regimes.notes,
        numbers=_tiles(regimes),
        version=__version__,
        drawn="The figure needs",
    )


def _tiles(regimes: Regimes) -> list[tuple[str, str, str]]:
    curves = regimes.curves
    ratio = curves.ratio[np.isfinite(curves.ratio)]
    finite = regimes.agreement[np.isfinite(regimes.agreement)]
    cells: list[tuple[str, str, str]] = [
        ("last regime", regimes.segments[-1].label, f"from step {regimes.segments[-1].start:,}")
    ]
    if len(ratio):
        cells.append(("sharpness at the end", fixed(float(ratio[-1])), "of the threshold"))
    cells.append(("excursions of the loss", f"{len(regimes.catapults):,}", "outside the edge of stability"))
    if len(finite):
        cells.append(("agreement", share(float(finite.mean())), "over nine settings, all measurements"))
    return cells
