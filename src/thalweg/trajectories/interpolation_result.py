"""What a look between checkpoints found: losses on lines, the highest of them, and what it took."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from thalweg.trajectories.kernels import Floats, Ints

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def chord(alphas: Floats, first: float, last: float) -> Floats:
    """Return the straight line between the losses at the ends, at ``alphas``."""
    return np.asarray((1 - alphas) * first + alphas * last, dtype=np.float64)


class BarrierStop(StrEnum):
    """Why a search for the maximum ended."""

    CONVERGED = "a parabola through the highest points promises no more than the tolerance"
    EVALUATIONS = "as many evaluations as allowed"
    NOT_FINITE = "the loss is not finite on the line"

    @property
    def converged(self) -> bool:
        """Whether the maximum was found to the tolerance, for peaks no narrower than the first points' spacing."""
        return self is BarrierStop.CONVERGED


@dataclass(frozen=True, repr=False, eq=False)
class Barrier:
    """The loss on the straight line between two points.

    Attributes:
        value: The barrier, in units of the loss, at least 0; infinite where the loss is not finite.
        alpha: Where it is, 0 at the first point, 1 at the second.
        error: How much higher the maximum may be, by a parabola through the three highest points.
        alphas: Where the loss was evaluated, ascending.
        losses: ``L(theta(alpha))``, the same shape.
        evaluations: Passes over the data.
        stop: Why the search ended.
        steps: Of the two points, where they are known.
        notes: How layers that normalise by a batch were evaluated.
    """

    value: float
    alpha: float
    error: float
    alphas: Floats
    losses: Floats
    evaluations: int
    stop: BarrierStop
    steps: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()

    @property
    def excess(self) -> Floats:
        """``L(theta(alpha))`` less the straight line between the losses at the ends."""
        return np.asarray(self.losses - chord(self.alphas, self.losses[0], self.losses[-1]), dtype=np.float64)

    @property
    def relative(self) -> float:
        """The barrier over the mean of the losses at the ends."""
        mean = float(self.losses[0] + self.losses[-1]) / 2
        return self.value / mean if mean > 0 else math.nan

    def plot(self) -> Figure:
        """Draw the loss on the line, and the straight line between its ends."""
        import plotly.graph_objects as go

        figure = go.Figure(go.Scatter(x=self.alphas, y=self.losses, mode="lines+markers", name="loss"))
        figure.add_scatter(x=[0, 1], y=self.losses[[0, -1]], mode="lines", line_dash="dot", name="between the ends")
        if math.isfinite(self.value) and self.value > 0:
            figure.add_vline(x=self.alpha, line_dash="dash", annotation_text=f"barrier {self.value:.3g}")
        return figure.update_layout(title=repr(self), xaxis_title="alpha", yaxis_title="loss")

    def __repr__(self) -> str:
        where = "" if self.steps is None else f" between steps {self.steps[0]:,} and {self.steps[1]:,}"
        return (
            f"Barrier{where}: {self.value:.4g} at alpha {self.alpha:.3g} (losses {self.losses[0]:.4g} and "
            f"{self.losses[-1]:.4g}), {self.evaluations} evaluations: {self.stop}"
        )


@dataclass(frozen=True, repr=False, eq=False)
class PathLoss:
    """The loss along a path, and what lies between its checkpoints.

    Attributes:
        steps: Step of each checkpoint, shape ``(T,)``.
        losses: ``L(theta_i)``, shape ``(T,)``.
        travelled: Length of the path up to each checkpoint, shape ``(T,)``, in units of weights.
        neighbours: Barriers from each checkpoint to the next; none where they were not asked for.
        ends: Barrier from the first to the last; None where it was not asked for.
        evaluations: Passes over the data, in all.
        notes: How layers that normalise by a batch were evaluated.
    """

    steps: Ints
    losses: Floats
    travelled: Floats
    neighbours: tuple[Barrier, ...]
    ends: Barrier | None
    evaluations: int
    notes: tuple[str, ...] = ()

    @property
    def barriers(self) -> Floats:
        """Height of the barrier from each checkpoint to the next, shape ``(T-1,)`` or ``(0,)``."""
        return np.array([one.value for one in self.neighbours], dtype=np.float64)

    def plot(self) -> Figure:
        """Draw the loss over the length travelled, with what lies between, and the line from the first to the last."""
        import plotly.graph_objects as go

        figure = go.Figure()
        if self.neighbours:
            spans = list(pairwise(self.travelled))
            x = np.concatenate([a + one.alphas * (b - a) for one, (a, b) in zip(self.neighbours, spans)])
            y = np.concatenate([one.losses for one in self.neighbours])
            figure.add_scatter(x=x, y=y, mode="lines", name="between checkpoints")
        names = [f"step {step:,}" for step in self.steps]
        figure.add_scatter(x=self.travelled, y=self.losses, mode="markers", name="checkpoints", text=names)
        if self.ends is not None:
            total = self.travelled[-1]
            figure.add_scatter(
                x=self.ends.alphas * total, y=self.ends.losses, mode="lines", line_dash="dot", name="first to last"
            )
        return figure.update_layout(title=repr(self), xaxis_title="length travelled", yaxis_title="loss")

    def __repr__(self) -> str:
        parts = [f"PathLoss of {len(self.steps)} checkpoints: {self.losses[0]:.4g} to {self.losses[-1]:.4g}"]
        if self.ends is not None:
            parts.append(f"barrier of the ends {self.ends.value:.3g}")
        if self.neighbours:
            parts.append(f"of neighbours at most {self.barriers.max():.3g}")
        return ", ".join([*parts, f"{self.evaluations} evaluations"])
