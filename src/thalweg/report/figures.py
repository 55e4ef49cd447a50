"""The figures of a run, as Plotly figures that the page restyles for light, dark and print."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from thalweg.report.series import Series, aligned, series, thin

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8c6bb1", "#7f7f7f")
"""Okabe and Ito's colours, told apart by most colour-blind readers, and two more."""
MAX_EIGENVALUES = 8


def loss_figure(data: xr.Dataset) -> go.Figure:
    """Loss against step, logarithmic where it is positive."""
    figure = go.Figure()
    _line(figure, series(data, "loss"), "training loss", 0)
    _line(figure, series(data, "full_loss"), "loss over all data", 1)
    positive = all(bool((trace.y > 0).all()) for trace in figure.data)
    return _finish(figure, "loss", log=positive)


def spectrum_figure(data: xr.Dataset) -> go.Figure:
    """Leading eigenvalues of the effective Hessian against the stability threshold."""
    figure = go.Figure()
    for rank in range(min(data.sizes.get("eigenvalue", 0), MAX_EIGENVALUES)):
        curve = series(data, "eigenvalues", rank)
        _line(figure, curve, f"eigenvalue {rank + 1}" if rank else "sharpness", rank, width=1.8 if rank == 0 else 1.1)
    if not figure.data:
        _line(figure, series(data, "sharpness"), "sharpness", 0)
    threshold = series(data, "stability_threshold")
    if len(threshold):
        curve = thin(threshold)
        figure.add_scatter(
            x=curve.steps,
            y=curve.values,
            name="stability threshold",
            mode="lines",
            line={"dash": "dash", "width": 1.8, "color": "#888888"},
            hovertemplate="%{y:.4g}<extra>threshold</extra>",
        )
    figure = _finish(figure, "eigenvalue (loss / weight²)")
    shown = np.concatenate([t.y for t in figure.data if t.name != "stability threshold"] or [np.zeros(1)])
    if len(threshold) and len(shown) and threshold.values.max() > 20 * max(float(np.max(shown)), 1e-300):
        figure.update_yaxes(type="log")
    return figure


def oscillation_figure(data: xr.Dataset) -> go.Figure:
    """Cosine between successive updates, and the update along the leading eigenvectors."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.09)
    _line(figure, series(data, "update_cosine"), "cosine of successive updates", 0, row=1)
    for rank in range(min(data.sizes.get("eigenvalue", 0), 3)):
        curve = series(data, "update_projection", rank)
        _line(figure, curve, f"along eigenvector {rank + 1}", rank + 1, row=2, width=0.8)
    figure.update_yaxes(title_text="cosine", range=[-1.05, 1.05], row=1, col=1)
    figure.update_yaxes(title_text="update (weight)", row=2, col=1)
    return _finish(figure, None)


def travel_figure(data: xr.Dataset) -> go.Figure:
    """Distance from the start, length of the path, and norm of the weights."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.09)
    _line(figure, series(data, "path_length"), "length of the path", 1, row=1)
    _line(figure, series(data, "distance"), "distance from the start", 0, row=1)
    _line(figure, series(data, "weight_norm"), "norm of the weights", 2, row=2)
    figure.update_yaxes(title_text="length (weight)", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="norm (weight)", row=2, col=1)
    return _finish(figure, None)


def cost_figure(data: xr.Dataset) -> go.Figure:
    """Hessian products per measurement, and seconds per step for training and for measuring."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.09)
    _line(figure, series(data, "eigen_products"), "Hessian products", 0, row=1, width=1)
    for index, (name, label) in enumerate((("seconds_step", "training"), ("seconds_measure", "measuring")), 1):
        curve = series(data, name)
        _line(figure, Series(curve.steps, np.cumsum(curve.values)), f"{label}, total", index, row=2)
    figure.update_yaxes(title_text="products", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="seconds", rangemode="tozero", row=2, col=1)
    return _finish(figure, None)


def accuracy_figure(data: xr.Dataset) -> go.Figure:
    """Residual of each leading eigenpair relative to the sharpness: how far its value can be off."""
    figure = go.Figure()
    for rank in range(min(data.sizes.get("eigenvalue", 0), MAX_EIGENVALUES)):
        curve = series(data, "eigen_residuals", rank)
        scale = np.abs(aligned(data, "sharpness", curve.steps))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = curve.values / scale
        known = np.isfinite(ratio) & (ratio > 0)
        _line(figure, Series(curve.steps[known], ratio[known]), f"eigenpair {rank + 1}", rank, width=1)
    return _finish(figure, "residual / sharpness", log=True)


def _line(
    figure: go.Figure, curve: Series, name: str, colour: int, *, row: int | None = None, width: float = 1.5
) -> None:
    if not len(curve):
        return
    curve = thin(curve)
    trace = go.Scatter(
        x=curve.steps,
        y=curve.values,
        name=name,
        mode="lines" if len(curve) > 1 else "markers",
        line={"width": width, "color": PALETTE[colour % len(PALETTE)]},
        hovertemplate="%{y:.4g}<extra>" + name + "</extra>",
    )
    figure.add_trace(trace, row=row, col=None if row is None else 1)


def _finish(figure: go.Figure, y_title: str | None, *, log: bool = False) -> go.Figure:
    figure.update_layout(
        margin={"l": 62, "r": 14, "t": 10, "b": 44},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        hovermode="x unified",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#8a94a3", "activecolor": "#0b5fa5"},
        font={"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=True,
        height=380 if y_title else 470,
    )
    figure.update_xaxes(automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, zeroline=False, exponentformat="power")
    last_row = 1 if y_title else 2
    if y_title:
        figure.update_xaxes(title_text="step")
        figure.update_yaxes(title_text=y_title, type="log" if log else "linear", nticks=7)
    else:
        figure.update_xaxes(title_text="step", row=last_row, col=1)
    return figure
