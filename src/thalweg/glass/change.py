r"""What a step does to the loss: as its Hessian predicts, as glass adds to it, and as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InvalidInput, NonFinite, explain
from thalweg.glass.estimators import (
    GAUSSIAN,
    JENSEN,
    curvature_and_density,
    glass_part,
    independent_glass_part,
)
from thalweg.glass.printed import change_table
from thalweg.glass.probing import displacement_rounding, gradient, mini_batches, point_of, shared_state
from thalweg.glass.table import jackknife
from thalweg.operators.hessian import hessian as hessian_operator
from thalweg.problem.problem import Problem

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from thalweg.glass.density import GlassDensity

LENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Multiples of a step at which it is looked at where none are named."""

SMOOTH = 2.5
"""Power of second differences along a step from which its density is a remainder of smooth curvature."""


@dataclass(frozen=True)
class ExpectedChange:
    r"""What is expected of ``w \to w + t \delta``, from gradients and one Hessian product of each mini-batch at ``w``.

    Attributes:
        lengths: ``t``, shape ``(k,)``.
        linear: ``t g'\delta``, mean over batches, shape ``(k,)``.
        hessian: ``t^2 \delta'H\delta / 2`` with the Hessian that differentiation sees.
        finite: The same with the curvature of a finite difference over the probe, the mean effect of kinks included.
        glass: ``c \sqrt{\rho} t^{3/2}`` with the density measured along ``\delta``: what the loss of one batch deviates
            by, in the mean of absolute values.
        glass_error: Its standard error over batches.
        jensen: ``\sqrt{\rho / 3} t^{3/2}``: no mean deviation is larger, whatever the jumps are.
        summed: ``c \sum_i \sqrt{\rho_i} |t \delta_i|^{3/2}`` from densities by coordinate: every coordinate's share
            added up, an upper bound that is far too large for a dense step. NaN without a `GlassDensity`.
        independent: ``c \sqrt{\sum_i \rho_i |t \delta_i|^3}``, if coordinates varied independently. NaN likewise.
        power: Power of second differences of ``\delta'g`` between a quarter of the probe and the probe: 1 by glass, 4
            where the loss is smooth along the step, so that its density means nothing.
        power_error: Its standard error.
        probe: Half the length of the probe, in multiples of ``\delta``.
        slopes: ``g'\delta`` of each batch, shape ``(batches,)``.
        curvatures: ``\delta'H\delta`` of each batch.
        densities: Density along ``\delta`` of each batch.
        gradients: Gradients taken, of one batch each.
        products: Hessian products, of one batch each.
    """

    lengths: np.ndarray
    linear: np.ndarray
    hessian: np.ndarray
    finite: np.ndarray
    glass: np.ndarray
    glass_error: np.ndarray
    jensen: np.ndarray
    summed: np.ndarray
    independent: np.ndarray
    power: float
    power_error: float
    probe: float
    slopes: np.ndarray = field(repr=False)
    curvatures: np.ndarray = field(repr=False)
    densities: np.ndarray = field(repr=False)
    gradients: int = 0
    products: int = 0

    @property
    def deviation(self) -> np.ndarray:
        r"""Mean absolute deviation from the Hessian model that kinks give in all, shape ``(k,)``.

        ``E|m + X|`` for Gaussian ``X`` of mean zero with the size of the glass part, and ``m`` the mean effect of the
        kinks, ``finite - hessian``. Without a mean effect it is ``glass``.
        """
        m = self.finite - self.hessian
        spread = self.glass / math.sqrt(2 / math.pi)
        with np.errstate(all="ignore"):
            z = np.where(spread > 0, np.abs(m) / spread, math.inf)
            folded = self.glass * np.exp(-(z**2) / 2) + np.abs(m) * np.array([math.erf(v / math.sqrt(2)) for v in z])
        return np.asarray(folded)

    @property
    def glassy(self) -> bool:
        """Whether kinks show along the step: its power is below 2.5, or may be."""
        reach = 2 * self.power_error if math.isfinite(self.power_error) else 0.0
        return math.isfinite(self.power) and self.power - reach < SMOOTH

    @property
    def total(self) -> np.ndarray:
        """Linear, Hessian and glass part together, shape ``(k,)``."""
        return np.asarray(self.linear + self.hessian + self.glass)


