"""The fork test: several continuations of one state with different data order, and whether they agree.

It asks more than any window of one run can: copies that end up alike have forgotten where they came from. Where
observables agree and weights do not, that is equilibrium of the loss without mixing of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from thalweg import _rng
from thalweg.errors import InvalidInput, NonFinite, explain
from thalweg.problem import Problem
from thalweg.rules import Rule
from thalweg.runs.measures import Measure
from thalweg.runs.minibatches import MiniBatches
from thalweg.runs.state import Position, load_position
from thalweg.runs.stepper import Stepper
from thalweg.stationarity import arviz
from thalweg.stationarity.autocorrelation import Floats, is_constant
from thalweg.stationarity.logs import KINDS, ORDER
from thalweg.stationarity.series import BAD, GOOD

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from thalweg.runs import Run


@dataclass(frozen=True, eq=False)
class Forks:
    """Continuations of one state.

    Attributes:
        series: By name, shape ``(copies, n)`` or ``(copies, n, k)``, over the second half of each continuation.
        rhat: R-hat between the copies, the worst coordinate of a vector; NaN where nothing moves.
        effective: Effective samples of all copies together, of the worst coordinate.
        start: Step that they set out from.
        steps: Updates of each.
    """

    series: Mapping[str, Floats]
    rhat: Mapping[str, float]
    effective: Mapping[str, float]
    start: int
    steps: int

    def agree(self, name: str) -> bool | None:
        """Return whether the copies agree in one observable; None where R-hat is between 1.01 and 1.05, or unknown."""
        value = self.rhat[name]
        return True if value < GOOD else False if value > BAD else None

    @property
    def words(self) -> str:
        """What they say together."""
        shown = [name for name in self.rhat if name == "loss" or KINDS.get(name) in ("loss", "function")]
        inside = [name for name in self.rhat if KINDS.get(name) in ("direction", "weight", "norm")]
        outside = [self.agree(name) for name in shown]
        if any(found is False for found in outside):
            return "The copies differ in what they compute: they have not settled on one distribution."
        if any(found is None for found in outside):
            return "The copies nearly agree: longer ones would tell."
        if any(self.agree(name) is False for name in inside):
            return "Loss and function agree and weights do not: equilibrium of the loss without mixing of the weights."
        return "The copies agree."

    def plot(self) -> Figure:
        """Draw the loss of every copy."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for number, values in enumerate(self.series["loss"], 1):
            steps = self.start + self.steps - len(values) + np.arange(len(values))
            figure.add_scatter(x=steps, y=values, mode="lines", line_width=1, name=f"copy {number}")
        return figure.update_layout(
            title=f"R-hat between copies {self.rhat['loss']:.3f}", xaxis_title="step", yaxis_title="loss"
        )

    def __repr__(self) -> str:
        rows = [f"{len(self.series['loss'])} continuations of step {self.start:,}, {self.steps:,} steps each"]
        for name, value in self.rhat.items():
            rows.append(f"  {name}: R-hat between copies {value:.4f}, {self.effective[name]:.0f} effective samples")
        return "\n".join([*rows, self.words])


def forks(
    problem: Problem,
    rule: Rule,
    start: Run | str | Path | Position,
    steps: int,
    *,
    batch_size: int | None,
    copies: int = 4,
    measures: Sequence[Measure] = (),
    seed: int = 0,
) -> Forks:
    """Continue one state several times with different mini-batches, and compare the copies.

    The whole state goes along: weights, the rule's memory, the count of steps. The first half of each continuation is
    left out. The run that it starts from is not touched.

    Args:
        problem: That of the run.
        rule: That of the run.
        start: A run of `thalweg.train` or its folder, taken from where it stands; or a position.
        steps: Updates of each copy.
        batch_size: Samples in a mini-batch.
        copies: How many.
        measures: Such as `thalweg.stationarity.observables.Observables`.
        seed: Of the mini-batches.

    Raises:
        InvalidInput: Full batches (copies would be the same), fewer than two copies, or too few steps.
        RunFolderError: The run has saved no position.
        NonFinite: A copy diverged.

    Example:
        >>> import thalweg as tw
        >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        >>> problem = tw.Problem(torch.nn.Linear(3, 1), torch.nn.MSELoss(), (x, x.sin().sum(1, keepdim=True)))
        >>> rule = tw.rules.GradientDescent(lr=0.1)
        >>> run = tw.train(problem, rule, 200, batch_size=8, folder="runs/forked")
        >>> forks(problem, rule, run, 400, batch_size=8).agree("loss")
        True
    """
    samples = problem._batches.samples or 0
    if batch_size is None or batch_size >= samples or copies < 2 or steps < 40:
        raise InvalidInput(
            explain(
                f"{copies} copies of {steps} steps with mini-batches of {batch_size} out of {samples} samples",
                "copies differ by their mini-batches, there are two at least, and 40 steps are the fewest",
                "Give such numbers; with full batches there is nothing to fork",
            )
        )
    position = start if isinstance(start, Position) else _position(start, problem)
    gathered: dict[str, list[list[Any]]] = {}
    for copy in range(copies):
        own = _rng.derive_seed(seed, "fork", copy)
        stepper = Stepper(problem, rule, measures, MiniBatches(samples, batch_size, own), own, position.step + steps)
        here = Position(position.step, position.w.clone(), dict(position.rule), first_loss=position.first_loss)
        found: dict[str, list[Any]] = {}
        for t in range(steps):
            row, here = stepper.step(here)
            if row.error is not None:
                raise NonFinite(str(row.error))
            if t >= steps // 2:
                for name, value in row.values.items():
                    if name == "loss" or name in KINDS:
                        found.setdefault(name, []).append(value)
        for name, values in found.items():
            gathered.setdefault(name, []).append(values)
    series = {name: np.asarray(values, dtype=np.float64) for name, values in gathered.items()}
    series = {name: x for name, x in series.items() if x.shape[1] >= 8}
    order = ["loss", *sorted((n for n in series if n != "loss"), key=lambda n: ORDER.index(KINDS[n]))]
    return Forks(
        {name: series[name] for name in order},
        {name: between(series[name]) for name in order},
        {name: _effective(series[name]) for name in order},
        position.step,
        steps,
    )


def between(chains: Floats) -> float:
    """Return R-hat between copies, of normal scores and of their spread, the worst of all coordinates.

    Args:
        chains: Shape ``(copies, n)`` or ``(copies, n, k)``.

    Returns:
        NaN where nothing moves.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((4, 500))
        >>> between(x) < 1.01, between(x + np.arange(4)[:, None]) > 1.05
        (True, True)
    """
    return max((arviz.rhat(x, "rank") for x in _columns(chains)), default=math.nan)


def _effective(chains: Floats) -> float:
    return min((arviz.effective_size(x, "bulk") for x in _columns(chains)), default=math.nan)


def _columns(chains: Floats) -> list[Floats]:
    columns = [chains] if chains.ndim == 2 else [chains[:, :, i] for i in range(chains.shape[2])]
    return [x for x in columns if not bool(is_constant(x.ravel()))]


def _position(start: Run | str | Path, problem: Problem) -> Position:
    from thalweg.runs import open_run

    run = open_run(start) if isinstance(start, (str, Path)) else start
    found = load_position(run.folder.state, torch.device(problem.device))
    if found is None:
        raise InvalidInput(
            explain(
                f"The run {run.path} has saved no position",
                "a fork needs the whole state: weights, the rule's memory, the count of steps",
                "Fork a run of thalweg.train, or pass a Position",
            )
        )
    return found
