"""Autocorrelation by FFT, and the integrated time that turns snapshots into independent samples."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft

from thalweg.errors import InvalidInput, NonFinite, explain
from thalweg.stationarity import refusals

Floats: TypeAlias = NDArray[np.float64]
Series: TypeAlias = Any
"""Anything that NumPy makes an array of: a list, an array, a tensor, an xarray variable."""


def as_series(x: Series, name: str = "the series", *, least: int = 4) -> Floats:
    """Return finite float64 values, shape ``(n,)`` or ``(n, k)``.

    Args:
        x: Values.
        name: What messages call it.
        least: Fewest values that make sense.

    Raises:
        InvalidInput: Another shape, or too few values.
        NonFinite: NaN or infinite values.

    Example:
        >>> as_series([1, 2, 3, 4]).dtype
        dtype('float64')
    """
    values = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x, dtype=np.float64)
    if values.ndim not in (1, 2) or len(values) < least or values.size == 0:
        raise InvalidInput(
            explain(
                f"Values of {name} have shape {values.shape}",
                f"a series has one value, or one row, for each snapshot, and at least {least} of them",
                "Give an array of shape (n,) or (n, k)",
            )
        )
    bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
    if bad.any():
        raise NonFinite(refusals.not_finite(name, int(bad.sum()), len(values), int(bad.argmax())))
    return values


def is_constant(values: Floats) -> NDArray[np.bool_]:
    """Return whether values move by no more than rounding, per column, shape ``()`` or ``(k,)``.

    Example:
        >>> is_constant(np.array([[1.0, 2.0], [1.0, 3.0]])).tolist()
        [True, False]
    """
    rounding = 8 * np.finfo(np.float64).eps * np.abs(values).max(axis=0)
    return np.asarray(np.ptp(values, axis=0) <= rounding)


def autocovariance(values: Floats) -> Floats:
    """Return ``c_k = (1/n) sum_t (x_t - m)(x_{t+k} - m)`` at every lag, along the first axis.

    Args:
        values: Shape ``(n,)`` or ``(n, k)``.

    Returns:
        The same shape; lag along the first axis.

    Example:
        >>> autocovariance(np.array([1.0, -1.0, 1.0, -1.0])).round(12).tolist()
        [1.0, -0.75, 0.5, -0.25]
    """
    n = len(values)
    size = next_fast_len(2 * n, real=True)
    transformed = rfft(values - values.mean(axis=0), n=size, axis=0)
    return np.asarray(irfft(np.abs(transformed) ** 2, n=size, axis=0)[:n] / n, dtype=np.float64)


def autocorrelation(x: Series) -> Floats:
    """Return ``rho_k = c_k / c_0``, with `autocovariance` ``c_k`` over all n.

    Args:
        x: Shape ``(n,)`` or ``(n, k)``: each column is a series.

    Returns:
        The same shape, lags 0 to n - 1; NaN for a constant column.

    Raises:
        InvalidInput: Another shape, or fewer than four values.
        NonFinite: NaN or infinite values.

    Example:
        >>> autocorrelation([1.0, -1.0, 1.0, -1.0]).round(12).tolist()
        [1.0, -0.75, 0.5, -0.25]
    """
    values = as_series(x)
    still = is_constant(values)
    found = autocovariance(values)
    return np.asarray(found / np.where(still, np.nan, found[0]))


def summed(rho: Floats) -> Floats:
    """Return ``tau = 1 + 2 sum rho_k``, up to the first odd k with ``rho_k + rho_{k+1} < 0``.

    The pairs are (1, 2), (3, 4), ...: a series that alternates stops at once, so tau is never below 1. A gain that
    repelling neighbours would bring to the mean says nothing of how often the distribution was sampled.

    Args:
        rho: Autocorrelations, lags along the first axis, shape ``(n,)`` or ``(n, k)``.

    Returns:
        Shape ``()`` or ``(k,)``; NaN where rho is.

    Example:
        >>> float(summed(0.5 ** np.arange(60)))
        3.0
    """
    last = (len(rho) - 1) // 2 * 2
    pairs = rho[1 : last + 1 : 2] + rho[2 : last + 1 : 2]
    kept = np.logical_and.accumulate(~(pairs < 0), axis=0)
    return np.asarray(1 + 2 * np.where(kept, pairs, 0.0).sum(axis=0))


def integrated_time(x: Series) -> float:
    """Return ``tau = 1 + 2 sum rho_k`` of one series, in snapshots; see `summed` for where the sum stops.

    Args:
        x: Shape ``(n,)``.

    Returns:
        At least 1. The mean of n snapshots has the error of the mean of ``n / tau`` independent ones.

    Raises:
        InvalidInput: Another shape, fewer than four values, or a constant.
        NonFinite: NaN or infinite values.

    Example:
        >>> integrated_time(np.random.default_rng(0).standard_normal(10_000)) < 1.1
        True
    """
    values = one(x)
    return float(summed(autocorrelation(values)))


def integrated_times(x: Series) -> Floats:
    """Return `integrated_time` of each column, NaN for those that are constant.

    Args:
        x: Shape ``(n, k)``.

    Returns:
        Shape ``(k,)``.

    Raises:
        InvalidInput: Another shape, or fewer than four values.
        NonFinite: NaN or infinite values.

    Example:
        >>> integrated_times(np.random.default_rng(0).standard_normal((500, 3))).shape
        (3,)
    """
    return np.atleast_1d(summed(autocorrelation(as_series(x))))


def one(x: Series, name: str = "the series", *, least: int = 4) -> Floats:
    """Return one finite series that moves, shape ``(n,)``.

    Raises:
        InvalidInput: Another shape, too few values, or a constant.
        NonFinite: NaN or infinite values.

    Example:
        >>> one([1, 2, 3, 5]).tolist()
        [1.0, 2.0, 3.0, 5.0]
    """
    values = as_series(x, name, least=least)
    if values.ndim != 1:
        raise InvalidInput(
            explain(
                f"Values of {name} have shape {values.shape}",
                "one series is asked for",
                "Give one column, or call once for each",
            )
        )
    if is_constant(values):
        raise InvalidInput(refusals.constant(name, float(values[0])))
    return values
