"""The figures of a trajectory map: by group, beyond its nulls, lengths, angles, and the path in a plane."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.report.figures import LIGHT
from thalweg.report.figures import LIMIT as LIMIT_COLOUR
from thalweg.report.look import dress
from thalweg.report.trajectory_facts import WHOLE, closest_null, floor_steps, omega_of
from thalweg.trajectories.complexity import complexity
from thalweg.trajectories.figure import MOST, SIMILAR, chosen, hatching, heatmap, packed
from thalweg.trajectories.kernels import Floats, Ints
from thalweg.trajectories.map import TrajectoryMap
from thalweg.trajectories.nulls import nulls_for

SELECTED = 64
"""Rows of a map behind the selector; the whole is drawn with all."""
SMALL = 48
"""Rows of a small multiple."""
FEW = 8
"""Groups whose curves are drawn beside the whole."""
PALE = "rgba(125,133,144,0.85)"


def map_figure(found: TrajectoryMap) -> go.Figure:
    """Draw the trajectory map, with a selector of groups; the hover tells steps, cosine and a null value.

    The null is decay of the old weights where that is known, else a random walk with the same sizes of updates.

    Args:
        found: A trajectory map.
    """
    figure, shown = go.Figure(), []
    for group in found.groups:
        null, words = closest_null(found, group)
        most = MOST if group == WHOLE else SELECTED
        trace = heatmap(
            found.path(group).similarity,
            found.steps,
            name="cosine",
            null=null,
            null_name=words,
            colorbar={"title": {"text": "cosine"}, "thickness": 14},
            visible=group == WHOLE,
            showlegend=False,
            most=most,
        )
        figure.add_trace(trace)
        shown.append(group)
    if len(shown) > 1:
        buttons = [
            {"label": group, "method": "restyle", "args": [{"visible": [other == group for other in shown]}]}
            for group in shown
        ]
        figure.update_layout(
            updatemenus=[
                {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "showactive": True}
            ]
        )
    return _square(_finish(figure, 560 if len(shown) == 1 else 600))


def beyond_figure(found: TrajectoryMap) -> go.Figure:
    """Draw the map less its null, the relative map less that of a random walk, and the cosines of updates.

    Differences are small beside cosines, so the first two have scales of their own, which their titles tell. Updates
    below the precision floor of the stored weights are hatched.

    Args:
        found: A trajectory map.
    """
    path, walk = found.path(), nulls_for(found.path())["walk"]
    null, words = closest_null(found)
    rest = np.arange(len(path)) != found.anchor
    relative = (path.relative(found.anchor) - walk.relative(found.anchor))[np.ix_(rest, rest)]
    beyond = path.similarity - null
    first, second = _reach(beyond), _reach(relative)
    titles = (f"cosine − {words}, ±{first:g}", f"relative − random walk, ±{second:g}", "cosine of updates, ±1")
    figure = make_subplots(rows=1, cols=3, subplot_titles=titles, horizontal_spacing=0.07)
    style: dict[str, Any] = {"signed": True, "showscale": False, "showlegend": False}
    figure.add_trace(heatmap(beyond, path.steps, name="difference", **style, zmin=-first, zmax=first), 1, 1)
    part = path.steps[rest]
    figure.add_trace(heatmap(relative, part, name="difference", **style, zmin=-second, zmax=second), 1, 2)
    style["showscale"] = True
    figure.add_trace(heatmap(path.updates, path.steps[:-1], name="cosine", **style), 1, 3)
    stripes = hatching(found.precision().mask, path.steps[:-1], showlegend=False)
    if stripes is not None:
        figure.add_trace(stripes, 1, 3)
    return _square(_finish(figure, 380)).update_xaxes(nticks=4, tickangle=0)


def groups_figure(found: TrajectoryMap) -> go.Figure:
    """Draw the maps of all groups side by side on one scale; nothing where there is but the whole.

    Args:
        found: A trajectory map.
    """
    names = [group for group in found.groups if group != WHOLE]
    figure = go.Figure()
    if not names:
        return figure
    columns = min(8, max(3, math.ceil(math.sqrt(1.6 * len(names))))) if len(names) > 5 else max(3, len(names))
    rows = math.ceil(len(names) / columns)
    at = chosen(len(found.steps), SMALL)
    maps = [found.path(group).similarity[np.ix_(at, at)] for group in names]
    low = min((float(np.nanmin(one)) for one in maps if np.isfinite(one).any()), default=0.0)
    # one picture for all: a frame of axes for each of forty maps would make the page slow
    tile, gap = len(at), max(2, len(at) // 12)
    height, width = rows * (tile + gap + gap) - gap, columns * (tile + gap) - gap
    field = np.full((height, width), np.nan)
    notes: list[dict[str, Any]] = []
    for place, (group, one) in enumerate(zip(names, maps)):
        top, left = (place // columns) * (tile + 2 * gap), (place % columns) * (tile + gap)
        field[top : top + tile, left : left + tile] = one
        omega = omega_of(found, group)
        notes.append(
            {
                "x": left + tile / 2,
                "y": top - 0.5,
                "text": f"{group} {omega:.2f}",
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"size": 10},
            }
        )
    figure.add_trace(
        go.Heatmap(
            z=packed(field),
            zmin=min(low, 0.999),
            zmax=1.0,
            colorscale=SIMILAR,
            hoverongaps=False,
            name="cosine",
            showlegend=False,
            colorbar={"title": {"text": "cosine"}, "thickness": 14},
            hovertemplate="cosine %{z:.3f}<extra></extra>",
        )
    )
    figure = _finish(figure, int(120 + 820 / width * height))
    figure.update_layout(annotations=notes)
    figure.update_xaxes(visible=False)
    return figure.update_yaxes(visible=False, autorange=False, range=[height, -2 * gap], scaleanchor="x")


def length_figure(found: TrajectoryMap) -> go.Figure:
    """Draw distance from the start beside a line and a walk of the same updates, norms, and updates over weights.

    Args:
        found: A trajectory map.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    path, steps = found.path(), found.steps
    own = found.complexity()
    _line(figure, steps, own.radii, "distance from the start", 0, row=1, width=2.2)
    _line(figure, steps, own.norms, "norm", 2, row=1)
    walked = np.sqrt(np.concatenate([[0.0], np.cumsum(path.lengths**2)]))
    travelled = np.concatenate([[0.0], np.cumsum(path.lengths)])
    _line(figure, steps, travelled, "line", None, row=1, dash="dash")
    _line(figure, steps, walked, "random walk", None, row=1, dash="dot")
    _line(figure, steps[:-1], own.update_ratio, "update / norm", 1, row=2, width=2.0)
    for place, group in enumerate(_some(found)):
        _line(figure, steps[:-1], found.complexity(group).update_ratio, group, place + 3, row=2, width=1.0)
    floor = found.precision()
    if floor.quantum > 0:
        level = np.full(len(steps) - 1, 3 * floor.quantum)
        _line(figure, steps[:-1], level, "precision floor", None, row=2, dash="dash")
    _hatch(figure, found, rows=(2,))
    figure = _finish(figure, 560)
    ratio = own.update_ratio[own.update_ratio > 0]
    if len(ratio) and ratio.max() > 8 * ratio.min():
        figure.update_yaxes(type="log", row=2, col=1)
    # a straight line of the same updates goes far beyond what is of interest
    top = 1.1 * float(np.max([own.radii.max(), own.norms.max(), walked[-1]]))
    figure.update_yaxes(title="weights", range=[0, top or 1.0], row=1, col=1)
    figure.update_yaxes(title="update / norm", row=2, col=1)
    return _steps_axis(figure, steps)


