"""The page of a trajectory map, and its sections in the page of a run."""

from __future__ import annotations

import html
import math
from pathlib import Path

import thalweg
from thalweg.errors import ThalwegError
from thalweg.report import trajectory_figures, trajectory_words
from thalweg.report.frame import framed, write_page
from thalweg.report.numbers import fixed, number
from thalweg.report.shell import figure_section, section, table
from thalweg.runs.analyses import analyses
from thalweg.trajectories.figure import MOST
from thalweg.trajectories.hallmarks import Hallmarks, hallmarks
from thalweg.trajectories.map import TrajectoryMap
from thalweg.trajectories.measures import MeasureTable
from thalweg.trajectories.stored import KIND, open_map

TITLES = {
    "map": "Trajectory map",
    "beyond": "Map less its null",
    "groups": "Maps of the groups",
    "length": "Distance, norm and updates",
    "angle": "Angles",
    "path": "Path in a plane",
}
SEE = {
    "map": "The cosine between the weights at every two checkpoints. Light blocks are stretches in which the weights "
    "hardly turn. The hover tells the same of a process without direction.",
    "beyond": "Left: the map less what unrelated updates would give. Middle: the map as seen from the start, less that "
    "of a random walk with the same sizes of updates. Right: the cosine between updates; a random walk has 0 off the "
    "diagonal. Red is more alike than that, blue less; each has its own scale, above it. "
    "Stripes: rounding of the stored weights rules.",
    "groups": "The map of each group of parameters on one scale, with its mean similarity.",
    "length": "How far the weights are from where they began, beside a line and a random walk of the same updates; "
    "their norm; and the size of each update over that of the weights. Stripes: updates below the precision floor.",
    "angle": "Turning angles between neighbouring stretches of the path, and the angle under which neighbouring "
    "checkpoints are seen from the origin and from the start.",
    "path": "The two directions that hold most of the variance. Smooth arcs here are what a random walk gives; the "
    "colour says how much of a checkpoint lies outside the plane.",
}
AGAINST = {"length": "the step", "angle": "the step", "path": "the first component"}
DRAW = {
    "map": trajectory_figures.map_figure,
    "beyond": trajectory_figures.beyond_figure,
    "groups": trajectory_figures.groups_figure,
    "length": trajectory_figures.length_figure,
    "angle": trajectory_figures.angle_figure,
    "path": trajectory_figures.path_figure,
}


def trajectory_sections(found: TrajectoryMap, marks: Hallmarks | None = None, *, told: bool = True) -> list[str]:
    """Return the sections of a map as HTML: figures, the numbers beside their nulls, and labels with evidence.

    Args:
        found: A trajectory map.
        marks: Its hallmarks.
        told: Whether the first section begins with the paragraph and its caveats, for the page of a run.
    """
    said = trajectory_words.figure_words(found)
    if told:
        lines = [*trajectory_words.headline(found, marks), *trajectory_words.caveats(found, marks)]
        said["map"] = " ".join([*lines, said["map"]]).strip()
    if len(found.steps) > MOST:
        said["map"] += f" Drawn are {MOST} of {len(found.steps):,} checkpoints, evenly chosen."
    figures = [
        figure_section(
            f"trajectory-{key}",
            TITLES[key],
            SEE[key],
            said.get(key, "").strip(),
            draw(found),
            against=AGAINST.get(key, "steps"),
        )
        for key, draw in DRAW.items()
    ]
    return [*figures, _numbers(found.table()), _bursts(found), _labels(marks)]


def run_sections(found: TrajectoryMap) -> list[str]:
    """Return the sections that a run's page shows of the map of its checkpoints."""
    return trajectory_sections(found, marks_of(found))


def marks_of(found: TrajectoryMap) -> Hallmarks:
    """Return the hallmarks of a map with what it knows of the run."""
    return hallmarks(found, momentum=found.decay.momentum if found.decay is not None else 0.0)


def newest_map(run: Path) -> TrajectoryMap | None:
    """Return the map of the latest checkpoints in a run folder.

    None where there is none that can be read: the run's own page does not depend on it.
    """
    try:
        found = analyses(run, KIND)
        return open_map(found[-1][1]) if found else None
    except ThalwegError:
        return None


def render_map(found: TrajectoryMap, name: str = "trajectory", marks: Hallmarks | None = None) -> str:
    """Return the page of a map as text: one file that opens without a network.

    Args:
        found: A trajectory map.
        name: What it is of.
        marks: Its hallmarks.
    """
    steps = found.steps
    groups = f"{len(found.groups) - 1} groups" if len(found.groups) > 1 else ""
    return framed(
        "Trajectory",
        name,
        [f"{len(steps):,} checkpoints", f"steps {steps[0]:,} to {steps[-1]:,}", groups],
        trajectory_sections(found, marks, told=False),
        headline=" ".join(trajectory_words.headline(found, marks)),
        verdicts=trajectory_words.verdicts(found, marks),
        caveats=trajectory_words.caveats(found, marks),
        numbers=trajectory_words.tiles(found),
        version=thalweg.__version__,
    )


def write_map_page(
    found: TrajectoryMap, out: str | Path, name: str = "trajectory", marks: Hallmarks | None = None
) -> Path:
    """Write the page of a map.

    Args:
        found: A trajectory map.
        out: Where to write.
        name: What it is of.
        marks: Its hallmarks.

    Raises:
        StorageError: The page cannot be written; nothing is left behind.
    """
    return write_page(out, render_map(found, name, marks))


def _numbers(found: MeasureTable) -> str:
    decay = any(math.isfinite(row.decay) for row in found)
    heads = ("", "measured", "line", "random walk", "mixing", *(("decay",) if decay else ()))
    rows = [
        (row.name, *map(_cell, (row.value, row.line, row.walk, row.mixing)), *((_cell(row.decay),) if decay else ()))
        for row in found
    ]
    told = (
        "The nulls have the steps and the sizes of the updates of this path: all in one direction, in unrelated "
        "directions, or from independent draws around a centre."
    )
    return section("trajectory-numbers", "Numbers beside their nulls", told, table(heads, rows))


def _bursts(found: TrajectoryMap) -> str:
    if not found.bursts:
        return ""
    heads = ("steps", "cosine of neighbouring updates", "curvature felt", "standard error", "drift")
    rows = [
        (f"{one.first:,} to {one.last:,}", *map(_cell, (one.cosine, one.sharpness, one.standard_error, one.drift)))
        for one in found.bursts
    ]
    told = (
        "The cosine tells the curvature along the updates without any Hessian product, R = 2 (μ − cosine) / η, "
        "where they are stationary: where the drift is near 0. At the edge of stability without momentum the cosine is "
        "−1. Estimated from projections."
    )
    return section("trajectory-bursts", "Consecutive steps", told, table(heads, rows))


def _labels(marks: Hallmarks | None) -> str:
    if marks is None or not marks.marks:
        return ""
    rows = "".join(
        f"<li><strong>{html.escape(mark.label)}</strong>, steps {mark.first:,} to {mark.last:,}: "
        f"{html.escape('; '.join(map(str, mark.evidence)))}</li>"
        for mark in marks.marks
    )
    told = (
        "What stretches of the path look like, each with all that its label rests on. Conditions and thresholds are "
        "proposals, and none is a judgement of the run."
    )
    return section("trajectory-labels", "Hallmarks", told, f"<ul>{rows}</ul>")


def _cell(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return fixed(value) if abs(value) < 1000 else number(value)
