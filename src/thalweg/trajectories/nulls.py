r"""What the measures of a path would be for a line, a random walk, mixing noise, or decay with unrelated updates.

In high dimension (``P >> T``) independent directions are orthogonal, so the inner products of these processes are
known in closed form. Each null here is a `Kernels`: the same code measures it and the path beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from thalweg.errors import InvalidInput, explain
from thalweg.trajectories.kernels import Floats, Ints, Kernels


def line(
    steps: Sequence[int] | Ints, *, spread: float = 1.0, start: float = 1.0, lengths: Floats | None = None
) -> Kernels:
    """Return a straight line, at right angles to its start: ``G = u u^T``, ``c = 0``.

    Args:
        steps: Steps of the checkpoints, shape ``(T,)``.
        spread: Distance between the ends, over ``start``; unused where lengths are given.
        start: ``|theta_1|``.
        lengths: ``|U_a|``, shape ``(T-1,)``; default proportional to the spacing of steps.

    Example:
        >>> from thalweg.trajectories.averages import mean_similarity
        >>> round(mean_similarity(line(range(500))).omega, 3)  # ends at 45 degrees from its start
        0.948
    """
    at = _steps(steps)
    if lengths is None:
        gaps = np.diff(at).astype(np.float64)
        lengths = gaps / gaps.sum() * spread * start
    return Kernels(at, np.outer(lengths, lengths), np.zeros(len(at) - 1), start**2)


def walk(
    steps: Sequence[int] | Ints, *, spread: float = 1.0, start: float = 1.0, lengths: Floats | None = None
) -> Kernels:
    """Return a random walk, whose increments are independent of each other and of its start: ``G = diag(u^2)``.

    Args:
        steps: Steps of the checkpoints, shape ``(T,)``.
        spread: Distance between the ends, over ``start``; unused where lengths are given.
        start: ``|theta_1|``.
        lengths: ``|U_a|``, shape ``(T-1,)``; default the roots of the spacing of steps.

    Example:
        >>> from thalweg.trajectories.averages import mean_similarity
        >>> round(mean_similarity(walk(range(2000))).relative, 2)
        0.67
    """
    at = _steps(steps)
    if lengths is None:
        gaps = np.diff(at).astype(np.float64)
        lengths = np.sqrt(gaps / gaps.sum()) * spread * start
    return Kernels(at, np.diag(np.asarray(lengths, dtype=np.float64) ** 2), np.zeros(len(at) - 1), start**2)


def mixing(
    steps: Sequence[int] | Ints, *, rate: float = np.inf, deviation: float = 1.0, centre: float = 0.0
) -> Kernels:
    """Return stationary noise around a centre, ``K_ij = |centre|^2 + d^2 exp(-rate |k_i - k_j|)``.

    Args:
        steps: Steps of the checkpoints, shape ``(T,)``.
        rate: ``rho`` per step; infinite where each checkpoint is independent of the others.
        deviation: ``d``, root of the total variance.
        centre: Norm of the mean.

    Raises:
        InvalidInput: The rate is not positive.

    Example:
        >>> from thalweg.trajectories.complexity import complexity
        >>> round(complexity(mixing(range(50))).turning_summary()["mean"], 9)
        120.0
    """
    at = _steps(steps)
    if not rate > 0:
        raise InvalidInput(explain(f"Got rate {rate}", "correlation decays at a positive rate", "Give rate > 0"))
    apart = np.abs(at[:, None] - at[None, :]).astype(np.float64)
    # 1 - correlation, so that increments between close checkpoints keep their digits
    lost = -np.expm1(-rate * apart) if np.isfinite(rate) else (apart > 0).astype(np.float64)
    inner = lost[:-1, 1:] + lost[1:, :-1] - lost[1:, 1:] - lost[:-1, :-1]
    c = lost[0, :-1] - lost[0, 1:]
    return Kernels(at, deviation**2 * inner, deviation**2 * c, centre**2 + deviation**2)


def nulls_for(path: Kernels) -> dict[str, Kernels]:
    """Return the nulls to set beside a path: each has its steps and the sizes of its updates.

    ``line``: the same updates, all in one direction. ``walk``: the same, in directions independent of each other.
    ``mixing``: independent draws around a centre, with the mean square update and mean square norm of the path.

    Args:
        path: What was measured.

    Example:
        >>> path = Kernels.from_points(np.random.default_rng(0).standard_normal((9, 50)))
        >>> sorted(nulls_for(path))
        ['line', 'mixing', 'walk']
    """
    start = float(path.norms[0])
    variance = float((path.lengths**2).mean() / 2)
    centre = float(np.sqrt(max(float((path.norms**2).mean()) - variance, 0.0)))
    return {
        "line": line(path.steps, start=start, lengths=path.lengths),
        "walk": walk(path.steps, start=start, lengths=path.lengths),
        "mixing": mixing(path.steps, deviation=float(np.sqrt(variance)), centre=centre),
    }


@dataclass(frozen=True)
class Decay:
    r"""Weight decay of a run, which turns norms and the schedule into the decay null.

    Attributes:
        weight_decay: ``lambda``.
        momentum: ``mu``, which counts with coupled decay only.
        coupled: Whether decay is added to the gradient (SGD, Adam's own) or to the step (AdamW).
        learning_rate: A constant; or one rate per checkpoint, shape ``(T,)``; or one per step from ``k_1`` on, shape
            ``(k_T - k_1,)``; or a function of steps. None: taken from the schedule of the trajectory.
    """

    weight_decay: float
    momentum: float = 0.0
    coupled: bool = True
    learning_rate: float | Floats | Callable[[Ints], Floats] | None = None

    def __post_init__(self) -> None:
        if not (self.weight_decay >= 0 and 0 <= self.momentum < 1):
            raise InvalidInput(
                explain(
                    f"Got weight_decay {self.weight_decay}, momentum {self.momentum}",
                    "decay is not negative, and momentum lies in [0, 1)",
                    "Correct the argument",
                )
            )

    def exposure(self, steps: Sequence[int] | Ints, learning_rate: Floats | None = None) -> Floats:
        r"""Return ``D_i = sum_{u in (1, i]} eta_u lambda / (1 - mu)``, shape ``(T,)``; without ``mu`` if decoupled.

        Between checkpoints a rate known only at them is taken as linear.

        Args:
            steps: Steps of the checkpoints, shape ``(T,)``.
            learning_rate: Rate at each checkpoint, shape ``(T,)``, where the decay itself has none.

        Raises:
            InvalidInput: There is no rate, or it has another length.

        Example:
            >>> Decay(0.1, learning_rate=0.5, momentum=0.9).exposure([0, 1, 3]).round(9).tolist()
            [0.0, 0.5, 1.5]
        """
        at = _steps(steps)
        rate = self.learning_rate if self.learning_rate is not None else learning_rate
        factor = self.weight_decay / (1 - self.momentum if self.coupled else 1.0)
        if self.weight_decay == 0:
            return np.zeros(len(at))
        every = int(at[-1] - at[0])
        each: Floats | None
        if rate is None:
            each = None
        elif callable(rate):
            each = np.asarray(rate(np.arange(at[0], at[-1])), dtype=np.float64)
            gaps = None
        else:
            each = np.asarray(rate, dtype=np.float64)
            each = np.full(len(at), float(each)) if each.ndim == 0 else each
            gaps = np.diff(at) if each.shape == (len(at),) else None
        if each is None or (gaps is None and each.shape != (every,)) or not np.isfinite(each).all():
            raise InvalidInput(
                explain(
                    f"Learning rates of shape {each.shape}" if each is not None else "No learning rate is known",
                    f"decay needs one for each of {len(at)} checkpoints or each of {every} steps, all finite",
                    "Give Decay(learning_rate=...)",
                )
            )
        parts = each if gaps is None else gaps * each[:-1] + np.diff(each) * (gaps - 1) / 2
        total = np.concatenate([[0.0], np.cumsum(parts)])
        total = total if gaps is not None else total[at - at[0]]
        return np.asarray(factor * total, dtype=np.float64)


def decay_null(norms: Floats, exposure: Floats) -> Floats:
    """Return ``C0(s, t) = exp(-(D_t - D_s)) n_s / n_t`` for ``s <= t``, symmetric, shape ``(T, T)``.

    It is the cosine between checkpoints where all that was added between them is uncorrelated with the first.
    Valid where checkpoints are further apart than ``1 / (1 - mu)`` steps. What is measured less this is persistence.

    Args:
        norms: ``|theta_i|``, shape ``(T,)``.
        exposure: ``D_i``, shape ``(T,)``, from `Decay.exposure`.

    Example:
        >>> decay_null(np.ones(2), np.array([0.0, np.log(2.0)])).round(9).tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = norms[:, None] / norms[None, :]
    found = np.exp(exposure[:, None] - exposure[None, :]) * ratio
    upper = np.triu(found)
    return np.asarray(upper + np.triu(found, 1).T, dtype=np.float64)


def _steps(steps: Sequence[int] | Ints) -> Ints:
    at = np.asarray(steps, dtype=np.int64)
    if at.ndim != 1 or len(at) < 2 or (np.diff(at) <= 0).any():
        raise InvalidInput(
            explain(f"Steps of shape {at.shape}", "a path has at least two, ascending", "Give ascending steps")
        )
    return at
