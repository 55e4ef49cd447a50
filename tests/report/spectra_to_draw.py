"""Spectra with known contents, in the form in which the command writes them."""

import math

import numpy as np
import xarray as xr

from thalweg.runs.analyses import SCHEMA

CURVATURE = "loss / weight^2"


def variable(dim, values, units="1", words="a number"):
    return xr.Variable(dim, np.asarray(values), {"units": units, "long_name": words})


def smoothed(values, width, grid):
    hills = np.exp(-0.5 * ((grid[:, None] - values) / width) ** 2) / (math.sqrt(2 * math.pi) * width)
    return hills.mean(axis=1)


def bulk_and_outliers(size=2000, outliers=(14.2, 9.1, 6.3, 4.0), negative=(-0.4, -0.6)):
    """Eigenvalues: most of them near zero, a few far away."""
    rest = np.sort(np.random.default_rng(0).exponential(0.02, size - len(outliers) - len(negative)))
    return np.concatenate([outliers, rest[::-1], negative])


def spectrum(
    step=400,
    *,
    k=4,
    threshold=14.3,
    rule="GradientDescent",
    layers=(("0", 1500, 12.0, 60.0, 0.9), ("2", 400, 4.0, 9.0, 0.3), ("4", 100, 1.5, 4.0, 0.1)),
    error=0.02,
    **attrs,
):
    """A spectrum with every part, of a matrix whose eigenvalues are known."""
    values = bulk_and_outliers()
    width = (values.max() - values.min()) / 150
    grid = np.linspace(values.min() - 5 * width, values.max() + 5 * width, 700)
    density = smoothed(values, width, grid)
    top = np.concatenate([values[:k], values[-2:]])
    trace = values.sum()
    nodes = np.tile(values[::20], (5, 1))
    parts = {
        "loss": variable((), 0.0123, "loss"),
        "gradient_norm": variable((), 0.3),
        "eigenvalues": variable("eigenvalue", top, CURVATURE),
        "eigen_residuals": variable("eigenvalue", np.full(k + 2, 1e-3), CURVATURE),
        "eigen_end": variable("eigenvalue", np.r_[np.ones(k), -np.ones(2)].astype(np.int8)),
        "trace": variable((), trace, CURVATURE),
        "trace_standard_error": variable((), error * trace, CURVATURE),
        "density": variable("value", density),
        "density_standard_error": variable("value", 0.15 * density),
        "density_width": variable((), width, CURVATURE),
        "density_nodes": variable(("probe", "node"), nodes, CURVATURE),
        "density_weights": variable(("probe", "node"), np.full(nodes.shape, 1 / nodes.shape[1])),
        "density_trace": variable((), 1.01 * trace, CURVATURE),
        "density_trace_standard_error": variable((), 0.02 * trace, CURVATURE),
        "stage_products": variable("stage", [80.0, 60.0, 300.0, 200.0], "products"),
        "stage_seconds": variable("stage", [0.3, 0.2, 1.2, 0.9], "s"),
        "stage_gradients": variable("stage", [150.0, 100.0, 600.0, 450.0], "gradients"),
        "gradient_seconds": variable((), 0.002, "s"),
        "peak_memory": variable((), 6.2e8, "bytes"),
    }
    coordinates = {
        "value": variable("value", grid, CURVATURE),
        "stage": variable("stage", ["eigenvalues", "trace", "density", "layers"]),
    }
    if threshold is not None:
        parts["stability_threshold"] = variable((), threshold, CURVATURE)
        parts["edge_sharpness"] = variable((), top[0], CURVATURE)
        parts["edge_residual"] = variable((), 1e-3, CURVATURE)
    if layers:
        names, sizes, tops, totals, errors = zip(*layers)
        coordinates["layer"] = variable("layer", list(names))
        parts |= {
            "layer_parameters": variable("layer", [float(n) for n in sizes]),
            "layer_eigenvalue": variable("layer", tops, CURVATURE),
            "layer_residual": variable("layer", [1e-3] * len(tops), CURVATURE),
            "layer_trace": variable("layer", totals, CURVATURE),
            "layer_trace_standard_error": variable("layer", errors, CURVATURE),
        }
    facts = {
        "kind": "spectrum",
        "schema": SCHEMA,
        "name": "quickstart",
        "source": "quickstart, step 400",
        "step": step,
        "operator": "hessian",
        "preconditioned": "no",
        "comparable": "yes",
        "model": "MLP",
        "dimension": len(values),
        "samples": 1797,
        "dtype": "float32",
        "device": "cpu",
        "seed": 0,
        "rule": rule,
        "optimizer": "gradient descent, learning rate 0.14",
        "trace_method": "XTrace",
        "complete": "yes",
        "missing": "",
        "thalweg": "0.1.0",
    }
    return xr.Dataset(parts, coordinates).assign_attrs({k: v for k, v in (facts | attrs).items() if v is not None})
