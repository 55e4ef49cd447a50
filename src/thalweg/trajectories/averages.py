"""Mean directional similarity: one number of a map, by what it averages over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from thalweg.errors import InvalidInput, explain
from thalweg.trajectories.kernels import Floats, Kernels

Weighting: TypeAlias = Literal["uniform", "time", "learning_rate", "arclength"]
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)


@dataclass(frozen=True)
class Similarity:
    """Averages of a trajectory map under one weighting.

    Attributes:
        weighting: How checkpoints are weighted.
        omega: ``sum_ij w_i w_j C_ij``, diagonal included: it depends on the number of checkpoints.
        omega_off: The same without the diagonal; for uniform weights ``(T omega - 1) / (T - 1)``.
        relative: ``sum_ij w_i w_j C^a_ij`` over the checkpoints other than the anchor, diagonal included.
        relative_off: The same without the diagonal.
        skipped: Undefined pairs left out of ``omega``, of ``T^2``.
        skipped_relative: Undefined pairs left out of ``relative``, of ``(T-1)^2``.
    """

    weighting: Weighting
    omega: float
    omega_off: float
    relative: float
    relative_off: float
    skipped: int
    skipped_relative: int


def weights(path: Kernels, weighting: Weighting, learning_rate: Floats | None = None) -> Floats:
    """Return weights of checkpoints, shape ``(T,)``, which sum to one.

    ``uniform``: 1/T. ``time``: the trapezoid rule in steps, ``(k_{i+1} - k_{i-1}) / 2``, half as wide at both ends.
    ``learning_rate``: that times the rate at each checkpoint. ``arclength``: the trapezoid rule in length travelled.

    Args:
        path: The path.
        weighting: Which.
        learning_rate: Rate at each checkpoint, shape ``(T,)``; needed for ``learning_rate``.

    Raises:
        InvalidInput: Unknown weighting, or rates that are missing, negative, of another length, or all zero.

    Example:
        >>> path = Kernels.from_points(np.eye(3), steps=[0, 1, 4])
        >>> weights(path, "time").tolist()
        [0.125, 0.5, 0.375]
    """
    if weighting == "uniform":
        found = np.ones(len(path))
    elif weighting == "time":
        found = _trapezoid(path.spacing.astype(np.float64))
    elif weighting == "arclength":
        found = _trapezoid(path.lengths)
    elif weighting == "learning_rate":
        if (
            learning_rate is None
            or np.shape(learning_rate) != (len(path),)
            or not np.all(np.asarray(learning_rate) >= 0)
        ):
            raise InvalidInput(
                explain(
                    "Weights by learning rate were asked for without a rate at each checkpoint",
                    "the weight of a checkpoint is its rate times the steps around it",
                    'Give schedule={"learning_rate": rates}, one that is not negative for each checkpoint',
                )
            )
        found = _trapezoid(path.spacing.astype(np.float64)) * learning_rate
    else:
        raise InvalidInput(explain(f"Weighting {weighting!r}", f"known are {', '.join(WEIGHTINGS)}", "Choose one"))
    total = float(found.sum())
    if not total > 0:
        raise InvalidInput(
            explain(f"All weights by {weighting} are zero", "then nothing is averaged", "Choose another weighting")
        )
    return np.asarray(found / total, dtype=np.float64)


def average(values: Floats, w: Floats) -> tuple[float, float, int]:
    """Return ``sum w_i w_j A_ij`` with and without the diagonal, over defined pairs, and how many were undefined.

    Args:
        values: A map, shape ``(T, T)``; NaN where undefined.
        w: Weights, shape ``(T,)``.

    Returns:
        The two means, NaN where no pair is defined, and the number of undefined pairs.
    """
    pairs = np.outer(w, w)
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)

    def mean(keep: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> float:
        total = float(pairs[keep].sum())
        return float((pairs * filled)[keep].sum() / total) if total > 0 else float("nan")

    off = known & ~np.eye(len(w), dtype=bool)
    return mean(known), mean(off), int((~known).sum())


def mean_similarity(
    path: Kernels, weighting: Weighting = "uniform", *, anchor: int = 0, learning_rate: Floats | None = None
) -> Similarity:
    """Return ``omega = sum_ij w_i w_j C_ij`` and its kin.

    Args:
        path: The path.
        weighting: Weights of checkpoints, see `weights`.
        anchor: Checkpoint that the relative map starts from.
        learning_rate: Rate at each checkpoint, shape ``(T,)``.

    Returns:
        The averages; NaN where nothing is defined.

    Example:
        >>> line = Kernels.from_points(np.outer(1.0 + np.arange(4.0), [1.0, 2.0]))
        >>> found = mean_similarity(line)
        >>> round(found.omega, 12), round(found.omega_off, 12), round(found.relative, 12)
        (1.0, 1.0, 1.0)
    """
    w = weights(path, weighting, learning_rate)
    omega, off, skipped = average(path.similarity, w)
    rest = np.arange(len(path)) != anchor % len(path)
    relative, relative_off, lost = average(path.relative(anchor)[np.ix_(rest, rest)], w[rest])
    return Similarity(weighting, omega, off, relative, relative_off, skipped, lost)


def _trapezoid(gaps: Floats) -> Floats:
    return np.asarray((np.concatenate([[0.0], gaps]) + np.concatenate([gaps, [0.0]])) / 2, dtype=np.float64)
