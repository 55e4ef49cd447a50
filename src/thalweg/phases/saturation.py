"""Where the level at which sharpness settles after the transient bends down: the critical constant c_crit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import InvalidInput, explain
from thalweg.phases.early import Array, Cost, EarlyRuns, check_start
from thalweg.phases.fits import resamples

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, repr=False)
class Saturation:
    r"""The normalised sharpness at equal gradient-flow time, and where it bends.

    Attributes:
        c: Grid, shape ``(n,)``, ascending; it ends before the first ``c`` at which a seed diverges.
        steps: ``\tau`` of each, shape ``(n,)``, with ``c \tau`` constant up to rounding.
        ratio: ``\lambda_\tau / \lambda_0``, shape ``(S, n)``.
        level: Its mean over seeds, ``S(c)``, shape ``(n,)``.
        slope: ``\chi = -dS/dc`` of the smoothed curve; NaN within half a window of the ends. Shape ``(n,)``.
        bend: ``\chi' = -d^2 S/dc^2``, likewise.
        estimate: The ``c`` of the largest ``\chi'``, whatever its spread.
        interval: Of the estimate over resampled seeds, 90 %.
        refusal: Why the estimate is not to be used; empty where it is.
        cost: What it took.
    """

    c: Array
    steps: NDArray[np.int64]
    ratio: Array
    level: Array
    slope: Array
    bend: Array
    estimate: float
    interval: tuple[float, float]
    refusal: str
    cost: Cost = field(default_factory=Cost)

    @property
    def c_crit(self) -> float:
        """The critical constant, or NaN where it is refused."""
        return float("nan") if self.refusal else self.estimate

    def plot(self) -> Figure:
        """Draw the level per seed and on average, with the interval of the bend."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for row in self.ratio:
            figure.add_scatter(x=self.c, y=row, mode="lines", line={"color": "lightgrey"}, showlegend=False)
        figure.add_scatter(x=self.c, y=self.level, mode="lines+markers", name="mean over seeds")
        if all(np.isfinite(self.interval)):
            figure.add_vrect(*self.interval, opacity=0.2, line_width=0, fillcolor="grey")
        if not self.refusal:
            figure.add_vline(x=self.c_crit, line={"dash": "dash", "width": 1.5})
            # on a logarithmic axis an annotation is placed by the logarithm, a line by the value
            figure.add_annotation(
                x=np.log10(self.c_crit), y=1, yref="paper", yanchor="bottom", showarrow=False,
                text=f"c_crit {self.c_crit:.3g}",
            )  # fmt: skip
        figure.update_xaxes(type="log", dtick=np.log10(2), title="c = learning rate x sharpness at initialisation")
        return figure.update_yaxes(title="sharpness over that at initialisation").update_layout(
            title=f"Saturation{': ' + self.refusal if self.refusal else ''}"
        )

    def __repr__(self) -> str:
        low, high = self.interval
        head = "refused" if self.refusal else f"{self.c_crit:.3g}"
        why = f": {self.refusal}" if self.refusal else ""
        return (
            f"Saturation(c_crit {head} (90 % of resampled seeds: {low:.3g} .. {high:.3g}){why}; {len(self.ratio)} "
            f"seeds, c {self.c[0]:.3g} .. {self.c[-1]:.3g}, level {self.level[0]:.3g} .. {self.level[-1]:.3g})"
        )


