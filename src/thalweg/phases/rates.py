"""What the first step says about a learning rate: where it stops descending, where it diverges, whether to warm up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from thalweg.errors import InvalidInput, NotConverged, explain
from thalweg.optim.search import RateStop, as_problem, critical_learning_rate
from thalweg.optim.virtual import VirtualUpdate, virtual_update
from thalweg.phases.rates_curvature import curvature_along, effective_sharpness, step_direction
from thalweg.phases.rates_words import evidence, sentence
from thalweg.problem.problem import Problem
from thalweg.rules.base import Rule, State
from thalweg.rules.live import Source
from thalweg.spectra.task import Method

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

CUTOFF = 1e5
"""Loss beyond which a run has diverged, times the initial loss where that is above 1."""
FINE = 2**0.1
"""Ratio of the ends of the bracket in which divergence is found."""
REACH = 12
"""Doublings, or halvings, until divergence is given up."""


class Warmup(StrEnum):
    """Whether the target needs a warm-up; the value is the reason."""

    NOT_NEEDED = "The first step at the target lowers the loss."
    OPTIONAL = "The first step at the target raises the loss, but a run there does not diverge."
    NEEDED = "A run that starts at the target diverges."


@dataclass(frozen=True)
class LearningRateReport:
    r"""What can be said about learning rates from a single point.

    Learning rates are those of the group with most parameters; others scale alike. Evidence about one step and a few:
    a rate that is stable here may diverge later, and the reverse.

    Attributes:
        target: The learning rate that is asked about, if any.
        learning_rate: ``eta_c``, the largest stable first step: beyond it the next step raises the loss. Infinite if no
            rise was seen.
        bracket: Where it was seen not to rise, and to rise.
        stop: Why this search ended.
        sharpness: Largest eigenvalue of the Hessian, for adaptive rules of ``P^{-1} H``, coupled decay included.
        residual: Of that eigenvalue: one lies within.
        local_limit: ``kappa / sharpness``: where the rule loses stability on the local quadratic; 2 / sharpness for
            gradient descent. With momentum once it has built up. NaN for an optimizer without a threshold here.
        directional: ``d'Hd / d'g`` along the update ``d``.
        quadratic: ``2 / directional``: the critical first step of the local quadratic model.
        divergence: Learning rate beyond which a run of ``steps`` updates diverges. Infinite if none was seen.
        divergence_bracket: The largest rate that did not diverge, and the smallest that did.
        steps: Length of these runs.
        cutoff: Loss beyond which they count as diverged.
        warmup: Whether the target needs a warm-up; None without a target.
        warmup_steps: Length of the ordinary warm-up that is compared with, if given.
        loss: At the point.
        points: ``(learning rate, change of the loss)`` of single steps.
        runs: ``(learning rate, largest loss)`` of the short runs, infinite where they diverged.
        name: The rule or optimizer, in words.
        products: Hessian products.
        gradients: Gradients.
        forwards: Losses evaluated without a gradient.
        search_forwards: Those of them that finding ``eta_c`` took.
        notes: What limits the meaning of the numbers.
    """

    target: float | None
    learning_rate: float
    bracket: tuple[float, float]
    stop: RateStop
    sharpness: float
    residual: float
    local_limit: float
    directional: float
    quadratic: float
    divergence: float
    divergence_bracket: tuple[float, float]
    steps: int
    cutoff: float
    warmup: Warmup | None
    warmup_steps: int | None
    loss: float
    points: tuple[tuple[float, float], ...]
    runs: tuple[tuple[float, float], ...]
    name: str
    products: int
    gradients: int
    forwards: int
    search_forwards: int
    notes: tuple[str, ...]

    @property
    def c1(self) -> float:
        """``sharpness eta_c``: 2 on a quadratic with the gradient along its sharpest direction."""
        return self.sharpness * self.learning_rate

    @property
    def quadratic_c1(self) -> float:
        """``sharpness quadratic``: what the local quadratic model says ``c1`` is."""
        return self.sharpness * self.quadratic

    @property
    def anharmonicity(self) -> float:
        """``eta_c / quadratic = c1 directional / (2 sharpness)``: 1 on a quadratic; infinite without its rise."""
        if not 0 < self.quadratic < math.inf:
            return math.nan
        return self.learning_rate / self.quadratic

    @property
    def start(self) -> float | None:
        """Where to start a warm-up: ``eta_c``, or the target or where short runs stay, if lower; None without one."""
        if self.target is None:
            return None
        stays = self.divergence_bracket[0] if self.divergence < self.learning_rate else math.inf
        return min(self.learning_rate, self.target, stays)

    @property
    def saved_share(self) -> float | None:
        """Share of the ordinary ramp's steps that beginning at ``start`` saves; None without a target."""
        return None if self.target is None or self.start is None else min(1.0, self.start / self.target)

    @property
    def saved(self) -> float | None:
        """Steps saved of ``warmup_steps``, less half a step for each forward pass of the search."""
        if self.saved_share is None or self.warmup_steps is None:
            return None
        return self.warmup_steps * self.saved_share - self.search_forwards / 2

    def describe(self) -> str:
        """Return the finding in sentences."""
        return sentence(self)

    def evidence(self) -> list[tuple[str, str, str]]:
        """Return rows of ``(what, value, how it was found)``."""
        return evidence(self)

    def __repr__(self) -> str:
        return (
            f"LearningRateReport(critical={self.learning_rate:.4g}, local_limit={self.local_limit:.4g}, "
            f"quadratic={self.quadratic:.4g}, divergence={self.divergence:.4g}, c1={self.c1:.4g}, "
            f"anharmonicity={self.anharmonicity:.3g}, target={self.target}, "
            f"warmup={self.warmup.name if self.warmup else None})"
        )

    def plot(self) -> Figure:
        """Draw the change of the loss over one step, with all the learning rates that were found."""
        import plotly.graph_objects as go

        seen = [(eta, 1 + change / self.loss) for eta, change in self.points if math.isfinite(change)]
        worst = [(eta, loss / self.loss) for eta, loss in self.runs if math.isfinite(loss)]
        figure = go.Figure()
        for rows, name in ((seen, "after one step"), (worst, f"largest within {self.steps} steps")):
            figure.add_scatter(x=[r[0] for r in rows], y=[r[1] for r in rows], mode="lines+markers", name=name)
        figure.add_hline(y=1, line_dash="dot")
        marks = {
            "kappa / sharpness": self.local_limit,
            "quadratic": self.quadratic,
            "critical": self.learning_rate,
            "divergence": self.divergence,
            "target": self.target,
        }
        for name, rate in marks.items():
            if rate is not None and 0 < rate < math.inf:
                figure.add_vline(x=rate, line_dash="dash")
                # on a logarithmic axis an annotation is placed by the logarithm, a line by the value
                # what is predicted stands at the foot, as it may lie beside what was measured
                high = name not in ("kappa / sharpness", "quadratic")
                where = {"x": math.log10(rate), "y": int(high), "yref": "paper", "xanchor": "right"}
                figure.add_annotation(
                    **where, yanchor="top" if high else "bottom", text=name, textangle=-90, showarrow=False
                )
        return figure.update_layout(
            title=f"The first step at learning rates up to divergence, {self.name}",
            xaxis={"title": "learning rate", "type": "log"},
            yaxis={"title": "loss / loss before", "type": "log" if self.loss > 0 else "linear"},
        )


