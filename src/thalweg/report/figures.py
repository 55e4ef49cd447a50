"""The figures of a run, as Plotly figures; the page restyles them for light, dark and print."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from thalweg.report.facts import edge
from thalweg.report.look import dress
from thalweg.report.series import Series, Steps, aligned, broken, cadence, gaps, series, thin

LIGHT = ("#0068A8", "#C24A00", "#00795A", "#A8447F", "#8A6300", "#3B7FB5", "#6B4FA0", "#5F6670")
DARK = ("#56B4E9", "#F2914D", "#2BC49A", "#E39AC3", "#E6B422", "#9CD3F5", "#B9A0E6", "#A9B1BC")
"""Okabe and Ito's hues, which most colour-blind readers tell apart, at a contrast of at least 3 on the page."""
LIMIT = "#7D8590"
"""Colour of the threshold, on light and dark."""
MAX_EIGENVALUES = 8
FAR = 3.0
"""A threshold up to so many times the largest eigenvalue is drawn whole; what lies beyond leaves the figure."""


def loss_figure(data: xr.Dataset) -> go.Figure:
    """Draw the loss against the step, logarithmic where it is positive.

    Args:
        data: A run's data, as ``open_run(path).data`` gives it.

    Returns:
        A figure; without curves where nothing was measured.

    Example:
        >>> import numpy as np, xarray as xr
        >>> data = xr.Dataset({"loss": ("step", np.exp(-np.arange(5.0)))}, coords={"step": np.arange(5)})
        >>> loss_figure(data).layout.yaxis.type
        'log'
    """
    figure = go.Figure()
    _line(figure, series(data, "loss"), "training loss", 0)
    _line(figure, series(data, "full_loss"), "loss over all data", 1)
    positive = all(bool((series(data, name).values > 0).all()) for name in ("loss", "full_loss"))
    return _finish(figure, data, ["loss"], log=positive)


def spectrum_figure(data: xr.Dataset, *, threshold: bool = True) -> go.Figure:
    """Draw the leading eigenvalues of the effective Hessian against the stability threshold.

    The threshold follows the learning rate from step to step. The axis shows the eigenvalues; it is logarithmic
    where they, or the threshold above them, would else be squeezed.

    Args:
        data: A run's data.
        threshold: Whether to draw the threshold; a plain Hessian under a preconditioning rule does not compare.
    """
    figure = go.Figure()
    grid = cadence(series(data, "sharpness"))
    for rank in range(min(data.sizes.get("eigenvalue", 0), MAX_EIGENVALUES)):
        curve, name = series(data, "eigenvalues", rank), f"eigenvalue {rank + 1}" if rank else "sharpness"
        _line(figure, curve, name, rank, width=1.2 if rank else 2.0, every=grid)
    if not figure.data:
        _line(figure, series(data, "sharpness"), "sharpness", 0, width=2.0)
    shown = np.concatenate([trace.y for trace in figure.data] or [np.empty(0)])
    shown = shown[np.isfinite(shown)]
    log = len(shown) > 0 and shown.min() > 0 and shown.max() > 50 * np.median(shown)
    if not threshold or not len(shown):
        return _finish(figure, data, ["eigenvalues"], log=log)
    limit = series(data, "stability_threshold")
    if len(limit):
        curve = thin(limit)
        figure.add_scatter(
            x=curve.steps,
            y=curve.values,
            name="stability threshold",
            mode="lines",
            line={"dash": "dash", "width": 2.0, "color": LIMIT},
            hovertemplate="%{y:.4g}<extra>stability threshold</extra>",
        )
        far = limit.values.min() > FAR * max(float(shown.max()), 0.0)
        log = log or (far and shown.min() > 0)
    figure = _finish(figure, data, ["eigenvalues"], log=log)
    if len(limit) and not log and limit.values.max() > FAR * shown.max():
        top = max(float(shown.max()), float(limit.values.min()))
        figure.update_yaxes(range=[min(0.0, 1.05 * float(shown.min())), 1.15 * top])
    return figure


