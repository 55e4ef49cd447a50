"""Means with their spread over seeds, and smooth or monotone curves through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thalweg import _rng
from thalweg.errors import InvalidInput, explain

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """A quantity over seeds.

    Attributes:
        mean: Over seeds with a value.
        quantiles: At the levels asked for, 25 % and 75 % in the paper.
        interval: Bootstrap interval of the mean.
        count: Seeds with a value.
        missing: Seeds without one.
    """

    mean: float
    quantiles: tuple[float, ...]
    interval: tuple[float, float]
    count: int
    missing: int

    def __repr__(self) -> str:
        shown = " .. ".join(f"{q:.3g}" for q in self.quantiles)
        return f"{self.mean:.3g} (quantiles {shown}; {self.count} of {self.count + self.missing} seeds)"


def summarise(
    values: ArrayLike,
    *,
    quantiles: Sequence[float] = (0.25, 0.75),
    bootstrap: int = 2000,
    level: float = 0.95,
    log: bool = False,
    seed: int = 0,
) -> Summary:
    r"""Return mean, quantiles and the bootstrap interval of the mean; values that are NaN or infinite are left out.

    Args:
        values: One per seed, shape ``(S,)``.
        quantiles: Levels.
        bootstrap: Resamples of the seeds.
        level: Probability of the interval, by percentiles of resampled means.
        log: Average ``\log_2`` of the values, and return the power of two.
        seed: Of the resampling.

    Example:
        >>> summarise([4.0, 6.0, float("nan")], quantiles=(0.5,))
        5 (quantiles 5; 2 of 3 seeds)
    """
    every = np.asarray(values, dtype=np.float64).reshape(-1)
    own = every[np.isfinite(every)]
    if not all(0 <= q <= 1 for q in quantiles) or bootstrap < 1 or not 0 < level < 1 or (log and np.any(own <= 0)):
        raise InvalidInput(
            explain(
                f"Quantiles {tuple(quantiles)}, {bootstrap} resamples, level {level}, log {log}",
                "levels lie between 0 and 1, and logarithms need positive values",
                "Correct the argument that breaks this",
            )
        )
    if not len(own):
        return Summary(np.nan, (np.nan,) * len(quantiles), (np.nan, np.nan), 0, len(every))
    used = np.log2(own) if log else own
    means = used[resamples(len(own), bootstrap, seed)].mean(axis=1)
    ends = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    numbers = np.array([used.mean(), *ends])
    mean, low, high = np.exp2(numbers) if log else numbers
    levels = tuple(float(q) for q in np.quantile(own, list(quantiles)))
    return Summary(float(mean), levels, (float(low), float(high)), len(own), len(every) - len(own))


def resamples(count: int, draws: int, seed: int) -> NDArray[np.int64]:
    """Return places of ``draws`` samples of ``count`` from ``count`` with replacement, shape ``(draws, count)``."""
    stream = np.random.default_rng(_rng.derive_seed(seed, "bootstrap"))
    return stream.integers(count, size=(draws, count))


@dataclass(frozen=True)
class CurveFit:
    r"""A curve through points ``(z, y)``.

    Attributes:
        kind: ``"polynomial"``, ``y = \sum_j a_j z^j``, or ``"isotonic"``, monotone and piecewise linear.
        coefficients: ``a_0, a_1, ...``; for isotonic the fitted values at ``z``.
        z: Where points lie, ascending.
        residual: Root mean square of what is left, weighted.
    """

    kind: Literal["polynomial", "isotonic"]
    coefficients: tuple[float, ...]
    z: tuple[float, ...]
    residual: float

    def __call__(self, z: ArrayLike) -> Array:
        """Evaluate; an isotonic fit is constant beyond its ends."""
        at = np.asarray(z, dtype=np.float64)
        if self.kind == "isotonic":
            return np.interp(at, self.z, self.coefficients)
        return np.asarray(np.polynomial.polynomial.polyval(at, np.array(self.coefficients)), dtype=np.float64)

    def __repr__(self) -> str:
        if self.kind == "isotonic":
            return f"CurveFit(isotonic through {len(self.z)} points, residual {self.residual:.3g})"
        terms = " ".join(f"{a:+.4g} z^{j}" if j else f"{a:.4g}" for j, a in enumerate(self.coefficients))
        return f"CurveFit({terms}, residual {self.residual:.3g})"


def polynomial_fit(z: ArrayLike, y: ArrayLike, degree: int = 2, weights: ArrayLike | None = None) -> CurveFit:
    r"""Fit ``y = a_0 + a_1 z + a_2 z^2`` by weighted least squares, with ``z = 1/w`` at fixed depth, or ``d/w``.

    Args:
        z: Shape ``(n,)``.
        y: Shape ``(n,)``; NaN is left out.
        degree: 2 in the paper (arXiv 2302.12250); lowered where there are fewer distinct ``z``.
        weights: Of the squared residuals; default equal.

    Example:
        >>> fit = polynomial_fit([1, 2, 3, 4], [2, 5, 10, 17])
        >>> round(float(fit(5)), 9), fit.residual < 1e-9
        (26.0, True)
    """
    at, values, each = _points(z, y, weights)
    if degree < 0:
        raise InvalidInput(explain(f"The degree is {degree}", "a polynomial has none below zero", "Use 1 or 2"))
    degree = min(degree, len(np.unique(at)) - 1)
    scale = np.abs(at).max() or 1.0  # powers of 1/w differ by many orders
    powers = np.vander(at / scale, degree + 1, increasing=True)
    root = np.sqrt(each)[:, None]
    found = np.linalg.lstsq(powers * root, values * root[:, 0], rcond=None)[0]
    left = float(np.sqrt(np.average((powers @ found - values) ** 2, weights=each)))
    return CurveFit("polynomial", tuple(float(a) for a in found / scale ** np.arange(degree + 1)), tuple(at), left)


def isotonic_fit(
    z: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None, *, increasing: bool | None = None
) -> CurveFit:
    """Fit the monotone values nearest to ``y`` by pooling adjacent violators.

    Args:
        z: Shape ``(n,)``; values at equal ``z`` are pooled first.
        y: Shape ``(n,)``; NaN is left out.
        weights: Of the squared residuals; default equal.
        increasing: Direction; None takes the one that fits better.

    Example:
        >>> isotonic_fit([1, 2, 3, 4], [1, 3, 2, 4]).coefficients
        (1.0, 2.5, 2.5, 4.0)
    """
    at, values, each = _points(z, y, weights)
    if increasing is None:
        both = [isotonic_fit(at, values, each, increasing=way) for way in (True, False)]
        return min(both, key=lambda fit: fit.residual)
    where, place = np.unique(at, return_inverse=True)
    total = np.asarray(np.bincount(place, each), dtype=np.float64)
    level = np.bincount(place, each * values) / total
    pooled = _pool(np.asarray(level if increasing else -level, dtype=np.float64), total)
    fitted = pooled if increasing else -pooled
    left = float(np.sqrt(np.average((fitted[place] - values) ** 2, weights=each)))
    return CurveFit("isotonic", tuple(float(v) for v in fitted), tuple(float(v) for v in where), left)


def _pool(values: Array, weights: Array) -> Array:
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights):
        blocks.append((float(value), float(weight), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, wa, na), (b, wb, nb) = blocks[-2:]
            blocks[-2:] = [((a * wa + b * wb) / (wa + wb), wa + wb, na + nb)]
    return np.repeat([v for v, _, _ in blocks], [n for _, _, n in blocks])


def _points(z: ArrayLike, y: ArrayLike, weights: ArrayLike | None) -> tuple[Array, Array, Array]:
    at, values = np.asarray(z, dtype=np.float64), np.asarray(y, dtype=np.float64)
    each = np.ones(at.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if at.ndim == 1 and at.shape == values.shape == each.shape:
        keep = np.isfinite(at) & np.isfinite(values) & (each > 0)
        if keep.any():
            order = np.argsort(at[keep], kind="stable")
            return at[keep][order], values[keep][order], each[keep][order]
    raise InvalidInput(
        explain(
            f"Points of shapes {at.shape} and {values.shape}, weights of {each.shape}",
            "a fit goes through finite points of positive weight, as many z as y",
            "Pass one-dimensional arrays with at least one such point",
        )
    )