def angle_figure(found: TrajectoryMap) -> go.Figure:
    """Draw turning angles at a short and a long lag, and apex angles, with what a walk and mixing would give.

    Args:
        found: A trajectory map.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    own, steps = found.complexity(), found.steps
    for place, lag in enumerate(dict.fromkeys((int(own.lags[0]), int(own.lags[-1])))):
        values = own.turning[own.row(lag)]
        _line(figure, steps, values, f"turning angle, lag {lag}", place, row=1, width=2.0 - 0.6 * place)
    for level, words in ((90.0, "random walk"), (120.0, "mixing")):
        dash = "dot" if level == 90 else "dash"
        _line(figure, steps[[0, -1]], np.full(2, level), f"{words}, {level:.0f}°", None, row=1, dash=dash)
    _line(figure, steps, own.apex_anchor[0], "apex angle at the start", 2, row=2)
    _line(figure, steps, own.apex_origin[0], "apex angle at the origin", 3, row=2)
    walk = complexity(nulls_for(found.path())["walk"], anchor=found.anchor, lags=[1])
    _line(figure, steps, walk.apex_anchor[0], "the first, random walk", None, row=2, dash="dot")
    _hatch(figure, found, rows=(1,))
    figure = _finish(figure, 520)
    figure.update_yaxes(title="turning [deg]", range=[0, 184], dtick=30, row=1, col=1)
    figure.update_yaxes(title="apex [deg]", rangemode="tozero", row=2, col=1)
    return _steps_axis(figure, steps)


def path_figure(found: TrajectoryMap) -> go.Figure:
    """Draw the path in the plane of its first two components; colour is how far each checkpoint is from that plane.

    Args:
        found: A trajectory map.
    """
    own = found.complexity().principal
    figure = go.Figure()
    if own.coordinates.shape[1] < 2 or not np.isfinite(own.explained).all():
        return figure
    x, y = own.coordinates[:, 0], own.coordinates[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        away = np.where(own.distance > 0, own.residual / own.distance, 0.0)
    figure.add_scatter(
        x=_rounded(x), y=_rounded(y), mode="lines", name="path", line={"color": PALE, "width": 1}, hoverinfo="skip"
    )
    figure.add_scatter(
        x=_rounded(x),
        y=_rounded(y),
        mode="markers",
        name="checkpoints",
        marker={
            "color": np.round(away, 3),
            "cmin": 0.0,
            "cmax": 1.0,
            "colorscale": "Cividis",
            "size": 7,
            "showscale": True,
            "colorbar": {"title": {"text": "distance from<br>the plane / from<br>the mean"}, "thickness": 14},
        },
        customdata=[[int(step), float(f"{rest:.3g}")] for step, rest in zip(found.steps, away)],
        hovertemplate="step %{customdata[0]:,d}<br>out of the plane: %{customdata[1]:.0%} of its distance from the mean"
        "<extra></extra>",
    )
    for at, words in ((0, "start"), (len(x) - 1, "end")):
        figure.add_annotation(x=float(x[at]), y=float(y[at]), text=words, showarrow=True, arrowhead=0, ax=18, ay=-18)
    figure = _finish(figure, 460)
    for axis, place in ((figure.update_xaxes, 0), (figure.update_yaxes, 1)):
        axis(title=f"component {place + 1} ({own.explained[place]:.1%} of the variance)", zeroline=False)
    return figure.update_yaxes(scaleanchor="x")


def _some(found: TrajectoryMap) -> list[str]:
    names = [group for group in found.groups if group != WHOLE]
    return names if len(names) <= FEW else []


def _rounded(values: Floats) -> list[float | None]:
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.tolist()]


def _line(
    figure: go.Figure,
    steps: Ints,
    values: Floats,
    name: str,
    colour: int | None,
    *,
    row: int,
    width: float = 1.5,
    dash: str = "solid",
) -> None:
    if not np.isfinite(values).any():
        return
    paint = LIMIT_COLOUR if colour is None else LIGHT[colour % len(LIGHT)]
    figure.add_scatter(
        x=steps.tolist(),
        y=_rounded(values),
        name=name,
        mode="lines",
        line={"width": width, "dash": dash, "color": paint},
        meta=None if colour is None else colour % len(LIGHT),
        hovertemplate="%{y:.4g}<extra>" + name + "</extra>",
        row=row,
        col=1,
    )


def _hatch(figure: go.Figure, found: TrajectoryMap, rows: tuple[int, ...]) -> None:
    """Shade the steps whose updates are below the precision floor, with stripes."""
    for row in rows:
        for first, last in floor_steps(found):
            figure.add_scatter(
                x=[first, last, last, first],
                y=[0, 0, 1, 1],
                xaxis="x" if row == 1 else f"x{row}",
                yaxis=f"y{10 + row}",
                fill="toself",
                mode="none",
                fillcolor="rgba(125,133,144,0.12)",
                fillpattern={"shape": "/", "fgcolor": LIMIT_COLOUR, "bgcolor": "rgba(0,0,0,0)", "solidity": 0.2},
                hoverinfo="skip",
                name="below the precision floor",
                showlegend=False,
            )
            beneath = "y" if row == 1 else f"y{row}"
            figure.update_layout({f"yaxis{10 + row}": {"overlaying": beneath, "range": [0, 1], "visible": False}})


def _finish(figure: go.Figure, height: int) -> go.Figure:
    return dress(figure, height, top=60)


def _reach(values: Floats) -> float:
    """Return the least 1, 2 or 5 of a power of ten, from 0.02 on, that no value exceeds."""
    most = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0
    return next((reach for reach in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if most <= reach), 2.0)


def _square(figure: go.Figure) -> go.Figure:
    figure.update_xaxes(type="category", nticks=8, showgrid=False, title="step")
    return figure.update_yaxes(type="category", nticks=8, showgrid=False, autorange="reversed")


def _steps_axis(figure: go.Figure, steps: Ints) -> go.Figure:
    margin = 0.01 * max(int(steps[-1] - steps[0]), 1)
    figure.update_layout(hovermode="x unified", showlegend=True)
    figure.update_xaxes(zeroline=False, hoverformat=",d", range=[int(steps[0]) - margin, int(steps[-1]) + margin])
    figure.update_xaxes(title="step", row=2, col=1)
    return figure.update_yaxes(zeroline=False, automargin=True, exponentformat="power")
