"""Critical sharpness: curvature along an update from a handful of forward passes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, NonFinite, NotConverged, explain
from thalweg.operators.space import Space
from thalweg.problem.problem import Problem
from thalweg.spectra.crossing import CrossingStop, first_rise

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class CriticalSharpness:
    r"""``\lambda_c = 2 / \eta_c``, with ``\eta_c`` the first learning rate at which the loss is back at its start.

    Attributes:
        value: ``lambda_c``, in units of 1 / learning rate. 0 if no rise was seen, infinite if the loss rises at once.
        learning_rate: ``eta_c``.
        bracket: Learning rates ``(low, high)``: the loss was seen below its start at ``low`` and above it at
            ``high``, by more than ``noise``. An end that was not seen is 0 or infinite.
        evaluations: Forward passes over the data.
        gradients: Gradients taken: 1 where no direction was given, else 0.
        loss: ``L(w)``.
        slope: ``d' grad L`` if it was known, else None.
        noise: Changes of the loss smaller than this were taken for rounding.
        points: Every ``(learning rate, change of the loss)`` that was evaluated, by learning rate.
        stop: Why the search ended.
    """

    value: float
    learning_rate: float
    bracket: tuple[float, float]
    evaluations: int
    gradients: int
    loss: float
    slope: float | None
    noise: float
    points: tuple[tuple[float, float], ...]
    stop: CrossingStop

    @property
    def interval(self) -> tuple[float, float]:
        """``(2 / high, 2 / low)``: where ``lambda_c`` lies by the signs that were seen."""
        low, high = self.bracket
        return (2 / high, math.inf if low == 0 else 2 / low)

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"CriticalSharpness({self.value:.6g} in [{low:.6g}, {high:.6g}], learning_rate={self.learning_rate:.6g}, "
            f"evaluations={self.evaluations}, gradients={self.gradients}, stop={self.stop.name})"
        )

    def plot(self) -> Figure:
        """Draw the change of the loss along the direction, with ``eta_c``."""
        import plotly.graph_objects as go

        seen = [(eta, change) for eta, change in ((0.0, 0.0), *self.points) if math.isfinite(change)]
        figure = go.Figure(go.Scatter(x=[p[0] for p in seen], y=[p[1] for p in seen], mode="lines+markers"))
        figure.add_hline(y=0, line_dash="dot")
        if 0 < self.learning_rate < math.inf:
            figure.add_vline(x=self.learning_rate, line_dash="dash", annotation_text="critical learning rate")
        return figure.update_layout(
            title=f"Critical sharpness {self.value:.4g}, {self.evaluations} forward passes",
            xaxis_title="learning rate along the direction",
            yaxis_title="change of the loss",
        )


def critical_sharpness(
    problem: Problem,
    w: Tensor | None = None,
    direction: Tensor | None = None,
    *,
    slope: float | None = None,
    guess: float | None = None,
    tol: float = 0.02,
    max_evaluations: int = 9,
    largest: float | None = None,
    noise: float | None = None,
    strict: bool = True,
) -> CriticalSharpness:
    r"""Return ``\lambda_c = 2 / \eta_c``, ``\eta_c = min {\eta > 0 : L(w - \eta d) >= L(w)}``.

    On a quadratic ``\eta_c = 2 d'g / d'Hd``, so ``\lambda_c = d'Hd / d'g``: with the gradient as direction, the
    directional sharpness ``g'Hg / g'g``. Only forward passes are taken, so that it works where there is no second
    derivative and no memory for a graph. The search interpolates ``(L(w - \eta d) - L(w)) / \eta``, a straight line on
    a quadratic, and ends when two learning rates at most ``tol`` apart were *seen* on either side.

    Args:
        problem: Model, loss and data.
        w: The point, shape ``(P,)``; default ``problem.initial``.
        direction: ``d``, shape ``(P,)``: the update is ``w - lr d``. Default: the gradient, which costs one backward
            pass. For a step that was taken, ``(w_before - w_after) / lr``; for the next one of a rule or a torch
            optimizer, `thalweg.rules.direction.update_direction`.
        slope: ``d' grad L(w)`` if you know it; saves a forward pass or two.
        guess: Where to look first, such as ``learning_rate`` of the last call.
        tol: Relative width of the final bracket.
        max_evaluations: Forward passes allowed, the one at ``w`` included.
        largest: Learning rate beyond which not to look; default where the step is 1000 times the weights.
        noise: Changes of the loss below this are rounding. Default: ``4 |L| (eps_L + eps_w / sqrt(N))`` with the
            rounding of the loss's and the weights' dtype, the latter averaged over the samples.
        strict: Raise where the bracket is wider than ``tol``; False returns it as it is.

    Returns:
        `CriticalSharpness`. A loss that never rises in reach, or rises at once, is an answer: see ``stop``.

    Raises:
        InvalidInput: The direction is zero or has another shape, or an argument is out of range.
        NotConverged: The budget or the precision ran out (``strict=True``); ``error.result`` holds the bracket.
        NonFinite: The loss at ``w``, or the direction, is not finite.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> result = critical_sharpness(Problem(model, torch.nn.MSELoss(), (x, 0 * x)))
        >>> round(result.value, 6), result.stop.name  # the only curvature there is: 2 mean(x^2)
        (10.0, 'CONVERGED')

    Source: Kalra et al., arXiv 2601.16979 (definition); interpolation and stopping rules are ours.
    """
    point = _point(problem, w)
    gradients = 0
    if direction is None:
        loss, direction = problem.value_and_gradient(point)
        slope, gradients = _norm(direction) ** 2, 1
    else:
        direction = _direction(problem, direction)
        loss = problem.value(point)
    options = _Options(guess, tol, max_evaluations, largest, noise, strict)
    return _search(problem, point, direction, loss, slope, gradients, options)


def relative_critical_sharpness(
    problem: Problem,
    along: Problem | Tensor,
    w: Tensor | None = None,
    *,
    guess: float | None = None,
    tol: float = 0.02,
    max_evaluations: int = 9,
    largest: float | None = None,
    noise: float | None = None,
    strict: bool = True,
) -> CriticalSharpness:
    r"""Return ``\lambda_c^{1 \to 2} = 2 / \eta_c``: where one loss (2) rises along the update of another (1).

    ``\eta_c = min {\eta > 0 : L_2(w - \eta d_1) >= L_2(w)}``; on quadratics ``\lambda_c = d_1'H_2 d_1 / d_1'g_2``.
    Below 2 / learning rate, a step on loss 1 lowers loss 2 as well; infinite (``RISES_AT_ONCE``) says that the update
    climbs loss 2 however small it is: forgetting, if 2 is pre-training and 1 is fine-tuning.

    Args:
        problem: The loss that is watched (2).
        along: The loss that is trained (1): its gradient is the direction. Or the direction itself, shape ``(P,)``.
        w: The point, shape ``(P,)``; default ``problem.initial``.
        guess: As for `critical_sharpness`, like all that follow.
        tol: Relative width of the final bracket.
        max_evaluations: Forward passes of ``problem``.
        largest: Learning rate beyond which not to look.
        noise: Changes of the loss below this are rounding.
        strict: Raise where the bracket is wider than ``tol``.

    Returns:
        `CriticalSharpness` of ``problem`` along the direction of ``along``.

    Raises:
        InvalidInput: The two problems have different parameters; otherwise as `critical_sharpness`.
        NotConverged: As `critical_sharpness`.
        NonFinite: As `critical_sharpness`.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> x, y = torch.eye(2, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
        >>> first, second = (Problem(model, torch.nn.MSELoss(), (x, scale * y)) for scale in (100.0, -100.0))
        >>> relative_critical_sharpness(second, first).stop.name  # opposite targets
        'RISES_AT_ONCE'

    Source: Kalra et al., arXiv 2601.16979.
    """
    point = _point(problem, w)
    gradients = 0
    if isinstance(along, Problem):
        if along.layout != problem.layout:
            raise InvalidInput(
                explain(
                    f"The problems have {problem.dimension} and {along.dimension} parameters, or other names",
                    "an update of one loss must be a move of the other's weights",
                    "Build both problems on the same model with the same parameters=",
                )
            )
        direction, gradients = along.gradient(point), 1
    else:
        direction = along
    direction = _direction(problem, direction)
    loss = problem.value(point)
    options = _Options(guess, tol, max_evaluations, largest, noise, strict)
    return _search(problem, point, direction, loss, None, gradients, options)


@dataclass(frozen=True)
class _Options:
    guess: float | None
    tol: float
    max_evaluations: int
    largest: float | None
    noise: float | None
    strict: bool


def _point(problem: Problem, w: Tensor | None) -> Tensor:
    point = problem.initial if w is None else w.detach().to(problem.device, problem.dtype)
    problem.layout.split(point)  # checks the shape
    return point


def _direction(problem: Problem, direction: Tensor) -> Tensor:
    problem.layout.split(direction)
    return direction.detach().to(problem.device, problem.dtype)


def _norm(vector: Tensor) -> float:
    wide = vector if vector.dtype == torch.float64 else vector.float()
    return float(Space(len(wide)).norm(wide))  # long sums in float32 lose digits


def _search(
    problem: Problem,
    w: Tensor,
    direction: Tensor,
    start: Tensor,
    slope: float | None,
    gradients: int,
    options: _Options,
) -> CriticalSharpness:
    loss, length, size = float(start), _norm(direction), _norm(w) or 1.0
    if not (math.isfinite(loss) and math.isfinite(length)):
        raise NonFinite(
            explain(
                f"The loss is {loss} and the direction has norm {length}",
                "there is no learning rate to look for",
                "Look where training diverged, or evaluate in float32",
            )
        )
    if length == 0:
        raise InvalidInput(
            explain(
                "The direction is zero",
                "the loss is constant along it",
                "At a stationary point use directional_sharpness with an eigenvector, or the last update",
            )
        )
    noise = options.noise
    if noise is None:
        rounding = torch.finfo(start.dtype).eps + torch.finfo(problem.dtype).eps / math.sqrt(max(problem.samples, 1))
        noise = 4 * abs(loss) * rounding
    scale = size / length
    first = options.guess
    if first is None:
        first = 0.03 * scale
        if slope is not None and slope > 0 and loss > 0:  # a quadratic that stays positive is back by 4 L / slope
            first = min(0.1 * scale, loss / slope)

    def change(eta: float) -> float:
        return float(problem.value(torch.sub(w, direction, alpha=eta))) - loss

    found = first_rise(
        change,
        first,
        slope=slope,
        tol=options.tol,
        max_evaluations=options.max_evaluations - 1,
        largest=options.largest if options.largest is not None else 1e3 * scale,
        noise=noise,
        confident=options.guess is not None,
    )
    result = CriticalSharpness(
        value=0.0 if found.root == math.inf else math.inf if found.root == 0 else 2 / found.root,
        learning_rate=found.root,
        bracket=found.bracket,
        evaluations=len(found.points) + 1,
        gradients=gradients,
        loss=loss,
        slope=slope,
        noise=noise,
        points=found.points,
        stop=found.stop,
    )
    if options.strict and not found.stop.converged:
        raise NotConverged(
            explain(
                f"After {result.evaluations} forward passes the critical learning rate lies between "
                f"{result.bracket[0]:.3g} and {result.bracket[1]:.3g}",
                found.stop.value.split(": ")[0],
                f"To go on, {found.stop.value.split(': ')[1]}; strict=False returns the unfinished result",
            ),
            result,
        )
    return result
