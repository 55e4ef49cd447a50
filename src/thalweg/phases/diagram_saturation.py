"""The sharpness after the transient against the learning rate, and where it bends down most."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from thalweg.phases.diagram import QUADRATIC, PhaseDiagram

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
