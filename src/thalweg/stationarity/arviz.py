"""The one door to arviz-stats: R-hat and effective samples of plain arrays (arXiv 1903.08008)."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]


def rhat(chains: Floats, method: Literal["identity", "z_scale", "folded", "rank"] = "rank") -> float:
    """Return R-hat: ``sqrt(((N-1)/N W + B/N) / W)``, W the mean variance in chains, B N times that of their means.

    Args:
        chains: Shape ``(m, N)``.
        method: ``identity``: of the values, between the chains as they are. The others cut each chain in two first:
            ``z_scale`` of normal scores, ``folded`` of the normal scores of ``|x - median|``, ``rank`` the larger.

    Returns:
        1 where chains agree; infinite where they differ and none moves, NaN where all are one constant.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((2, 400))
        >>> round(rhat(x), 2), rhat(x + [[0.0], [3.0]]) > 1.5
        (1.0, True)
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(_functions().rhat(_standard(chains), chain_axis=0, draw_axis=1, method=method))


def effective_size(chains: Floats, method: Literal["bulk", "mean"] = "bulk") -> float:
    """Return how many independent samples the chains are worth, by Geyer's initial monotone sequence.

    Args:
        chains: Shape ``(m, N)``; each is cut in two, and what lies between the pieces counts as correlation.
        method: ``mean``: for the mean of the values. ``bulk``: of normal scores, which also holds for heavy tails.

    Returns:
        The number; above ``m N`` where neighbours repel each other.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((1, 1000))
        >>> 800 < effective_size(x) < 1200
        True
    """
    return float(_functions().ess(_standard(chains), chain_axis=0, draw_axis=1, method=method))


def _functions() -> Any:
    return import_module("arviz_stats.base").array_stats  # heavy, so not at the top


def _standard(chains: Floats) -> Floats:
    """Neither number depends on units, but arviz-stats takes a range below 1e-15 for a constant.

    A power of two changes no digit, so that ties stay ties.
    """
    spread = float(np.std(chains))
    return np.ldexp(chains, -math.frexp(spread)[1]) if spread > 0 and np.isfinite(spread) else chains
