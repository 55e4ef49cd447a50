"""The figure of a phase diagram: shaded regions, critical lines with error bars, what a quadratic loss would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.errors import InvalidInput, explain
from thalweg.phases.diagram import QUADRATIC, Against, PhaseDiagram
from thalweg.phases.fits import Array, isotonic_fit

if TYPE_CHECKING:
    from thalweg.phases.fits import Summary

INK = {"c_loss": ("#0068A8", 0), "c_sharp": ("#C24A00", 1), "c_barrier": ("#00795A", 2), "c_max": ("#A8447F", 3)}
"""Colour of each line, and its place in the palette of the pages."""
MARKERS = {"c_loss": "square", "c_sharp": "triangle-up", "c_barrier": "x", "c_max": "diamond"}
NAMES = {
    "c_loss": "loss rises",
    "c_sharp": "sharpness rises",
    "c_barrier": "loss rises on the straight line",
    "c_max": "divergence",
}
REGIONS = (
    ("sharpness reduction up to 2", "rgba(110,150,195,0.16)"),
    ("sharpness reduction beyond 2", "rgba(0,121,190,0.36)"),
    ("loss catapult", "rgba(230,180,34,0.34)"),
    ("sharpness increase only", "rgba(107,79,160,0.30)"),
    ("loss and sharpness catapult", "rgba(242,120,60,0.36)"),
    ("divergence", "rgba(125,133,144,0.34)"),
)
"""Names and fills that can be told apart on light and on dark."""
FINE = 120
MOST = 6
"""Panels in a row."""
TOOLS, ACROSS = 26, 4
"""Pixels above the legend that plotly's own buttons cover, and entries in a row of the legend."""


