"""Figures of a verdict: the loss and its windows, the gradient level, autocorrelation, ever longer averages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.stationarity.autocorrelation import Floats, autocorrelation, is_constant
from thalweg.stationarity.doubling import doubling

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from thalweg.stationarity.verdict import Verdict

# The house's palette; ``meta`` is the place in it, by which a page repaints for the dark.
COLOURS = ("#0068A8", "#C24A00", "#00795A", "#A8447F")
LIMIT = "#7D8590"
SHADE, BAND = "rgba(0,121,90,0.13)", "rgba(0,104,168,0.18)"
MOST = 3000
"""Points drawn of one curve."""
TITLES = ("Loss and window", "Gradient level", "Autocorrelation of the loss", "Mean loss over the first n snapshots")


def verdict_figure(verdict: Verdict) -> go.Figure:
    """Draw all four, two by two; a panel without data says so.

    Example:
        >>> from thalweg.stationarity.assess import assess
        >>> figure = assess({"loss": np.random.default_rng(0).standard_normal(400)}).plot()
        >>> [note.text for note in figure.layout.annotations][1]
        'Gradient level: not logged'
    """
    from plotly.subplots import make_subplots

    parts = (loss_figure(verdict), level_figure(verdict), autocorrelation_figure(verdict), mean_figure(verdict))
    missing = (": not logged" if verdict.level is None else ": no probes in the window", ": not to be had")
    titles = [
        title + ("" if part.data else missing[0] if title == TITLES[1] else missing[1])
        for title, part in zip(TITLES, parts)
    ]
    figure = make_subplots(rows=2, cols=2, subplot_titles=titles, vertical_spacing=0.16, horizontal_spacing=0.09)
    for number, part in enumerate(parts):
        row, col = divmod(number, 2)
        place = "" if number == 0 else str(number + 1)
        for trace in part.data:
            figure.add_trace(trace, row=row + 1, col=col + 1)
        for shape in part.layout.shapes:
            moved = {**shape.to_plotly_json()}
            for axis in ("x", "y"):
                moved[f"{axis}ref"] = moved.get(f"{axis}ref", axis).replace(axis, f"{axis}{place}", 1)
            figure.add_shape(moved)
        figure.update_xaxes(part.layout.xaxis, row=row + 1, col=col + 1)
        figure.update_yaxes(part.layout.yaxis, row=row + 1, col=col + 1)
        for axis in ("xaxis", "yaxis"):  # a layout brings its own place along
            figure.layout[f"{axis}{place}"].anchor = f"{'y' if axis == 'xaxis' else 'x'}{place}"
    return figure.update_layout(showlegend=False, height=640, title=f"{verdict.kind}: {verdict.words.split('. ')[0]}")


def loss_figure(verdict: Verdict) -> go.Figure:
    """Draw the loss against the step, the window shaded, a line wherever a setting changes."""
    import plotly.graph_objects as go

    figure = go.Figure()
    trace = verdict.history.loss
    finite = np.isfinite(trace.values)
    steps, values = trace.steps[finite], trace.values[finite]
    shown = _shown(values)
    figure.add_scatter(
        x=steps[shown], y=values[shown], mode="lines", name="loss", meta=0, line={"width": 1.1, "color": COLOURS[0]}
    )
    if verdict.window is not None:
        _shade(figure, verdict.window.start, verdict.window.stop)
    for segment in verdict.segments[1:40]:
        _line(figure, "x", segment.start)
    log = bool(len(values)) and bool((values > 0).all()) and values.max() > 5 * values.min()
    return _finish(figure, "step", "loss", log=log)


def level_figure(verdict: Verdict) -> go.Figure:
    """Draw U and A at the probes, the mean of U over the window with its interval, and the floor."""
    import plotly.graph_objects as go

    figure = go.Figure()
    found = verdict.history.gradient.get("unbiased")
    level, window = verdict.level, verdict.window
    if found is None:
        return figure
    drawn = [found.values[found.values > 0]]
    biased = verdict.history.gradient.get("biased")
    if biased is not None:
        figure.add_scatter(
            x=biased.steps, y=biased.values, mode="lines", name="A, biased", meta=1,
            line={"width": 1, "color": COLOURS[1], "dash": "dot"},
        )  # fmt: skip
        drawn.append(biased.values[biased.values > 0])
    positive = bool((found.values > 0).mean() > 0.8)
    figure.add_scatter(
        x=found.steps, y=found.values, mode="markers", name="U, unbiased", meta=0,
        marker={"size": 4, "color": COLOURS[0]},
    )  # fmt: skip
    if level is not None and window is not None and np.isfinite(level.unbiased):
        low, high = level.interval
        log_scale = positive and low > 0
        if low < high:
            figure.add_scatter(
                x=[window.start, window.stop, window.stop, window.start], y=[low, low, high, high], fill="toself",
                fillcolor=BAND, mode="lines", line={"width": 0}, name="95 % interval", hoverinfo="skip",
            )  # fmt: skip
        figure.add_scatter(
            x=[window.start, window.stop], y=[level.unbiased] * 2, mode="lines", name="mean of U", meta=2,
            line={"width": 2, "color": COLOURS[2]},
        )  # fmt: skip
        positive = log_scale
    if level is not None and np.isfinite(level.floor):
        figure.add_scatter(
            x=[int(found.steps[0]), int(found.steps[-1])], y=[level.floor] * 2, mode="lines", name="floor",
            line={"width": 1.4, "color": LIMIT, "dash": "dash"},
        )  # fmt: skip
    return _finish(figure, "step", "squared gradient norm", log=positive)


def autocorrelation_figure(verdict: Verdict) -> go.Figure:
    """Draw the autocorrelation of the loss in the window, up to ten times its integrated time."""
    import plotly.graph_objects as go

    figure = go.Figure()
    values = _inside(verdict)
    if values is None:
        return figure
    rho = autocorrelation(values)
    tau = verdict.loss.tau if verdict.loss is not None and np.isfinite(verdict.loss.tau) else 10.0
    most = int(min(len(values) // 2, max(20, 10 * tau), MOST))
    figure.add_scatter(
        x=np.arange(most), y=rho[:most], mode="lines+markers" if most < 60 else "lines", name="autocorrelation", meta=0,
        marker={"size": 4, "color": COLOURS[0]}, line={"color": COLOURS[0], "width": 1.4},
    )  # fmt: skip
    _line(figure, "y", 0.0)
    if tau < most:
        _line(figure, "x", tau)
    return _finish(figure, "lag, in snapshots; the line is tau", "correlation")


def mean_figure(verdict: Verdict) -> go.Figure:
    """Draw the mean loss over the first n snapshots of the window, n doubling, with two standard errors."""
    import plotly.graph_objects as go

    values = _inside(verdict)
    if values is None:
        return go.Figure()
    found = doubling(values, name="loss")
    low, high = found.mean - 2 * found.standard_error, found.mean + 2 * found.standard_error
    figure = go.Figure()
    figure.add_scatter(
        x=np.concatenate([found.n, found.n[::-1]]), y=np.concatenate([high, low[::-1]]), fill="toself", fillcolor=BAND,
        mode="lines", line={"width": 0}, name="two standard errors", hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=found.n, y=found.mean, mode="lines+markers", name="mean", meta=0,
        marker={"size": 5, "color": COLOURS[0]}, line={"color": COLOURS[0]},
    )  # fmt: skip
    _finish(figure, "n", "mean loss")
    return figure.update_xaxes(type="log", tickvals=found.n.tolist(), ticktext=[f"{n:,}" for n in found.n])


def _inside(verdict: Verdict) -> Floats | None:
    if verdict.window is None:
        return None
    values = verdict.history.loss.inside(verdict.window.start, verdict.window.stop).values
    usable = len(values) >= 32 and bool(np.isfinite(values).all()) and not bool(is_constant(values))
    return values if usable else None


def _shown(values: Floats) -> Any:
    """Return which points to draw: all, or the lowest and highest of each stretch."""
    if len(values) <= MOST:
        return slice(None)
    width = -(-len(values) // (MOST // 2))
    edges = range(0, len(values), width)
    picked = {a + int(pick(values[a : a + width])) for a in edges for pick in (np.argmin, np.argmax)}
    return np.array(sorted(picked | {0, len(values) - 1}))


def _shade(figure: go.Figure, start: int, stop: int) -> None:
    figure.add_shape(
        type="rect", x0=start, x1=stop, y0=0, y1=1, yref="y domain", fillcolor=SHADE, line_width=0, layer="below"
    )


def _line(figure: go.Figure, axis: str, at: float) -> None:
    other = "y" if axis == "x" else "x"
    figure.add_shape(
        {
            "type": "line",
            f"{axis}0": at,
            f"{axis}1": at,
            f"{other}0": 0,
            f"{other}1": 1,
            f"{other}ref": f"{other} domain",
        },
        line={"width": 1, "color": LIMIT, "dash": "dot"},
    )


def _finish(figure: go.Figure, x: str, y: str, *, log: bool = False) -> go.Figure:
    figure.update_xaxes(title=x)
    return figure.update_yaxes(title=y, type="log" if log else "linear", exponentformat="power").update_layout(
        showlegend=True,
        height=320,
        margin={"l": 60, "r": 20, "t": 30, "b": 45},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )
