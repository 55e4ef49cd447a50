"""Whether a series has one level over a window: a jump somewhere in it, with an error for correlated values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from thalweg.stationarity.autocorrelation import Floats, autocorrelation, is_constant, summed
from thalweg.stationarity.trend import LEAST, cosines, long_run_variance

TRIM = 0.1
"""Share at either end where no jump is looked for."""
LIMIT = 20.0
"""Largest squared score that chance explains: the 0.1 % point of the supremum is about 17 (Andrews 1993)."""


@dataclass(frozen=True)
class Jump:
    """The split of a window into two levels that lie furthest apart.

    Attributes:
        place: First value of the second part.
        size: Its mean less that of the first part.
        score: Squared size over the square of its error, the largest over all places.
        ess: Effective samples of what is left when both means are taken off.
    """

    place: int
    size: float
    score: float
    ess: float

    @property
    def clear(self) -> bool:
        """Whether chance does not explain it: the score is above `LIMIT`."""
        return self.score > LIMIT

    def __repr__(self) -> str:
        return f"largest jump {self.size:+.3g} at value {self.place}, squared score {self.score:.1f} (chance: {LIMIT})"


def jump(values: Floats) -> Jump:
    r"""Return the largest ``n_1 n_2 / n (m_2 - m_1)^2 / \Omega`` over all places of a split.

    ``\Omega``, the long-run variance, is that of the series less the two means at the best place, so that the jump
    itself does not hide in it.

    Args:
        values: Finite, shape ``(n,)``, n at least 20.

    Example:
        >>> x = np.random.default_rng(0).standard_normal(400)
        >>> jump(x).clear, jump(x + 2 * (np.arange(400) > 100)).clear
        (False, True)
    """
    n = len(values)
    sums = np.cumsum(values - values.mean())
    first = np.arange(1, n)
    gain = sums[:-1] ** 2 * n / (first * (n - first))
    low, high = max(1, int(TRIM * n)), min(n - 1, math.ceil((1 - TRIM) * n))
    place = low + int(np.argmax(gain[low - 1 : high - 1]))
    means = values[:place].mean(), values[place:].mean()
    rest = np.concatenate([values[:place] - means[0], values[place:] - means[1]])
    size = float(means[1] - means[0])
    if is_constant(rest + values.mean()):
        return Jump(place, size, math.inf if size else 0.0, float(n))
    ess = n / float(summed(autocorrelation(rest)))
    omega = max(long_run_variance(rest, cosines(n, ess)), LEAST * float(rest.var()))
    return Jump(place, size, float(gain[place - 1]) / omega, ess)
