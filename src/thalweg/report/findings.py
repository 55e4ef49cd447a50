"""One sentence for each figure: what this run shows in it, with its numbers; empty where that is not decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from thalweg.report.facts import edge, losses, oscillation, residuals, rises
from thalweg.report.numbers import count, fixed, number, seconds, share
from thalweg.report.series import aligned, series
from thalweg.report.setting import setting

Manifest = Mapping[str, Any]


def spectrum_finding(data: xr.Dataset, manifest: Manifest | None = None) -> str:
    """Say how many eigenvalues were followed, and how many were above the threshold."""
    if "eigenvalues" not in data or not data.sizes.get("eigenvalue", 0):
        return ""
    values = data["eigenvalues"].to_numpy()
    followed = int(np.isfinite(values).sum(axis=1).max())
    if not followed:
        return ""
    words = f"{count(followed, 'eigenvalue')} followed"
    if edge(data) is None or not setting(manifest).comparable:
        return words + "."
    threshold = aligned(data, "stability_threshold", data["step"].to_numpy())
    above = (values >= threshold[:, None]).sum(axis=1)
    if not above.any():
        return f"{words}; none was above the threshold at any measurement."
    first = f"{int(data['step'].to_numpy()[(above > 0).argmax()]):,}"
    more = ", so that there may be more" if above.max() == followed else ""
    return (
        f"{words}, up to {above.max()} at once above the threshold{more}. It was first reached at step {first} "
        "(dotted, here and below)."
    )


def loss_finding(data: xr.Dataset, manifest: Manifest | None = None) -> str:
    """Say at how many steps the loss rose, before the threshold was reached and from there on."""
    how = setting(manifest)
    curve, found = losses(data, noisy=not how.full_batch), edge(data)
    if not how.full_batch:
        return "Each point is the loss of another mini-batch, so that it scatters from step to step."
    if found is not None and found.crossed is not None and how.comparable:
        before, after = rises(curve.before(found.crossed)), rises(curve.after(found.crossed))
        if before is not None and after is not None:
            return f"It rose at {share(before)} of the steps before the threshold was reached, at {share(after)} after."
    rose = rises(curve)
    return f"It rose at {share(rose)} of the steps." if rose is not None else ""


def oscillation_finding(data: xr.Dataset, manifest: Manifest | None = None) -> str:
    """Say how often the update along the leading eigenvector turns around, and how large it is."""
    how, found, along = setting(manifest), edge(data), series(data, "update_projection", 0)
    crossed = found.crossed if found is not None and how.comparable else None
    seen = oscillation(data, crossed or 0)
    where = "From the crossing of the threshold on" if crossed else "Over the run"
    parts = []
    if seen.cosine is not None:
        parts.append(f"the median cosine is {fixed(seen.cosine)}")
    if seen.flips is not None:
        parts.append(f"the update along the first eigenvector changes its sign at {share(seen.flips)} of the steps")
    elif len(along) > 1 and np.diff(along.steps).min() > 1:
        parts.append("whether the lower curves turn around at every step cannot be seen, as they have gaps in between")
    if seen.amplitude is not None:
        parts.append(f"its median size is {number(seen.amplitude)}")
        if crossed and (early := oscillation(data, 0, crossed).amplitude):
            parts[-1] += f", {number(seen.amplitude / early)} times that before"
    return f"{where} {_list(parts)}." if parts else ""


def travel_finding(data: xr.Dataset, manifest: Manifest | None = None) -> str:
    """Compare the path with the distance."""
    distance, path, norm = (series(data, name) for name in ("distance", "path_length", "weight_norm"))
    if not len(distance) or not len(path) or distance.values[-1] <= 0:
        return ""
    words = f"The path is {number(path.values[-1] / distance.values[-1])} times as long as the distance"
    if len(norm) > 1 and norm.values[0] > 0:
        words += f"; the norm of the weights went from {number(norm.values[0])} to {number(norm.values[-1])}"
    return words + "."


def accuracy_finding(data: xr.Dataset, manifest: Manifest | None = None) -> str:
    """Give the worst residual, and whether it is within what was asked for."""
    worst, how = residuals(data), setting(manifest)
    if not len(worst):
        return ""
    words = (
        f"The largest residual of {count(len(worst), 'measurement')} is {share(worst.values.max())} of the sharpness"
    )
    if how.tolerance is None:
        return words + "."
    inside = worst.values.max() <= how.tolerance
    return f"{words}; {share(how.tolerance)} was asked for{', so all converged' if inside else ''}."


def cost_finding(data: xr.Dataset, manifest: Manifest | None = None) -> str:
    """Give products and seconds in all."""
    products = series(data, "eigen_products")
    training, measuring = (float(series(data, name).values.sum()) for name in ("seconds_step", "seconds_measure"))
    parts = []
    if len(products):
        each = number(float(products.values.mean()))
        parts.append(
            f"{products.values.sum():,.0f} Hessian products in {count(len(products), 'measurement')}, {each} each"
        )
    if training > 0:
        parts.append(f"{seconds(training)} of training and {seconds(measuring)} of measuring")
    return f"{'; '.join(parts)}." if parts else ""


def _list(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
