"""Regimes as a figure: sharpness over its threshold and the loss, with a band for each regime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from thalweg.phases.regimes_result import Regimes

COLOURS = {
    "transient": "rgba(139,126,200,0.16)",
    "saturation": "rgba(125,133,144,0.13)",
    "sharpening": "rgba(230,145,56,0.20)",
    "edge of stability": "rgba(0,121,90,0.20)",
    "reduction": "rgba(0,104,168,0.14)",
    "late reduction": "rgba(0,104,168,0.22)",
    "diverged": "rgba(194,0,0,0.20)",
    "undetermined": "rgba(125,133,144,0.05)",
}
# The house's palette; ``meta`` is the place in it, by which a page repaints for the dark.
SHARP, BATCH, LOSS, EVENT, LIMIT = "#0068A8", "#A8447F", "#C24A00", "#00795A", "#7D8590"
NARROW = 0.09
"""Bands below this share of the axis have their name only in the hover text."""
MOST = 3000
"""Points drawn of the loss."""


def regimes_figure(regimes: Regimes) -> go.Figure:
    """Draw what `segment` found; time is logarithmic, as it was for the cutting.

    Example:
        >>> import numpy as np
        >>> from thalweg.phases.regimes import segment
        >>> figure = segment(np.exp(-np.arange(50.0)), np.full(50, 3.0), 0.1).plot()
        >>> [trace.name for trace in figure.data]
        ['sharpness over threshold', 'the threshold', 'loss']
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    curves = regimes.curves
    rows = 2 if curves.known else 1
    figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    x = 1.0 + curves.at
    if curves.known:
        known = np.isfinite(curves.ratio).any()
        figure.add_trace(
            go.Scatter(
                x=x,
                y=curves.ratio if known else curves.sharpness,
                name="sharpness over threshold" if known else "sharpness",
                mode="lines+markers",
                marker={"size": 4, "color": SHARP},
                meta=0,
                line={"width": 1.6, "color": SHARP},
                customdata=np.array([[label, f"{a:.2f}"] for label, a in zip(regimes.labels, regimes.agreement)]),
                hovertemplate="%{y:.3g}<br>%{customdata[0]}, agreement %{customdata[1]}<extra></extra>",
            ),
            row=1,
            col=1,
        )
        if np.isfinite(curves.batch_ratio).any():
            figure.add_trace(
                go.Scatter(
                    x=x,
                    y=curves.batch_ratio,
                    name="batch sharpness over threshold",
                    mode="lines+markers",
                    marker={"size": 4, "color": BATCH},
                    meta=3,
                    line={"width": 1.2, "color": BATCH},
                    hovertemplate="%{y:.3g}<extra>batch sharpness</extra>",
                ),
                row=1,
                col=1,
            )
        if known:
            line = {"dash": "dash", "width": 1.5, "color": LIMIT}
            figure.add_trace(
                go.Scatter(x=[1, 1 + curves.steps[-1]], y=[1, 1], name="the threshold", mode="lines", line=line,
                           hoverinfo="skip"),
                row=1,
                col=1,
            )  # fmt: skip
        title = "sharpness / threshold" if known else "sharpness"
        figure.update_yaxes(title_text=title, **_log(curves.ratio if known else curves.sharpness), row=1, col=1)
    shown = np.unique(np.round(np.geomspace(1, len(curves.loss), MOST)).astype(int) - 1)
    loss = np.where(np.isfinite(curves.loss), curves.loss, np.nan)
    figure.add_trace(
        go.Scatter(
            x=1 + curves.steps[shown],
            y=loss[shown],
            name="loss",
            mode="lines",
            line={"width": 1.2, "color": LOSS},
            meta=1,
            hovertemplate="%{y:.4g}<extra>loss</extra>",
        ),
        row=rows,
        col=1,
    )
    if regimes.catapults:
        where = np.searchsorted(curves.steps, [event.peak for event in regimes.catapults])
        figure.add_trace(
            go.Scatter(
                x=1 + curves.steps[where],
                y=loss[where],
                name="excursion",
                mode="markers",
                meta=2,
                marker={"symbol": "triangle-up-open", "size": 9, "color": EVENT, "line": {"width": 1.5}},
                text=[event.label for event in regimes.catapults],
                hovertemplate="%{text}, %{y:.4g}<extra></extra>",
            ),
            row=rows,
            col=1,
        )
    positive = bool((loss[np.isfinite(loss)] > 0).all())
    figure.update_yaxes(title_text="loss", **(_log(loss) if positive else {"type": "linear"}), row=rows, col=1)
    _bands(figure, regimes, rows)
    figure.update_xaxes(type="log", range=[0, float(np.log10(1 + curves.steps[-1]))], dtick=1)
    figure.update_xaxes(title_text="1 + step", row=rows, col=1)
    figure.update_layout(
        height=460 if rows == 2 else 300,
        margin={"l": 70, "r": 20, "t": 50, "b": 50},
        hovermode="x unified",
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.06},
    )
    return figure


def _log(values: NDArray[np.float64]) -> dict[str, Any]:
    """Return a logarithmic axis with labels at 1, 2 and 5 in full, where it spans about a decade or two."""
    from plotly.graph_objects import layout

    axis: dict[str, Any] = {"type": "log"}
    good = values[np.isfinite(values) & (values > 0)]
    if len(good) and 0.7 < np.log10(good.max() / good.min()) < 2.5:
        try:
            layout.YAxis(minorloglabels="complete")
        except ValueError:  # an older plotly has single digits only, which D2 would not make clearer
            return axis
        axis |= {"dtick": "D2", "minorloglabels": "complete"}
    return axis


def _bands(figure: go.Figure, regimes: Regimes, rows: int) -> None:
    """Shade each regime, from halfway to the one before to halfway to the one after, and name the wide ones."""
    last = float(np.log10(1 + regimes.curves.steps[-1]))
    logs = [(np.log10(1 + s.start), np.log10(1 + s.end), s.label) for s in regimes.segments]
    for k, (start, end, label) in enumerate(logs):
        low = 0.0 if k == 0 else (logs[k - 1][1] + start) / 2
        high = last if k == len(logs) - 1 else (end + logs[k + 1][0]) / 2
        for row in range(1, rows + 1):
            figure.add_vrect(x0=10**low, x1=10**high, fillcolor=COLOURS[label], line_width=0, layer="below", row=row,
                             col=1)  # fmt: skip
        if last > 0 and (high - low) / last > NARROW:
            words = {"edge of stability": "edge", "undetermined": "undecided"}.get(label, label)
            figure.add_annotation(
                x=(low + high) / 2, y=1.0, xref="x", yref="paper", yanchor="bottom", text=words, showarrow=False,
                font={"size": 11},
            )  # fmt: skip
