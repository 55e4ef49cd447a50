"""What the freezing test found: the ends of all runs, what was kept in each, and what a step costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from thalweg.errors import InvalidInput, explain
from thalweg.trajectories.averages import Similarity
from thalweg.trajectories.freezing_loop import Cost
from thalweg.trajectories.map import TrajectoryMap

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Frozen:
    """One run that was frozen on its way, or was not.

    Attributes:
        variant: ``"full"`` (nothing frozen), ``"kept"`` (all but the pattern), ``"random"`` (as many random weights),
            ``"classifier"`` (the pattern and the last layer), ``"stopped"`` (everything).
        epoch: Epochs done when it was frozen.
        trainable: Weights that went on.
        loss: At the end, on the test data (on the training data where there is none).
        score: The same for the score; NaN without one.
        training_loss: At the end, on the training data, in evaluation mode.
        cost: Of a training step after freezing.
    """

    variant: str
    epoch: int
    trainable: int
    loss: float
    score: float
    training_loss: float
    cost: Cost


@dataclass(frozen=True, repr=False)
class FreezingTest:
    """What freezing costs, by epoch and by what is kept.

    Attributes:
        full: The run that was not frozen.
        runs: Frozen at each epoch, per variant, with the state of the full run until then.
        parameters: Trainable weights of the model.
        kept: Names of the tensors that the pattern takes.
        epochs: Of every run in all.
        map: The trajectory map of the full run, one checkpoint per epoch.
        history: Loss and score after each epoch of the full run, 0 to ``epochs``.
        notes: How it was done.
    """

    full: Frozen
    runs: tuple[Frozen, ...]
    parameters: int
    kept: tuple[str, ...]
    epochs: int
    map: TrajectoryMap
    history: tuple[tuple[float, float], ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def similarity(self) -> Similarity:
        """Mean directional similarity of the full run."""
        return self.map.mds["uniform"]

    @property
    def share(self) -> float:
        """Share of the weights that are frozen in the variant ``"kept"``."""
        return 1 - self.of("kept")[0].trainable / self.parameters

    def of(self, variant: str) -> tuple[Frozen, ...]:
        """Return the runs of a variant, by epoch."""
        return tuple(run for run in self.runs if run.variant == variant)

    def at(self, epoch: int, variant: str = "kept") -> Frozen:
        """Return one run.

        Raises:
            InvalidInput: There is none.
        """
        for run in self.runs:
            if (run.variant, run.epoch) == (variant, epoch):
                return run
        raise InvalidInput(
            explain(
                f"No run {variant!r} frozen at epoch {epoch}",
                f"there are {sorted({(run.variant, run.epoch) for run in self.runs})}",
                "Ask for one of these",
            )
        )

    def lost(self, epoch: int, variant: str = "kept") -> float:
        """Return score of the full run less that of the frozen one; of the losses with the sign turned, without one."""
        run = self.at(epoch, variant)
        return run.loss - self.full.loss if math.isnan(self.full.score) else self.full.score - run.score

    def plot(self) -> Figure:
        """Draw the end of each run over the epoch at which it was frozen, per variant."""
        import plotly.graph_objects as go

        scored = not math.isnan(self.full.score)
        titles = {
            "kept": "only the pattern",
            "random": "as many random weights",
            "classifier": "and the last layer",
            "stopped": "nothing (stopped)",
        }
        figure = go.Figure()
        for variant in dict.fromkeys(run.variant for run in self.runs):
            runs = self.of(variant)
            figure.add_scatter(
                x=[run.epoch for run in runs],
                y=[run.score if scored else run.loss for run in runs],
                mode="lines+markers",
                name=titles.get(variant, variant),
                line_dash="dot" if variant == "stopped" else "solid",
            )
        end = self.full.score if scored else self.full.loss
        figure.add_hline(y=end, line_dash="dash", annotation_text="nothing frozen")
        return figure.update_layout(
            title=f"{self.share:.2%} of {self.parameters:,} weights frozen",
            xaxis_title="frozen after epoch",
            yaxis_title="score at the end" if scored else "loss at the end",
        )

    def __repr__(self) -> str:
        found = self.similarity
        head = (
            f"FreezingTest: {self.share:.2%} of {self.parameters:,} weights frozen, {self.epochs} epochs; "
            f"omega {found.omega:.4f}, without the diagonal {found.omega_off:.4f}"
        )
        rows = [f"{'variant':11}{'epoch':>6}{'trainable':>11}{'loss':>9}{'score':>8}{'flops':>7}{'time':>7}"]
        for run in (self.full, *self.runs):
            rows.append(
                f"{run.variant:11}{run.epoch:6}{run.trainable:11,}{run.loss:9.4f}{run.score:8.4f}"
                f"{run.cost.flops / max(self.full.cost.flops, 1):7.2f}{run.cost.seconds / self.full.cost.seconds:7.2f}"
            )
        return "\n".join([head, *rows, *self.notes])
