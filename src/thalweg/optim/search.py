"""The critical learning rate: where the very next step stops lowering the loss, by forward passes only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from thalweg.errors import InvalidInput, NonFinite, NotConverged, explain
from thalweg.optim.virtual import VirtualUpdate, virtual_update
from thalweg.problem.problem import Problem
from thalweg.rules.base import Rule, State
from thalweg.rules.live import Source
from thalweg.spectra.crossing import CrossingStop, first_rise

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FIRST_GUESS = 1e-4
NARROW = 1 + 2**-8
"""A bracket this narrow is an answer even where the loss jumps by more than ``delta`` across it."""
FAR = 1e3
"""Steps longer than so many times the weights are not tried."""


class RateStop(StrEnum):
    """Why the search ended; the value is a sentence."""

    FOUND = "The loss was seen to fall below the critical learning rate and to rise at it, within the tolerance."
    RISES_AT_START = "The loss rises at the smallest learning rate that was tried: give a smaller start."
    NO_RISE = "The loss did not rise as far as learning rates were tried."
    BUDGET = "The evaluations ran out: raise max_evaluations, or loosen delta or tol."
    ROUNDING = "Changes are as small as rounding: evaluate in a wider dtype (problem.in_dtype), or loosen tol."

    @property
    def converged(self) -> bool:
        """Whether this is an answer; a loss that never rises, or rises at once, is one."""
        return self not in (RateStop.BUDGET, RateStop.ROUNDING)


@dataclass(frozen=True)
class CriticalRate:
    r"""``\eta_c``: the learning rate at which the loss after the next step is back at the loss before it.

    Attributes:
        learning_rate: ``eta_c``; infinite where no rise was seen. Of the group with most parameters.
        bracket: ``(low, high)``: the largest learning rate seen without a rise below the smallest with one. 0 or
            infinite where not seen.
        initial: Where to start a warm-up: ``eta_c``, or a tenth of the largest learning rate tried if no rise was seen.
        rates: Learning rates of all groups at ``initial``, which scale together.
        target: The largest learning rate that was to be tried, if given.
        loss: ``L(w)``.
        points: Every ``(learning rate, change of the loss)``, by learning rate.
        evaluations: Losses evaluated: passes over the data, that at ``w`` included.
        gradients: Of these, with a backward pass: 1, or 0 where the gradient was given.
        noise: Changes of the loss smaller than this were taken for rounding.
        stop: Why the search ended.
    """

    learning_rate: float
    bracket: tuple[float, float]
    initial: float
    rates: tuple[float, ...]
    target: float | None
    loss: float
    points: tuple[tuple[float, float], ...]
    evaluations: int
    gradients: int
    noise: float
    stop: RateStop

    def __float__(self) -> float:
        return self.learning_rate

    def __repr__(self) -> str:
        low, high = self.bracket
        return (
            f"CriticalRate({self.learning_rate:.6g} in [{low:.6g}, {high:.6g}], initial={self.initial:.6g}, "
            f"evaluations={self.evaluations}, gradients={self.gradients}, stop={self.stop.name})"
        )

    def plot(self) -> Figure:
        """Draw the change of the loss over one step against the learning rate."""
        import plotly.graph_objects as go

        seen = [(eta, change) for eta, change in self.points if math.isfinite(change)]
        figure = go.Figure(go.Scatter(x=[p[0] for p in seen], y=[p[1] for p in seen], mode="lines+markers"))
        figure.add_hline(y=0, line_dash="dot")
        for rate, name in ((self.learning_rate, "critical"), (self.target, "target")):
            if rate is not None and 0 < rate < math.inf:
                figure.add_vline(x=rate, line_dash="dash")
                # on a logarithmic axis an annotation is placed by the logarithm, a line by the value
                where = {"x": math.log10(rate), "y": 1, "yref": "paper", "yanchor": "bottom"}
                figure.add_annotation(**where, text=name, showarrow=False)
        return figure.update_layout(
            title=f"Critical learning rate {self.learning_rate:.4g}, {self.evaluations} forward passes",
            xaxis={"title": "learning rate", "type": "log"},
            yaxis_title="change of the loss in the next step",
        )


def as_problem(where: Problem | tuple[nn.Module, Callable[..., Any], Any]) -> Problem:
    """Return a Problem; ``(model, loss, batch)`` becomes one, evaluated as it is: in its mode, with its random state.

    A model with live dropout draws the same masks at every evaluation, those that it would draw next, because random
    states are put back each time. A `Problem` that the caller builds refuses dropout unless ``check=False``.
    """
    if isinstance(where, Problem):
        return where
    if not (isinstance(where, tuple) and len(where) == 3 and isinstance(where[0], nn.Module)):
        raise InvalidInput(
            explain(
                f"Got a {type(where).__name__}",
                "a loss is needed that can be evaluated at other weights",
                "Pass a Problem, or (model, loss, batch) as a Problem takes them",
            )
        )
    return Problem(*where, check=False)


def critical_learning_rate(
    where: Problem | tuple[nn.Module, Callable[..., Any], Any],
    source: Source,
    w: Tensor | None = None,
    state: State | None = None,
    *,
    target: float | None = None,
    start: float | None = None,
    delta: float | None = None,
    tol: float | None = None,
    max_evaluations: int = 40,
    gradient: Tensor | Literal["grad"] | None = None,
    strict: bool = True,
) -> CriticalRate:
    r"""Return ``\eta_c = min {\eta > 0 : L(w'(\eta)) >= L(w)}``, ``w'`` the next step of the optimizer.

    On a quadratic, gradient descent has ``\eta_c = 2 g'g / g'Hg``. Learning rates are doubled from ``start`` until the
    loss rises, then bisected until it rises by at most ``delta`` of itself; the upper end is returned. With ``tol`` the
    search interpolates instead, up or down from ``start``, until its bracket is that narrow (`thalweg.spectra`'s
    `first_rise`).

    The step is the optimizer's own, at each learning rate: momentum, preconditioner, decoupled decay and the ratios
    of groups are in it. It is taken on copies: weights, gradients, state, buffers, random state and mode stay as they
    are, to the bit. Data and random numbers are the same at every evaluation. A dip narrower than the doubling, before
    or after another rise, cannot be excluded.

    Args:
        where: A Problem on the mini-batch, or ``(model, loss, batch)``.
        source: A rule, or any live torch optimizer on that model whose step takes one gradient.
        w: The point, shape ``(P,)``; default the model's own.
        state: State of a rule before the step; default its initial one.
        target: Learning rate beyond which not to look.
        start: Where to begin, default 1e-4 (a sixteenth of the target, if that is less).
        delta: Relative rise of the loss that is good enough. Default 0.1, and 0.01 for preconditioned rules and
            optimizers other than SGD.
        tol: Relative width of the bracket to reach instead.
        max_evaluations: Forward passes allowed.
        gradient: What the step takes in, shape ``(P,)``, or ``"grad"`` for what ``loss.backward()`` left in the
            parameters (clip or unscale it first). Default: computed, at the price of one backward pass.
        strict: Raise where the search did not end; False returns what it has.

    Returns:
        A `CriticalRate`. That the loss never rises, or rises at the start, is an answer: see ``stop``.

    Raises:
        InvalidInput: The optimizer would not move the weights, or an argument is out of range.
        NonFinite: The loss, or the gradient, is not finite.
        NotConverged: Budget or precision ran out; ``error.result`` has the bracket.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> problem = Problem(model, torch.nn.MSELoss(), (x, 0 * x))  # curvature 10
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        >>> round(float(critical_learning_rate(problem, optimizer, tol=1e-3)), 4)
        0.2

    Source: arXiv 2406.09405 (doubling, bisection, delta; a tenth of the target where nothing rises).
    """
    problem = as_problem(where)
    options = _options(source, target, start, delta, tol, max_evaluations)
    point = problem.initial if w is None else w.detach().to(problem.device, problem.dtype)
    gradients = 0
    if gradient is None:
        value, force = problem.value_and_gradient(point)
        gradients = 1
    else:
        value = problem.value(point)
        force = _left_behind(problem) if isinstance(gradient, str) else gradient
    loss = float(value)
    _check_finite(loss, force)
    update = virtual_update(problem, source, point, state, gradient=force)
    _check_moves(update, options.start)
    noise = _rounding(problem, value)

    def change(eta: float) -> float:
        found = float(problem.value(update.step(eta))) - loss
        return math.inf if math.isnan(found) else found

    search = _refined if tol is not None else _doubled
    points, bracket, root, stop = search(change, update, loss, noise, options)
    tried = max(eta for eta, _ in points)
    initial = root if root < math.inf else (target if target is not None else tried) / 10
    result = CriticalRate(
        learning_rate=root,
        bracket=bracket,
        initial=initial,
        rates=update.scaled(initial),
        target=target,
        loss=loss,
        points=tuple(sorted(points)),
        evaluations=len(points) + 1,
        gradients=gradients,
        noise=noise,
        stop=stop,
    )
    if strict and not stop.converged:
        found, remedy = stop.value.split(": ")
        raise NotConverged(
            explain(
                f"After {result.evaluations} forward passes the critical learning rate lies between {bracket[0]:.3g} "
                f"and {bracket[1]:.3g}",
                found,
                f"To go on, {remedy.rstrip('.')}; strict=False returns the unfinished result",
            ),
            result,
        )
    return result


@dataclass(frozen=True)
class _Options:
    target: float | None
    start: float
    delta: float
    tol: float
    budget: int


_Found = tuple[list[tuple[float, float]], tuple[float, float], float, RateStop]


def _options(
    source: Source, target: float | None, start: float | None, delta: float | None, tol: float | None, budget: int
) -> _Options:
    if delta is None:
        delta = 0.1 if _plain(source) else 0.01
    reach = math.inf if target is None else target
    first = min(FIRST_GUESS, reach / 16) if start is None else min(start, reach)
    width = 0.02 if tol is None else tol
    if not (0 < first < math.inf and reach > 0 and 0 <= delta < math.inf and 0 < width < 1 and budget >= 2):
        raise InvalidInput(
            explain(
                f"The search got start {start}, target {target}, delta {delta}, tol {tol}, {budget} evaluations",
                "learning rates are positive, delta is not negative, tol lies in (0, 1), and two evaluations are "
                "the least",
                "Correct the argument that breaks this",
            )
        )
    return _Options(target, first, delta, width, budget)


def _doubled(change: Callable[[float], float], update: VirtualUpdate, loss: float, noise: float, o: _Options) -> _Found:
    """Doubling, then bisection, as published."""
    points: list[tuple[float, float]] = []
    low, high, rise = 0.0, math.inf, math.inf
    eta, reach = o.start, math.inf if o.target is None else o.target
    while high == math.inf:
        value = change(eta)
        points.append((eta, value))
        if value > noise:
            high, rise = eta, value
        elif eta >= reach or _far(update, eta) or len(points) >= o.budget - 1:
            stop = RateStop.NO_RISE if value < -noise else RateStop.ROUNDING
            return points, (eta, math.inf), math.inf, stop
        else:
            low, eta = eta, min(2 * eta, reach)
    if low == 0:
        return points, (0.0, high), high, RateStop.RISES_AT_START
    while rise > o.delta * abs(loss) and high > low * NARROW:
        if len(points) >= o.budget - 1:
            return points, (low, high), high, RateStop.BUDGET
        eta = 0.5 * (low + high)
        value = change(eta)
        points.append((eta, value))
        if value > noise:
            high, rise = eta, value
        else:
            low = eta
    return points, (low, high), high, RateStop.FOUND


def _refined(change: Callable[[float], float], update: VirtualUpdate, loss: float, noise: float, o: _Options) -> _Found:
    """Interpolation, up or down from the start."""
    step = float(torch.linalg.vector_norm((update.step(o.start) - update.w).double()))
    size = float(torch.linalg.vector_norm(update.w.double())) or 1.0
    reach = o.target if o.target is not None else FAR * size * o.start / step
    found = first_rise(change, min(o.start, reach), tol=o.tol, max_evaluations=o.budget - 1, largest=reach, noise=noise)
    stop = {
        CrossingStop.CONVERGED: RateStop.FOUND,
        CrossingStop.NEVER_RISES: RateStop.NO_RISE,
        CrossingStop.RISES_AT_ONCE: RateStop.RISES_AT_START,
        CrossingStop.BUDGET: RateStop.BUDGET,
        CrossingStop.ROUNDING: RateStop.ROUNDING,
    }[found.stop]
    root = found.root if found.root > 0 else min(eta for eta, _ in found.points)
    return list(found.points), found.bracket, root, stop


def _far(update: VirtualUpdate, eta: float) -> bool:
    moved = torch.linalg.vector_norm((update.step(eta) - update.w).double())
    return float(moved) > FAR * (float(torch.linalg.vector_norm(update.w.double())) or 1.0)


def _plain(source: Source) -> bool:
    """Whether the update is not preconditioned."""
    if isinstance(source, Rule):
        return source.preconditioner(source.init(torch.zeros(1))) is None
    return isinstance(source, torch.optim.SGD)


def _rounding(problem: Problem, value: Tensor) -> float:
    unit = torch.finfo(value.dtype).eps + torch.finfo(problem.dtype).eps / math.sqrt(max(problem.samples, 1))
    return 4 * abs(float(value)) * unit


def _left_behind(problem: Problem) -> Tensor:
    """The gradients in the parameters, zero where there is none."""
    held = [problem.model.get_parameter(name) for name in problem.layout.names]
    if all(p.grad is None for p in held):
        raise InvalidInput(
            explain(
                'gradient is "grad", and no parameter has one',
                "the step would not move",
                "Call loss.backward() first, or leave gradient out",
            )
        )
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in held]
    return torch.cat([part.detach().reshape(-1).to(problem.device, problem.dtype) for part in parts])


def _check_finite(loss: float, gradient: Tensor) -> None:
    if not math.isfinite(loss) or not bool(torch.isfinite(gradient).all()):
        raise NonFinite(
            explain(
                f"The loss is {loss} and {int((~torch.isfinite(gradient)).sum()):,} entries of the gradient are not "
                "finite",
                "there is no learning rate to look for",
                "Look where training diverged, or evaluate in float32",
            )
        )


def _check_moves(update: VirtualUpdate, eta: float) -> None:
    if bool((update.step(eta) == update.w).all()) and bool((update.step(2.0**20 * eta) == update.w).all()):
        raise InvalidInput(
            explain(
                "The next step does not move the weights",
                "gradient and momentum are zero, so that no learning rate changes the loss",
                "Look for a stationary point, or for parameters that the loss does not use",
            )
        )
