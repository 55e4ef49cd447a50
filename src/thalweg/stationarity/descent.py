r"""How much of the descent that gradients promise is kept, and how much curvature eats.

A step ``-\eta v`` promises ``\eta <\nabla L, v>``. To second order the loss falls by ``\eta <\nabla L, v> - (\eta^2 /
2) v^T H v``, so that what is kept over a window, ``Q = (L_start - L_end) / \sum_t \eta <\nabla L, v_t>``, is 1 for
slow smooth descent and 0 at an invariant regime, where ``E <\nabla L, v> = (\eta / 2) E[v^T H v]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from thalweg.errors import InvalidInput, explain
from thalweg.stationarity.autocorrelation import Floats, as_series, is_constant
from thalweg.stationarity.series import time_average

END = 0.1
"""Share of the window at either end over which a noisy loss is averaged."""


@dataclass(frozen=True)
class Descent:
    """The descent ratio of a window.

    Attributes:
        ratio: Q.
        standard_error: Of it.
        fall: ``L_start - L_end``.
        promised: ``sum eta <grad L, v>`` over the same steps.
        promised_error: Of it.
        measured: ``sum (eta^2 / 2) v^T H v`` over the same steps, from products with the Hessian; None: not given.
    """

    ratio: float
    standard_error: float
    fall: float
    promised: float
    promised_error: float
    measured: float | None = None

    @property
    def curvature_share(self) -> float:
        """``1 - Q``: the share of the promised descent that curvature eats."""
        return 1 - self.ratio

    @property
    def mismatch(self) -> float | None:
        """``1 - Q`` less the share that products with the Hessian say: terms of higher order. None without them."""
        return None if self.measured is None else self.curvature_share - self.measured / self.promised

    def __repr__(self) -> str:
        text = (
            f"Q = {self.ratio:.3g} ± {self.standard_error:.1g}: the loss fell by {self.fall:.3g} of "
            f"{self.promised:.3g} promised, curvature took {self.curvature_share:.1%}"
        )
        return text if self.mismatch is None else f"{text}; products with the Hessian leave {self.mismatch:+.1%} over"


def descent_ratio(
    loss_steps: np.ndarray,
    loss: Floats,
    probe_steps: np.ndarray,
    promised: Floats,
    *,
    curvature: Floats | None = None,
    end: float = END,
) -> Descent:
    r"""Return ``Q = (L_start - L_end) / \sum_t \eta <\nabla L, v_t>``.

    The loss is averaged over a share of the window at either end, and the promise is summed from the middle of the
    one to the middle of the other: the mean over the probes times the steps between.

    Args:
        loss_steps: Steps of the losses, increasing, shape ``(n,)``.
        loss: Losses, best on all data or on a fixed batch.
        probe_steps: Steps of the probes, shape ``(J,)``.
        promised: ``\eta <\nabla L, v>`` of one step at each, from a gradient that the step did not see.
        curvature: ``(\eta^2 / 2) v^T H v`` at each, for comparison.
        end: That share; 0: the first and the last loss only.

    Raises:
        InvalidInput: Shapes that do not fit, or fewer than four losses or probes.
        NonFinite: NaN or infinite values.

    Example:
        >>> w, loss, promised = 1.0, [], []
        >>> for _ in range(500):  # descent on w^2 / 2 at a rate of 0.01 keeps 1 - 0.01 / 2 of the promise
        ...     loss.append(w**2 / 2); promised.append(0.01 * w * w); w -= 0.01 * w
        >>> round(descent_ratio(np.arange(500), loss, np.arange(500), promised, end=0).ratio, 3)
        0.995
    """
    losses = as_series(loss, "the loss")
    each = as_series(promised, "the promised descent")
    at, probes = np.asarray(loss_steps, dtype=np.float64), np.asarray(probe_steps, dtype=np.float64)
    if at.shape != losses.shape or probes.shape != each.shape or losses.ndim != 1 or not 0 <= end < 0.5:
        raise InvalidInput(
            explain(
                f"Steps {at.shape}, losses {losses.shape}, steps {probes.shape}, probes {each.shape}, end {end}",
                "each value has its step, and less than half of the window is an end",
                "Give arrays of one length",
            )
        )
    count = max(1, int(end * len(losses)))
    first, last = losses[:count], losses[-count:]
    begin, finish = float(at[:count].mean()), float(at[-count:].mean())
    inside = (probes >= begin) & (probes < max(finish, begin + 1))
    used = each[inside] if inside.sum() >= 4 else each
    mean, error = _mean(used)
    whole = np.diff(probes)
    if len(whole) and (whole == 1).all() and inside.sum() >= 4:
        error = 0.0  # every step was probed: a sum and no estimate
    steps = finish - begin
    fall = float(first.mean() - last.mean())
    noise = math.hypot(_mean(first)[1], _mean(last)[1]) if count > 3 else 0.0
    total, total_error = mean * steps, error * steps
    ratio = fall / total if total else math.nan
    spread = math.hypot(noise, ratio * total_error) / abs(total) if total else math.nan
    measured = None if curvature is None else float(np.asarray(curvature)[inside].mean()) * steps
    return Descent(ratio, spread, fall, total, total_error, measured)


def _mean(values: Floats) -> tuple[float, float]:
    if len(values) < 4 or is_constant(values):
        return float(values.mean()), 0.0
    mean = time_average(values)
    return mean.value, mean.standard_error
