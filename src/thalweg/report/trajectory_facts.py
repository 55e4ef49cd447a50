"""What the numbers of a trajectory map support: which null it is nearest, where it saturates, where rounding rules."""

from __future__ import annotations

import math

import numpy as np

from thalweg.trajectories.averages import mean_similarity
from thalweg.trajectories.kernels import Floats
from thalweg.trajectories.map import WHOLE, TrajectoryMap
from thalweg.trajectories.measures import Measure
from thalweg.trajectories.nulls import nulls_for

__all__ = ["WHOLE", "against", "closest_null", "ends_of_groups", "floor_steps", "omega_of", "persistence_of", "uneven"]

CLOSE = 0.03
"""Distance in mean similarity within which it is called as that of a null."""
UNEVEN = 10.0
"""Longest over median spacing of checkpoints, or median over shortest, from which the weighting matters."""


def closest_null(found: TrajectoryMap, group: str = WHOLE) -> tuple[Floats, str]:
    """Return the null map to set beside a group, and its name: decay where that is known, else a random walk.

    Args:
        found: A trajectory map.
        group: Which parameters.

    Returns:
        A map of shape ``(T, T)``.
    """
    if found.decay is not None:
        return found.decay_null(group), "decay null"
    return nulls_for(found.path(group))["walk"].similarity, "random walk"


def omega_of(found: TrajectoryMap, group: str = WHOLE) -> float:
    """Return the mean similarity without diagonal, with the weights of the map; NaN where it is not defined."""
    if found.weighting == "uniform":
        return mean_similarity(found.path(group), anchor=found.anchor).omega_off
    by = found.mds_of(group)
    return by[found.weighting].omega_off if found.weighting in by else math.nan


def against(row: Measure) -> str:
    """Say which null a mean relative similarity is nearest: ``line``, ``walk``, ``mixing`` or between two of them.

    Example:
        >>> [against(Measure("relative", "", value, 1.0, 0.67, 0.5)) for value in (0.98, 0.8)]
        ['line', 'between walk and line']
    """
    for name, null in (("walk", row.walk), ("line", row.line), ("mixing", row.mixing)):
        if abs(row.value - null) <= CLOSE:
            return name
    if row.value > row.walk:
        return "between walk and line"
    return "between mixing and walk" if row.value > row.mixing else "below mixing"


def floor_steps(found: TrajectoryMap, group: str = WHOLE) -> list[tuple[int, int]]:
    """Return the stretches of steps whose updates are below the precision floor, as first and last step."""
    below = found.precision(group).below
    edges = np.flatnonzero(np.diff(np.concatenate([[0], below.astype(int), [0]])))
    return [(int(found.steps[a]), int(found.steps[b])) for a, b in zip(edges[::2], edges[1::2])]


def persistence_of(found: TrajectoryMap, group: str = WHOLE) -> float:
    """Return the mean of ``C - C0`` off the diagonal; NaN without decay."""
    if found.decay is None:
        return math.nan
    values = found.persistence(group)[~np.eye(len(found.steps), dtype=bool)]
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def uneven(found: TrajectoryMap) -> bool:
    """Say whether checkpoints are so unevenly spaced that mean similarities depend on their weights."""
    gaps = found.path().spacing
    middle = float(np.median(gaps))
    return bool(gaps.max() >= UNEVEN * middle or middle >= UNEVEN * gaps.min())


def ends_of_groups(found: TrajectoryMap) -> tuple[tuple[str, float], tuple[str, float]] | None:
    """Return the groups with the least and the greatest mean similarity; None below two groups that move."""
    values = {group: omega_of(found, group) for group in found.groups if group != WHOLE}
    known = {group: value for group, value in values.items() if math.isfinite(value)}
    if len(known) < 2:
        return None
    low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    return (low, known[low]), (high, known[high])
