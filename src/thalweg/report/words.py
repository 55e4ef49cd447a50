"""What a run shows, in plain words: only claims that explicit rules on the data support."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from thalweg.report.series import Series, aligned, series

NEAR = 0.9
"""Below this share of the threshold a run counts as not at the edge."""
ENOUGH = 20
"""Measurements after the crossing that a statement about staying there needs."""


@dataclass(frozen=True)
class Edge:
    """How sharpness stands to the stability threshold.

    Attributes:
        first: Sharpness at its first measurement, and ``last`` at its last.
        threshold: Stability threshold at the last measurement.
        start_ratio: Sharpness over threshold at the first measurement.
        end_ratio: The same at the last.
        crossed: First step at which sharpness was at or above the threshold; None if never.
        spread: Half the width that holds 90 % of ``sharpness / threshold`` around its median after the crossing.
        median: That median.
        measured: Measurements after the crossing.
    """

    first: float
    last: float
    threshold: float
    start_ratio: float
    end_ratio: float
    crossed: int | None
    median: float
    spread: float
    measured: int

    @property
    def sharpened(self) -> bool:
        """Whether sharpness rose to the threshold from clearly below."""
        return self.crossed is not None and self.start_ratio < NEAR

    @property
    def stayed(self) -> bool:
        """Whether it then stayed near the threshold, by enough measurements to say so."""
        return self.crossed is not None and self.measured >= ENOUGH and NEAR <= self.median <= 1.3


def edge(data: xr.Dataset) -> Edge | None:
    """Compare sharpness with the threshold over a run; None where it was not measured."""
    sharpness = series(data, "sharpness")
    threshold = aligned(data, "stability_threshold", sharpness.steps)
    known = np.isfinite(threshold) & (threshold > 0)
    if not known.any():
        return None
    ratio = Series(sharpness.steps[known], sharpness.values[known] / threshold[known])
    above = np.flatnonzero(ratio.values >= 1)
    crossed = int(ratio.steps[above[0]]) if len(above) else None
    later = ratio.after(crossed) if crossed is not None else ratio.after(int(ratio.steps[-1]) + 1)
    low, median, high = np.quantile(later.values, [0.05, 0.5, 0.95]) if len(later) else (np.nan,) * 3
    return Edge(
        first=float(sharpness.values[known][0]),
        last=float(sharpness.values[known][-1]),
        threshold=float(threshold[known][-1]),
        start_ratio=float(ratio.values[0]),
        end_ratio=float(ratio.values[-1]),
        crossed=crossed,
        median=float(median),
        spread=float(high - low) / 2,
        measured=len(later),
    )


def number(value: float) -> str:
    """Format a number for prose: four digits, no exponent between 0.001 and 100,000.

    Example:
        >>> number(12.34567), number(1234567.0), number(0.00001234)
        ('12.35', '1,234,567', '1.23e-05')
    """
    if not np.isfinite(value):
        return "not a number"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e9:
        return f"{value:.2e}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


def headline(data: xr.Dataset) -> list[str]:
    """Return the paragraph at the top of the page as sentences.

    Args:
        data: A run's data with its attributes.
    """
    sentences = [*_what_happened(data)]
    loss = series(data, "full_loss") if len(series(data, "full_loss")) > 1 else series(data, "loss")
    if len(loss) >= 2:
        sentences.append(_loss(data, loss))
    found = edge(data)
    if found is None:
        sentences.append("Curvature was not measured, so nothing is said about stability.")
        return sentences
    sentences += _curvature(data, found, loss)
    return sentences


def _what_happened(data: xr.Dataset) -> list[str]:
    state, steps = str(data.attrs.get("state", "")), int(data["step"].max()) if data.sizes["step"] else 0
    planned = int(data.attrs.get("steps", steps))
    if state == "failed":
        return [f"The run failed after {steps:,} of {planned:,} steps; see the provenance for the reason."]
    if state in ("interrupted", "running"):
        return [
            f"This run is {'still going on' if state == 'running' else 'unfinished'}: {steps:,} of {planned:,} steps."
        ]
    return []


def _loss(data: xr.Dataset, loss: Series) -> str:
    first, last = loss.values[0], loss.values[-1]
    verb = "fell" if last < first else "rose"
    name = data.attrs.get("optimizer", "the optimizer")
    return f"Under {name}, the loss {verb} from {number(first)} to {number(last)} in {int(loss.steps[-1]):,} steps."


def _curvature(data: xr.Dataset, found: Edge, loss: Series) -> list[str]:
    limit = number(found.threshold)
    if found.crossed is None:
        return [
            f"Sharpness went from {number(found.first)} to {number(found.last)}, {found.end_ratio:.0%} of the "
            f"stability threshold {limit}: no eigenvalue reached it, the run was stable throughout."
        ]
    sentences = []
    if found.sharpened:
        sentences.append(
            f"Sharpness rose from {number(found.first)}, {found.start_ratio:.0%} of the stability threshold, and "
            f"reached it ({limit}) at step {found.crossed:,}: progressive sharpening."
        )
    else:
        sentences.append(
            f"Sharpness began at {found.start_ratio:.0%} of the stability threshold {limit} "
            f"and was above it at step {found.crossed:,}."
        )
    if found.stayed:
        sentences.append(
            f"From there on it hovered at {found.median:.2f} times the threshold, within ±{found.spread:.2f} for "
            f"90 % of {found.measured:,} measurements: the edge of stability."
        )
        sentences += _at_the_edge(loss.after(found.crossed))
    elif found.measured < ENOUGH:
        sentences.append("Too few measurements follow to say whether it stays there.")
    else:
        sentences.append(f"It did not stay there: its median afterwards is {found.median:.2f} times the threshold.")
    return sentences


def _at_the_edge(loss: Series) -> list[str]:
    if len(loss) < ENOUGH:
        return []
    rises = float((np.diff(loss.values) > 0).mean())
    tenth = max(len(loss) // 10, 1)
    before, after = float(np.median(loss.values[:tenth])), float(np.median(loss.values[-tenth:]))
    trend = (
        f"still fell over that time, from {number(before)} to {number(after)} (medians)"
        if after < before
        else "fell no more"
    )
    return [f"The loss rose at {rises:.0%} of the steps there, and {trend}."]


def tiles(data: xr.Dataset) -> list[tuple[str, str, str]]:
    """Return the key numbers as ``(label, value, remark)``."""
    rows: list[tuple[str, str, str]] = []
    loss = series(data, "loss")
    if len(loss):
        rows.append(("Loss", number(loss.values[-1]), f"from {number(loss.values[0])}"))
    found = edge(data)
    if found is not None:
        rows.append(("Sharpness", number(found.last), f"{found.end_ratio:.0%} of the threshold"))
        rows.append(("Stability threshold", number(found.threshold), "largest stable eigenvalue"))
        reached = "not reached" if found.crossed is None else f"step {found.crossed:,}"
        rows.append(("Threshold reached", reached, f"in {int(data['step'].max()):,} steps"))
    distance, path = series(data, "distance"), series(data, "path_length")
    if len(distance) and len(path) and path.values[-1] > 0:
        share = distance.values[-1] / path.values[-1]
        rows.append(
            (
                "Straightness",
                f"{share:.1%}",
                f"distance {number(distance.values[-1])} of path {number(path.values[-1])}",
            )
        )
    products = series(data, "eigen_products")
    if len(products):
        rows.append(
            ("Products per measurement", number(products.values.mean()), f"{int(products.values.sum()):,} in all")
        )
    return rows
