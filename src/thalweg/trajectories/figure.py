"""Heatmaps of trajectory maps: packed as four-byte numbers, with steps and null values in the hover."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from thalweg.trajectories.kernels import Floats, Ints
from thalweg.trajectories.nulls import walk

if TYPE_CHECKING:
    from thalweg.trajectories.map import TrajectoryMap

MOST = 400
"""Rows of a map that are drawn; of longer paths every so many-th checkpoint."""
SIMILAR = "Viridis"
SIGNED = "RdBu_r"
GREY = "rgba(125,133,144,0.9)"


def packed(values: NDArray[Any]) -> dict[str, str]:
    """Return an array as the typed data that Plotly reads: four bytes a number, a fifth of its decimal text.

    Example:
        >>> sorted(packed(np.eye(2)))
        ['bdata', 'dtype', 'shape']
    """
    small = np.ascontiguousarray(values, dtype="<f4")
    return {
        "dtype": "f4",
        "bdata": base64.b64encode(small.tobytes()).decode("ascii"),
        "shape": ", ".join(map(str, small.shape)),
    }


def unpacked(spec: Any) -> Floats:
    """Return the array that `packed` made.

    Example:
        >>> unpacked(packed(np.eye(2))).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    shape = tuple(int(n) for n in str(spec["shape"]).split(","))
    return np.frombuffer(base64.b64decode(spec["bdata"]), dtype="<f4").reshape(shape).astype(np.float64)


def chosen(count: int, most: int = MOST) -> Ints:
    """Return which checkpoints are drawn: all, or evenly many with both ends."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def heatmap(
    values: Floats,
    steps: Ints,
    *,
    name: str,
    signed: bool = False,
    null: Floats | None = None,
    null_name: str = "random walk",
    most: int = MOST,
    **style: Any,
) -> go.Heatmap:
    """Return a map as a heatmap over the index of the checkpoint, with steps in the hover.

    Args:
        values: The map, shape ``(T, T)``; NaN is left blank.
        steps: Step of each row, shape ``(T,)``.
        name: What is mapped.
        signed: Whether 0 is the middle of the scale, from -1 to 1; else the scale is from the least value to 1.
        null: What the hover shows beside it, shape ``(T, T)``.
        null_name: Which null that is.
        most: Rows drawn at most.
        style: For the trace.
    """
    at = chosen(len(steps), most)
    part = values[np.ix_(at, at)]
    labels = [f"{step:,}" for step in steps[at]]
    extra = {} if null is None else {"customdata": packed(null[np.ix_(at, at)])}
    beside = "" if null is None else f"<br>{null_name} %{{customdata:.3f}}"
    low = float(np.nanmin(part)) if np.isfinite(part).any() else 0.0
    scale: dict[str, Any] = (
        {"zmin": -1.0, "zmax": 1.0, "colorscale": SIGNED}
        if signed
        else {
            "zmin": min(low, 0.999),
            "zmax": 1.0,
            "colorscale": SIMILAR,
        }
    )
    return go.Heatmap(
        **{
            "z": packed(part),
            "x": labels,
            "y": labels,
            "name": name,
            "hoverongaps": False,
            "hovertemplate": f"steps %{{x}} and %{{y}}<br>{name} %{{z:.4f}}{beside}<extra></extra>",
            **scale,
            **extra,
            **style,
        }
    )


def hatching(mask: NDArray[np.bool_], steps: Ints, *, most: int = MOST, **style: Any) -> go.Heatmap | None:
    """Return stripes over the entries of a map that rounding rules; None where there are none.

    Args:
        mask: Entries below the precision floor, shape ``(T, T)``.
        steps: Step of each row.
        most: Rows drawn at most, as in `heatmap`.
        style: For the trace.
    """
    at = chosen(len(steps), most)
    part = mask[np.ix_(at, at)]
    if not part.any():
        return None
    i, j = np.indices(part.shape)
    stripes = np.where(part & ((i + j) % 4 < 2), 1.0, np.nan)
    labels = [f"{step:,}" for step in steps[at]]
    return go.Heatmap(
        z=packed(stripes),
        x=labels,
        y=labels,
        name="below the precision floor",
        showscale=False,
        colorscale=[[0, GREY], [1, GREY]],
        hoverinfo="skip",
        hoverongaps=False,
        **style,
    )


def overview(found: TrajectoryMap, group: str = "whole") -> go.Figure:
    """Draw the map, the relative map, the update map with its floor, and radius, norm and length travelled.

    Args:
        found: A trajectory map.
        group: Which parameters.
    """
    path, measured = found.path(group), found.complexity(group)
    null = walk(path.steps, start=float(path.norms[0]), lengths=path.lengths)
    titles = ("Similarity", f"Relative to step {path.steps[found.anchor]:,}", "Updates", "Lengths")
    figure = make_subplots(rows=2, cols=2, subplot_titles=titles, vertical_spacing=0.12)
    bar = {"len": 0.42, "thickness": 10}
    figure.add_trace(
        heatmap(
            path.similarity, path.steps, name="cosine", null=null.similarity, colorbar={**bar, "x": 0.455, "y": 0.79}
        ),
        1,
        1,
    )
    figure.add_trace(
        heatmap(
            path.relative(found.anchor),
            path.steps,
            name="relative cosine",
            signed=True,
            null=null.relative(found.anchor),
            showscale=False,
        ),
        1,
        2,
    )
    figure.add_trace(
        heatmap(
            path.updates,
            path.steps[:-1],
            name="cosine of updates",
            signed=True,
            null=np.eye(len(path) - 1),
            colorbar={**bar, "x": 0.455, "y": 0.21},
        ),
        2,
        1,
    )
    stripes = hatching(found.precision(group).mask, path.steps[:-1])
    if stripes is not None:
        figure.add_trace(stripes, 2, 1)
    travelled = np.concatenate([[0.0], np.cumsum(measured.lengths)])
    for values, name in ((measured.radii, "radius"), (measured.norms, "norm"), (travelled, "length travelled")):
        figure.add_trace(go.Scatter(x=path.steps, y=values, name=name, mode="lines"), 2, 2)
    for row, col in ((1, 1), (1, 2), (2, 1)):
        figure.update_xaxes(type="category", nticks=6, row=row, col=col)
        figure.update_yaxes(type="category", nticks=6, autorange="reversed", row=row, col=col)
    return figure.update_layout(height=860, title=f"{group}: {len(path)} checkpoints")
