"""Frames of several processes as labelled data, with units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from thalweg.flows.laws import LIMIT
from thalweg.flows.process import Frame, sampled

_UNITS = {
    "loss": ("loss", "loss of the {}"),
    "squared_gradient": ("(loss / weight)^2", "squared gradient norm of the {}"),
    "predicted_loss": ("loss", "time-averaged loss that the central flow predicts"),
    "predicted_squared_gradient": ("(loss / weight)^2", "time-averaged squared gradient that it predicts"),
    "critical": ("1", "critical eigenvalues"),
    "total_variance": ("weight^2", "total variance of the oscillation that it predicts"),
    "residual": ("1", "largest residual of the complementarity conditions"),
}


_SAMPLES = {
    "squared_gradient_sample_discrete": "squared gradient of single weights along the discrete run",
    "squared_gradient_sample_central": "squared gradient of single weights at the central flow",
    "predicted_squared_gradient_sample": "time-averaged squared gradient of single weights that it predicts",
}

OWN = {*_UNITS, "distance", "effective_eigenvalues", "measured_variance", "amplitude", "time", "travelled"}
"""Names that observables cannot have."""


def row_of(frames: dict[str, Frame], start: Tensor) -> dict[str, Any]:
    """All numbers of one time."""
    central = frames["central"]
    row: dict[str, Any] = {"time": central.time}
    for name, frame in frames.items():
        for key in ("loss", "squared_gradient"):
            if key in frame.values:
                row[f"{key}_{name}"] = frame.values[key]
    for name in (name for name in ("edge", "rod") if name in frames):
        for key in ("predicted_loss", "amplitude", "effective_sharpness"):
            row[f"{key}_{name}"] = frames[name].values[key]
    stationary = frames.get("stationary")
    if stationary is not None and stationary.metric is not None and central.metric is not None:
        row["predicted_loss_stationary"] = stationary.values["predicted_loss"]
        row["critical_stationary"] = stationary.values["critical"]
        row["metric_cosine_stationary"] = _cosine(stationary.metric, central.metric)
    for key in ("predicted_loss", "predicted_squared_gradient", "critical", "total_variance"):
        row[key] = central.values[key]
    for name in ("discrete", "central"):
        if name in frames and frames[name].sample is not None:
            row[f"squared_gradient_sample_{name}"] = frames[name].sample
    if central.predicted_sample is not None:
        row["predicted_squared_gradient_sample"] = central.predicted_sample
    row["residual"] = central.values.get("residual", 0.0)
    row["effective_eigenvalues"] = central.eigenvalues
    row["predicted_variance"] = central.X
    assert central.metric is not None
    row["effective_step"] = float((1 / central.metric).mean())
    discrete = frames.get("discrete")
    middle = frames.get("midpoint")
    if middle is not None:
        for name in ("central", "stable"):
            if name in frames:
                row[f"distance_{name}_midpoint"] = float((middle.w - frames[name].w).norm())
    if discrete is not None:
        row["travelled"] = float((discrete.w - start).norm())
        for name, frame in frames.items():
            if name != "discrete":
                row[f"distance_{name}"] = float((discrete.w - frame.w).norm())
        if central.directions is not None:
            away = (discrete.w - central.w) * central.metric.to(discrete.w)
            row["measured_variance"] = (central.directions.T @ away).square()
    return row


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.reshape(-1).double(), b.reshape(-1).double()
    return float(a @ b / (a.norm() * b.norm()))


def dataset_of(rows: list[dict[str, Any]], followed: Sequence[str] = (), size: int = 0) -> xr.Dataset:
    """Rows as labelled arrays; what a time does not have is NaN. ``size`` is the number of weights."""
    samples = [key for key in rows[0] if "_sample" in key]
    wide = [
        key
        for key in ("effective_eigenvalues", "predicted_variance", "measured_variance")
        if any(row.get(key) is not None for row in rows)
    ]
    width = max([len(row[key]) for row in rows for key in wide if row.get(key) is not None], default=0)
    names = {
        "effective_eigenvalues": ("1", f"eigenvalues of P^-1 H along the central flow; the limit is {LIMIT:g}"),
        "predicted_variance": ("1", "predicted variance along each critical direction, in the metric"),
        "measured_variance": ("1", "squared displacement of the discrete run along each of them"),
        "effective_step": ("weight^2 / loss", "mean step size of the central flow"),
        "travelled": ("weight", "distance of the discrete run from its start"),
        "predicted_loss_edge": ("loss", "mean of the loss at both walls of the edge flow"),
        "amplitude_edge": ("weight", "amplitude of the oscillation along the direction of the edge flow"),
        "effective_sharpness_edge": ("1", "secant curvature between the walls times the learning rate"),
        "predicted_loss_stationary": ("loss", "time-averaged loss that the stationary flow predicts"),
        "critical_stationary": ("1", "directions that oscillate along the stationary flow"),
        "metric_cosine_stationary": ("1", "cosine of its metric and that of the central flow"),
        "predicted_loss_rod": ("loss", "mean of the loss at both ends of the rod"),
        "amplitude_rod": ("weight", "half the length of the rod"),
        "effective_sharpness_rod": ("1", "secant curvature between the ends of the rod times the learning rate"),
    }
    variables: dict[str, Any] = {}
    for key in {key: None for row in rows for key in row if key != "time"}:
        if key in wide:
            block = np.full((len(rows), width), np.nan)
            for i, row in enumerate(rows):
                if row.get(key) is not None:
                    values = row[key].detach().to("cpu", torch.float64).numpy()
                    block[i, : len(values)] = values
            unit, text = names[key]
            variables[key] = (("time", "eigenvalue"), block, {"units": unit, "long_name": text})
        elif key in samples:
            block = torch.stack([row[key] for row in rows]).detach().to("cpu", torch.float64).numpy()
            variables[key] = (("time", "coordinate"), block, {"units": "(loss / weight)^2", "long_name": _SAMPLES[key]})
        elif any(not isinstance(row.get(key), Tensor) and row.get(key) is not None for row in rows):
            mine = [name for name in followed if key == f"predicted_{name}" or key.startswith(f"{name}_")]
            if key in names:
                unit, text = names[key]
            elif mine:
                at = (
                    "average that the flow predicts" if key.startswith("predicted_") else f"at {key.rpartition('_')[2]}"
                )
                unit, text = "1", f"{mine[0]}, {at}"
            elif key.startswith("distance_"):
                name, _, other = key.removeprefix("distance_").partition("_")
                unit, text = "weight", f"distance of the {name} process from the {other or 'discrete'} one"
            else:
                base = next(name for name in sorted(_UNITS, key=len, reverse=True) if key.startswith(name))
                unit, text = _UNITS[base][0], _UNITS[base][1].format(f"{key.removeprefix(base + '_')} process")
            values = np.array([float(row.get(key, np.nan)) for row in rows])
            variables[key] = ("time", values, {"units": unit, "long_name": text})
    coordinates = {
        "time": ("time", np.array([row["time"] for row in rows]), {"units": "steps", "long_name": "time"}),
        "eigenvalue": ("eigenvalue", np.arange(1, width + 1), {"units": "1", "long_name": "rank"}),
    }
    if samples:
        about = {"units": "1", "long_name": "position in the flat vector of weights"}
        coordinates["coordinate"] = ("coordinate", sampled(size).numpy(), about)
    return xr.Dataset(variables, coords=coordinates)
