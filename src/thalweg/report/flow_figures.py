"""The figures of a forecast: losses, effective eigenvalues, variances, and distances from the run."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
from scipy.ndimage import gaussian_filter1d

from thalweg.flows.laws import LIMIT
from thalweg.flows.result import FlowResult
from thalweg.report.figures import LIGHT
from thalweg.report.figures import LIMIT as LIMIT_COLOUR
from thalweg.report.flow_facts import column, onset, sigma_of, smoothed, steps
from thalweg.report.look import dress
from thalweg.report.numbers import number
from thalweg.report.series import Floats, Series, thin

SHOWN = 5
"""Directions drawn at most."""
SLIGHT = 0.01
"""Part of the largest variance that a direction must reach at some time to be drawn."""
PALE = "rgba(125,133,144,0.85)"
"""Colour of the raw loss, on light and dark."""


def loss_figure(result: FlowResult) -> go.Figure:
    """Draw the discrete loss, its smoothing, the predicted average, and the loss at the flows.

    Args:
        result: A forecast.
    """
    figure, data, sigma = go.Figure(), result.data, sigma_of(result)
    if "loss_discrete" in data:
        raw = column(data, "loss_discrete")
        _line(figure, result, raw, "loss of the run", None, width=1.0)
        mean = gaussian_filter1d(raw, sigma)
        if len(mean) > 8 * sigma:
            mean[: round(2 * sigma)] = np.nan  # where the loss drops within a width, its mean is nowhere near it
        _line(figure, result, mean, f"smoothed over {number(sigma)} steps", 7, width=2.6)
    _line(figure, result, column(data, "predicted_loss"), "predicted average", 1, width=2.0)
    _line(figure, result, column(data, "loss_central"), "at the central flow", 0, width=1.6)
    if "loss_stable" in data:
        _line(figure, result, column(data, "loss_stable"), "at the stable flow", 2, width=1.4, dash="dash")
    shown = np.concatenate([np.asarray(trace.y, dtype=float) for trace in figure.data])
    shown = shown[np.isfinite(shown)]
    log = bool(len(shown) and shown.min() > 0 and shown.max() > 8 * np.median(shown))
    if log:
        low, high = math.floor(math.log10(shown.min())), math.ceil(math.log10(shown.max()))
        ticks = [m * 10.0**e for e in range(low, high + 1) for m in ((1, 2, 5) if high - low <= 3 else (1,))]
        figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:.4g}" for tick in ticks])
    return _finish(figure, result, "loss")


def eigenvalue_figure(result: FlowResult) -> go.Figure:
    """Draw the leading effective eigenvalues along the flow against their limit.

    Args:
        result: A forecast.
    """
    figure = go.Figure()
    values = column(result.data, "effective_eigenvalues")
    for rank in range(min(values.shape[1], SHOWN)):
        name = f"eigenvalue {rank + 1}"
        _line(figure, result, values[:, rank], name, rank, width=1.2 if rank else 2.0)
    x = steps(result)
    figure.add_scatter(
        x=[int(x[0]), int(x[-1])],
        y=[LIMIT, LIMIT],
        name=f"limit {LIMIT:g}",
        mode="lines",
        line={"dash": "dash", "width": 2.0, "color": LIMIT_COLOUR},
        hovertemplate="%{y:.4g}<extra>limit</extra>",
    )
    return _finish(figure, result, "effective eigenvalue")


def variance_figure(result: FlowResult) -> go.Figure:
    """Draw the predicted variance along each direction, and the measured squared displacement, smoothed.

    Args:
        result: A forecast.

    Returns:
        A figure; without curves where no oscillation is predicted.
    """
    if onset(result) is None:
        return go.Figure()
    predicted = column(result.data, "predicted_variance")
    measured = column(result.data, "measured_variance") if "measured_variance" in result.data else None
    least = SLIGHT * np.nanmax(predicted, initial=0.0)
    shown = [i for i in range(min(predicted.shape[1], SHOWN)) if np.nanmax(predicted[:, i], initial=0.0) > least]
    figure, sigma = go.Figure(), sigma_of(result)
    for i in shown:
        _line(figure, result, _neighbours(predicted[:, i]), f"predicted, direction {i + 1}", i, width=2.0)
        if measured is not None:
            mean = np.where(np.isfinite(predicted[:, i]), smoothed(measured[:, i], sigma), np.nan)
            _line(figure, result, mean, f"measured, direction {i + 1}", i, width=1.4, dash="dot")
    return _finish(figure, result, "variance").update_yaxes(rangemode="tozero")


def distance_figure(result: FlowResult) -> go.Figure:
    """Draw how far each flow is from the discrete run, over how far that has come.

    Args:
        result: A forecast.

    Returns:
        A figure; without curves where there is no discrete run.
    """
    figure = go.Figure()
    if "travelled" not in result.data:
        return figure
    travelled = column(result.data, "travelled")
    names = {"central": ("central flow", 0), "stable": ("stable flow", 2), "midpoint": ("midpoints of the run", 7)}
    for name, (words, colour) in names.items():
        if f"distance_{name}" in result.data:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = column(result.data, f"distance_{name}") / travelled
            ratio = np.where(np.isfinite(ratio), ratio, np.nan)
            _line(figure, result, ratio, words, colour, width=1.8)
    figure.update_yaxes(tickformat=".3~p", rangemode="tozero")
    return _finish(figure, result, "distance / distance travelled")


def _neighbours(values: Floats) -> Floats:
    """Average over neighbouring steps, ``(a + 2 b + c) / 4``, where all three are known."""
    known = np.isfinite(values)
    if len(values) < 2:
        return values
    padded = np.concatenate([[values[1]], values, [values[-2]]])  # (a + b) / 2 at both ends
    mean = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return np.asarray(np.where(known & np.isfinite(mean), mean, values), dtype=np.float64)


def _line(
    figure: go.Figure,
    result: FlowResult,
    values: Floats,
    name: str,
    colour: int | None,
    *,
    width: float,
    dash: str = "solid",
) -> None:
    """Add a curve with its gaps; without a colour it is pale."""
    x, known = steps(result), np.isfinite(values)
    if not known.any():
        return
    curve = thin(Series(x[known], values[known]))
    y: list[float | None] = []
    at: list[int] = []
    place = np.flatnonzero(known)
    parted = set(x[place[1:][np.diff(place) > 1]].tolist())
    for step, value in zip(curve.steps.tolist(), curve.values.tolist()):
        if step in parted:
            at.append(step)
            y.append(None)
        at.append(step)
        y.append(value)
    paint = {"color": PALE} if colour is None else {"color": LIGHT[colour % len(LIGHT)]}
    figure.add_scatter(
        x=at,
        y=y,
        name=name,
        mode="lines",
        line={"width": width, "dash": dash, **paint},
        meta=None if colour is None else colour % len(LIGHT),
        hovertemplate="%{y:.4g}<extra>" + name + "</extra>",
    )


def _finish(figure: go.Figure, result: FlowResult, title: str) -> go.Figure:
    """Add what all figures share: titles, the step axis, and where the flow becomes critical."""
    dress(figure, 370, hover="x unified")
    x = steps(result)
    margin = 0.01 * max(int(x[-1] - x[0]), 1)
    figure.update_xaxes(zeroline=False, hoverformat=",d", range=[x[0] - margin, x[-1] + margin], title="step")
    figure.update_yaxes(automargin=True, zeroline=False, exponentformat="power", title=title)
    begin = onset(result)
    if begin and figure.data:
        figure.add_vline(x=int(x[begin]), line={"width": 1, "dash": "dot", "color": LIMIT_COLOUR})
    return figure
