"""Whether a series rises or falls over a window, with an error that respects autocorrelation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.fft import dct
from scipy.special import stdtr

from thalweg.errors import InvalidInput, explain
from thalweg.stationarity.autocorrelation import Floats, Series, as_series, autocorrelation, is_constant, one, summed

Scale = Literal["power", "log", "linear"]
MOST = 24
"""Cosines at most: fast noise must not outnumber the slow wandering of weights that a trend is to be told from."""
LEAST = 0.1
"""Long-run variance, in variances, at least: an exact cycle has none, and still ends somewhere within a period."""
WIDE = 8.0
"""Last time over first up to which a window has logarithms of time; beyond, its first few values would decide."""


@dataclass(frozen=True)
class Trend:
    """A straight line through a series.

    Attributes:
        slope: ``d log x / d log t`` where ``scale`` is ``"power"``, ``d log x / dt`` where it is ``"log"``; otherwise
            of ``x`` against ``t``, or against ``log t``.
        standard_error: Of it, for correlated residuals.
        t: Slope over error.
        p: Two-sided, Student's t with ``freedom`` degrees.
        freedom: Cosines that the error was estimated from.
        ess: Effective samples of the residuals.
        scale: What the slope is of.
        n: Values.
    """

    slope: float
    standard_error: float
    t: float
    p: float
    freedom: int
    ess: float
    scale: Scale
    n: int

    def __repr__(self) -> str:
        what = {"power": "d log x / d log t", "log": "d log x / dt", "linear": "slope"}[self.scale]
        return (
            f"{what} = {self.slope:+.3g} ± {self.standard_error:.2g} (t = {self.t:+.2f} with {self.freedom} degrees of "
            f"freedom, p = {self.p:.2g})"
        )


def trend(x: Series, t: Series | None = None, *, scale: Literal["auto", "log", "linear"] = "auto") -> Trend:
    r"""Return the slope of ``log x`` against ``log t`` (or of ``x`` against ``t``), with a HAC error.

    The variance of the slope is ``\Omega / \sum (T - mean T)^2``: the regressor is smooth, so that only slow parts of
    the residuals count. ``\Omega``, their long-run variance, is the mean of B squared cosine transforms, without the
    two slowest, which the line has taken most of; ``t`` then has Student's distribution with B degrees of freedom
    (equal-weighted cosines: Lazarus, Lewis, Stock and Watson 2018). B is ``0.4 n^{2/3}``, but at most a quarter of the
    effective samples or 24, and at least 4.

    Args:
        x: Shape ``(n,)``, n at least 8.
        t: Times, increasing, shape ``(n,)``; None: 1, 2, ..., n.
        scale: ``"auto"``: logarithms where every ``x`` is positive, ``x`` itself against ``log t`` otherwise (a
            debiased gradient level may be negative); ``"linear"``: ``x`` against ``t``. Times that begin at zero, or
            reach beyond `WIDE` times the first, have no logarithm taken: the first values would decide alone.

    Raises:
        InvalidInput: Shapes that do not fit, a constant, times that do not increase, or logarithms of what has none.
        NonFinite: NaN or infinite values.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> t = np.arange(1000, 2000)
        >>> falling = trend(t**-1.0 * np.exp(0.1 * rng.standard_normal(1000)), t)
        >>> round(falling.slope, 1), falling.p < 1e-3, trend(rng.random(1000) + 1, t).p > 0.01
        (-1.0, True, True)
    """
    values = one(x, least=8)
    times = np.arange(1.0, len(values) + 1) if t is None else as_series(t, "the times")
    if times.shape != values.shape or (np.diff(times) <= 0).any():
        raise InvalidInput(
            explain(
                f"There are {times.shape} times of {values.shape} values",
                "each value has its time, and times increase",
                "Give both in the order of time",
            )
        )
    logarithms = scale == "log" or (scale == "auto" and bool((values > 0).all()))
    narrow = scale != "linear" and times[0] > 0 and times[-1] <= WIDE * times[0]
    if narrow:
        times = np.log(times)
    if logarithms:
        if not (values > 0).all():
            raise InvalidInput(
                explain(
                    f"The smallest value is {values.min():.4g}",
                    "it has no logarithm",
                    "Leave scale at 'auto', or 'linear'",
                )
            )
        values = np.log(values)
    return line(values, times, "linear" if not logarithms else "power" if narrow else "log")


def line(values: Floats, times: Floats, scale: Scale = "linear", *, degree: int = 1) -> Trend:
    """Fit the line through values that are finite and not constant; see `trend`.

    Args:
        values: Shape ``(n,)``.
        times: Shape ``(n,)``.
        scale: What to call it.
        degree: Of the polynomial that is taken off before the error is estimated, so that a bend does not count as
            noise.
    """
    n = len(values)
    centred = times - times.mean()
    total = float(centred @ centred)
    slope = float(centred @ (values - values.mean())) / total
    residuals = values - values.mean() - slope * centred
    if is_constant(residuals + values.mean()):
        return Trend(slope, 0.0, math.copysign(math.inf, slope), 0.0, n - 2, float(n), scale, n)
    if degree > 1:
        basis = np.polynomial.chebyshev.chebvander(np.interp(times, times[[0, -1]], [-1.0, 1.0]), degree)
        residuals = values - basis @ np.linalg.lstsq(basis, values, rcond=None)[0]
        if is_constant(residuals + values.mean()):
            return Trend(slope, 0.0, math.copysign(math.inf, slope), 0.0, n - 1 - degree, float(n), scale, n)
    ess = n / float(summed(autocorrelation(residuals)))
    freedom = cosines(n, ess)
    omega = max(long_run_variance(residuals, freedom, skip=1 + degree), LEAST * float(residuals.var()))
    error = math.sqrt(omega / total)
    score = slope / error if error > 0 else math.copysign(math.inf, slope)
    return Trend(slope, error, score, 2 * float(stdtr(freedom, -abs(score))), freedom, ess, scale, n)


def cosines(n: int, ess: float) -> int:
    """Return B, how many cosines the long-run variance of n values is estimated from.

    Example:
        >>> cosines(1000, 1000.0), cosines(1000, 60.0), cosines(30, 30.0)
        (24, 15, 4)
    """
    return max(4, min(int(0.4 * n ** (2 / 3) + 1e-9), int(ess / 4), MOST))


def long_run_variance(z: Floats, freedom: int, skip: int = 0) -> float:
    r"""Return the mean of B squared ``\sqrt{2/n} \sum_t z_t \cos(\pi j (t - 1/2) / n)``, from ``j = 1 + skip`` on.

    Args:
        z: Shape ``(n,)``.
        freedom: B.
        skip: Slowest cosines that are left out.

    Example:
        >>> z = np.random.default_rng(0).standard_normal(100_000)
        >>> abs(long_run_variance(z, 400) - 1) < 0.2
        True
    """
    transformed = dct(z, type=2) / 2
    return float(np.mean(transformed[1 + skip : 1 + skip + freedom] ** 2)) * 2 / len(z)