def saturation(
    runs: EarlyRuns,
    *,
    product: float = 200.0,
    start: float = -1.0,
    stop: float = 4.0,
    grid_step: float = 0.1,
    window: int = 7,
    order: int = 3,
    bootstrap: int = 1000,
    largest_span: float = 2.0,
    seed: int = 0,
) -> Saturation:
    r"""Measure ``S(c) = \langle \lambda_\tau / \lambda_0 \rangle`` at ``c \tau`` constant, and find its sharpest bend.

    ``c \tau = \eta \tau \lambda_0`` is gradient-flow time: runs are compared at the same one, where the first transient
    is over and sharpness rests. ``c_{crit} = \arg\max_c \chi'`` with ``\chi = -dS/dc``, ``\chi' = -d^2 S / dc^2``
    (arXiv 2302.12250): the mean over seeds is taken first, then smoothed by polynomials of degree ``order`` in ``c``
    through ``window`` neighbouring points of the grid, and differentiated with respect to ``c``.

    The grid ends before the first ``c`` at which a seed diverges. Seeds are resampled, and where the middle 90 % of the
    estimates span more than ``largest_span``, ``c_crit`` is refused: it needs more seeds, ten or more at a large depth
    over width.

    Args:
        runs: What to train (networks: `network_runs`).
        product: ``c \tau``; 200 in the paper's main experiments.
        start: ``log2 c`` of the first grid point.
        stop: ``log2 c`` of the last one.
        grid_step: Distance of grid points in ``log2 c``.
        window: Points of a smoothing polynomial, odd.
        order: Its degree, 2 or more.
        bootstrap: Resamples.
        largest_span: Ratio of the interval's ends beyond which the estimate is refused.
        seed: Of the resampling.

    Returns:
        Levels, derivatives, ``c_crit`` with its interval.

    Raises:
        InvalidInput: A setting is out of range, or fewer points than a window are left before runs diverge.
        NonFinite: Loss or sharpness at initialisation is not finite.

    Example:
        >>> from thalweg.phases.uv import UVModel
        >>> from thalweg.phases.uv_runs import UVRuns
        >>> found = saturation(UVRuns(UVModel(64), seeds=tuple(range(40))), stop=1.8)
        >>> 1.8 < found.c_crit < 2.2
        True
    """
    check_start(runs)
    good = window >= 3 and window % 2 == 1 and 2 <= order < window and bootstrap >= 1 and largest_span > 1
    if not good or not (grid_step > 0 and start < stop and 0 < product < np.inf):
        raise InvalidInput(
            explain(
                f"product {product}, grid from {start} to {stop} by {grid_step}, window {window}, order {order}, "
                f"{bootstrap} resamples, largest span {largest_span}",
                "a second derivative needs an odd window of more points than its order, which is at least 2",
                "Correct the argument that breaks this",
            )
        )
    before = runs.cost
    seeds = range(len(runs.seeds))
    points, steps, columns = [], [], []
    for x in start + grid_step * np.arange(int(np.floor((stop - start) / grid_step + 1e-9)) + 1):
        here = float(2.0 ** round(x, 12))
        tau = max(1, round(product / here))
        found = runs.sharpness_at([(i, here) for i in seeds], [tau] * len(seeds))
        if not np.all(np.isfinite(found)):
            break
        points.append(here)
        steps.append(tau)
        columns.append(found / runs.sharpness0)
    if len(points) < window:
        raise InvalidInput(
            explain(
                f"{len(points)} grid points from c = {2.0**start:.3g} before a seed diverges or the grid ends",
                f"smoothing takes {window}",
                "Start lower, take smaller grid steps, or leave the diverging seed out",
            )
        )
    c, ratio = np.array(points), np.stack(columns, axis=1)
    slopes, bends = derivative_rows(c, window, order)
    level = ratio.mean(axis=0)
    bend = -bends @ level
    inside = np.flatnonzero(np.isfinite(bend))
    estimate = float(c[inside[np.argmax(bend[inside])]])
    drawn = ratio[resamples(len(ratio), bootstrap, seed)].mean(axis=1)
    several = c[inside[np.argmax(-drawn @ bends[inside].T, axis=1)]]
    low, high = (float(q) for q in np.quantile(several, (0.05, 0.95), method="nearest"))
    refusal = ""
    if len(ratio) < 2:
        refusal, low, high = "one seed has no spread", np.nan, np.nan
    elif high > largest_span * low:
        refusal = f"its spread over seeds is a factor of {high / low:.2g}"
    return Saturation(
        c, np.array(steps), ratio, level, -slopes @ level, bend, estimate, (low, high), refusal, runs.cost - before
    )


def derivative_rows(c: Array, window: int, order: int) -> tuple[Array, Array]:
    """Return matrices ``(n, n)`` that take values to first and second derivatives of local polynomials in ``c``.

    Rows within half a window of the ends are NaN.

    Example:
        >>> c = 2.0 ** np.arange(0, 2, 0.25)
        >>> first, second = derivative_rows(c, 5, 2)
        >>> bool(np.allclose((first @ c**2)[2:-2], 2 * c[2:-2])), bool(np.allclose((second @ c**2)[2:-2], 2))
        (True, True)
    """
    first, second = np.full((len(c), len(c)), np.nan), np.full((len(c), len(c)), np.nan)
    half = window // 2
    for k in range(half, len(c) - half):
        near = slice(k - half, k + half + 1)
        scale = c[near][-1] - c[near][0]
        solved = np.linalg.pinv(np.vander((c[near] - c[k]) / scale, order + 1, increasing=True))
        first[k], second[k] = 0.0, 0.0
        first[k, near], second[k, near] = solved[1] / scale, 2 * solved[2] / scale**2
    return first, second
