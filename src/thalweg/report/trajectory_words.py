"""What a trajectory map says, in plain words: every number beside its null, and no more than they support."""

from __future__ import annotations

import math

import numpy as np

from thalweg.report.numbers import count, fixed, number, share
from thalweg.report.trajectory_facts import CLOSE, against, ends_of_groups, persistence_of, uneven
from thalweg.trajectories.hallmarks import Hallmarks
from thalweg.trajectories.map import TrajectoryMap
from thalweg.trajectories.measures import MeasureTable

LITTLE = 0.2
"""Displacement over the first norm below which a high similarity says nothing."""
FEW = 50
"""Checkpoints below which the diagonal shows in the mean similarity."""
RIGHT = 8.0
"""Degrees around a right angle that are called one."""


def headline(found: TrajectoryMap, marks: Hallmarks | None = None) -> list[str]:
    """Return the paragraph at the top of the section as sentences.

    Args:
        found: A trajectory map.
        marks: Its hallmarks.
    """
    table = found.table()
    if not any(found.path().lengths > 0):
        return [f"Over {count(len(found.steps), 'checkpoint')} the weights did not change at all."]
    return [
        *_length(found, table),
        *_direction(table),
        *_turning(found, table),
        *_similar(found, table),
        *_groups(found),
        *_saturation(marks),
        *_bursts(found),
    ]


def caveats(found: TrajectoryMap, marks: Hallmarks | None = None) -> list[str]:
    """Return what limits the statements of `headline`, one sentence each."""
    notes = [*found.notes, *(marks.notes if marks is not None else ())]
    floor = found.precision()
    if floor.below.any():
        known = floor.unchanged[np.isfinite(floor.unchanged)]
        still = f" On average {share(float(known.mean()))} of the weights are bitwise the same." if len(known) else ""
        notes.append(
            f"{share(floor.share)} of the updates are shorter than three times the rounding of the stored weights "
            f"({number(floor.quantum)} of their norm): there rounding itself makes updates turn back, and figures are "
            f"hatched.{still}"
        )
    elif floor.quantum > 0 and floor.bias.min(initial=0.0) < -0.01:
        notes.append(
            f"Rounding of the stored weights takes up to {number(-float(np.nanmin(floor.bias)))} from the cosine of "
            "neighbouring updates."
        )
    if found.sketch is not None:
        notes.append(
            f"Inner products are estimates from {found.sketch:,} random projections: a cosine c is known to about "
            f"(1 − c²) / {math.sqrt(found.sketch):.0f}."
        )
    if uneven(found) and found.weighting == "uniform":
        by = found.mds
        told = f"; weighted by time it is {fixed(by['time'].omega_off)}" if "time" in by else ""
        notes.append(
            "Checkpoints are unevenly spaced, and each counts the same: the mean similarity of "
            f"{fixed(by['uniform'].omega_off)} is one of checkpoints, not of the run{told}."
        )
    if len(found.steps) < FEW:
        notes.append(
            f"With {count(len(found.steps), 'checkpoint')} the mean over all pairs depends on how many there are; "
            "stated is the mean without the diagonal."
        )
    notes.append("Nulls are for many more weights than checkpoints, where unrelated directions are at right angles.")
    return notes


def verdicts(found: TrajectoryMap, marks: Hallmarks | None = None) -> list[tuple[str, str]]:
    """Return what the map is in a few words each, as ``(words, kind)``; labels are proposals, not judgements."""
    words = [(f"{len(found.steps):,} checkpoints", "plain")]
    if marks is not None:
        words += [(label, "accent") for label in dict.fromkeys(mark.label for mark in marks.marks)]
    if found.precision().below.any():
        words.append(("below the precision floor in part", "warn"))
    return words


def tiles(found: TrajectoryMap) -> list[tuple[str, str, str]]:
    """Return the key numbers as ``(label, value, remark)``; the remark is what a random walk gives."""
    table = found.table()
    names = {
        "omega_off": ("Similarity", fixed),
        "relative": ("Relative similarity", fixed),
        "turning": ("Turning angle", lambda value: f"{value:.0f}°"),
        "straightness": ("Straightness", fixed),
        "displacement": ("Displacement", share),
        "first_share": ("First component", share),
    }
    rows = []
    for key, (label, write) in names.items():
        row = table[key]
        if math.isfinite(row.value):
            beside = f"random walk {write(row.walk)}" if math.isfinite(row.walk) else ""
            if key == "displacement":
                beside = f"of the first norm; {beside}"
            rows.append((label, write(row.value), beside))
    return rows


