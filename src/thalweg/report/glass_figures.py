"""The figures of glass: powers by layer, density by layer and over training, loss change measured and predicted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from thalweg.report.figures import LIGHT, LIMIT
from thalweg.report.look import dress
from thalweg.report.spectrum_figures import labels

CONTINUOUS = 2.5
"""Power of second differences from which a gradient has no jumps."""
MARKS = {1.0: "glass", 3.0: "kink", 4.0: "smooth"}
"""Powers of second differences, and what they say."""


def exponent_figure(data: xr.Dataset) -> go.Figure:
    """Draw the powers of first and second differences by layer, with twice their standard errors.

    Args:
        data: A look at glass, as ``thalweg glass`` writes it.

    Returns:
        A figure; dashed lines stand at what glass, corners of the gradient and smoothness give.
    """
    names = _names(data)
    place = np.arange(len(names))
    figure = go.Figure()
    for row, (key, name) in enumerate((("second_power", "second differences"), ("first_power", "first differences"))):
        values, errors = (data[k].to_numpy().astype(float) for k in (key, f"{key}_error"))
        if not np.isfinite(values).any():
            continue
        figure.add_scatter(
            x=values,
            y=place,
            error_x={"type": "data", "array": np.nan_to_num(2 * errors), "thickness": 1.5},
            name=name,
            mode="markers",
            marker={"size": 10, "symbol": ("circle", "diamond-open")[row], "color": LIGHT[row], "line": {"width": 2}},
            meta=row,
            customdata=[list(pair) for pair in zip(names, map(str, data["label"].to_numpy()))],
            hovertemplate="%{x:.2f} ± %{error_x.array:.2f}<br>%{customdata[0]}: %{customdata[1]}<extra></extra>",
        )
    if not figure.data:
        return figure
    for power, word in MARKS.items():
        figure.add_vline(
            x=power,
            line={"dash": "dash", "width": 1.2, "color": LIMIT},
            annotation_text=word,
            annotation_position="top",
        )
    figure.update_xaxes(title="power of the distance", range=[-0.3, 4.7], dtick=1)
    figure.update_yaxes(tickvals=place, ticktext=labels(names), range=[len(names) - 0.4, -0.6], title="layer")
    return _finish(figure, 170 + 28 * len(names))


def density_figure(data: xr.Dataset) -> go.Figure:
    """Draw the density of each layer with its standard error, and what rounding alone would give."""
    names = _names(data)
    place = np.arange(len(names))
    rho, error = (data[key].to_numpy().astype(float) for key in ("rho", "rho_error"))
    jumps = glassy_layers(data)
    figure = go.Figure()
    figure.add_scatter(
        x=rho,
        y=place,
        error_x={"type": "data", "array": np.nan_to_num(error), "thickness": 1.5},
        name="glass density (open: none, a remainder)" if not jumps.all() else "glass density",
        mode="markers",
        marker={"size": 10, "color": LIGHT[0], "symbol": ["circle" if jump else "circle-open" for jump in jumps]},
        meta=0,
        customdata=names,
        hovertemplate="%{x:.3g} ± %{error_x.array:.1e}<extra>%{customdata}</extra>",
    )
    figure.add_scatter(
        x=data["floor"].to_numpy().astype(float),
        y=place,
        name="rounding alone",
        mode="markers",
        marker={"size": 9, "symbol": "line-ns-open", "color": LIMIT, "line": {"width": 2}},
        hovertemplate="%{x:.3g}<extra>rounding alone</extra>",
    )
    figure.update_xaxes(type="log", title="gradient² / weight")
    figure.update_yaxes(tickvals=place, ticktext=labels(names), range=[len(names) - 0.4, -0.6], title="layer")
    return _finish(figure, 160 + 28 * len(names))


def glassy_layers(data: xr.Dataset) -> np.ndarray:
    """Return which layers have a density: those whose powers do not say that their gradient is continuous."""
    low = data["second_power"].to_numpy() - 2 * np.nan_to_num(data["second_power_error"].to_numpy())
    doubt = [str(label) == "unsure" and not least >= CONTINUOUS for label, least in zip(data["label"].to_numpy(), low)]
    return np.array(doubt) | np.isin(data["label"].to_numpy().astype(str), ("glass", "mixed", "rounding"))


def history_figure(rows: Sequence[xr.Dataset]) -> go.Figure:
    """Draw the density of each layer over training.

    Args:
        rows: Looks at several steps of one run, by step, with the same layers.

    Returns:
        A figure; empty with fewer than two steps.
    """
    figure = go.Figure()
    if len(rows) < 2:
        return figure
    steps = [int(row.attrs["step"]) for row in rows]
    names = _names(rows[0])
    jumps = np.array([glassy_layers(row) for row in rows])
    for i, (name, short) in enumerate(zip(names, labels(names))):
        rho = np.array([float(row["rho"][i]) for row in rows])
        error = np.array([float(row["rho_error"][i]) for row in rows])
        figure.add_scatter(
            x=steps,
            y=np.where((rho > 0) & jumps[:, i], rho, np.nan),
            error_y={"type": "data", "array": np.nan_to_num(error), "thickness": 1.2},
            name=short if jumps[:, i].any() else f"{short} (none)",
            mode="lines+markers",
            line={"width": 1.8, "color": LIGHT[i % len(LIGHT)]},
            meta=i % len(LIGHT),
            hovertemplate=f"%{{y:.3g}} ± %{{error_y.array:.1e}} at step %{{x}}<extra>{name}</extra>",
        )
    figure.update_xaxes(title="step")
    figure.update_yaxes(type="log", title="gradient² / weight")
    return _finish(figure, 380)


def change_figure(data: xr.Dataset) -> go.Figure:
    """Draw what the Hessian model leaves of the loss change along the update, and what glass predicts of it."""
    figure = go.Figure()
    if "deviation" not in data:
        return figure
    t = data["length"].to_numpy().astype(float)
    size, error = (data[key].to_numpy().astype(float) for key in ("deviation", "deviation_error"))
    figure.add_scatter(
        x=t,
        y=np.where(size > 0, size, np.nan),
        error_y={"type": "data", "array": np.nan_to_num(error), "thickness": 1.5},
        name="measured: deviation from the Hessian model",
        mode="markers",
        marker={"size": 10, "color": LIGHT[0]},
        meta=0,
        hovertemplate="%{y:.3g} ± %{error_y.array:.1e} at %{x:g} updates<extra>measured</extra>",
    )
    curves = (
        ("glass_part", "glass predicts", "solid", 1),
        ("predicted_deviation", "with the mean effect of kinks", "solid", 3),
        ("bound", "bound of glass", "dot", 1),
        ("hessian_part", "Hessian part, which is taken off", "dash", 2),
    )
    top = float(np.nanmax(size, initial=0.0))
    for key, name, dash, colour in curves:
        values = np.abs(data[key].to_numpy().astype(float))
        top = max(top, float(np.nanmax(values, initial=0.0)))
        figure.add_scatter(
            x=t,
            y=np.where(values > 0, values, np.nan),
            name=name,
            mode="lines",
            line={"width": 1.8, "dash": dash, "color": LIGHT[colour]},
            meta=colour,
            hovertemplate=f"%{{y:.3g}} at %{{x:g}} updates<extra>{name}</extra>",
        )
    low = float(np.nanmin(size[size > 0], initial=top)) if top > 0 else 0.0
    figure.update_xaxes(type="log", title="length of the step, in updates")
    figure.update_yaxes(type="log", title="loss")
    if low > 0:
        figure.update_yaxes(range=[math.log10(low / 2), math.log10(3 * top)])
    return _finish(figure, 400)


def _names(data: xr.Dataset) -> list[str]:
    return [str(name) for name in data["layer"].to_numpy()]


def _finish(figure: go.Figure, height: int) -> go.Figure:
    dress(figure, height, top=56, bottom=50, hover="closest")
    figure.update_xaxes(zeroline=False, exponentformat="power")
    return figure.update_yaxes(zeroline=False, automargin=True, exponentformat="power")
