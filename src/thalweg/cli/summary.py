"""The few lines that ``thalweg run`` ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


def headlines(data: xr.Dataset) -> list[str]:
    """Say in a few lines how a run went: its loss, its sharpness against the threshold, the cost.

    Args:
        data: The data of a run, as `thalweg.open_run` gives it.

    Returns:
        One to three lines; what was not measured is not mentioned.
    """
    lines = []
    loss = _known(data, "loss")
    if len(loss[0]):
        lines.append(f"Loss {loss[1][0]:.4g} at the start, {loss[1][-1]:.4g} now.")
    steps, sharpness = _known(data, "sharpness")
    if len(steps):
        threshold = data["stability_threshold"].sel(step=steps).to_numpy()
        lines.append(_sharpness(steps, sharpness, threshold))
    _, products = _known(data, "eigen_products")
    if len(products):
        seconds = float(np.nansum(data["seconds_measure"]))
        share = f", {seconds:.0f} s" if seconds >= 1 else ""
        lines.append(f"Curvature cost {int(products.sum()):,} Hessian products{share}.")
    return lines


def _known(data: xr.Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps at which ``name`` was measured, and its values there."""
    if name not in data:
        return np.empty(0, int), np.empty(0)
    values = data[name].to_numpy()
    measured = np.isfinite(values)
    return data["step"].to_numpy()[measured], values[measured]


def _sharpness(steps: np.ndarray, sharpness: np.ndarray, threshold: np.ndarray) -> str:
    text = f"Sharpness {sharpness[0]:.4g} at the start, {sharpness[-1]:.4g} now"
    if np.isfinite(threshold[-1]):
        text += f" = {sharpness[-1] / threshold[-1]:.0%} of the stability threshold {threshold[-1]:.4g}"
    above = np.flatnonzero(sharpness > threshold)
    if not len(above):
        return f"{text}; it stayed below."
    if above[0] == 0:
        return f"{text}; it began above."
    return f"{text}; first above it at step {steps[above[0]]}."
