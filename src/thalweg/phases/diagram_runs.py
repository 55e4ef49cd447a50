"""The short runs behind a phase diagram: how far loss and sharpness rose, cell by cell."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.phases.diagram import QUADRATIC, PhaseDiagram

INK = (("#0068A8", 0), ("#C24A00", 1))
LEAST = 0.3
"""The sharpness is drawn where at least so many of the runs have one."""


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
    kinds = [("run_loss", "loss", INK[0])]
    counts = [int(np.isfinite(diagram.data[key].values).sum()) for key in ("run_loss", "run_sharpness")]
    if counts[1] > LEAST * counts[0]:  # a bisection may measure it at a few learning rates only
        kinds.append(("run_sharpness", "sharpness", INK[1]))
    figure = make_subplots(rows=1, cols=len(kinds), horizontal_spacing=0.1)
    for cell in cells:
        part = diagram.data.sel(depth=cell[0], width=cell[1])
        c = part["run_c"].values
        seeds = np.broadcast_to(part["seed"].values[:, None], c.shape)
        for col, (key, name, (colour, place)) in enumerate(kinds, 1):
            values = part[key].values
            good = np.isfinite(c) & np.isfinite(values) & (values > 0)
            figure.add_trace(
                go.Scatter(
                    x=c[good],
                    y=values[good],
                    mode="markers",
                    marker={"size": 6, "color": colour, "opacity": 0.75},
                    meta=place,
                    name=f"largest {name} over the first",
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
            "args": [{"visible": [at == shown for at in range(len(cells)) for _ in kinds]}],
        }
        for shown, (depth, width) in enumerate(cells)
    ]
    largest = float(np.nanmax(diagram.data["run_c"].values))
    ticks = 2.0 ** np.arange(-2, np.ceil(np.log2(largest)) + 1)
    for col, (_, name, _) in enumerate(kinds, 1):
        figure.add_vline(x=QUADRATIC, line={"dash": "dash", "width": 1.4, "color": "#7D8590"}, row=1, col=col)
        figure.add_hline(y=1, line={"width": 1, "color": "#7D8590"}, row=1, col=col)
        figure.update_yaxes(title=f"largest {name} / first", col=col)
    figure.update_xaxes(
        type="log",
        tickvals=ticks,
        ticktext=[f"{tick:g}" for tick in ticks],
        title="c = rate × sharpness at the start",
        zeroline=False,
    )
    figure.update_yaxes(type="log", zeroline=False, exponentformat="power", nticks=6, automargin=True)
    return figure.update_layout(
        updatemenus=[{"buttons": buttons, "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}],
        margin={"l": 64, "r": 16, "t": 86, "b": 46},
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0, "xanchor": "left"},
        font={"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
        height=446,
    )
