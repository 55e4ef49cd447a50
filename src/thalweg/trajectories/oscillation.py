r"""What consecutive updates say of curvature and of mixing: identities on quadratics, and their checks on bursts.

With momentum ``v <- mu v + g``, ``theta <- theta - eta v`` on a quadratic, noise of zero mean and a stationary
regime, each eigen-mode is an AR(2) process, and over all modes ``cos(U_t, U_{t+1}) = mu - (eta / 2) Rbar`` with
``Rbar = E[U'HU] / E|U|^2``. Derived here and checked by simulation.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from thalweg.errors import InvalidInput, explain
from thalweg.spectra.directional import sharpness_from_updates
from thalweg.trajectories.complexity import mean
from thalweg.trajectories.kernels import Floats, Ints, Kernels


def mode_autocorrelation(rate: float, momentum: float, curvature: float, lags: int) -> Floats:
    r"""Return ``r_0 ... r_q``: for ``a = 1 + mu - eta h``, ``r_1 = a / (1 + mu)``, ``r_{k+1} = a r_k - mu r_{k-1}``.

    Args:
        rate: ``eta``.
        momentum: ``mu``.
        curvature: ``h``, with coupled decay included.
        lags: ``q``.

    Raises:
        InvalidInput: The mode is not stationary: ``eta h`` does not lie between 0 and ``2 + 2 mu``.

    Example:
        >>> mode_autocorrelation(0.1, 0.0, 5.0, 3).tolist()
        [1.0, 0.5, 0.25, 0.125]
    """
    factor = 1 + momentum - rate * curvature
    if not (0 < rate * curvature < 2 + 2 * momentum and 0 <= momentum < 1 and lags >= 1):
        raise InvalidInput(
            explain(
                f"Rate times curvature is {rate * curvature:.4g}, momentum {momentum}, lags {lags}",
                "a mode is stationary between 0 and 2 + 2 mu",
                "Choose a stable mode",
            )
        )
    found = [1.0, factor / (1 + momentum)]
    for _ in range(lags - 1):
        found.append(factor * found[-1] - momentum * found[-2])
    return np.array(found)


def lag_cosine(once: float, twice: float) -> float:
    """Return ``(2 r_q - 1 - r_2q) / (2 (1 - r_q))``, the correlation of increments over q steps.

    It is 1 where motion is ballistic, 0 where it is diffusive, -1/2 where q steps mix.

    Args:
        once: ``r_q``, autocorrelation of the weights over q steps.
        twice: ``r_2q``.

    Example:
        >>> lag_cosine(0.0, 0.0)
        -0.5
    """
    return (2 * once - 1 - twice) / (2 * (1 - once))


def rotates(rate: float, momentum: float, curvature: float) -> str:
    """Say how a mode moves without noise: ``monotone``, ``flipping``, ``spiral`` or ``unstable``.

    Roots are complex, a turning spiral, where ``(1 + mu - eta h)^2 < 4 mu``; else the leading root is negative, and
    the mode flips, where ``1 + mu < eta h``.

    Example:
        >>> rotates(0.1, 0.0, 15.0), rotates(0.1, 0.9, 5.0), rotates(0.1, 0.0, 5.0), rotates(0.1, 0.0, 21.0)
        ('flipping', 'spiral', 'monotone', 'unstable')
    """
    factor = 1 + momentum - rate * curvature
    if not -1e-12 <= rate * curvature <= 2 + 2 * momentum + 1e-12:
        return "unstable"
    if factor**2 < 4 * momentum:
        return "spiral"
    return "flipping" if factor < 0 else "monotone"


@dataclass(frozen=True, eq=False)
class Burst:
    """Consecutive steps, and what they say.

    Attributes:
        first: Step of the first checkpoint.
        last: Step of the last.
        cosine: ``sum <U_t, U_{t+1}> / sum |U_t|^2``.
        mean_cosine: Mean of ``cos(U_t, U_{t+1})``.
        sharpness: ``Rbar = 2 (mu - cosine) / eta``, NaN where the rate is not known.
        standard_error: Of it, over stretches of the burst.
        lags: ``q``, shape ``(Q,)``.
        lag_cosines: Of increments over q steps, ``sum <A, B> / sum |A|^2``, shape ``(Q,)``.
        expected: The same from mean squares, ``D_2q / (2 D_q) - 1``, ``D_q = mean |theta_{t+q} - theta_t|^2``, shape
            ``(Q,)``: equal to it in a stationary regime.
    """

    first: int
    last: int
    cosine: float
    mean_cosine: float
    sharpness: float
    standard_error: float
    lags: Ints
    lag_cosines: Floats
    expected: Floats

    @property
    def drift(self) -> float:
        """Largest difference between ``lag_cosines`` and ``expected``: near 0 where the burst is stationary."""
        apart = np.abs(self.lag_cosines - self.expected)
        return float(np.nanmax(apart)) if np.isfinite(apart).any() else float("nan")


def bursts(steps: Ints, least: int = 4) -> list[tuple[int, int]]:
    """Return where a path has at least so many checkpoints at consecutive steps, as ``(start, stop)``.

    Example:
        >>> bursts(np.array([0, 1, 2, 3, 100, 200, 201, 202, 203, 204]))
        [(0, 4), (5, 10)]
    """
    cuts = [0, *(np.flatnonzero(np.diff(steps) != 1) + 1).tolist(), len(steps)]
    return [(a, b) for a, b in pairwise(cuts) if b - a >= least]


def oscillation(
    path: Kernels,
    learning_rate: float | Floats | None = None,
    momentum: float = 0.0,
    *,
    losses: Floats | None = None,
    least: int = 4,
) -> list[Burst]:
    """Read the cosine of consecutive updates, and the curvature they feel, off every burst of a path.

    Args:
        path: The path.
        learning_rate: ``eta``, or one for each checkpoint, shape ``(T,)``; the mean over a burst counts.
        momentum: ``mu``.
        losses: Full-batch loss at each checkpoint, shape ``(T,)``: then a burst need not be stationary.
        least: Checkpoints that make a burst, at least four.

    Returns:
        One result for each burst; none where checkpoints are not at consecutive steps.

    Raises:
        InvalidInput: Rate or momentum out of range.

    Example:
        >>> w = np.outer((-0.5) ** np.arange(6), [1.0])  # descent with rate 0.5 on curvature 3 flips each step
        >>> found = oscillation(Kernels.from_points(w), 0.5)[0]
        >>> round(found.mean_cosine, 9), round(found.cosine, 9)
        (-1.0, -0.5)
    """
    rates = None if learning_rate is None else np.broadcast_to(np.asarray(learning_rate, dtype=float), (len(path),))
    found = []
    for start, stop in bursts(path.steps, max(least, 4)):
        part = path.window(start, stop)
        squares = part.lengths**2
        if not squares[:-1].sum() > 0:
            continue
        inner = np.diag(part.G, 1)
        lags = np.array([q for q in (1, 2, 4, 8, 16, 32) if 2 * q < len(part)], dtype=np.int64)
        cosines, expected = [], []
        for lag in lags.tolist():
            product, first, _ = part.turning_terms(lag)
            once, twice = mean(part.chords(lag) ** 2), mean(part.chords(2 * lag) ** 2)
            cosines.append(product.sum() / first.sum() if first.sum() > 0 else np.nan)
            expected.append(twice / (2 * once) - 1 if once > 0 else np.nan)
        sharpness, error = float("nan"), float("nan")
        if rates is not None and np.isfinite(rates[start:stop]).all():
            rows = torch.from_numpy(_rows(part.G))
            loss = None if losses is None else torch.from_numpy(np.asarray(losses[start : stop - 1], dtype=np.float64))
            estimate = sharpness_from_updates(rows, float(rates[start : stop - 1].mean()), momentum, losses=loss)
            sharpness, error = float(estimate.value), float(estimate.standard_error)
        found.append(
            Burst(
                int(part.steps[0]),
                int(part.steps[-1]),
                float(inner.sum() / squares[:-1].sum()),
                mean(np.diag(part.updates, 1)),
                sharpness,
                error,
                lags,
                np.array(cosines),
                np.array(expected),
            )
        )
    return found


def _rows(gram: Floats) -> Floats:
    """Return vectors with these inner products, one a row: as many numbers as there are updates."""
    values, vectors = np.linalg.eigh(gram)
    return np.asarray(vectors * np.sqrt(np.clip(values, 0.0, None)), dtype=np.float64)
