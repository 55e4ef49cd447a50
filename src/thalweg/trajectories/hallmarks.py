"""Hallmarks of stretches of a path: what it looks like there, always with the numbers that say so.

Labels and thresholds are proposals of ours, to be tuned; none is a verdict on a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from thalweg.errors import InvalidInput, explain
from thalweg.trajectories.averages import mean_similarity
from thalweg.trajectories.complexity import Complexity, complexity, log_slope, mean
from thalweg.trajectories.kernels import Floats, Kernels
from thalweg.trajectories.map import WHOLE, TrajectoryMap
from thalweg.trajectories.nulls import walk
from thalweg.trajectories.oscillation import oscillation


@dataclass(frozen=True)
class Thresholds:
    """Where one label ends. Defaults are proposals.

    Attributes:
        frozen_floor: Radius over a window, in ``q n``, below which it is frozen.
        frozen_update: Largest ``u / n`` of a frozen window.
        ballistic_relative: Least relative mean similarity of a ballistic window.
        ballistic_straightness: Least straightness of it.
        persistence: Largest mean ``|C - C0|`` that is small, for exploring.
        diffusing_relative: Relative mean similarity of a diffusing window, from and to.
        diffusing_turning: Turning angle of it, from and to, in degrees.
        diffusing_slope: Log-log slope of its radius, from and to.
        mixing_turning: Least turning angle of a mixing window at its longest lag, in degrees.
        mixing_relative: Largest relative mean similarity of it.
        mixing_norm: Largest relative change of the norm within it.
        oscillating: Largest cosine of consecutive updates of an oscillating burst.
        lazy_omega: Least ``omega_off`` of a lazy window.
        lazy_displacement: Largest ``r_T / n_1`` of it.
        saturated: Least similarity of all that follows.
        least: Checkpoints in a window.
    """

    frozen_floor: float = 3.0
    frozen_update: float = 1e-6
    ballistic_relative: float = 0.9
    ballistic_straightness: float = 0.5
    persistence: float = 0.05
    diffusing_relative: tuple[float, float] = (0.62, 0.72)
    diffusing_turning: tuple[float, float] = (80.0, 100.0)
    diffusing_slope: tuple[float, float] = (0.4, 0.6)
    mixing_turning: float = 105.0
    mixing_relative: float = 0.6
    mixing_norm: float = 0.05
    oscillating: float = -0.3
    lazy_omega: float = 0.98
    lazy_displacement: float = 0.2
    saturated: float = 0.95
    least: int = 6


@dataclass(frozen=True)
class Evidence:
    """One condition of a label.

    Attributes:
        what: What was looked at.
        value: What it was.
        wanted: What the label asks for.
    """

    what: str
    value: float
    wanted: str

    def __str__(self) -> str:
        value = f"{self.value:,.0f}" if abs(self.value) >= 1e4 else f"{self.value:.4g}"
        return f"{self.what} {value} ({self.wanted})"


@dataclass(frozen=True)
class Hallmark:
    """A label over a stretch, with all its evidence.

    Attributes:
        label: ``frozen``, ``ballistic``, ``exploring``, ``diffusing``, ``mixing``, ``oscillating``, ``lazy`` or
            ``saturated``.
        first: Step at which the stretch begins.
        last: Step at which it ends.
        evidence: Every condition, with its number.
    """

    label: str
    first: int
    last: int
    evidence: tuple[Evidence, ...]

    def __str__(self) -> str:
        return f"{self.label}, steps {self.first:,} to {self.last:,}: {'; '.join(map(str, self.evidence))}"


@dataclass(frozen=True, repr=False)
class Hallmarks:
    """The labels of a path, window after window.

    Attributes:
        marks: What was found; a window may have several labels, or none.
        windows: First and last step of each window looked at.
        saturated: First step after which all checkpoints look alike; None where there is none.
        notes: What could not be looked at.
    """

    marks: tuple[Hallmark, ...]
    windows: tuple[tuple[int, int], ...]
    saturated: int | None
    notes: tuple[str, ...] = ()

    def of(self, label: str) -> tuple[Hallmark, ...]:
        """Return the stretches with a label."""
        return tuple(mark for mark in self.marks if mark.label == label)

    def __repr__(self) -> str:
        lines = [f"Hallmarks of {len(self.windows)} windows:", *(f"  {mark}" for mark in self.marks)]
        return "\n".join([*(lines if self.marks else [f"No hallmark in {len(self.windows)} windows."]), *self.notes])


def saturation(similarity: Floats, least: float = 0.95) -> int | None:
    """Return the first checkpoint from which on all pairs are at least so similar; None below three checkpoints.

    Example:
        >>> saturation(np.array([[1, 0.5, 0.5, 0.5], [0.5, 1, 0.97, 0.96], [0.5, 0.97, 1, 0.99], [0.5, 0.96, 0.99, 1]]))
        1
    """
    for i in range(len(similarity) - 2):
        if np.nanmin(similarity[i:, i:], initial=1.0) > least:
            return i
    return None


def hallmarks(
    found: TrajectoryMap,
    *,
    group: str = WHOLE,
    windows: int | Sequence[tuple[int, int]] = 4,
    thresholds: Thresholds | None = None,
    momentum: float = 0.0,
    reference_loss: float | None = None,
) -> Hallmarks:
    """Label stretches of a path by what they look like; each label comes with the numbers behind it.

    Args:
        found: The map.
        group: Which parameters.
        windows: How many, of equally many checkpoints; or index ranges ``(start, stop)``.
        thresholds: Where labels end.
        momentum: ``mu`` of the run, for the curvature that a burst tells.
        reference_loss: Final loss of a run to compare with; without it no window is called lazy.

    Raises:
        InvalidInput: A window with fewer than three checkpoints.

    Example:
        >>> from thalweg.trajectories.nulls import line
        >>> found = hallmarks(TrajectoryMap({"whole": line(range(20))}), windows=1)
        >>> [mark.label for mark in found.marks]
        ['ballistic', 'saturated']
    """
    limit = thresholds or Thresholds()
    path, notes = found.path(group), []
    parts = _windows(len(path), windows, limit.least)
    null = found.decay_null(group) if found.decay is not None else None
    if null is None:
        notes.append("Exploring needs weight decay and learning rate, which are not known.")
    if "loss" not in found.schedule:
        notes.append("Exploring and lazy need the loss at the checkpoints, which is not known.")
    elif reference_loss is None:
        notes.append("Lazy needs the loss of a reference run, which is not known.")
    marks: list[Hallmark] = []
    for start, stop in parts:
        part = path.window(start, stop)
        loss = found.schedule["loss"][start:stop] if "loss" in found.schedule else None
        apart = None
        if null is not None:
            apart = mean(np.abs(part.similarity - null[start:stop, start:stop])[np.triu_indices(len(part), 1)])
        tests = _conditions(part, limit, apart, loss, reference_loss)
        marks += [
            Hallmark(label, int(part.steps[0]), int(part.steps[-1]), tuple(e for e, _ in rows))
            for label, rows in tests.items()
            if rows and all(met for _, met in rows)
        ]
    shaken = [*oscillation(path, found.learning_rate, momentum), *(found.bursts if group == WHOLE else ())]
    if not shaken:
        notes.append("Oscillating needs a burst of consecutive steps, of which there is none.")
    for burst in shaken:
        if burst.cosine < limit.oscillating:
            rows = [Evidence("cosine of consecutive updates", burst.cosine, f"below {limit.oscillating:g}")]
            if math.isfinite(burst.sharpness):
                rows.append(Evidence("curvature felt by updates", burst.sharpness, "from that cosine and the rate"))
            marks.append(Hallmark("oscillating", burst.first, burst.last, tuple(rows)))
    at = saturation(path.similarity, limit.saturated)
    if at is not None:
        lowest = float(np.nanmin(path.similarity[at:, at:]))
        rows = [
            Evidence("least similarity of all that follows", lowest, f"above {limit.saturated:g}"),
            Evidence("step from which it is", float(path.steps[at]), _walk_saturates(path, limit.saturated)),
            Evidence("displacement after it, r / n", _over(path.radii_from(at)[-1], path.norms[at]), "for scale"),
        ]
        marks.append(Hallmark("saturated", int(path.steps[at]), int(path.steps[-1]), tuple(rows)))
    ranges = tuple((int(path.steps[a]), int(path.steps[b - 1])) for a, b in parts)
    return Hallmarks(tuple(marks), ranges, None if at is None else int(path.steps[at]), tuple(notes))


Row = tuple[Evidence, bool]


def _conditions(
    part: Kernels, limit: Thresholds, apart: float | None, loss: Floats | None, reference: float | None
) -> dict[str, list[Row]]:
    """Return every condition of every label that can be looked at, and whether it is met."""
    found, similar = complexity(part), mean_similarity(part)
    long, q, n = int(found.lags[-1]), part.quantum, float(part.norms[0])
    turning, far = found.turning_summary(1)["mean"], found.turning_summary(long)["mean"]
    slope, change = _slope(found), float(np.ptp(part.norms)) / n if n > 0 else math.nan
    update, reach = float(np.nanmax(found.update_ratio, initial=0.0)), _over(found.radii.max(), n)
    frozen = [_below("largest u / n", update, limit.frozen_update)]
    if q > 0 and not frozen[0][1]:
        frozen = [_below("radius over the window / n", reach, limit.frozen_floor * q)]
    tests = {
        "frozen": frozen,
        "ballistic": [
            _above("relative similarity", similar.relative, limit.ballistic_relative),
            _above("straightness", found.straightness, limit.ballistic_straightness),
        ],
        "diffusing": [
            _within("relative similarity", similar.relative, limit.diffusing_relative),
            _within("turning angle", turning, limit.diffusing_turning),
            _within("log-log slope of the radius", slope, limit.diffusing_slope),
        ],
        "mixing": [
            _above(f"turning angle at lag {long}", far, limit.mixing_turning),
            _below("relative similarity", similar.relative, limit.mixing_relative),
            _below("change of the norm", change, limit.mixing_norm),
        ],
    }
    if apart is not None and loss is not None:
        null = complexity(walk(part.steps, start=n, lengths=part.lengths), lags=[1]).apex(1)
        fall = _fall(loss)
        tests["exploring"] = [
            _below("mean |C - C0|", apart, limit.persistence),
            _above("apex angle", found.apex(1), null, "random walk "),
            _above("loss, first half less second half", fall, 0.0),
        ]
    if loss is not None and reference is not None:
        tests["lazy"] = [
            _above("similarity without diagonal", similar.omega_off, limit.lazy_omega),
            _below("displacement r_T / n_1", found.displacement, limit.lazy_displacement),
            _above("last loss", float(loss[-1]), reference, "reference "),
        ]
    return tests


def _above(what: str, value: float, bound: float, of: str = "") -> Row:
    return Evidence(what, value, f"above {of}{bound:.4g}"), value > bound


def _below(what: str, value: float, bound: float) -> Row:
    return Evidence(what, value, f"below {bound:.4g}"), value < bound


def _within(what: str, value: float, bounds: tuple[float, float]) -> Row:
    return Evidence(what, value, f"within {bounds[0]:g} to {bounds[1]:g}"), bounds[0] <= value <= bounds[1]


def _walk_saturates(path: Kernels, least: float) -> str:
    at = saturation(walk(path.steps, start=float(path.norms[0]), lengths=path.lengths).similarity, least)
    return "a random walk: never" if at is None else f"a random walk: from {path.steps[at]:,}"


def _slope(found: Complexity) -> float:
    return log_slope(found.steps - found.steps[0], found.radii)


def _fall(loss: Floats) -> float:
    half = len(loss) // 2
    return mean(loss[:half]) - mean(loss[half:])


def _over(value: float, by: float) -> float:
    return float(value) / float(by) if by > 0 else math.nan


def _windows(count: int, windows: int | Sequence[tuple[int, int]], least: int) -> list[tuple[int, int]]:
    if isinstance(windows, int):
        many = max(1, min(windows, count // max(least, 3)))
        cuts = np.linspace(0, count, many + 1).round().astype(int).tolist()
        # neighbours share a checkpoint, so that no update falls between them
        return [(a, min(b + 1, count)) for a, b in pairwise(cuts)] if count >= 3 else []
    wrong = [w for w in windows if not (w[0] >= 0 and w[1] <= count and w[1] - w[0] >= 3)]
    if wrong:
        raise InvalidInput(
            explain(f"Window {wrong[0]}", f"it needs three of the {count} checkpoints", "Give (start, stop) indices")
        )
    return [(int(a), int(b)) for a, b in windows]
