"""The level of the gradient over a window: its mean with an error, the floor it is held against, and its trend."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from thalweg.stationarity import objections, refusals
from thalweg.stationarity.autocorrelation import Floats, is_constant
from thalweg.stationarity.series import time_average
from thalweg.stationarity.trend import Trend, trend

State = Literal["above", "zero", "between", "open"]
SHARE = 0.05
"""The floor, as a share of the level over the first 1 per cent of training."""
NEGLIGIBLE = 1e-6
"""Share of the floor below which a level counts as zero: exact gradients have no error, and never quite vanish."""
SLOPE = 0.005
"""P-value of a trend that counts."""


@dataclass(frozen=True, eq=False)
class Level:
    """The squared gradient norm over a window.

    Attributes:
        state: ``above`` the floor; ``zero``: the interval holds zero, or nearly, and lies below the floor;
            ``between``: above zero and not above the floor; ``open``.
        why: In a sentence.
        probes: J.
        unbiased: Mean of U.
        standard_error: Of it: the larger of what the scatter of the probes says, autocorrelation counted, and what
            the errors within the probes say.
        interval: 95 per cent, Student's t with as many degrees of freedom as effective probes less one.
        biased: Mean of A; NaN where not logged, as what follows.
        noise: Mean of V.
        evaluated: Mean of U in eval mode.
        scale_free: Mean of the scale-free form.
        detectable: Smallest mean of U that would be told from zero four times out of five.
        floor: What ``above`` means; NaN where unknown.
        trend: Of U in the window; None where it cannot be had.
        effective: Effective probes.
        every: Steps between probes.
    """

    state: State
    why: str
    probes: int
    unbiased: float = math.nan
    standard_error: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    biased: float = math.nan
    noise: float = math.nan
    evaluated: float = math.nan
    scale_free: float = math.nan
    detectable: float = math.nan
    floor: float = math.nan
    trend: Trend | None = None
    effective: float = math.nan
    every: float | None = None

    @property
    def rising(self) -> bool:
        """Whether U clearly rises in the window."""
        return self.trend is not None and self.trend.p < SLOPE and self.trend.slope > 0

    @property
    def falling(self) -> bool:
        """Whether U clearly falls in the window."""
        return self.trend is not None and self.trend.p < SLOPE and self.trend.slope < 0

    def __repr__(self) -> str:
        if math.isnan(self.unbiased):
            return f"gradient level: {self.why}"
        low, high = self.interval
        return (
            f"|grad|^2 = {self.unbiased:.4g}, 95 % between {low:.4g} and {high:.4g}, from {self.probes} probes worth "
            f"{self.effective:.0f}; biased {self.biased:.4g}; floor {self.floor:.4g}. {self.why}"
        )


def floor_of(steps: np.ndarray, unbiased: Floats, last: int) -> float:
    """Return 5 % of the mean level over the first 1 % of training, of its first probe at least; NaN without one.

    Args:
        steps: Of the probes, in order.
        unbiased: U at each.
        last: Last step of training.

    Example:
        >>> floor_of(np.array([0, 500, 1000]), np.array([2.0, 1.0, 0.5]), 1000)
        0.1
    """
    early = (steps <= last / 100) & np.isfinite(unbiased)
    if not early.any() or float(unbiased[early].mean()) <= 0:
        return math.nan
    return SHARE * float(unbiased[early].mean())


def level(
    steps: np.ndarray,
    unbiased: Floats,
    *,
    error: Floats | None = None,
    floor: float = math.nan,
    biased: float = math.nan,
    noise: float = math.nan,
    evaluated: float = math.nan,
    scale_free: float = math.nan,
) -> Level:
    """Return the level over the probes of one window.

    Args:
        steps: Of the probes, increasing, shape ``(J,)``.
        unbiased: U at each; may be negative.
        error: Its standard error within each probe; None: not known.
        floor: What counts as bounded away from zero; NaN: not known.
        biased: Mean of A, passed through; as what follows.
        noise: Mean of V.
        evaluated: Mean of U in eval mode.
        scale_free: Mean of the scale-free form.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> found = level(np.arange(1000, 2000, 20), 1 + 0.1 * rng.standard_normal(50), floor=0.05)
        >>> found.state, found.rising or found.falling
        ('above', False)
        >>> level(np.arange(1000, 2000, 20), 0.01 * rng.standard_normal(50), floor=0.05).state
        'zero'
    """
    probes = len(steps)
    every = float(np.median(np.diff(steps))) if probes > 1 else None
    bad = ~np.isfinite(unbiased)
    if bad.any():
        why = refusals.not_finite("the gradient level", int(bad.sum()), probes, int(bad.argmax()))
        return Level("open", why, probes, every=every, floor=floor)
    if probes < objections.PROBES:
        return Level("open", objections.too_few_probes(probes, every), probes, every=every, floor=floor)
    known = error[np.isfinite(error)] if error is not None else np.zeros(0)
    within = math.sqrt(float((known**2).mean()) / probes) if len(known) else 0.0
    still = bool(is_constant(unbiased))
    mean, scatter, effective = float(unbiased.mean()), 0.0, float(probes)
    slope = None
    if not still:
        average = time_average(unbiased, "the gradient level")
        scatter, effective = average.standard_error, average.ess
        slope = trend(unbiased, steps)
    own = max(scatter, within)
    half = own * float(stdtrit(max(1.0, effective - 1), 0.975))
    low, high = mean - half, mean + half
    state, why = _against(low, high, floor)
    return Level(
        state, why, probes, mean, own, (low, high), biased, noise, evaluated, scale_free, 2.8 * own, floor, slope,
        effective, every,
    )  # fmt: skip


def _against(low: float, high: float, floor: float) -> tuple[State, str]:
    unknown = math.isnan(floor)
    if not unknown and -NEGLIGIBLE * floor <= low <= high <= NEGLIGIBLE * floor:
        return "zero", "It is zero to a millionth of the floor."
    if low <= 0 <= high:
        if not unknown and high > floor:
            return (
                "open",
                "The interval holds both zero and the floor: more probes, or more mini-batches in each, tell.",
            )
        return "zero", "The interval holds zero."
    if unknown:
        return "open", objections.no_floor()
    if low > floor:
        return "above", "It is bounded away from zero: the interval lies above the floor."
    if high < 0:
        return "open", "The level is clearly negative, which a squared norm is not: look at how it was logged."
    if high < floor:
        return "between", "It is small and not zero: above zero, below the floor."
    return "open", "The interval holds the floor: more probes, or more mini-batches in each, tell."
