"""The short runs behind a phase diagram: how far loss and sharpness rose, cell by cell."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.phases.diagram import QUADRATIC, PhaseDiagram

INK = (("#0068A8", 0), ("#C24A00", 1))


def runs_figure(diagram: PhaseDiagram) -> go.Figure:
    """Draw, for the cell that is selected, the largest loss and sharpness of each run in units of those at its start.

    Args:
        diagram: One whose runs were kept.

    Returns:
        A figure; empty where no runs were kept.
    """
    if "run_c" not in diagram.data:
        return go.Figure()
    cells = sorted(diagram.cells, key=lambda cell: cell[0] / cell[1], reverse=True)
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.09)
    for cell in cells:
        part = diagram.data.sel(depth=cell[0], width=cell[1])
        c = part["run_c"].values
        seeds = np.broadcast_to(part["seed"].values[:, None], c.shape)
        for col, (key, name) in enumerate(
            (("run_loss", "largest loss over the first"), ("run_sharpness", "largest sharpness over the first")), 1
        ):
            values = part[key].values
            good = np.isfinite(c) & np.isfinite(values) & (values > 0)
            colour, place = INK[col - 1]
            figure.add_trace(
                go.Scatter(
                    x=c[good],
                    y=values[good],
                    mode="markers",
                    marker={"size": 6, "color": colour, "opacity": 0.75},
                    meta=place,
                    name=name,
                    visible=cell == cells[0],
                    customdata=seeds[good],
                    hovertemplate="c %{x:.3g}, seed %{customdata}<br>%{y:.4g} times<extra></extra>",
                ),
                1,
                col,
            )
    buttons = [
        {
            "label": f"depth {depth}, width {width}",
            "method": "restyle",
            "args": [{"visible": [at == shown for at in range(len(cells)) for _ in (1, 2)]}],
        }
        for shown, (depth, width) in enumerate(cells)
    ]
    largest = float(np.nanmax(diagram.data["run_c"].values))
    ticks = 2.0 ** np.arange(-2, np.ceil(np.log2(largest)) + 1)
    for col in (1, 2):
        figure.add_vline(x=QUADRATIC, line={"dash": "dash", "width": 1.4, "color": "#7D8590"}, row=1, col=col)
        figure.add_hline(y=1, line={"width": 1, "color": "#7D8590"}, row=1, col=col)
    figure.update_xaxes(
        type="log",
        tickvals=ticks,
        ticktext=[f"{tick:g}" for tick in ticks],
        title="c = rate × sharpness at the start",
        zeroline=False,
    )
    figure.update_yaxes(type="log", zeroline=False, exponentformat="power", nticks=6)
    figure.update_yaxes(title="largest loss / first", col=1)
    figure.update_yaxes(title="largest sharpness / first", col=2)
    return figure.update_layout(
        updatemenus=[{"buttons": buttons, "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}],
        margin={"l": 64, "r": 16, "t": 60, "b": 46},
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0, "xanchor": "left"},
        font={"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
        height=420,
    )