def diagram_figure(diagram: PhaseDiagram, against: Against = "width") -> go.Figure:
    """Draw a phase diagram.

    The horizontal axis is ``c = eta lambda_0``. Lines join the means over seeds of neighbouring cells, linearly in
    both logarithms; bars are the 25 % and 75 % quantiles. Against ``depth / width`` the lines are monotone fits through
    all cells. The regions lie between the lines; half an octave beyond the outermost cells they go straight on.

    Args:
        diagram: It.
        against: ``"width"`` or ``"ratio"``.

    Raises:
        InvalidInput: The axis is neither.
    """
    if against not in ("width", "ratio"):
        raise InvalidInput(explain(f"The axis is {against!r}", "there are two", "Choose 'width' or 'ratio'"))
    panels: list[tuple[str, list[tuple[int, int]]]]
    if against == "ratio":
        panels = [("", diagram.cells)]
    else:
        panels = [
            (f"depth {depth}", [cell for cell in diagram.cells if cell[0] == depth])
            for depth in diagram.depths
            if any(cell[0] == depth for cell in diagram.cells)
        ]
    columns = min(len(panels), MOST)
    rows = -(-len(panels) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        shared_yaxes=True,
        horizontal_spacing=0.04 if columns > 1 else 0.0,
        vertical_spacing=0.16,
        subplot_titles=[name for name, _ in panels] if against == "width" else None,
    )
    # Names stand inside their panels, where no legend reaches them, and at the right, where no line does.
    for name, axis in zip(figure.layout.annotations, figure.select_xaxes()):
        name.update(x=axis.domain[1], xanchor="right", xshift=-6, yanchor="top", yshift=-2, font={"size": 13})
    span = _span(diagram)
    for at, (_, cells) in enumerate(panels):
        _panel(figure, diagram, cells, against, at // columns + 1, at % columns + 1, span, first=at == 0)
    named = sum(trace.showlegend is not False for trace in figure.data)
    above = TOOLS + 10 + 30 * -(-named // ACROSS)
    high = above + 40 + 330 * rows
    ticks = 2.0 ** np.arange(np.floor(np.log2(span[0])), np.ceil(np.log2(span[1])) + 1)
    figure.update_xaxes(
        type="log",
        range=np.log10(span).tolist(),
        tickvals=ticks,
        ticktext=[f"{tick:g}" for tick in ticks],
        title="c = rate × sharpness at the start",
        showgrid=False,
        zeroline=False,
    )
    labels = {_level(cell, against): _label(cell, against) for cell in reversed(diagram.cells)}
    levels = sorted(labels)
    shown = levels if len(levels) <= 8 else levels[:: -(-len(levels) // 8)]
    figure.update_yaxes(
        type="log",
        tickvals=shown,
        ticktext=[labels[level] for level in shown],
        automargin=True,
        showgrid=False,
        zeroline=False,
        range=np.log10([levels[0] / 2**0.5, levels[-1] * 2**0.5]).tolist(),
    )
    figure.update_yaxes(title="1 / width" if against == "width" else "depth / width", col=1)
    return figure.update_layout(
        margin={"l": 64, "r": 16, "t": above, "b": 46},
        legend={"orientation": "h", "yref": "container", "y": 1 - TOOLS / high, "yanchor": "top", "x": 0},
        font={"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
        height=high,
    )


def _panel(
    figure: go.Figure,
    diagram: PhaseDiagram,
    cells: list[tuple[int, int]],
    against: Against,
    row: int,
    col: int,
    span: tuple[float, float],
    *,
    first: bool,
) -> None:
    lines = {name: _line(diagram, name, cells, against) for name in diagram.constants}
    for name, fill, (height, left, right) in _regions(lines, cells, against, span):
        figure.add_trace(
            go.Scatter(
                x=np.concatenate([left, right[::-1]]),
                y=np.concatenate([height, height[::-1]]),
                fill="toself",
                fillcolor=fill,
                line={"width": 0},
                mode="lines",
                name=name,
                legendgroup=name,
                showlegend=first,
                hoverinfo="skip",
            ),
            row,
            col,
        )
    for name in diagram.constants:
        colour, place = INK[name]
        found = [(cell, diagram.summary(name, *cell)) for cell in cells]
        found = [(cell, one) for cell, one in found if one.count]
        if not found:
            continue
        height, line = lines[name]
        figure.add_trace(
            go.Scatter(
                x=line, y=height, mode="lines", line={"color": colour, "width": 1.6}, meta=place, showlegend=False,
                hoverinfo="skip", legendgroup=name, name=name,
            ),
            row,
            col,
        )  # fmt: skip
        mean = np.array([one.mean for _, one in found])
        figure.add_trace(
            go.Scatter(
                x=mean,
                y=[_level(cell, against) for cell, _ in found],
                error_x=_bars(mean, [one for _, one in found]),
                mode="markers",
                marker={"symbol": MARKERS[name], "size": 10, "color": colour, "line": {"width": 0}},
                meta=place,
                name=f"{NAMES[name]} ({name})",
                legendgroup=name,
                showlegend=first,
                customdata=[_hover(diagram, name, cell) for cell, _ in found],
                hovertemplate="%{customdata}<extra></extra>",
            ),
            row,
            col,
        )
    figure.add_vline(x=QUADRATIC, line={"dash": "dash", "width": 1.4, "color": "#7D8590"}, row=row, col=col)


def _bars(mean: Array, found: list[Summary]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(one.quantiles[1] - m, 0.0) for m, one in zip(mean, found)],
        "arrayminus": [max(m - one.quantiles[0], 0.0) for m, one in zip(mean, found)],
        "thickness": 1.6,
        "width": 5,
    }


def _level(cell: tuple[int, int], against: Against) -> float:
    return (cell[0] if against == "ratio" else 1) / cell[1]


def _label(cell: tuple[int, int], against: Against) -> str:
    return f"{cell[0] if against == 'ratio' else 1}/{cell[1]}"


def _line(diagram: PhaseDiagram, name: str, cells: list[tuple[int, int]], against: Against) -> tuple[Array, Array]:
    """Heights and ``c`` of a critical line, on a fine grid half an octave beyond the outermost cells."""
    levels = np.array([_level(cell, against) for cell in cells])
    fine = np.linspace(np.log2(levels.min()) - 0.5, np.log2(levels.max()) + 0.5, FINE)
    values = np.array([diagram.summary(name, *cell).mean for cell in cells])
    good = np.isfinite(values)
    if not good.any():
        return np.exp2(fine), np.full(FINE, np.inf if name == "c_max" else np.nan)
    at, c = np.log2(levels[good]), np.log2(values[good])
    if against == "ratio":
        return np.exp2(fine), np.exp2(isotonic_fit(at, c)(fine))
    order = np.argsort(at)
    return np.exp2(fine), np.exp2(np.interp(fine, at[order], c[order]))


def _regions(
    lines: dict[str, tuple[Array, Array]], cells: list[tuple[int, int]], against: Against, span: tuple[float, float]
) -> list[tuple[str, str, tuple[Array, Array, Array]]]:
    """Name, fill, heights, left and right ends of each region that is there."""
    height = next(iter(lines.values()))[0]
    low, high = np.full(FINE, span[0]), np.full(FINE, span[1])
    most = np.clip(_boundary(lines, "c_max", high), low, high)
    loss = np.minimum(_boundary(lines, "c_loss", most), most)
    sharp = np.minimum(_boundary(lines, "c_sharp", most), most)
    first, last, two = np.minimum(loss, sharp), np.maximum(loss, sharp), np.full(FINE, QUADRATIC)
    edges = (
        (low, np.minimum(first, two)),
        (two, np.maximum(first, two)),
        (loss, np.maximum(loss, sharp)),
        (sharp, np.maximum(loss, sharp)),
        (last, most),
        (most, high),
    )
    found = []
    for (name, fill), (left, right) in zip(REGIONS, edges):
        right = np.maximum(left, right)
        if (np.log2(right / left) > 1e-3).any():
            found.append((name, fill, (height, left, right)))
    return found


def _boundary(lines: dict[str, tuple[Array, Array]], name: str, without: Array) -> Array:
    if name not in lines:
        return without
    values = lines[name][1]
    return np.where(np.isfinite(values), values, without)


def _span(diagram: PhaseDiagram) -> tuple[float, float]:
    """Range of ``c``: from 1 or below the least constant, to beyond the largest."""
    values = diagram.data["c"].values
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 4.0)
    return min(1.0, low / 2**0.5), max(8.0, high * 2**0.75)


def _hover(diagram: PhaseDiagram, name: str, cell: tuple[int, int]) -> str:
    from thalweg.phases.diagram_words import told

    depth, width = cell
    part = diagram.data.sel(depth=depth, width=width)
    start = float(np.nanmean(part["sharpness0"])), float(np.nanmean(part["loss0"]))
    each = "  ".join(f"{value:.3g}" for value in sorted(diagram.values(name, depth, width)) if np.isfinite(value))
    others = "<br>".join(f"{one}: {told(diagram, one, depth, width)}" for one in diagram.constants)
    return (
        f"<b>depth {depth}, width {width}</b><br>{others}<br>seeds of {name}: {each}<br>"
        f"at the start: sharpness {start[0]:.4g}, loss {start[1]:.4g}"
    )