def oscillation_figure(data: xr.Dataset) -> go.Figure:
    """Draw the cosine between successive updates, the update along the leading eigenvectors, and its size.

    The size is logarithmic: an unstable direction grows along a straight line before anything else shows it.

    Args:
        data: A run's data.
    """
    curves = [series(data, "update_projection", rank) for rank in range(min(data.sizes.get("eigenvalue", 0), 3))]
    along = any(len(curve) for curve in curves)
    figure = _rows(3 if along else 1)
    _line(figure, series(data, "update_cosine"), "cosine of successive updates", 0, row=1, width=1.2)
    grid = cadence(series(data, "sharpness"))
    for rank, curve in enumerate(curves):
        name, size = f"update along eigenvector {rank + 1}", np.abs(curve.values)
        _line(figure, curve, name, rank + 1, row=2, width=1.0, every=grid)
        _line(figure, Series(curve.steps[size > 0], size[size > 0]), name, rank + 1, row=3, width=1.0, every=grid)
    if along:
        figure.for_each_trace(lambda trace: trace.update(showlegend=False), {"yaxis": "y3"})
        figure.for_each_trace(lambda trace: trace.update(legendgroup=trace.name))
    figure = _finish(figure, data, ["update_cosine", "update_projection", "update_size"])
    if along:
        figure.update_yaxes(type="log", **_decades(figure, "y3", most=4), row=3, col=1)
    return figure.update_yaxes(range=[-1.08, 1.08], dtick=0.5, row=1, col=1)


def travel_figure(data: xr.Dataset) -> go.Figure:
    """Draw the distance from the start, the length of the path, and the norm of the weights.

    Args:
        data: A run's data.
    """
    figure = _rows(2)
    _line(figure, series(data, "path_length"), "length of the path", 1, row=1)
    _line(figure, series(data, "distance"), "distance from the start", 0, row=1)
    _line(figure, series(data, "weight_norm"), "norm of the weights", 2, row=2)
    figure = _finish(figure, data, ["distance", "weight_norm"])
    return figure.update_yaxes(rangemode="tozero", row=1, col=1)


def gradient_figure(data: xr.Dataset) -> go.Figure:
    """Draw the norms of gradient and update, and the learning rate where it changes.

    Args:
        data: A run's data.
    """
    rate = series(data, "learning_rate")
    changes = len(rate) > 1 and rate.values.min() < rate.values.max()
    figure = _rows(2 if changes else 1)
    _line(figure, series(data, "gradient_norm"), "norm of the gradient (loss / weight)", 0, row=1)
    _line(figure, series(data, "update_norm"), "norm of the update (weight)", 1, row=1)
    if changes:
        _line(figure, rate, "learning rate", 2, row=2)
    positive = all(bool((series(data, name).values > 0).all()) for name in ("gradient_norm", "update_norm"))
    figure = _finish(figure, data, ["gradient_norm", "learning_rate"] if changes else ["gradient_norm"])
    return figure.update_yaxes(type="log", **_decades(figure, "y"), row=1, col=1) if positive else figure


def cost_figure(data: xr.Dataset) -> go.Figure:
    """Draw the Hessian products of each measurement, and the seconds of training and measuring so far.

    Args:
        data: A run's data.
    """
    figure = _rows(2)
    _line(figure, series(data, "eigen_products"), "Hessian products", 0, row=1, width=1.2)
    for colour, (name, label) in enumerate(
        (("seconds_step", "training so far"), ("seconds_measure", "measuring so far"))
    ):
        curve = series(data, name)
        _line(figure, Series(curve.steps, np.cumsum(curve.values)), label, colour + 1, row=2)
    figure = _finish(figure, data, ["eigen_products", "seconds_step"])
    return figure.update_yaxes(rangemode="tozero")


def accuracy_figure(data: xr.Dataset) -> go.Figure:
    """Draw the residual of each leading eigenpair relative to the sharpness: how far its value can be off.

    Args:
        data: A run's data.
    """
    figure = go.Figure()
    grid = cadence(series(data, "sharpness"))
    for rank in range(min(data.sizes.get("eigenvalue", 0), MAX_EIGENVALUES)):
        curve = series(data, "eigen_residuals", rank)
        scale = np.abs(aligned(data, "sharpness", curve.steps))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = curve.values / scale
        known = np.isfinite(ratio) & (ratio > 0)
        _line(figure, Series(curve.steps[known], ratio[known]), f"eigenpair {rank + 1}", rank, width=1.0, every=grid)
    return _finish(figure, data, ["eigen_residuals"], log=True)