@dataclass(frozen=True)
class MeasuredChange:
    r"""What ``w \to w + t \delta`` does to the loss of each mini-batch.

    Attributes:
        lengths: ``t``, shape ``(k,)``.
        change: Mean over batches of ``L(w + t \delta) - L(w)``, shape ``(k,)``.
        change_error: Its standard error.
        changes: The same of each batch, shape ``(batches, k)``.
        forwards: Losses evaluated, of one batch each.
    """

    lengths: np.ndarray
    change: np.ndarray
    change_error: np.ndarray
    changes: np.ndarray = field(repr=False)
    forwards: int = 0


@dataclass(frozen=True)
class LossChange:
    r"""Expected and measured change side by side.

    Attributes:
        expected: What was predicted.
        measured: What was found, on the same batches with the same masks.
        mean: Mean of what the Hessian model leaves, ``L(w + t \delta) - L(w) - t g'\delta - t^2 \delta'H\delta / 2``,
            each batch with its own ``g`` and ``H``; shape ``(k,)``. The Hessian predicts 0.
        mean_error: Its standard error over batches.
        size: Mean absolute value of the same. The Hessian predicts 0, glass ``expected.glass``.
        size_error: Its standard error.
    """

    expected: ExpectedChange
    measured: MeasuredChange
    mean: np.ndarray
    mean_error: np.ndarray
    size: np.ndarray
    size_error: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        """Measured size of the deviation over what glass predicts, shape ``(k,)``; 1 where glass explains it."""
        with np.errstate(all="ignore"):
            return np.asarray(self.size / self.expected.glass)

    @property
    def ratio_with_mean(self) -> np.ndarray:
        """The same over what glass and the mean effect of kinks predict together, shape ``(k,)``."""
        with np.errstate(all="ignore"):
            return np.asarray(self.size / self.expected.deviation)

    def __repr__(self) -> str:
        return change_table(self, self.expected.glassy)

    def plot(self) -> Figure:
        """Draw what the Hessian model leaves of the loss change, and what glass predicts, against the step's length."""
        import plotly.graph_objects as go

        e = self.expected
        figure = go.Figure()
        figure.add_scatter(
            x=e.lengths,
            y=self.size,
            error_y={"type": "data", "array": self.size_error},
            mode="markers",
            name="measured: deviation from the Hessian model",
        )
        for name, values in (
            ("glass predicts", e.glass),
            ("glass and mean effect of kinks", e.deviation),
            ("bound", e.jensen),
            ("Hessian part itself", np.abs(e.hessian)),
        ):
            figure.add_scatter(x=e.lengths, y=values, mode="lines", name=name)
        figure.update_xaxes(type="log", title="length of the step, in updates")
        figure.update_yaxes(type="log", title="size of the loss change", exponentformat="power")
        return figure.update_layout(title="Loss change along a step")


