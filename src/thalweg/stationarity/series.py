"""Time averages of correlated snapshots: error, effective samples, and whether parts of a window agree."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

from thalweg.stationarity import arviz, refusals
from thalweg.stationarity.autocorrelation import Floats, Series, is_constant, one, summed
from thalweg.stationarity.autocorrelation import autocorrelation as autocorrelation
from thalweg.stationarity.autocorrelation import integrated_time as integrated_time
from thalweg.stationarity.autocorrelation import integrated_times as integrated_times

GOOD = 1.01
"""Split R-hat below which quarters of a window agree."""
BAD = 1.05
"""Split R-hat above which a window is not stationary."""


@dataclass(frozen=True)
class Mean:
    """A time average.

    Attributes:
        value: ``(1/n) sum x_t``.
        standard_error: ``s sqrt(tau / n)``, s the standard deviation of the snapshots.
        tau: Integrated autocorrelation time, in snapshots.
        ess: ``n / tau``.
        n: Snapshots.
    """

    value: float
    standard_error: float
    tau: float
    ess: float
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        """``value -+ 1.96 standard_error``."""
        half = 1.959963984540054 * self.standard_error
        return self.value - half, self.value + half

    def __repr__(self) -> str:
        return (
            f"{self.value:.6g} ± {self.standard_error:.2g} ({self.n} snapshots, tau {self.tau:.3g}, "
            f"worth {self.ess:.0f} independent ones)"
        )


def time_average(x: Series, name: str = "the series") -> Mean:
    """Return the mean of a series, and its error ``s sqrt(tau / n)`` as if ``n / tau`` snapshots were independent.

    Args:
        x: Shape ``(n,)``.
        name: What messages call it.

    Returns:
        The mean. Where the variance is infinite (see `tail_index`) the error means nothing.

    Raises:
        InvalidInput: Another shape, fewer than four values, or a constant.
        NonFinite: NaN or infinite values.

    Example:
        >>> x = 3 + np.random.default_rng(0).standard_normal(10_000)
        >>> mean = time_average(x)
        >>> abs(mean.value - 3) < 4 * mean.standard_error, round(mean.standard_error, 3)
        (True, 0.01)
    """
    values = one(x, name)
    tau = float(summed(autocorrelation(values)))
    n = len(values)
    error = float(values.std(ddof=1)) * math.sqrt(tau / n)
    return Mean(float(values.mean()), error, tau, n / tau, n)


def effective_size(x: Series, name: str = "the series") -> float:
    """Return how many independent snapshots a series is worth: ``min(n, n / tau, bulk)``.

    ``bulk`` is that of arviz-stats: of normal scores of both halves, so that a drift from one half to the other and
    heavy tails count as they should.

    Args:
        x: Shape ``(n,)``.
        name: What messages call it.

    Raises:
        InvalidInput: Another shape, fewer than four values, or a constant.
        NonFinite: NaN or infinite values.

    Example:
        >>> 900 < effective_size(np.random.default_rng(0).standard_normal(1000)) <= 1000
        True
    """
    values = one(x, name)
    n = len(values)
    bulk = arviz.effective_size(values[None], "bulk")
    return float(np.nanmin([n, n / float(summed(autocorrelation(values))), bulk]))


def refusal(x: Series, name: str = "the series") -> str | None:
    """Return why a window of a series gets no verdict, or None where it has enough effective samples.

    Args:
        x: Shape ``(n,)``, as it was recorded: NaN may be in it.
        name: What the sentence calls it.

    Returns:
        A sentence of `thalweg.stationarity.refusals`: values that are not finite, fewer snapshots than 50, a constant,
        or fewer effective samples than 50; the first of these that holds.

    Example:
        >>> refusal(np.random.default_rng(0).standard_normal(200), "loss") is None
        True
        >>> print(refusal(np.random.default_rng(0).standard_normal(10), "loss"))
        Not enough effective samples of loss: the window has 10 snapshots. At least 50 that are independent are need...
    """
    values = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x, dtype=np.float64).ravel()
    bad = ~np.isfinite(values)
    if bad.any():
        return refusals.not_finite(name, int(bad.sum()), len(values), int(bad.argmax()))
    if len(values) < refusals.ENOUGH:
        return refusals.too_few(name, len(values))
    if is_constant(values):
        return refusals.constant(name, float(values[0]))
    effective = effective_size(values, name)
    return None if effective >= refusals.ENOUGH else refusals.too_correlated(name, effective, len(values))


@dataclass(frozen=True)
class RHat:
    """Split R-hat over four consecutive quarters of a window.

    Attributes:
        value: Of the values.
        rank: Of their normal scores, which heavy tails do not spoil.
        folded: Of the normal scores of ``|x - median|``: agreement in spread.
    """

    value: float
    rank: float
    folded: float

    @property
    def worst(self) -> float:
        """The larger of ``rank`` and ``folded``."""
        return max(self.rank, self.folded)

    def __repr__(self) -> str:
        words = "agree" if self.worst < GOOD else "do not agree" if not self.worst <= BAD else "nearly agree"
        return f"R-hat {self.value:.4f}, of ranks {self.rank:.4f}, of spread {self.folded:.4f}: quarters {words}"


def split_rhat(x: Series, name: str = "the series") -> RHat:
    """Return ``R = sqrt(((N-1)/N W + B/N) / W)`` over four consecutive quarters of N snapshots (arXiv 1903.08008).

    Args:
        x: Shape ``(n,)``, n at least 16; up to three snapshots at the start are left out, so that quarters are equal.
        name: What messages call it.

    Returns:
        R-hat of values, of ranks, and of spread: below 1.01 good, above 1.05 not stationary.

    Raises:
        InvalidInput: Another shape, fewer than 16 values, or a constant.
        NonFinite: NaN or infinite values.

    Example:
        >>> x = np.random.default_rng(0).standard_normal(4000)
        >>> split_rhat(x)
        R-hat 1.0004, of ranks 1.0004, of spread 1.0000: quarters agree
        >>> split_rhat(x + np.linspace(0, 3, 4000)).worst > 1.05
        True
    """
    values = one(x, name, least=16)
    values = values[len(values) % 4 :]
    halves = values.reshape(2, -1)
    return RHat(
        arviz.rhat(values.reshape(4, -1), "identity"), arviz.rhat(halves, "z_scale"), arviz.rhat(halves, "folded")
    )


def geweke(x: Series, first: float = 0.1, last: float = 0.5, name: str = "the series") -> float:
    """Return ``z = (mean of the first tenth - mean of the last half) / sqrt(se_1^2 + se_2^2)``.

    Args:
        x: Shape ``(n,)``, n at least 40.
        first: Share of the window at its start.
        last: Share at its end.
        name: What messages call it.

    Returns:
        About standard normal for a stationary series; each error has its own tau. Infinite where neither part moves.

    Raises:
        InvalidInput: Another shape, fewer than 40 values, or a constant.
        NonFinite: NaN or infinite values.

    Example:
        >>> x = np.random.default_rng(0).standard_normal(4000)
        >>> abs(geweke(x)) < 3, geweke(x + np.linspace(0, 3, 4000)) < -3
        (True, True)
    """
    values = one(x, name, least=40)
    parts = values[: max(4, int(first * len(values)))], values[-max(4, int(last * len(values))) :]
    squares = [0.0 if is_constant(part) else time_average(part).standard_error ** 2 for part in parts]
    apart = float(parts[0].mean() - parts[1].mean())
    total = math.sqrt(sum(squares))
    return apart / total if total > 0 else math.copysign(math.inf, apart) if apart else 0.0


def normal_scores(x: Series) -> Floats:
    """Return ``Phi^{-1}((r - 3/8) / (n + 1/4))``, r the rank of each value: a series without heavy tails.

    Args:
        x: Shape ``(n,)`` or ``(n, k)``: each column on its own.

    Returns:
        The same shape.

    Example:
        >>> normal_scores([5.0, 1e9, -3.0]).round(3).tolist()
        [0.0, 0.869, -0.869]
    """
    values = np.asarray(x, dtype=np.float64)
    ranks = rankdata(values, axis=0)
    return np.asarray(ndtri((ranks - 0.375) / (len(values) + 0.25)), dtype=np.float64)


def tail_index(x: Series, share: float = 0.05, name: str = "the series") -> float:
    """Return Hill's index of the tails: ``1 / mean log(y_(i) / y_(m))`` over the m largest ``y = |x - median|``.

    Args:
        x: Shape ``(n,)``.
        share: Share of the values that makes the tail; at least 10 values.
        name: What messages call it.

    Returns:
        Above about 4 for Gaussian noise. Below 2 the variance is infinite, below 1 the mean: averages and their
        errors then say little, and ranks (`normal_scores`) or medians are what to look at.

    Raises:
        InvalidInput: Another shape, fewer than 40 values, or a constant.
        NonFinite: NaN or infinite values.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> tail_index(rng.standard_normal(4000)) > 4, tail_index(rng.standard_cauchy(4000)) < 1.3
        (True, True)
    """
    values = one(x, name, least=40)
    sizes = np.sort(np.abs(values - np.median(values)))[::-1]
    kept = sizes[: max(10, int(share * len(sizes))) + 1]
    if not kept[-1] > 0:
        return 0.0
    mean = float(np.log(kept[:-1] / kept[-1]).mean())
    return 1 / mean if mean > 0 else math.inf
