"""Time averages over ever longer stretches: a mean that has a limit stops moving, and none need exist.

A continuous map of a compact set can have time averages of smooth observables without a limit (arXiv 2110.06256,
theorem 5.3, after Yoccoz), so this is something to look at rather than to assume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import InvalidInput, explain
from thalweg.stationarity.autocorrelation import Floats, Series, is_constant, one
from thalweg.stationarity.series import time_average

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False)
class Doubling:
    """Time averages of one series over its first n snapshots, n doubling.

    Attributes:
        n: Lengths, shape ``(J,)``: the whole window, half of it, a quarter, ..., in rising order.
        mean: Time average over the first n, shape ``(J,)``.
        standard_error: Of it, with the autocorrelation time of those n, shape ``(J,)``.
        change: Mean of the second half of those n less that of the first half, shape ``(J,)``.
        score: ``change`` over its error, each half with its own, shape ``(J,)``: about standard normal if stationary.
        name: What the series is of.
    """

    n: NDArray[np.int64]
    mean: Floats
    standard_error: Floats
    change: Floats
    score: Floats
    name: str

    def plot(self) -> Figure:
        """Draw the mean over the logarithm of the length, with a band of two standard errors."""
        import plotly.graph_objects as go

        low, high = self.mean - 2 * self.standard_error, self.mean + 2 * self.standard_error
        figure = go.Figure()
        figure.add_scatter(
            x=np.concatenate([self.n, self.n[::-1]]),
            y=np.concatenate([high, low[::-1]]),
            fill="toself",
            line_width=0,
            name="two standard errors",
            hoverinfo="skip",
        )
        figure.add_scatter(x=self.n, y=self.mean, mode="lines+markers", name="mean")
        return figure.update_layout(
            title=f"Time average of {self.name} over its first n snapshots",
            xaxis={"type": "log", "title": "n"},
            yaxis_title=self.name,
        )

    def __repr__(self) -> str:
        rows = [f"time averages of {self.name} over the first n snapshots, and second half less first"]
        rows += [
            f"  n = {n:>8}  {mean:.6g} ± {error:.2g}   change {change:+.3g} ({score:+.1f} errors)"
            for n, mean, error, change, score in zip(self.n, self.mean, self.standard_error, self.change, self.score)
        ]
        return "\n".join(rows)


def doubling(x: Series, *, least: int = 32, name: str = "the series") -> Doubling:
    """Return ``mu_n = (1/n) sum_{t<=n} x_t`` for n doubling up to the whole window, with errors.

    Args:
        x: Shape ``(n,)``.
        least: Shortest length, at least 16.
        name: What messages and the figure call the series.

    Returns:
        The averages. No verdict: a stretch of fewer than 50 effective samples has an error that is itself uncertain.

    Raises:
        InvalidInput: Another shape, fewer than ``least`` values, or a constant.
        NonFinite: NaN or infinite values.

    Example:
        >>> x = 3 + np.random.default_rng(0).standard_normal(4096)
        >>> found = doubling(x)
        >>> found.n.tolist()
        [32, 64, 128, 256, 512, 1024, 2048, 4096]
        >>> bool(abs(found.score[-1]) < 3), bool(doubling(x + np.arange(4096) / 4096).score[-1] > 5)
        (True, True)
    """
    if least < 16:
        raise InvalidInput(
            explain(
                f"The shortest length is {least}", "halves of fewer than 8 snapshots have no error", "Give 16 or more"
            )
        )
    values = one(x, name, least=least)
    lengths = [len(values)]
    while lengths[-1] // 2 >= least:
        lengths.append(lengths[-1] // 2)
    n = np.array(lengths[::-1], dtype=np.int64)
    whole = np.array([_average(values[:m]) for m in n])
    first = np.array([_average(values[: m // 2]) for m in n])
    second = np.array([_average(values[m // 2 : m]) for m in n])
    change = second[:, 0] - first[:, 0]
    error = np.hypot(first[:, 1], second[:, 1])
    score = np.divide(change, error, out=np.where(change == 0, 0.0, np.copysign(math.inf, change)), where=error > 0)
    return Doubling(n, whole[:, 0], whole[:, 1], change, score, name)


def _average(values: Floats) -> tuple[float, float]:
    if is_constant(values):
        return float(values.mean()), 0.0
    mean = time_average(values)
    return mean.value, mean.standard_error
