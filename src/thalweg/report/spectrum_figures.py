"""The figures of a spectrum at one step: the density of eigenvalues, and the curvature of each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from thalweg.report.figures import FAR, LIGHT, LIMIT
from thalweg.report.look import dress
from thalweg.report.series import Floats

BAND = "rgba(110,150,195,0.32)"
"""Fill of one standard error, visible on light and on dark."""
LABEL = 18
"""Letters of a layer's name beside its bar."""
FLOOR = 0.02
"""Lowest density drawn, in units of the peak of one single eigenvalue."""


def density_figure(data: xr.Dataset) -> go.Figure:
    r"""Draw the smoothed number of eigenvalues per unit, ``P \rho(\lambda)``, and the eigenvalues found singly.

    The density is drawn on a logarithmic axis that ends below the height of one eigenvalue, with a band of one
    standard error; each eigenvalue stands at the height that it alone has in the density, with its residual as a
    bar. Without a density the eigenvalues are drawn by rank.

    Args:
        data: A spectrum, as ``thalweg spectrum`` writes it.

    Returns:
        A figure; without curves where neither was measured.

    Example:
        >>> values = xr.Variable("eigenvalue", [3.0, 1.0])
        >>> figure = density_figure(xr.Dataset({"eigenvalues": values, "eigen_residuals": values * 1e-3}))
        >>> figure.data[0].error_x.array.tolist()
        [0.003, 0.001]
    """
    figure = go.Figure()
    height, top, low, high = 1.0, 1.0, math.inf, -math.inf
    if "density" in data:
        size = float(data.attrs.get("dimension", 1))
        height = 1 / (math.sqrt(2 * math.pi) * float(data["density_width"]))
        x = data["value"].to_numpy().astype(np.float64)
        mean = size * data["density"].to_numpy().astype(np.float64)
        error = size * data["density_standard_error"].to_numpy().astype(np.float64)
        floor = FLOOR * height
        top = max(float(np.nanmax(mean + error, initial=0.0)), height)
        _band(figure, x, np.clip(mean - error, floor / 10, None), np.clip(mean + error, floor / 10, None))
        figure.add_scatter(
            x=x,
            y=np.clip(mean, floor / 10, None),
            name="eigenvalues per unit",
            mode="lines",
            line={"width": 1.8, "color": LIGHT[0]},
            meta=0,
            hovertemplate="%{y:.3g} per unit at %{x:.4g}<extra></extra>",
        )
        low, high = float(x[0]), float(x[-1])
        figure.update_yaxes(
            type="log",
            range=[math.log10(floor), math.log10(2.5 * top)],
            dtick=max(1, math.ceil(math.log10(top / floor) / 7)),
            title="eigenvalues per unit",
        )
    if "eigenvalues" in data:
        values = data["eigenvalues"].to_numpy().astype(np.float64)
        ranks = np.arange(1, len(values) + 1)
        figure.add_scatter(
            x=values,
            y=np.full(len(values), height) if "density" in data else ranks,
            error_x={"type": "data", "array": data["eigen_residuals"].to_numpy().astype(np.float64), "thickness": 1.5},
            name="one eigenvalue, with its residual",
            mode="markers",
            marker={"size": 9, "symbol": "diamond-open", "color": LIGHT[1], "line": {"width": 2}},
            meta=1,
            hovertemplate="%{x:.6g} ± %{error_x.array:.1e}<extra></extra>",
        )
        low, high = min(low, values.min()), max(high, values.max())
        if "density" not in data:
            figure.update_yaxes(title="rank", autorange="reversed", dtick=1 if len(values) <= 12 else None)
    if not figure.data:
        return figure
    if (limit := threshold_shown(data, high)) is not None:
        ends = [FLOOR * height / 10, 10 * top] if "density" in data else [0.5, len(data["eigenvalues"]) + 0.5]
        figure.add_scatter(
            x=[limit, limit],
            y=ends,
            name="stability threshold",
            mode="lines",
            line={"dash": "dash", "width": 2.0, "color": LIMIT},
            hovertemplate="%{x:.4g}<extra>stability threshold</extra>",
        )
        high = max(high, limit)
    span = high - low or 1.0
    figure.add_vline(x=0, line={"width": 1, "color": LIMIT}, opacity=0.5)
    figure.update_xaxes(title="eigenvalue (loss / weight²)", range=[low - 0.03 * span, high + 0.04 * span])
    return _finish(figure, 400)