def first_step(
    where: Problem | tuple[nn.Module, Callable[..., Any], Any],
    source: Source,
    w: Tensor | None = None,
    state: State | None = None,
    *,
    target: float | None = None,
    warmup_steps: int | None = None,
    steps: int = 10,
    tol: float = 0.02,
    cutoff: float | None = None,
    method: Method | None = None,
    seed: int = 0,
) -> LearningRateReport:
    r"""Say how large a learning rate may be at the first step, and what to do about the one that is wanted.

    ``\eta_c = min {\eta : L(w'(\eta)) >= L(w)}`` is measured along the optimizer's own step; ``\lambda_0`` and
    ``d'Hd / d'g`` say what a quadratic would do. Their ratio, the anharmonicity ``\eta_c d'Hd / 2 d'g``, is large in
    deep and narrow networks, where local curvature does not tell the critical learning rate and it must be measured.
    Divergence is found by bisection of runs of ``steps`` updates over the same data. Nothing of the user's is changed.

    Args:
        where: A Problem, or ``(model, loss, batch)``.
        source: A rule, or a live torch optimizer on that model.
        w: The point, shape ``(P,)``; default the model's own.
        state: State of a rule before the step; default its initial one.
        target: The learning rate that is wanted; default that of ``source``.
        warmup_steps: Length of the warm-up that you would do, to say what starting at ``eta_c`` saves of it.
        steps: Length of the runs that look for divergence.
        tol: Relative width of the bracket of ``eta_c``.
        cutoff: Loss that counts as diverged; default 1e5, times the loss at the point where that is above 1.
        method: Tolerance and budget of the eigensolver.
        seed: Of its starting vector.

    Returns:
        A `LearningRateReport`.

    Raises:
        InvalidInput: The step does not move the weights, or an argument is out of range.
        NonFinite: Loss or gradient at the point is not finite.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> problem = Problem(model, torch.nn.MSELoss(), (x, 0 * x))  # its only curvature is 10
        >>> report = first_step(problem, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> report.warmup.name, round(report.c1, 6), round(report.anharmonicity, 6)
        ('NOT_NEEDED', 2.0, 1.0)

    Source: arXiv 2406.09405 and 2601.16979 (``eta_c``), 2302.12250 (runs of 10 steps, cut-off).
    """
    problem = as_problem(where)
    if (
        steps < 1
        or (target is not None and not 0 < target < math.inf)
        or (warmup_steps is not None and warmup_steps < 1)
    ):
        raise InvalidInput(
            explain(
                f"first_step got {steps} steps, target {target}, {warmup_steps} steps of warm-up",
                "they are positive",
                "Correct the argument",
            )
        )
    point = problem.initial if w is None else w.detach().to(problem.device, problem.dtype)
    value, gradient = problem.value_and_gradient(point)
    update = virtual_update(problem, source, point, state, gradient=gradient)
    wanted = target if target is not None else update.rate or None
    notes: list[str] = []
    direction = step_direction(problem, source, point, state, gradient, update, notes)
    descent = float(direction @ gradient)
    along = curvature_along(problem, point, direction, descent, notes)
    quadratic = 2 / along if along > 0 and descent > 0 else math.inf
    guess = quadratic if math.isfinite(quadratic) else None
    try:
        found = critical_learning_rate(
            problem, source, point, state, gradient=gradient, start=guess, tol=tol, max_evaluations=30
        )
    except NotConverged as error:
        found = error.result  # type: ignore[assignment]
        notes.append(f"The critical learning rate is known to its bracket only: {found.stop.value}")
    # What nothing can be said about is refused by now.
    sharpness, residual, products, stable = effective_sharpness(
        problem, source, point, state, gradient, method, seed, notes
    )
    loss = float(value)
    limit = CUTOFF * max(1.0, abs(loss)) if cutoff is None else cutoff
    begin = found.learning_rate if found.learning_rate < math.inf else (wanted or max(p[0] for p in found.points))
    runs, ends = _divergence(update, begin, steps, limit)
    divergence = math.sqrt(ends[0] * ends[1]) if ends[0] > 0 and ends[1] < math.inf else ends[1]
    return LearningRateReport(
        target=wanted,
        learning_rate=found.learning_rate,
        bracket=found.bracket,
        stop=found.stop,
        sharpness=sharpness,
        residual=residual,
        local_limit=stable,
        directional=along,
        quadratic=quadratic,
        divergence=divergence,
        divergence_bracket=ends,
        steps=steps,
        cutoff=limit,
        warmup=_verdict(wanted, found.learning_rate, divergence),
        warmup_steps=warmup_steps,
        loss=loss,
        points=found.points,
        runs=tuple((eta, worst) for eta, worst, _ in runs),
        name=_name(source),
        products=products + (0 if math.isnan(along) else 1),
        gradients=1 + sum(done - 1 for *_, done in runs),
        forwards=found.evaluations + sum(done for *_, done in runs),
        search_forwards=found.evaluations,
        notes=tuple(notes),
    )


