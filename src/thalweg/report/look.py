"""The look that the figures of all pages share."""

from __future__ import annotations

import plotly.graph_objects as go

FONT = {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13}
LEGEND = {"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0, "xanchor": "left"}
"""Above the axes, from the left, however high the figure is."""


def dress(figure: go.Figure, height: int, *, top: int = 40, bottom: int = 46, hover: str | None = None) -> go.Figure:
    """Give a figure its height, margins, legend and font, on the colour of the page.

    Args:
        figure: One with its curves.
        height: In pixels.
        top: Margin for the legend, in pixels.
        bottom: Margin for the title of the axis, in pixels.
        hover: How what lies under the pointer is told; where it is given, a single curve has a legend too.
    """
    return figure.update_layout(
        margin={"l": 64, "r": 16, "t": top, "b": bottom},
        legend=LEGEND,
        hovermode=hover,
        font=FONT,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=None if hover is None else True,
        height=height,
    )
