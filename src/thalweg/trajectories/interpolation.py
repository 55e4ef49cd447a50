r"""Loss along the path of the weights, and barriers on the straight lines between its checkpoints.

On ``theta(alpha) = (1 - alpha) theta_i + alpha theta_j`` the barrier is
``max_alpha [L(theta(alpha)) - (1 - alpha) L(theta_i) - alpha L(theta_j)]``; it is 0 where the line sees no rise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from thalweg.errors import InvalidInput, explain
from thalweg.problem import Problem
from thalweg.runs.sources import Trajectory
from thalweg.trajectories.interpolation_result import Barrier as Barrier
from thalweg.trajectories.interpolation_result import BarrierStop as BarrierStop
from thalweg.trajectories.interpolation_result import PathLoss as PathLoss
from thalweg.trajectories.interpolation_result import chord
from thalweg.trajectories.kernels import Floats

Points: TypeAlias = Trajectory | Tensor | Sequence[Tensor] | Sequence[Mapping[str, Tensor]]
Statistics: TypeAlias = Literal["batch", "model"]


def barrier(
    problem: Problem,
    a: Tensor | Mapping[str, Tensor],
    b: Tensor | Mapping[str, Tensor],
    *,
    points: int = 9,
    tol: float = 1e-3,
    max_evaluations: int = 33,
    statistics: Statistics = "batch",
    steps: tuple[int, int] | None = None,
) -> Barrier:
    r"""Return ``max_alpha [L((1 - alpha) a + alpha b) - (1 - alpha) L(a) - alpha L(b)]``, which is at least 0.

    The loss is evaluated at evenly many points first, then where a parabola through the highest point and its two
    neighbours has its top, or in the middle of the wider gap. Peaks narrower than the first spacing can be missed.

    Args:
        problem: Whose loss. Parameters that it does not select stay as they are in the model.
        a: First point, shape ``(P,)``, or its tensors by name.
        b: Second point.
        points: Evenly spaced evaluations at first, with both ends.
        tol: Of the maximum, relative to the largest loss on the line.
        max_evaluations: In all.
        statistics: What BatchNorm layers normalise by. ``"batch"``: by those of the batch itself, also where the model
            is in evaluation mode, since running statistics belong to one point only and are wrong at every other.
            ``"model"``: as the model stands.
        steps: Of the two points, for the record.

    Returns:
        The barrier, with what was evaluated.

    Raises:
        InvalidInput: A point does not fit the problem, or a number is out of range.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> wave = lambda out, _: (1 - torch.cos(out)).mean()
        >>> problem = Problem(model, wave, (torch.ones(1, 1), torch.zeros(1)))
        >>> found = barrier(problem, torch.zeros(1), torch.tensor([2 * torch.pi]))
        >>> round(found.value, 3), round(found.alpha, 3), found.stop.converged
        (2.0, 0.5, True)

    Source: barriers as in arXiv 1912.05671; statistics at interpolated points, arXiv 2211.08403.
    """
    if points < 3 or max_evaluations < points or not tol > 0:
        raise InvalidInput(
            explain(
                f"Got points={points}, max_evaluations={max_evaluations}, tol={tol}",
                "a maximum needs two ends and a point between, and a positive tolerance",
                "Use 3 <= points <= max_evaluations and tol > 0",
            )
        )
    first, second = _vector(problem, a), _vector(problem, b)
    with _normalising(problem, statistics) as notes:

        def loss(alpha: float) -> float:
            return float(problem.value((1 - alpha) * first + alpha * second))

        seen = {float(alpha): loss(float(alpha)) for alpha in np.linspace(0, 1, points)}
        stop, error = _refine(loss, seen, tol, max_evaluations)
    alphas = np.array(sorted(seen))
    losses = np.array([seen[alpha] for alpha in alphas])
    if stop is BarrierStop.NOT_FINITE:
        value, alpha = math.inf, float(alphas[~np.isfinite(losses)][0])
    else:
        excess = losses - chord(alphas, losses[0], losses[-1])
        top = int(excess.argmax())
        value, alpha = max(float(excess[top]), 0.0), float(alphas[top])
    return Barrier(value, alpha, error, alphas, losses, len(seen), stop, steps, notes)


def path_loss(
    problem: Problem,
    path: Points,
    *,
    neighbours: bool = True,
    ends: bool = True,
    points: int = 5,
    tol: float = 1e-3,
    max_evaluations: int = 17,
    statistics: Statistics = "batch",
) -> PathLoss:
    r"""Return ``L(theta_i)`` along a path, and the barriers from each checkpoint to the next and from first to last.

    Args:
        problem: Whose loss.
        path: A trajectory; points, shape ``(T, P)`` or a list of vectors; or per point its tensors by name. Two points
            are held at a time.
        neighbours: Whether to look between ``theta_i`` and ``theta_{i+1}``.
        ends: Whether to look between ``theta_1`` and ``theta_T``.
        points: First evaluations on each line, ends included, see `barrier`.
        tol: See `barrier`.
        max_evaluations: On each line.
        statistics: See `barrier`.

    Raises:
        InvalidInput: There are fewer than two points, or they do not fit the problem.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> problem = Problem(model, torch.nn.MSELoss(), (torch.ones(1, 1), torch.zeros(1, 1)))
        >>> found = path_loss(problem, torch.tensor([[2.0], [1.0], [0.0]]))
        >>> found.losses.tolist(), found.barriers.tolist(), found.ends.value
        ([4.0, 1.0, 0.0], [0.0, 0.0], 0.0)
    """
    count = len(path)
    if count < 2:
        raise InvalidInput(explain(f"The path has {count} points", "a line has two ends", "Give two points or more"))
    steps = np.asarray(path.steps if isinstance(path, Trajectory) else range(count), dtype=np.int64)
    options: dict[str, Any] = {
        "points": points,
        "tol": tol,
        "max_evaluations": max_evaluations,
        "statistics": statistics,
    }
    between: list[Barrier] = []
    losses, lengths, spent = [], [0.0], 0
    before: Tensor | None = None
    with _normalising(problem, statistics) as notes:
        for i in range(count):
            w = _vector(problem, _point(path, i))
            if before is not None:
                lengths.append(float((w - before).norm()))
                if neighbours:
                    between.append(barrier(problem, before, w, steps=(int(steps[i - 1]), int(steps[i])), **options))
            if not neighbours:
                losses.append(float(problem.value(w)))
            before = w
    if neighbours:
        losses = [*(float(one.losses[0]) for one in between), float(between[-1].losses[-1])]
        spent = sum(one.evaluations for one in between)
    spent = spent or count
    whole = None
    if ends:
        whole = barrier(problem, _point(path, 0), _point(path, -1), steps=(int(steps[0]), int(steps[-1])), **options)
        spent += whole.evaluations
    return PathLoss(steps, np.array(losses), np.cumsum(lengths), tuple(between), whole, spent, notes)


def _refine(
    loss: Callable[[float], float], seen: dict[float, float], tol: float, most: int
) -> tuple[BarrierStop, float]:
    """Add evaluations around the highest point until a parabola promises nothing more."""
    while True:
        alphas = sorted(seen)
        values = np.array([seen[alpha] for alpha in alphas])
        if not np.isfinite(values).all():
            return BarrierStop.NOT_FINITE, math.inf
        excess = values - chord(np.array(alphas), values[0], values[-1])
        scale = tol * max(float(np.abs(values).max()), float(np.finfo(np.float32).tiny))
        top = int(np.clip(excess.argmax(), 1, len(alphas) - 2))  # next to an end, look beside the end
        x, y = alphas[top - 1 : top + 2], excess[top - 1 : top + 2]
        vertex, gain = _parabola(x, y)
        width = max(x[1] - x[0], x[2] - x[1])
        # the top of a parabola is where it is only to third order: halve the gaps until they agree
        if gain <= scale and _settled(y, scale):
            return BarrierStop.CONVERGED, gain
        if len(seen) >= most or width < 1e-6:
            return (BarrierStop.EVALUATIONS if len(seen) >= most else BarrierStop.CONVERGED), gain
        middle = (x[0] + x[1]) / 2 if x[1] - x[0] > x[2] - x[1] else (x[1] + x[2]) / 2
        near = min(abs(vertex - alpha) for alpha in x)
        alpha = vertex if near > 0.05 * width else middle
        seen[alpha] = loss(alpha)


def _settled(y: Floats, scale: float) -> bool:
    """Whether neighbours of the top are so low, or so close to it, that a smooth curve hides nothing between."""
    return bool(y[1] - y.min() <= 16 * scale or y.max() <= 0)


def _parabola(x: Sequence[float], y: Floats) -> tuple[float, float]:
    """Return the top of the parabola through three points within them, and its height above the highest of them."""
    left, right = x[1] - x[0], x[2] - x[1]
    slope_left, slope_right = (y[1] - y[0]) / left, (y[2] - y[1]) / right
    bend = (slope_right - slope_left) / (left + right)
    if not bend < 0:
        return (x[0] + x[1]) / 2, 0.0
    slope = slope_left + bend * left  # at the middle point
    vertex = float(np.clip(x[1] - slope / (2 * bend), x[0], x[2]))
    height = y[1] + slope * (vertex - x[1]) + bend * (vertex - x[1]) ** 2
    return vertex, max(float(height - max(y)), 0.0)


def _point(path: Points, index: int) -> Tensor | Mapping[str, Tensor]:
    if isinstance(path, Trajectory):
        return {info.name: path.tensor(index, info.name) for info in path.tensors}
    return path[index]


def _vector(problem: Problem, point: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Return a point as the problem's flat vector; what it does not select is left out."""
    w = point if isinstance(point, Tensor) else problem.layout.flatten(point)
    if w.shape != (problem.dimension,):
        raise InvalidInput(
            explain(
                f"A point has shape {tuple(w.shape)}",
                f"the problem has {problem.dimension} parameters",
                "Give points of the same model, as flat vectors or as tensors by name",
            )
        )
    return w.detach().to(problem.device, problem.dtype)


@contextmanager
def _normalising(problem: Problem, statistics: Statistics) -> Iterator[tuple[str, ...]]:
    """Let BatchNorm normalise by its batch, where asked; modes are as before on exit, and buffers are not written."""
    if statistics not in ("batch", "model"):
        raise InvalidInput(explain(f"statistics={statistics!r}", "it is 'batch' or 'model'", "Choose one"))
    layers: list[nn.Module] = [one for one in problem.model.modules() if isinstance(one, _BatchNorm)]
    fixed = [one for one in layers if not one.training and one.running_mean is not None]
    notes: list[str] = []
    if layers and (statistics == "batch" or len(fixed) < len(layers)):
        cut = "of all samples" if problem.batch_count == 1 else f"of each of {problem.batch_count} batches"
        notes.append(f"{len(layers)} BatchNorm layers normalise by the statistics {cut}, taken anew at each point.")
    elif fixed:
        notes.append(
            f"{len(fixed)} BatchNorm layers use the running statistics that the model holds, which belong to one point."
        )
    changed = fixed if statistics == "batch" else []
    try:
        for one in changed:
            one.training = True
        yield tuple(notes)
    finally:
        for one in changed:
            one.training = False