def layer_figure(data: xr.Dataset) -> go.Figure:
    """Draw the trace and the largest eigenvalue of each layer's block, with standard error and residual.

    Args:
        data: A spectrum with layers.

    Returns:
        A figure; without bars where no layer was examined.
    """
    if "layer_trace" not in data:
        return go.Figure()
    names = [str(name) for name in data["layer"].to_numpy()]
    place = np.arange(len(names))
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.05)
    for column, (key, error, name) in enumerate(
        (
            ("layer_trace", "layer_trace_standard_error", "trace, with its standard error"),
            ("layer_eigenvalue", "layer_residual", "largest eigenvalue, with its residual"),
        ),
        1,
    ):
        figure.add_bar(
            x=data[key].to_numpy().astype(np.float64),
            y=place,
            orientation="h",
            error_x={
                "type": "data",
                "array": data[error].to_numpy().astype(np.float64),
                "thickness": 2,
                "width": 4,
                "color": LIMIT,
            },
            name=name,
            marker={"color": LIGHT[column - 1]},
            meta=column - 1,
            customdata=names,
            hovertemplate="%{x:.4g} ± %{error_x.array:.1e}<extra>%{customdata}</extra>",
            row=1,
            col=column,
        )
    figure.update_yaxes(tickvals=place, ticktext=labels(names), range=[len(names) - 0.4, -0.6], showgrid=False)
    figure.update_yaxes(title="layer", col=1)
    figure.update_xaxes(title="loss / weight²", nticks=5)
    return _finish(figure, 150 + 26 * len(names)).update_layout(bargap=0.35)


def threshold_shown(data: xr.Dataset, largest: float) -> float | None:
    """Return the stability threshold where it compares with these eigenvalues and is not far beyond them."""
    if data.attrs.get("comparable") != "yes" or "stability_threshold" not in data:
        return None
    limit = float(data["stability_threshold"])
    return limit if 0 < limit <= FAR * max(largest, 0.0) else None


def labels(names: Sequence[str]) -> list[str]:
    """Shorten names to what tells them apart: without the parts that all share at both ends.

    Example:
        >>> labels(["h.0.attn.c_proj", "h.11.attn.c_proj"]), labels(["fc1", "fc2"]), labels(["h.0.fc"])
        (['…0…', '…11…'], ['fc1', 'fc2'], ['h.0.fc'])
    """
    parts = [name.split(".") for name in names]
    shortest, first, last = min(len(p) for p in parts), 0, 0
    if len(names) > 1:
        while first < shortest - 1 and len({p[first] for p in parts}) == 1:
            first += 1
        while last < shortest - first - 1 and len({p[-1 - last] for p in parts}) == 1:
            last += 1
    return [
        shortened(f"{'…' if first else ''}{'.'.join(p[first : len(p) - last])}{'…' if last else ''}") for p in parts
    ]


def shortened(name: str) -> str:
    """Cut a long name in its middle.

    Example:
        >>> shortened("transformer.h.11.attn.c_proj")
        'transfor…tn.c_proj'
    """
    if len(name) <= LABEL:
        return name
    return f"{name[: (LABEL - 1) // 2]}…{name[-LABEL // 2 :]}"


def _band(figure: go.Figure, x: Floats, low: Floats, high: Floats) -> None:
    figure.add_scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        name="one standard error",
        mode="lines",
        fill="toself",
        fillcolor=BAND,
        line={"width": 0, "color": BAND},
        hoverinfo="skip",
    )


def _finish(figure: go.Figure, height: int) -> go.Figure:
    dress(figure, height, bottom=50, hover="closest")
    figure.update_xaxes(zeroline=False, automargin=False, exponentformat="power")
    return figure.update_yaxes(zeroline=False, automargin=True, exponentformat="power")
