"""Numbers of a path, each beside what a line, a random walk, and mixing noise of the same update sizes give."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from thalweg.errors import InvalidInput, explain
from thalweg.trajectories.averages import Similarity, Weighting, average, mean_similarity, weights
from thalweg.trajectories.complexity import Complexity, complexity
from thalweg.trajectories.kernels import Floats, Kernels
from thalweg.trajectories.nulls import nulls_for

NAMES = {
    "omega": "mean similarity",
    "omega_off": "mean similarity, no diagonal",
    "relative": "mean relative similarity",
    "turning": "turning angle [deg]",
    "turning_long": "turning angle, lag {long} [deg]",
    "apex_origin": "apex angle at the origin [deg]",
    "apex_anchor": "apex angle at the anchor [deg]",
    "straightness": "straightness r_T / L",
    "tortuosity": "tortuosity, lag {long}",
    "displacement": "displacement r_T / n_1",
    "radius_slope": "log-log slope of the radius",
    "first_share": "share of the first component",
    "plane_share": "share of the first two",
    "rank": "effective rank (entropy)",
}
"""What each measure is called."""


@dataclass(frozen=True)
class Measure:
    """One number beside its nulls.

    Attributes:
        key: Short name.
        name: What it is.
        value: What was measured.
        line: The same for a straight line.
        walk: The same for a random walk.
        mixing: The same for checkpoints that are independent draws around a centre.
        decay: The same where decay shrinks the old weights and unrelated updates are added; NaN where unknown.
    """

    key: str
    name: str
    value: float
    line: float
    walk: float
    mixing: float
    decay: float = math.nan


@dataclass(frozen=True, repr=False)
class MeasureTable:
    """Measures of one group of parameters, in order.

    Attributes:
        group: Which parameters.
        measures: One row each.
        notes: What limits them.
    """

    group: str
    measures: tuple[Measure, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, key: str) -> Measure:
        for row in self.measures:
            if row.key == key:
                return row
        raise InvalidInput(
            explain(f"No measure {key!r}", f"known are {', '.join(r.key for r in self.measures)}", "Take one of them")
        )

    def __iter__(self) -> Iterator[Measure]:
        return iter(self.measures)

    def __len__(self) -> int:
        return len(self.measures)

    def __repr__(self) -> str:
        decay = any(math.isfinite(row.decay) for row in self.measures)
        heads = ["measured", "line", "walk", "mixing", *(["decay"] if decay else [])]
        wide = max(len(row.name) for row in self.measures)
        lines = [f"{self.group}".ljust(wide) + "".join(head.rjust(10) for head in heads)]
        for row in self.measures:
            cells = [row.value, row.line, row.walk, row.mixing, *([row.decay] if decay else [])]
            lines.append(row.name.ljust(wide) + "".join(_short(cell).rjust(10) for cell in cells))
        return "\n".join([*lines, *self.notes])


def measure(
    path: Kernels,
    *,
    group: str = "whole",
    anchor: int = 0,
    weighting: Weighting = "uniform",
    learning_rate: Floats | None = None,
    decay_null: Floats | None = None,
    found: Complexity | None = None,
    notes: tuple[str, ...] = (),
) -> MeasureTable:
    """Measure a path and its nulls by the same code.

    Args:
        path: The path.
        group: What it is the path of.
        anchor: Checkpoint that relative quantities start from.
        weighting: Weights of checkpoints in mean similarities.
        learning_rate: Rate at each checkpoint, shape ``(T,)``.
        decay_null: ``C0``, shape ``(T, T)``, for the column of decay.
        found: The path's complexity, where it is known already.
        notes: What limits the numbers.

    Returns:
        A table; nulls have the steps and the sizes of the updates of the path.

    Example:
        >>> path = Kernels.from_points(np.cumsum(np.random.default_rng(0).standard_normal((30, 4000)), axis=0))
        >>> row = measure(path)["relative"]
        >>> bool(abs(row.value - row.walk) < 0.02 and row.line == 1)
        True
    """
    found = complexity(path, anchor=anchor) if found is None else found
    long = int(found.lags[-1])
    w = weights(path, weighting, learning_rate)  # of the path, for all: a null has no rate of its own
    own = _values(path, found, mean_similarity(path, weighting, anchor=anchor, learning_rate=learning_rate), long)
    columns = {}
    for name, null in nulls_for(path).items():
        rest = np.arange(len(path)) != anchor % len(path)
        omega, off, skipped = average(null.similarity, w)
        relative, relative_off, lost = average(null.relative(anchor)[np.ix_(rest, rest)], w[rest])
        similar = Similarity(weighting, omega, off, relative, relative_off, skipped, lost)
        columns[name] = _values(null, complexity(null, anchor=anchor, lags=found.lags.tolist()), similar, long)
    decay = {}
    if decay_null is not None:
        decay["omega"], decay["omega_off"], _ = average(decay_null, w)
    rows = [
        Measure(
            key,
            name.format(long=long),
            own[key],
            columns["line"][key],
            columns["walk"][key],
            columns["mixing"][key],
            decay.get(key, math.nan),
        )
        for key, name in NAMES.items()
        if long > 1 or key != "turning_long"
    ]
    return MeasureTable(group, tuple(rows), notes)


def _values(path: Kernels, found: Complexity, similar: Similarity, long: int) -> dict[str, float]:
    centred = found.spectra["centred"]
    shares = centred.shares
    return {
        "omega": similar.omega,
        "omega_off": similar.omega_off,
        "relative": similar.relative,
        "turning": found.turning_summary(1)["mean"],
        "turning_long": found.turning_summary(long)["mean"],
        "apex_origin": found.apex(1, "origin"),
        "apex_anchor": found.apex(1),
        "straightness": found.straightness,
        "tortuosity": float(found.tortuosity[found.row(long)]),
        "displacement": found.displacement,
        "radius_slope": found.radius_slope,
        "first_share": float(shares[0]) if len(shares) else math.nan,
        "plane_share": float(shares[:2].sum()) if len(shares) else math.nan,
        "rank": centred.entropy_rank,
    }


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{round(value, 3) + 0.0:.3f}" if abs(value) < 100 else f"{value:.4g}"
