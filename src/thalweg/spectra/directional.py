"""Curvature along given directions: of any vector, of mini-batch gradients, and for free from updates."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from thalweg import _rng
from thalweg.errors import InvalidInput, NonFinite, NotConverged, explain
from thalweg.operators import Operator, hessian
from thalweg.problem.batches import not_indexable
from thalweg.problem.problem import Problem
from thalweg.spectra.estimate import Estimate, EstimateStop

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Average = Literal["ratio", "mean"]


@dataclass(frozen=True)
class DirectionalSharpness:
    """``u'Au / u'u`` for one direction or several.

    Attributes:
        value: 0-dim, or shape ``(k,)``, in the operator's units.
        residual: ``|A u - value u| / |u|``, same shape: an eigenvalue lies within it of the value, and 0 says that the
            direction is an eigenvector.
        products: Operator products that it cost.
    """

    value: Tensor
    residual: Tensor
    products: int

    def __float__(self) -> float:
        return float(self.value)

    def __repr__(self) -> str:
        pairs = zip(self.value.reshape(-1).tolist(), self.residual.reshape(-1).tolist())
        shown = ", ".join(f"{value:.6g} (residual {residual:.1e})" for value, residual in pairs)
        return f"DirectionalSharpness({shown}, products={self.products})"

    def plot(self) -> Figure:
        """Draw the values, with residuals as error bars."""
        import plotly.graph_objects as go

        values, residuals = self.value.reshape(-1).tolist(), self.residual.reshape(-1).tolist()
        figure = go.Figure(go.Bar(y=values, error_y={"type": "data", "array": residuals}))
        return figure.update_layout(
            title="Directional sharpness", xaxis_title="direction", yaxis_title="curvature along it"
        )


def directional_sharpness(operator: Operator, u: Tensor) -> DirectionalSharpness:
    r"""Return ``u'Au / u'u``, the curvature along ``u``: a Rayleigh quotient, between the ends of the spectrum.

    Args:
        operator: ``A``, shape ``(P, P)``, such as the Hessian.
        u: One direction, shape ``(P,)``, or the columns of ``(P, k)``. Its length does not matter.

    Returns:
        `DirectionalSharpness`, one product per direction.

    Raises:
        InvalidInput: A direction is zero or has another shape.
        NonFinite: A product is NaN or infinite.

    Example:
        >>> from thalweg.operators import from_dense
        >>> A = from_dense(torch.diag(torch.tensor([4.0, 2.0])))
        >>> directional_sharpness(A, torch.tensor([1.0, 1.0]))
        DirectionalSharpness(3 (residual 1.0e+00), products=1)
    """
    length = torch.linalg.vector_norm(u, dim=0)
    if u.ndim not in (1, 2) or not bool((torch.isfinite(length) & (length > 0)).all()):
        raise InvalidInput(
            explain(
                f"The directions have shape {tuple(u.shape)} and lengths {length.reshape(-1)[:8].tolist()}",
                "curvature is measured along something",
                "Pass finite directions that are not zero, as (P,) or (P, k)",
            )
        )
    unit, before = u / length, operator.products
    image = operator @ unit
    value = (unit * image).sum(dim=0)
    if not bool(torch.isfinite(image).all()):
        raise NonFinite(
            explain("A product is NaN or infinite", "the curvature is not defined", "Look at the loss at this point")
        )
    residual = torch.linalg.vector_norm(image - value * unit, dim=0)
    return DirectionalSharpness(value, residual, operator.products - before)


def batch_sharpness(
    problem: Problem,
    w: Tensor | None = None,
    *,
    batch_size: int | None = None,
    average: Average = "ratio",
    target: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    strict: bool = True,
) -> Estimate:
    r"""Return ``E[g_B' H_B g_B] / E[g_B' g_B]`` over mini-batches ``B``, with gradient and Hessian of the same batch.

    What mini-batch SGD at learning rate ``\eta`` holds near ``2 / \eta`` where full-batch descent holds the sharpness;
    of one batch with all samples it is ``g'Hg / g'g``.

    Conventions: batches of exactly ``batch_size`` samples are drawn without replacement, epoch after epoch, an
    incomplete last one being left out. Each enters with its number of samples as weight (tokens, where those are
    counted). ``average="mean"`` is the other reading, ``E[g_B' H_B g_B / g_B' g_B]``. The standard error of the ratio
    is that of ``\sum (a_b - R d_b) / \sum d_b`` with independent batches: a little too large within an epoch.

    Args:
        problem: Model, loss and data.
        w: The point, shape ``(P,)``; default ``problem.initial``.
        batch_size: Samples in a mini-batch. None: the problem's own batches, all of them, once.
        average: Ratio of expectations, or expectation of ratios.
        target: Stop at this relative standard error (after 8 batches at least); None takes a fixed number.
        max_products: Batches allowed, one Hessian product each; default 32 without, 1000 with a target.
        seed: Of the permutations.
        strict: Raise where the target is missed; False returns what there is.

    Returns:
        `Estimate` in units of 1 / learning rate.

    Raises:
        InvalidInput: The batch size exceeds the data, or the data is a loader that cannot be indexed.
        NotConverged: ``max_products`` batches did not reach the target.
        NonFinite: A gradient is zero in all batches, or not finite.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> x = torch.ones(6, 1, dtype=torch.float64)
        >>> problem = Problem(model, torch.nn.MSELoss(), (x, 0 * x))
        >>> estimate = batch_sharpness(problem, batch_size=2)  # every batch has curvature 2
        >>> round(float(estimate.value), 9), round(float(estimate.standard_error), 9)
        (2.0, 0.0)

    Source: Andreyev and Beneventano, arXiv 2412.20553.
    """
    if average not in get_args(Average) or (max_products is not None and max_products < 1):
        raise InvalidInput(
            explain(
                f"batch_sharpness got average={average!r}, max_products={max_products}",
                "it takes one batch at least, and one of two averages",
                f"Choose among {', '.join(get_args(Average))}",
            )
        )
    point = problem.initial if w is None else w.detach().to(problem.device, problem.dtype)
    whole = False
    if batch_size is None:
        batches, limit = _own_batches(problem), max_products or sys.maxsize
    else:
        size = problem._batches.samples
        if size is None:
            raise not_indexable()
        if not 1 <= batch_size <= size:
            raise InvalidInput(
                explain(
                    f"The mini-batch size is {batch_size}",
                    f"the data has {size} samples",
                    "Choose a size between 1 and that, or None for the problem's own batches",
                )
            )
        whole = batch_size == size
        batches = _drawn_batches(problem, batch_size, size, seed)
        limit = 1 if whole else max_products or (32 if target is None else 1000)
    rows: list[tuple[float, float, float]] = []
    value = error = math.nan
    stop = EstimateStop.SPENT if target is None else EstimateStop.BUDGET
    for part, weight in batches:
        gradient = part.gradient(point)
        curvature = float(gradient.dot(hessian(part, point, layout="double_backward").matvec(gradient)))
        rows.append((weight, curvature, float(gradient.dot(gradient))))
        value, error = _ratio(rows, average)
        if target is not None and len(rows) >= 8 and error <= target * abs(value):
            stop = EstimateStop.TARGET
            break
        if len(rows) >= limit:
            break
    if not math.isfinite(value):
        raise NonFinite(
            explain(
                f"The batch sharpness is {value} over {len(rows)} batches",
                "gradients are zero or not finite",
                "At a stationary point of every batch use top_eigenpairs; otherwise look at the loss",
            )
        )
    if whole:
        error, stop = 0.0, EstimateStop.EXACT
    return _finish(value, error, len(rows), target, stop, f"batch sharpness, {average}", strict)


def sharpness_from_cosine(cosine: float, lr: float, momentum: float = 0.0, dampening: float = 0.0) -> float:
    r"""Return ``\bar R = 2 (\mu - c) / ((1 - d) \eta)``, the mean curvature ``E[U'HU] / E|U|^2`` that updates feel.

    ``c = E<U_t, U_{t+1}> / E|U_t|^2`` of *consecutive* updates. With ``v' = \mu v + (1 - d) g`` and ``U = -\eta v'``
    the next update is ``\mu U_t - (1 - d) \eta g_{t+1}``; and ``E<U_t, g_{t+1}> = E[U_t'HU_t] / 2`` wherever
    ``E[w'Hw]`` does not change, because ``w_{t+1} = w_t + U_t``. No Hessian product is taken. Assumes: a constant
    Hessian; a stationary regime (a loss that still falls makes it too low: see `sharpness_from_updates`); every step
    recorded; constant rate; gradient noise of zero mean given the past (drawing without replacement breaks this a
    little). Coupled weight decay counts as curvature; preconditioned updates do not follow this rule.

    Args:
        cosine: ``c``; without momentum at most 0, and -1 at the edge of stability.
        lr: ``\eta``.
        momentum: ``\mu``.
        dampening: ``d``, as in ``torch.optim.SGD``.

    Returns:
        ``\bar R`` in units of 1 / learning rate; at the edge ``(2 + 2 \mu) / ((1 - d) \eta)``.

    Raises:
        InvalidInput: The rate is not positive, or a coefficient out of range.

    Example:
        >>> sharpness_from_cosine(-1.0, lr=0.1), round(sharpness_from_cosine(-1.0, lr=0.1, momentum=0.9), 6)
        (20.0, 38.0)
    """
    if not (lr > 0 and 0 <= momentum < 1 and 0 <= dampening < 1 and math.isfinite(cosine)):
        raise InvalidInput(
            explain(
                f"Got cosine {cosine}, lr {lr}, momentum {momentum}, dampening {dampening}",
                "the rate is positive, and the others lie in [0, 1)",
                "Correct the argument",
            )
        )
    return 2 * (momentum - cosine) / ((1 - dampening) * lr)


def sharpness_from_updates(
    updates: Tensor,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    *,
    losses: Tensor | None = None,
    blocks: int = 20,
) -> Estimate:
    r"""Return ``\sum U_t'HU_t / \sum |U_t|^2`` from updates alone, as `sharpness_from_cosine`, with standard error.

    With full-batch ``losses`` nothing needs to be stationary: on a quadratic
    ``U_t'HU_t = 2 (U_t'g_{t+1} - L_{t+1} + L_t)`` holds at each step, with ``g_{t+1}`` from the next update. The
    standard error is that of a ratio over ``blocks`` contiguous stretches: steps within one may be correlated.

    Args:
        updates: ``U_t = w_{t+1} - w_t`` of consecutive steps, shape ``(T, P)``, or random projections of them.
        lr: ``\eta``, constant over them.
        momentum: ``\mu``.
        dampening: ``d``.
        losses: ``L(w_t)`` before each update, shape ``(T,)``, with coupled decay included.
        blocks: Number of stretches.

    Returns:
        `Estimate` with no product; ``samples`` counts pairs of updates.

    Raises:
        InvalidInput: Fewer than three updates, all zero, or losses of another length.

    Example:
        >>> w = torch.tensor([[1.0], [-0.5], [0.25], [-0.125]])  # descent with rate 0.5 on curvature 3
        >>> estimate = sharpness_from_updates(w.diff(dim=0), lr=0.5, losses=1.5 * w[:3, 0] ** 2)
        >>> round(float(estimate.value), 6)
        3.0
    """
    sharpness_from_cosine(0.0, lr, momentum, dampening)  # checks the ranges
    count = len(updates) - 1
    wide = updates.double()
    norms = wide[:-1].square().sum(dim=1) if updates.ndim == 2 and count >= 2 else torch.zeros(())
    if not bool(norms.sum() > 0) or blocks < 2 or (losses is not None and losses.shape != (count + 1,)):
        raise InvalidInput(
            explain(
                f"Got updates of shape {tuple(updates.shape)}, {blocks} blocks"
                + (f", losses of shape {tuple(losses.shape)}" if losses is not None else ""),
                "three consecutive updates that move, two blocks, and one loss per update are needed",
                "Record every step of a stretch of the run",
            )
        )
    inner = (wide[:-1] * wide[1:]).sum(dim=1)
    felt = 2 * (momentum * norms - inner) / ((1 - dampening) * lr)
    if losses is not None:
        felt -= 2 * losses.double().diff()
    rows = [
        (1.0, float(a.sum()), float(d.sum()))
        for a, d in zip(felt.tensor_split(min(blocks, count)), norms.tensor_split(min(blocks, count)))
    ]
    value, error = _ratio(rows, "ratio")
    return Estimate(
        value=torch.tensor(value, dtype=torch.float64),
        standard_error=torch.tensor(error, dtype=torch.float64),
        products=0,
        samples=count,
        stop=EstimateStop.SPENT,
        method="update cosines" + (" and losses" if losses is not None else ""),
        degrees=float(len(rows) - 1),
        skewness=torch.zeros((), dtype=torch.float64),
    )


def _ratio(rows: list[tuple[float, float, float]], average: Average) -> tuple[float, float]:
    """Value and standard error from ``(weight, numerator, denominator)``."""
    weight, over, under = torch.tensor(rows, dtype=torch.float64).T
    if average == "mean":
        over, under = over / under, torch.ones_like(under)
    total = (weight * under).sum()
    value = (weight * over).sum() / total
    if len(rows) < 2:
        return float(value), math.nan
    spread = (weight * (over - value * under)).square().sum() * len(rows) / (len(rows) - 1)
    return float(value), float(spread.sqrt() / total)


def _finish(
    value: float, error: float, count: int, target: float | None, stop: EstimateStop, method: str, strict: bool
) -> Estimate:
    """Put the estimate together, or raise where it missed its target."""
    result = Estimate(
        value=torch.tensor(value, dtype=torch.float64),
        standard_error=torch.tensor(error, dtype=torch.float64),
        products=count,
        samples=count,
        stop=stop,
        method=method,
        degrees=float(max(count - 1, 1)),
        skewness=torch.zeros((), dtype=torch.float64),
    )
    if strict and not stop.converged:
        raise NotConverged(
            explain(
                f"After {count} batches the relative standard error is {error / abs(value):.2g}, not {target}",
                "batches differ too much",
                "Raise max_products or target; strict=False returns the unfinished result",
            ),
            result,
        )
    return result


def _own_batches(problem: Problem) -> Iterator[tuple[Problem, float]]:
    """Every batch of the problem as a problem of its own, with its weight."""
    for batch, weight in problem.batches():
        part = copy.copy(problem)
        part.notes = {}
        part.batches = lambda held=batch: iter([(held, 1.0)])  # type: ignore[method-assign, misc]
        yield part, weight


def _drawn_batches(problem: Problem, batch_size: int, samples: int, seed: int) -> Iterator[tuple[Problem, float]]:
    """Batches without replacement, epoch after epoch, for ever."""
    epoch = 0
    while True:
        order = torch.randperm(samples, generator=_rng.generator(seed, "batch sharpness", epoch))
        for place in range(0, samples - batch_size + 1, batch_size):
            part = problem.subset(order[place : place + batch_size])
            yield part, part.samples
        epoch += 1