def figure_words(found: TrajectoryMap) -> dict[str, str]:
    """Return what there is to be seen in each figure this time."""
    table = found.table()
    plane, own = table["plane_share"], found.complexity().principal
    said = {"map": "", "beyond": "", "length": "", "angle": "", "path": ""}
    kept = persistence_of(found)
    if math.isfinite(kept):
        said["beyond"] = f"On average the map is {_signed(kept)} against the decay null."
    slope = table["radius_slope"]
    if math.isfinite(slope.value):
        said["length"] = (
            f"The distance from the start grows as the power {fixed(slope.value)} of the steps "
            f"(the same updates in a line {fixed(slope.line)}, in a random walk {fixed(slope.walk)})."
        )
    turning = table["turning"]
    if math.isfinite(turning.value):
        said["angle"] = f"Neighbouring updates are {turning.value:.0f}° apart on average."
    far = own.residual[own.distance > 0] / own.distance[own.distance > 0]
    if math.isfinite(plane.value) and len(far):
        said["path"] = (
            f"The plane holds {share(plane.value)} of the variance; a random walk would put {share(plane.walk)} into "
            f"its own. Half of the checkpoints lie more than {share(float(np.median(far)))} of their distance from the "
            "mean outside it."
        )
    return said


def _length(found: TrajectoryMap, table: MeasureTable) -> list[str]:
    moved, straight = table["displacement"], table["straightness"]
    text = f"Over {count(len(found.steps), 'checkpoint')} from step {found.steps[0]:,} to {found.steps[-1]:,}"
    if math.isfinite(moved.value):
        text += f" the weights moved by {share(moved.value)} of the norm they began with"
    else:
        text += f" the weights moved by {number(found.complexity().net)} from where they began, at zero"
    return [
        f"{text}, {fixed(straight.value)} of the length of the path between the checkpoints (random walk of the same "
        f"updates: {fixed(straight.walk)})."
    ]


def _direction(table: MeasureTable) -> list[str]:
    row = table["relative"]
    if not math.isfinite(row.value):
        return []
    nulls = f"line {fixed(row.line)}, random walk {fixed(row.walk)}, mixing {fixed(row.mixing)}"
    told = {
        "line": "as straight as a line",
        "walk": "by itself no evidence of a direction, as a random walk has the same",
        "mixing": "as if checkpoints were drawn around a centre",
        "between walk and line": "more directed than a random walk, less than a line",
        "between mixing and walk": "less than a random walk has: it mixes in part",
        "below mixing": "less than independent draws have: it goes back on itself",
    }[against(row)]
    return [f"Seen from the start, checkpoints have a mean similarity of {fixed(row.value)} ({nulls}): {told}."]


def _turning(found: TrajectoryMap, table: MeasureTable) -> list[str]:
    row = table["turning"]
    if not math.isfinite(row.value):
        return []
    text = f"Neighbouring updates turn by {row.value:.0f}°"
    if found.precision().below.mean() > 0.5:
        return [f"{text}, of which rounding has an unknown part."]
    if abs(row.value - 90) <= RIGHT:
        return [f"{text}, as unrelated ones do."]
    if row.value > 90:
        return [f"{text}: they partly undo each other, as where checkpoints mix (up to 120°) or steps oscillate."]
    return [f"{text}, less than the 90° of unrelated ones: direction is kept from one checkpoint to the next."]


def _similar(found: TrajectoryMap, table: MeasureTable) -> list[str]:
    row, moved = table["omega_off"], table["displacement"]
    text = f"The mean similarity of checkpoints is {fixed(row.value)} (random walk {fixed(row.walk)}"
    if math.isfinite(row.decay):
        text += f", decay with unrelated updates {fixed(row.decay)}"
    text += ")"
    if math.isfinite(moved.value) and moved.value < LITTLE and row.value > 1 - LITTLE:
        return [f"{text}, which with so little motion says nothing of direction."]
    kept = persistence_of(found)
    if not math.isfinite(kept):
        return [f"{text}."]
    if abs(kept) <= CLOSE:
        return [f"{text}: decay and norms alone explain it."]
    kind = "updates keep pointing along the old weights" if kept > 0 else "updates undo the old weights"
    return [f"{text}: {_signed(kept)} beyond decay, so {kind}."]


def _groups(found: TrajectoryMap) -> list[str]:
    ends = ends_of_groups(found)
    if ends is None:
        return []
    (low, least), (high, most) = ends
    if most - least < CLOSE:
        return ["All groups of parameters have about the same mean similarity."]
    return [f"Among groups it is least in {low} ({fixed(least)}) and greatest in {high} ({fixed(most)})."]


def _saturation(marks: Hallmarks | None) -> list[str]:
    if marks is None or marks.saturated is None:
        return []
    mark = marks.of("saturated")[0]
    lowest, since = mark.evidence[0], mark.evidence[1]
    return [
        f"From step {marks.saturated:,} on all checkpoints have a similarity of at least {fixed(lowest.value)} "
        f"({since.wanted})."
    ]


def _signed(value: float) -> str:
    return f"+{fixed(value)}" if value > 0 else fixed(value)


def _bursts(found: TrajectoryMap) -> list[str]:
    """Curvature along the updates, from the last burst of consecutive steps."""
    if not found.bursts:
        return []
    last = found.bursts[-1]
    told = f"From step {last.first:,} to {last.last:,} consecutive updates have a cosine of {fixed(last.cosine)}"
    if math.isfinite(last.sharpness):
        error = f" ± {number(last.standard_error)}" if math.isfinite(last.standard_error) else ""
        told += f", which on a quadratic tells a curvature of {number(last.sharpness)}{error} along them"
    return [told + "."]