def _verdict(target: float | None, critical: float, divergence: float) -> Warmup | None:
    if target is None:
        return None
    if target <= critical and target < divergence:
        return Warmup.NOT_NEEDED
    return Warmup.OPTIONAL if target < divergence else Warmup.NEEDED


def _divergence(
    update: VirtualUpdate, begin: float, steps: int, cutoff: float
) -> tuple[list[tuple[float, float, int]], tuple[float, float]]:
    """Bisect runs: ``(rate, largest loss, updates done)`` of each, and the last bracket."""
    runs: list[tuple[float, float, int]] = []

    def diverges(eta: float) -> bool:
        worst, path, done = -math.inf, update.path(eta), 0
        for _ in range(steps):
            done += 1
            loss = float(update.problem.value(next(path)))
            if not loss <= cutoff:  # NaN too
                runs.append((eta, math.inf, done))
                return True
            worst = max(worst, loss)
        runs.append((eta, worst, done))
        return False

    low, high, eta = 0.0, math.inf, begin
    for _ in range(REACH + 1):
        if diverges(eta):
            high = eta
        else:
            low = eta
        if low > 0 and high < math.inf:
            break
        eta = 2 * eta if high == math.inf else eta / 2
    while low > 0 and high < math.inf and high > low * FINE:
        eta = math.sqrt(low * high)
        if diverges(eta):
            high = eta
        else:
            low = eta
    return sorted(runs), (low, high)


def _name(source: Source) -> str:
    return source.name if isinstance(source, Rule) else type(source).__name__