_TITLES = {
    "loss": ("loss", ""),
    "eigenvalues": ("eigenvalue", "loss / weight^2"),
    "sharpness": ("sharpness", "loss / weight^2"),
    "update_cosine": ("cosine", ""),
    "update_projection": ("update", "weight"),
    "update_size": ("size", "weight"),
    "distance": ("length", "weight"),
    "weight_norm": ("norm", "weight"),
    "gradient_norm": ("norm", ""),
    "learning_rate": ("learning rate", "weight^2 / loss"),
    "eigen_products": ("products", ""),
    "seconds_step": ("time", "s"),
    "eigen_residuals": ("residual / sharpness", ""),
}


def _rows(count: int) -> go.Figure:
    return make_subplots(rows=count, cols=1, shared_xaxes=True, vertical_spacing=0.1 if count == 2 else 0.06)


def _title(name: str) -> str:
    words, units = _TITLES[name]
    return f"{words} ({units.replace('^2', '²')})" if units else words


def _line(
    figure: go.Figure,
    curve: Series,
    name: str,
    colour: int,
    *,
    row: int | None = None,
    width: float = 1.6,
    every: float | None = None,
) -> None:
    """Add a curve that is broken where measuring was left out; points with no neighbour become dots."""
    if not len(curve):
        return
    starts: Steps = gaps(curve, every if every is not None else cadence(curve))
    lone = len(curve) <= 2 or bool(np.any(np.diff(np.flatnonzero(np.isin(curve.steps, starts))) == 1))
    x, y = broken(thin(curve), starts)
    trace = go.Scatter(
        x=x,
        y=y,
        name=name,
        mode="lines+markers" if lone else "lines",
        marker={"size": 4},
        line={"width": width, "color": LIGHT[colour % len(LIGHT)]},
        meta=colour % len(LIGHT),
        hovertemplate="%{y:.4g}<extra>" + name + "</extra>",
    )
    figure.add_trace(trace, row=row, col=None if row is None else 1)


def _finish(figure: go.Figure, data: xr.Dataset, names: list[str], *, log: bool = False) -> go.Figure:
    """Add what all figures share: titles, one step axis, and where the threshold was reached.

    Args:
        figure: One with its curves.
        data: The run's data.
        names: A variable for the title of each row, from the top.
        log: Whether the first row is logarithmic.
    """
    rows = 3 if "yaxis3" in figure.layout else 2 if "yaxis2" in figure.layout else 1
    dress(figure, (0, 370, 480, 600)[rows], hover="x unified")
    figure.update_layout(legend={"tracegroupgap": 0})
    last = int(data["step"].max()) if data.sizes.get("step", 0) else 1
    margin = 0.01 * max(last, 1)
    figure.update_xaxes(zeroline=False, hoverformat=",d", range=[-margin, max(last, 1) + margin])
    figure.update_yaxes(automargin=True, zeroline=False, exponentformat="power", type="linear")
    axes = sorted(figure.select_yaxes(), key=lambda axis: str(axis.plotly_name))
    for axis, name in zip(axes, names):
        axis.title.text = _title(name)
    sorted(figure.select_xaxes(), key=lambda axis: str(axis.plotly_name))[-1].title.text = "step"
    if log:
        figure.update_yaxes(type="log", **_decades(figure, "y"))
    found = edge(data) if figure.data else None
    if found is not None and found.crossed:
        figure.add_vline(x=found.crossed, line={"width": 1, "dash": "dot", "color": LIMIT})
    return figure


def _decades(figure: go.Figure, axis: str, most: int = 8) -> dict[str, object]:
    """Label whole decades where there are several, 1, 2 and 5 of each where there are few."""
    traces = [trace for trace in figure.data if (trace.yaxis or "y") == axis]
    values = np.concatenate([np.asarray(trace.y, dtype=float) for trace in traces] or [np.ones(1)])
    values = values[np.isfinite(values) & (values > 0)]
    low, high = (np.log10(values.min()), np.log10(values.max())) if len(values) else (0.0, 0.0)
    if high - low >= 3:
        return {"dtick": int(np.ceil((high - low) / most))}
    if high - low < 0.7:
        return {"nticks": 5}
    ticks = [m * 10.0**e for e in range(int(np.floor(low)), int(np.ceil(high)) + 1) for m in (1, 2, 5)]
    return {"tickvals": ticks, "ticktext": [f"{tick:.4g}" for tick in ticks]}