def expected_loss_change(
    problem: Problem,
    step: Tensor,
    w: Tensor | None = None,
    *,
    lengths: Sequence[float] = LENGTHS,
    sigma: float | None = None,
    density: GlassDensity | None = None,
    batches: int = 16,
    batch_size: int | None = None,
    evaluations: int = 3,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> ExpectedChange:
    r"""Predict ``t g'\delta + t^2 \delta'H\delta / 2 + c \sqrt{\rho} t^{3/2}`` for ``w \to w + t \delta``.

    ``\rho`` is the density of ``\delta'g`` along ``\delta`` itself: ``X(t)``, what kinks add to the loss of one batch
    along the step, has variance ``\rho t^3 / 3`` and ``E|X| = c \sqrt{\rho} t^{3/2}``, ``c = \sqrt{2 / 3 \pi}``, as far
    as several kinks lie within the step. With fewer it is less, like ``t^2``. ``X`` averages to zero over layouts of
    kinks; the glass part is the expectation given that the loss does not fall below its model, the curvature of
    expectation.

    Args:
        problem: Model, loss and data.
        step: ``\delta``, shape ``(P,)``, such as an optimizer's next update.
        w: The point, shape ``(P,)``; default ``problem.initial``.
        lengths: Multiples ``t`` of the step, positive.
        sigma: Half the length of the probe along the step, per coordinate (root mean square), in weights; default that
            of the step itself.
        density: Densities by coordinate at the same point, for the two bounds from them.
        batches: Mini-batches.
        batch_size: Samples in each; default 64, or a quarter of the data if that is less.
        evaluations: Gradients per batch, three or more.
        seed: Of batches and masks: those of `glass_density`.
        progress: Called with the number of batches done.

    Returns:
        `ExpectedChange`.

    Raises:
        InvalidInput: The step is zero or has another shape, or a number is out of range.
        NonFinite: A gradient is not finite.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> x = torch.ones(8, 1, dtype=torch.float64)
        >>> problem = Problem(model, torch.nn.MSELoss(), (x, 0 * x))
        >>> found = expected_loss_change(problem, torch.ones(1).double(), torch.zeros(1), lengths=[0.5], batches=2)
        >>> float(found.hessian[0]), bool(found.glass[0] < 1e-9)  # the loss is w^2
        (0.25, True)
    """
    point, direction = point_of(problem, w), _direction(problem, step)
    t = _lengths(lengths)
    if evaluations < 3:
        raise InvalidInput(explain(f"evaluations is {evaluations}", "a density needs three", "Pass three or more"))
    size = float(direction.double().norm()) / math.sqrt(problem.dimension)
    probe = 1.0 if sigma is None else sigma / size
    displacement_rounding(point, probe * size)
    offsets = [probe * (2 * k / (evaluations - 1) - 1) for k in range(evaluations)]
    slopes, curvatures, rows, seconds = [], [], [], []
    parts = mini_batches(problem, batches, batch_size, seed)
    for number, part in enumerate(parts):
        with shared_state(problem, seed, number):
            along = torch.stack([_along(part, point + s * direction, direction) for s in offsets])
            near = [float(_along(part, point + s * direction, direction)) for s in (-probe / 4, 0.0, probe / 4)]
            far = [float(along[0]), near[1], float(along[-1])]
            slopes.append(near[1])
            seconds.append([((a + b) / 2 - c) ** 2 for a, c, b in (near, far)])
            image = hessian_operator(part, point, layout="double_backward").matvec(direction)
            curvatures.append(float(direction.double() @ image.double()))
        h, rho = curvature_and_density(along, probe)
        rows.append((float(h), float(rho)))
        if progress is not None:
            progress(number + 1)
    finite, densities = np.array(rows).T
    root, error = jackknife(lambda kept: np.sqrt(np.clip(kept.mean(), 0, None)), densities)
    power = jackknife(lambda kept: np.log(kept[:, 1].mean() / kept[:, 0].mean()) / math.log(4), np.array(seconds))
    by_coordinate = [np.full(len(t), math.nan)] * 2
    if density is not None:
        rho, move = density.rho.to(direction.device), direction.double()
        by_coordinate = [float(f(rho, move)) * t**1.5 for f in (glass_part, independent_glass_part)]
    return ExpectedChange(
        t,
        t * np.mean(slopes),
        t**2 * np.mean(curvatures) / 2,
        t**2 * finite.mean() / 2,
        GAUSSIAN * root * t**1.5,
        GAUSSIAN * error * t**1.5,
        JENSEN * root * t**1.5,
        by_coordinate[0],
        by_coordinate[1],
        float(power[0]),
        float(power[1]),
        probe,
        np.array(slopes),
        np.array(curvatures),
        densities,
        len(parts) * (evaluations + 3),
        len(parts),
    )


def measured_loss_change(
    problem: Problem,
    step: Tensor,
    w: Tensor | None = None,
    *,
    lengths: Sequence[float] = LENGTHS,
    batches: int = 16,
    batch_size: int | None = None,
    seed: int = 0,
) -> MeasuredChange:
    r"""Return ``L(w + t \delta) - L(w)`` on mini-batches, those of `expected_loss_change` for the same seed.

    Losses are evaluated in the problem's dtype, and both of a difference with one set of masks. A change near the
    rounding of the loss itself needs ``Problem(..., dtype=torch.float64)``.

    Args:
        problem: Model, loss and data.
        step: ``\delta``, shape ``(P,)``.
        w: The point, shape ``(P,)``; default ``problem.initial``.
        lengths: Multiples ``t`` of the step, positive.
        batches: Mini-batches.
        batch_size: Samples in each; default 64, or a quarter of the data if that is less.
        seed: Of batches and masks.

    Returns:
        `MeasuredChange`.

    Raises:
        InvalidInput: The step is zero or has another shape, or a number is out of range.
        NonFinite: A loss is not finite.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> x = torch.ones(8, 1, dtype=torch.float64)
        >>> problem = Problem(model, torch.nn.MSELoss(), (x, 0 * x))
        >>> float(measured_loss_change(problem, torch.ones(1).double(), torch.zeros(1), lengths=[0.5]).change[0])
        0.25
    """
    point, direction, t = point_of(problem, w), _direction(problem, step), _lengths(lengths)
    rows = []
    parts = mini_batches(problem, batches, batch_size, seed)
    for number, part in enumerate(parts):
        with shared_state(problem, seed, number):
            start = float(part.value(point))
            rows.append([float(part.value(point + float(s) * direction)) - start for s in t])
    changes = np.array(rows)
    if not np.isfinite(changes).all():
        raise NonFinite(
            explain(
                "A loss along the step is NaN or infinite", "there is no change to speak of", "Pass shorter lengths"
            )
        )
    mean, error = jackknife(lambda kept: kept.mean(axis=0), changes)
    return MeasuredChange(t, mean, error, changes, len(parts) * (len(t) + 1))


def compare_loss_change(expected: ExpectedChange, measured: MeasuredChange) -> LossChange:
    """Put a prediction beside the measurement on the same batches.

    Raises:
        InvalidInput: They are of other batches or lengths.
    """
    same = expected.lengths.shape == measured.lengths.shape and (expected.lengths == measured.lengths).all()
    if not same or len(expected.slopes) != len(measured.changes):
        raise InvalidInput(
            explain(
                f"{len(expected.slopes)} batches at {expected.lengths} are held against {len(measured.changes)} at "
                f"{measured.lengths}",
                "deviations are taken batch by batch",
                "Use the same lengths, batches, batch_size and seed for both",
            )
        )
    t = expected.lengths
    left = measured.changes - np.outer(expected.slopes, t) - np.outer(expected.curvatures, t**2 / 2)
    mean = jackknife(lambda kept: kept.mean(axis=0), left)
    size = jackknife(lambda kept: np.abs(kept).mean(axis=0), left)
    return LossChange(expected, measured, *mean, *size)


def _along(part: Problem, point: Tensor, direction: Tensor) -> Tensor:
    return direction.double() @ gradient(part, point).double()


def _direction(problem: Problem, step: Tensor) -> Tensor:
    direction = step.detach().to(problem.device, problem.dtype)
    problem.layout.split(direction)
    if not bool(torch.isfinite(direction).all()) or not bool(direction.any()):
        raise InvalidInput(
            explain("The step is zero or not finite", "the loss is followed along it", "Pass an update that moves")
        )
    return direction


def _lengths(lengths: Sequence[float]) -> np.ndarray:
    found = np.asarray(list(lengths), dtype=float)
    if not len(found) or not (np.isfinite(found) & (found > 0)).all():
        raise InvalidInput(explain(f"lengths are {list(lengths)}", "they scale the step", "Pass positive numbers"))
    return found
