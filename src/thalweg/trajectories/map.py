"""The trajectory map: cosines between all checkpoints of a run, and everything read off them, by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from thalweg.errors import InvalidInput, explain
from thalweg.trajectories.averages import WEIGHTINGS, Similarity, Weighting, mean_similarity
from thalweg.trajectories.complexity import Complexity, complexity
from thalweg.trajectories.grouping import Groups, fused_parts, grouped
from thalweg.trajectories.kernels import Floats, Ints, Kernels
from thalweg.trajectories.measures import MeasureTable, measure
from thalweg.trajectories.nulls import Decay, decay_null
from thalweg.trajectories.oscillation import Burst
from thalweg.trajectories.precision import Precision, precision

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

WHOLE = "whole"
"""The group of all parameters."""


@dataclass(frozen=True, repr=False, eq=False)
class TrajectoryMap:
    """What the path of the weights looks like, for all parameters and for groups of them.

    Attributes:
        paths: Inner products by group; ``"whole"`` comes first.
        anchor: Checkpoint that relative quantities start from.
        weighting: Weights of checkpoints in mean similarities.
        lags: In checkpoints; None for powers of two.
        schedule: Numbers known at the checkpoints, shape ``(T,)`` each.
        decay: Weight decay of the run, where it is known.
        unchanged: Share of weights bitwise equal between neighbours, by group.
        sketch: Size of the random projection that inner products were estimated from; None where they are exact.
        notes: What limits the map.
        bursts: What consecutive steps say that were recorded beside the checkpoints.
    """

    paths: Mapping[str, Kernels]
    anchor: int = 0
    weighting: Weighting = "uniform"
    lags: tuple[int, ...] | None = None
    schedule: Mapping[str, Floats] = field(default_factory=dict)
    decay: Decay | None = None
    unchanged: Mapping[str, Floats] = field(default_factory=dict)
    sketch: int | None = None
    notes: tuple[str, ...] = ()
    bursts: tuple[Burst, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, the whole first."""
        return tuple(self.paths)

    @property
    def steps(self) -> Ints:
        """Step of each checkpoint, shape ``(T,)``."""
        return self.paths[WHOLE].steps

    @property
    def similarity(self) -> Floats:
        """The trajectory map ``C_ij = cos(theta_i, theta_j)`` of all parameters, shape ``(T, T)``."""
        return self.paths[WHOLE].similarity

    @property
    def relative(self) -> Floats:
        """``cos(theta_i - theta_a, theta_j - theta_a)`` of all parameters, shape ``(T, T)``; NaN at the anchor."""
        return self.paths[WHOLE].relative(self.anchor)

    @property
    def updates(self) -> Floats:
        """``cos(U_a, U_b)`` of all parameters, shape ``(T-1, T-1)``."""
        return self.paths[WHOLE].updates

    @property
    def learning_rate(self) -> Floats | None:
        """Rate at each checkpoint where it is known at all of them."""
        rate = self.schedule.get("learning_rate")
        if rate is None or np.shape(rate) != self.steps.shape or not np.isfinite(rate).all():
            return None
        return np.asarray(rate, dtype=np.float64)

    @property
    def mds(self) -> dict[Weighting, Similarity]:
        """Mean directional similarities of all parameters, by weighting; those that are defined."""
        return self.mds_of(WHOLE)

    def path(self, group: str = WHOLE) -> Kernels:
        """Return the inner products of a group.

        Raises:
            InvalidInput: There is no such group.
        """
        if group not in self.paths:
            raise InvalidInput(
                explain(f"No group {group!r}", f"there are {', '.join(self.groups[:12])}", "Take one of them")
            )
        return self.paths[group]

    def mds_of(self, group: str) -> dict[Weighting, Similarity]:
        """Return mean directional similarities of a group, by weighting; those that are defined."""
        path, found = self.path(group), {}
        for weighting in WEIGHTINGS:
            try:
                found[weighting] = mean_similarity(
                    path, weighting, anchor=self.anchor, learning_rate=self.learning_rate
                )
            except InvalidInput:  # no rates, or a group that never moved
                continue
        return found

    def complexity(self, group: str = WHOLE) -> Complexity:
        """Return lengths, angles and spectra of a group."""
        if group not in self._measured:
            self._measured[group] = complexity(self.path(group), anchor=self.anchor, lags=self.lags)
        return self._measured[group]

    def precision(self, group: str = WHOLE) -> Precision:
        """Return where rounding of the stored weights rules."""
        return precision(self.path(group), self.unchanged.get(group))

    def decay_null(self, group: str = WHOLE) -> Floats:
        """Return ``C0(s, t) = exp(-D(s, t)) n_s / n_t``, shape ``(T, T)``.

        Raises:
            InvalidInput: The map was made without ``decay``, or no learning rate is known.
        """
        if self.decay is None:
            raise InvalidInput(
                explain(
                    "The map knows no weight decay",
                    "the decay null needs decay and learning rate",
                    "Give decay=Decay(weight_decay=..., learning_rate=...), or a decay of 0",
                )
            )
        return decay_null(self.path(group).norms, self.decay.exposure(self.steps, self.learning_rate))

    def persistence(self, group: str = WHOLE) -> Floats:
        """Return ``C - C0``, shape ``(T, T)``: above 0 updates keep along the old weights, below 0 they undo them.

        Raises:
            InvalidInput: As `decay_null`.
        """
        return np.asarray(self.path(group).similarity - self.decay_null(group), dtype=np.float64)

    def table(self, group: str = WHOLE) -> MeasureTable:
        """Return the numbers of a group, each beside its null values."""
        if group in self._tables:
            return self._tables[group]
        floor, notes = self.precision(group), []
        if floor.below.any():
            notes.append(
                f"Rounding: {floor.below.sum()} of {len(floor.below)} updates are below 3 q = {3 * floor.quantum:.1e} "
                "of the weights; their turning angles are too large."
            )
        if self.sketch is not None:
            notes.append(f"Estimates from {self.sketch:,} projections: cosines to about {self.sketch**-0.5:.3f}.")
        self._tables[group] = measure(
            self.path(group),
            group=group,
            anchor=self.anchor,
            weighting=self.weighting,
            learning_rate=self.learning_rate,
            decay_null=None if self.decay is None else self.decay_null(group),
            found=self.complexity(group),
            notes=tuple(notes),
        )
        return self._tables[group]

    @cached_property
    def data(self) -> xr.Dataset:
        """Everything with names: dims ``group, step, step2, increment, increment2, lag, weighting, component``."""
        from thalweg.trajectories.dataset import dataset

        return dataset(self)

    def plot(self, group: str = WHOLE) -> Figure:
        """Draw the map, the relative map, the update map, and lengths; null values are in the hover."""
        from thalweg.trajectories.figure import overview

        return overview(self, group)

    @cached_property
    def _tables(self) -> dict[str, MeasureTable]:
        return {}

    @cached_property
    def _measured(self) -> dict[str, Complexity]:
        return {}

    def __repr__(self) -> str:
        steps = self.steps
        kind = "exact" if self.sketch is None else f"estimated from {self.sketch:,} projections"
        many = "" if len(self.groups) == 1 else f", {len(self.groups) - 1} groups"
        head = f"TrajectoryMap of {len(steps)} checkpoints, steps {steps[0]:,} to {steps[-1]:,}{many}, {kind}"
        return "\n".join([head, repr(self.table()), *self.notes])


