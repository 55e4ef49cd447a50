"""The sharpness after the transient against the learning rate, and where it bends down most."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from thalweg.phases.diagram import QUADRATIC, PhaseDiagram
from thalweg.phases.fits import resamples
from thalweg.phases.saturation import derivative_rows

INK = ("#0068A8", "#C24A00", "#00795A", "#A8447F", "#8A6300", "#3B7FB5", "#6B4FA0", "#5F6670")


def saturation_figure(diagram: PhaseDiagram) -> go.Figure:
    """Draw ``S(c)``, the mean over seeds of ``lambda_tau / lambda_0``, for every cell, with ``c_crit`` on it.

    Args:
        diagram: One whose saturation was measured.

    Returns:
        A figure; empty where it was not.
    """
    figure = go.Figure()
    if "saturation" not in diagram.data:
        return figure
    c = diagram.data["tau_c"].values
    for at, (depth, width) in enumerate(diagram.cells):
        part = diagram.data.sel(depth=depth, width=width)
        alive = np.isfinite(part["saturation"].values)
        level = np.where(alive, part["saturation"].values, 0.0).sum(axis=0) / np.maximum(alive.sum(axis=0), 1)
        whole = alive.sum(axis=0) == max(alive.sum(axis=0).max(initial=0), 1)  # a mean of the same seeds everywhere
        if not whole.any():
            continue
        colour, place = INK[at % len(INK)], at % len(INK)
        name = f"depth {depth}, width {width}"
        figure.add_scatter(
            x=c[whole], y=level[whole], mode="lines+markers", name=name, legendgroup=name, meta=place,
            line={"color": colour, "width": 1.6}, marker={"size": 4, "color": colour},
            hovertemplate="c %{x:.3g}: %{y:.3g} of the first sharpness<extra>" + name + "</extra>",
        )  # fmt: skip
        if "c_crit" in part and np.isfinite(float(part["c_crit"])):
            crit = float(part["c_crit"])
            ends = [float(part[key]) if key in part else crit for key in ("c_crit_low", "c_crit_high")]
            figure.add_scatter(
                x=[crit],
                y=[float(np.interp(crit, c[whole], level[whole]))],
                error_x={
                    "type": "data",
                    "array": [max(ends[1] - crit, 0)],
                    "arrayminus": [max(crit - ends[0], 0)],
                },
                mode="markers", marker={"symbol": "star", "size": 13, "color": colour}, meta=place,
                name=f"c_crit, {name}", legendgroup=name, showlegend=False,
                hovertemplate=f"c_crit %{{x:.3g}}, {name}<extra></extra>",
            )  # fmt: skip
    figure.add_vline(x=QUADRATIC, line={"dash": "dash", "width": 1.4, "color": "#7D8590"})
    ticks = 2.0 ** np.arange(np.floor(np.log2(c.min())), np.ceil(np.log2(c.max())) + 1)
    figure.update_xaxes(
        type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks], zeroline=False,
        title="c = rate × sharpness at the start",
    )  # fmt: skip
    figure.update_yaxes(title="sharpness / first", zeroline=False, rangemode="tozero")
    return figure.update_layout(
        margin={"l": 64, "r": 16, "t": 60, "b": 46},
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0, "xanchor": "left"},
        font={"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
        height=420,
    )


def with_c_crit(data: xr.Dataset, *, window: int = 7, order: int = 3, span: float = 2.0) -> xr.Dataset:
    """Add ``c_crit`` of each cell: where the mean over its seeds of ``saturation`` bends down most.

    As `saturation` does for one architecture: the mean first, then local polynomials, then the second derivative.

    Args:
        data: ``saturation`` over depth, width, seed and ``tau_c``; NaN from where a run diverged.
        window: Points of a smoothing polynomial.
        order: Its degree.
        span: Ratio of the ends of the 90 % interval over resampled seeds beyond which ``c_crit`` is NaN.

    Returns:
        The data with ``c_crit``, ``c_crit_low`` and ``c_crit_high`` over depth and width.
    """
    shape = data.sizes["depth"], data.sizes["width"]
    found = np.full((3, *shape), np.nan)
    c = data["tau_c"].values
    table = data["saturation"].transpose("depth", "width", "seed", "tau_c").values
    for place in np.ndindex(*shape):
        rows = table[place]
        rows = rows[np.isfinite(rows).any(axis=1)]
        count = int(np.isfinite(rows).all(axis=0).sum()) if len(rows) > 1 else 0  # a grid that all seeds survive
        if count < window:
            continue
        _, bends = derivative_rows(c[:count], window, order)
        inside = np.flatnonzero(np.isfinite(bends).all(axis=1))
        own = -bends[inside] @ rows[:, :count].mean(axis=0)
        drawn = rows[resamples(len(rows), 1000, 0)][..., :count].mean(axis=1)
        several = c[inside[np.argmax(-drawn @ bends[inside].T, axis=1)]]
        low, high = np.quantile(several, (0.05, 0.95), method="nearest")
        estimate = c[inside[np.argmax(own)]] if high <= span * low else np.nan
        found[(slice(None), *place)] = estimate, low, high
    names = ("c_crit", "c_crit_low", "c_crit_high")
    return data.assign({name: (("depth", "width"), values) for name, values in zip(names, found)})
