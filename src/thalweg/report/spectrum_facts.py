"""Numbers that follow from a spectrum: its ends, its distance to the edge, its traces, the shares of its layers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import xarray as xr

from thalweg.report.series import Floats

SURE = 2.0
"""Standard errors that a statement about an order must keep."""

DIGITS = 1e-4
"""Residual, relative to the largest eigenvalue, that leaves the digits that are shown."""

OPERATORS = {
    "hessian": "Hessian",
    "gauss-newton": "Gauss-Newton matrix",
    "fisher": "empirical Fisher matrix",
}


def operator_name(data: xr.Dataset) -> str:
    """Return what the eigenvalues are of, in words."""
    name = OPERATORS.get(str(data.attrs.get("operator")), "operator")
    return f"preconditioned {name}" if data.attrs.get("preconditioned") == "yes" else name


def place(data: xr.Dataset) -> str:
    """Return where the spectrum was measured, in words."""
    step = data.attrs.get("step")
    return "these weights" if step is None else f"step {int(step):,}"


def converged(data: xr.Dataset, stage: str) -> bool:
    """Whether a stage reached the accuracy asked for."""
    return str(data.attrs.get(f"{stage}_converged", "yes")) == "yes"


def end_of(data: xr.Dataset, end: int) -> tuple[float, float] | None:
    """Return value and residual of the outermost eigenvalue at one end, 1 or -1; None where it is not known."""
    if "eigenvalues" not in data:
        return None
    chosen = np.flatnonzero(data["eigen_end"].to_numpy() == end)
    if not len(chosen):
        return None
    at = chosen[0] if end > 0 else chosen[-1]
    return float(data["eigenvalues"][at]), float(data["eigen_residuals"][at])


def settled(data: xr.Dataset, end: int) -> bool:
    """Whether the outermost eigenvalue at one end is known: the stage converged, or its digits as shown are right."""
    found = end_of(data, end)
    scale = float(abs(data["eigenvalues"]).max()) if found is not None else 0.0
    return converged(data, "eigenvalues") or (found is not None and found[1] <= DIGITS * scale)


def edge_ratio(data: xr.Dataset) -> tuple[float, float, bool] | None:
    """Return sharpness over stability threshold, its residual in the same unit, and whether it converged.

    Where the sharpness was not measured as the rule sees it, the largest eigenvalue stands for it if both are the
    same. None where nothing compares.
    """
    if "stability_threshold" not in data or not float(data["stability_threshold"]) > 0:
        return None
    limit = float(data["stability_threshold"])
    if "edge_sharpness" in data:
        sharpness, residual = float(data["edge_sharpness"]), float(data["edge_residual"])
        return sharpness / limit, residual / limit, converged(data, "edge")
    largest = end_of(data, 1)
    if largest is None or data.attrs.get("comparable") != "yes":
        return None
    return largest[0] / limit, largest[1] / limit, settled(data, 1)


def traces(data: xr.Dataset) -> Iterator[tuple[str, float, float]]:
    """Yield every estimate of the trace as ``(source, value, standard error)``, the direct one first."""
    if "trace" in data:
        name = str(data.attrs.get("trace_method", "a direct estimate"))
        yield name, float(data["trace"]), float(data["trace_standard_error"])
    if "density_trace" in data:
        yield "The density", float(data["density_trace"]), float(data["density_trace_standard_error"])
    if "layer_trace" in data and data.attrs.get("layers_cover") == "yes":
        error = math.sqrt(float((data["layer_trace_standard_error"] ** 2).sum()))
        yield "The sum over layers", float(data["layer_trace"].sum()), error


def shares(data: xr.Dataset) -> tuple[Floats, Floats] | None:
    r"""Return each layer's part of the sum of all their traces, ``s_l = t_l / T``, with its standard error.

    By linear propagation of independent errors, ``var s_l = ((1 - s_l)^2 e_l^2 + s_l^2 \sum_{j \ne l} e_j^2) / T^2``.
    None where the sum is not clearly positive, or a part is clearly negative: shares then mean nothing.
    """
    if "layer_trace" not in data:
        return None
    value = data["layer_trace"].to_numpy().astype(np.float64)
    error = data["layer_trace_standard_error"].to_numpy().astype(np.float64)
    total, scale = value.sum(), math.sqrt(float((error**2).sum()))
    if not np.isfinite([value, error]).all() or total <= 3 * scale or (value < -SURE * error).any():
        return None
    part = value / total
    rest = (error**2).sum() - error**2
    return part, np.sqrt((1 - part) ** 2 * error**2 + part**2 * rest) / total
