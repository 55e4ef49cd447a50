"""What the numbers of a forecast support: when it became critical, what it predicts, where the progress comes from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from thalweg.flows.result import Comparison, FlowResult
from thalweg.report.series import Floats

ENOUGH = 20
"""Times after the onset below which no share of them is stated."""
BOUNCE = 0.02
"""Relative change from step to step and back, of what should move smoothly, above which the flow itself bounces."""
CLOSES = 0.5
"""An account that misses more than this part of a share, where nothing is to be missed, does not support the share."""


def sigma_of(result: FlowResult) -> float:
    """Return the width of smoothing that the forecast is to be compared with, in steps."""
    return float(result.data.attrs.get("smoothing", 20.0))


def first_step(result: FlowResult) -> int:
    """Return the step of the rule at which time begins."""
    return int(result.data.attrs.get("first_step", 0))


def steps(result: FlowResult) -> NDArray[np.int64]:
    """Return the times as steps of the rule."""
    return first_step(result) + np.rint(column(result.data, "time")).astype(np.int64)


def column(data: xr.Dataset, name: str) -> Floats:
    """Return a variable as float64, in the order of this machine."""
    return np.asarray(data[name].to_numpy(), dtype=np.float64)


def comparison(result: FlowResult) -> Comparison | None:
    """Return the comparison with the discrete run; None where it did not run, or too shortly."""
    if "loss_discrete" not in result.data or result.data.sizes["time"] < 3:
        return None
    return result.compare(sigma_of(result))


def directions(result: FlowResult) -> NDArray[np.int64]:
    """Return in how many directions the flow predicts an oscillation, at each time."""
    if "predicted_variance" not in result.data:
        return np.zeros(result.data.sizes["time"], np.int64)
    counted: NDArray[np.int64] = (column(result.data, "predicted_variance") > 0).sum(axis=1, dtype=np.int64)
    return counted


def onset(result: FlowResult) -> int | None:
    """Return the first time with an oscillation; None where there is none."""
    active = np.flatnonzero(directions(result))
    return int(active[0]) if len(active) else None


@dataclass(frozen=True)
class Progress:
    """How losses move from the onset on.

    Attributes:
        first: Loss at the flow at the onset.
        last: At the end.
        falls: Share of times at which it falls.
        rises: Share of steps at which the discrete loss rises; NaN without the discrete run.
        added: Part of the predicted average that the oscillation itself makes up, on average.
    """

    first: float
    last: float
    falls: float
    rises: float
    added: float


def progress(result: FlowResult) -> Progress | None:
    """Return how losses move from the onset on; None where that is too short."""
    begin, data = onset(result), result.data
    if begin is None or data.sizes["time"] - begin < ENOUGH:
        return None
    flow, predicted = column(data, "loss_central")[begin:], column(data, "predicted_loss")[begin:]
    rises = float("nan")
    if "loss_discrete" in data:
        rises = float((np.diff(column(data, "loss_discrete")[begin:]) > 0).mean())
    with np.errstate(divide="ignore", invalid="ignore"):
        added = float(np.mean((predicted - flow) / predicted))
    return Progress(float(flow[0]), float(flow[-1]), float((np.diff(flow) < 0).mean()), rises, added)


@dataclass(frozen=True)
class Slope:
    """Where the descent along the gradient goes.

    Attributes:
        along: What the step size times the squared gradient at the flow sums up to from the onset on.
        fallen: What the loss at the flow has fallen by.
        share: Part of ``along`` that did not become a fall: it is spent against the penalty on curvature.
        closing: The same part before the onset, where there is no penalty: the error of the account. NaN where the
            onset is too early to tell.
    """

    along: float
    fallen: float
    share: float
    closing: float


def slope(result: FlowResult) -> Slope | None:
    r"""Return the share of the slope that the penalty takes, for rules with one step size for all weights.

    Along the flow ``dL/dt = -\eta g'(g + 1/2 grad <H, Sigma>)``, so ``\int \eta |g|^2 dt`` less the fall of the loss
    is what the penalty took. The integral is that of a path in whole steps, ``(3 a + b) / 4`` of the ends of each:
    exact to second order in the step. None where the forecast is too short, where the account does not close before the
    onset, or where the map bounces: the gradient of a bounce lowers nothing.
    """
    begin, data = onset(result), result.data
    plain = data.attrs.get("rule") in ("GradientDescent", "ScalarRMSProp") and not data.attrs.get("weight_decay")
    if begin is None or not plain or data.sizes["time"] - begin < ENOUGH or bounce(result) > BOUNCE:
        return None
    rate = column(data, "effective_step") * column(data, "squared_gradient_central")
    each, loss = (3 * rate[:-1] + rate[1:]) / 4, column(data, "loss_central")

    def part(low: int, high: int) -> tuple[float, float]:
        return float(each[low:high].sum()), float(loss[low] - loss[high])

    along, fallen = part(begin, len(loss) - 1)
    share = 1 - fallen / along if along > 0 else float("nan")
    half = begin // 2  # the first steps turn sharply, and lie far from where the account is used
    before = part(half, begin - 1) if begin >= ENOUGH else (0.0, 0.0)
    closing = abs(1 - before[1] / before[0]) if before[0] > 0 else float("nan")
    if not 0 < share < 1 or (np.isfinite(closing) and closing > CLOSES * share):
        return None
    return Slope(along, fallen, share, closing)


def bounce(result: FlowResult) -> float:
    """Return how much squared gradient and variance at the flow alternate from step to step, relative to their means.

    A flow is smooth. In map mode its steps are of length one, and a critical direction is one in which such a step
    overshoots by as much as it started from: what remains of it there shows as a change of sign at each step.
    """
    begin = onset(result)
    if begin is None or result.data.sizes["time"] - begin < ENOUGH:
        return 0.0
    sums = np.nansum(column(result.data, "predicted_variance"), axis=1)[begin:]
    found = [0.0]
    for values in (column(result.data, "squared_gradient_central")[begin:], sums):
        kinks = np.abs(values[:-2] - 2 * values[1:-1] + values[2:]) / 4
        steady = np.minimum(np.abs(kinks[1:]), np.abs(kinks[:-1]))  # single jumps are no bounce
        found.append(float(np.median(steady) / values.mean()) if values.mean() > 0 else 0.0)
    return max(found)


def largest(result: FlowResult) -> Floats:
    """Return the largest effective eigenvalue along the flow at each time; NaN where it is not known."""
    return column(result.data, "effective_eigenvalues")[:, 0]


def passes(result: FlowResult, level: float) -> int | None:
    """Return the first time at which the largest effective eigenvalue is at ``level``; None where it never is.

    Below the limit the flow looks at it now and then, and repeats what it saw: in between it is taken to be linear.
    """
    values = largest(result)
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return None
    seen = known[np.flatnonzero(np.diff(values[known], prepend=np.nan) != 0)]
    times = np.arange(seen[0], len(values))
    above = times[np.interp(times, seen, values[seen]) >= level]
    return int(above[0]) if len(above) else None


def constant_rate(result: FlowResult) -> float | None:
    """Return the learning rate of gradient descent without weight decay, if it is constant; else None."""
    attrs = result.data.attrs
    if attrs.get("rule") != "GradientDescent" or attrs.get("weight_decay") or "learning_rate" not in attrs:
        return None
    return float(attrs["learning_rate"])


def smoothed(values: Floats, sigma: float) -> Floats:
    """Smooth by a Gaussian over what is known; NaN stays NaN.

    Example:
        >>> smoothed(np.array([np.nan, 2.0, 2.0, np.nan]), 1.0)
        array([nan,  2.,  2., nan])
    """
    known = np.isfinite(values)
    weight = gaussian_filter1d(known.astype(np.float64), sigma)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = gaussian_filter1d(np.where(known, values, 0.0), sigma) / weight
    return np.asarray(np.where(known, mean, np.nan), dtype=np.float64)