def trajectory_map(
    source: Any,
    *,
    groups: Groups = None,
    anchor: int = 0,
    weights: Weighting = "uniform",
    lags: Sequence[int] | None = None,
    decay: Decay | None = None,
    schedule: Mapping[str, Sequence[float] | Floats] | None = None,
    **options: Any,
) -> TrajectoryMap:
    """Return ``C_ij = <theta_i, theta_j> / (|theta_i| |theta_j|)`` over checkpoints, and all that follows.

    Args:
        source: A trajectory, which is read once, or the `Grams` of one. By role and by tensor, Q, K and V of a fused
            projection count each for itself.
        groups: ``"layer"``, ``"role"``, ``"tensor"``, a mapping from tensor name to group, or a function of the name
            (None leaves a tensor out of all groups but the whole). Default: the whole only.
        anchor: Checkpoint that relative quantities start from, default the first.
        weights: Weights of checkpoints in the mean similarities of `TrajectoryMap.table`; ``mds`` has them all.
        lags: In checkpoints, for angles and tortuosity; default powers of two up to a quarter of the path.
        decay: Weight decay of the run, for the decay null.
        schedule: Numbers at the checkpoints, shape ``(T,)`` each, over those that the source knows: ``learning_rate``,
            ``loss`` and so on.
        options: For `thalweg.trajectories.gram.grams` where a trajectory is given.

    Returns:
        The map; where it is undefined (a checkpoint equal to the anchor, an update of zero) it holds NaN, which
        averages skip and count.

    Raises:
        InvalidInput: An unknown group, weighting or anchor.

    Example:
        >>> from thalweg.trajectories.kernels import Kernels
        >>> points = np.cumsum(np.random.default_rng(0).standard_normal((20, 3000)), axis=0)
        >>> found = TrajectoryMap({"whole": Kernels.from_points(points)})
        >>> found.similarity.shape, bool(abs(found.table()["turning"].value - 90) < 2)
        ((20, 20), True)

    Source: arXiv 2403.07379, as far as its definitions are known.
    """
    gaps: tuple[str, ...] = ()
    if not hasattr(source, "G"):
        from thalweg.trajectories.gram import grams

        gaps = tuple(getattr(source, "gaps", ()))
        if groups in ("role", "tensor"):
            options.setdefault("parts", fused_parts(source))
        source = grams(source, **options)
    elif options:
        raise InvalidInput(
            explain(f"Options {sorted(options)}", "the inner products are computed already", "Leave them out")
        )
    steps = np.asarray(source.steps, dtype=np.int64)
    if not -len(steps) <= anchor < len(steps):
        raise InvalidInput(explain(f"Anchor {anchor}", f"there are {len(steps)} checkpoints", "Give a valid index"))
    if weights not in WEIGHTINGS:
        raise InvalidInput(explain(f"Weighting {weights!r}", f"known are {', '.join(WEIGHTINGS)}", "Choose one"))
    members = {WHOLE: np.arange(len(source.names)), **grouped(source, groups)}
    known = {**getattr(source, "schedule", {}), **(schedule or {})}
    numbers = {name: np.asarray(values, dtype=np.float64) for name, values in known.items()}
    wrong = [name for name, values in numbers.items() if values.shape != steps.shape]
    if wrong:
        raise InvalidInput(
            explain(
                f"{wrong[0]!r} has shape {numbers[wrong[0]].shape}",
                f"there are {len(steps)} checkpoints",
                "Give one number for each checkpoint, NaN where it is not known",
            )
        )
    sketch = getattr(source, "sketch", None)
    points = getattr(source, "points", None)  # mean squares over the path: some tensors start at zero
    squares = np.maximum(points() if callable(points) else source.m, 0.0)
    left_out = sum(one.elements for one in getattr(source, "bad", ()))
    return TrajectoryMap(
        paths={name: _path(source, steps, at, squares) for name, at in members.items()},
        anchor=anchor % len(steps),
        weighting=weights,
        lags=None if lags is None else tuple(lags),
        schedule=numbers,
        decay=decay,
        unchanged={name: _unchanged(source, at) for name, at in members.items()},
        sketch=sketch,
        notes=(*gaps, *([f"{left_out:,} values are not finite and were left out."] if left_out else [])),
    )


def _path(source: Any, steps: Ints, at: Ints, squares: Floats) -> Kernels:
    """Sum the tensors of a group; rounding adds up as the squares of what it is on each."""
    q = np.asarray(source.quantum, dtype=np.float64)[at]
    square = squares[at]
    total = float(square.sum())
    rounding = float(np.sqrt((q**2 * square).sum() / total)) if total > 0 else float(q.max(initial=0.0))
    return Kernels(
        steps,
        np.asarray(source.G[at].sum(axis=0), dtype=np.float64),
        np.asarray(source.c[at].sum(axis=0), dtype=np.float64),
        float(np.asarray(source.m, dtype=np.float64)[at].sum()),
        rounding,
    )


def _unchanged(source: Any, at: Ints) -> Floats:
    """Average the share of unchanged weights over tensors by their size, where sizes are known."""
    sizes = np.asarray(getattr(source, "sizes", np.ones(len(source.names))), dtype=np.float64)[at]
    shares = np.asarray(source.unchanged, dtype=np.float64)[at]
    return np.asarray((sizes[:, None] * shares).sum(axis=0) / sizes.sum(), dtype=np.float64)
