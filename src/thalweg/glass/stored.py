"""A look at glass as a labelled data set, for netCDF files and pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.runs.analyses import attributes, scalar, variable

if TYPE_CHECKING:
    import xarray as xr

    from thalweg.glass.look import Glass
    from thalweg.glass.table import GlassTable

KIND = "glass"
"""What these analyses are called before their step."""
_DENSITY = "gradient^2 / weight"
_CURVATURE = "(loss / weight^2)^2"


def glass_dataset(found: Glass, facts: Mapping[str, object] | None = None) -> xr.Dataset:
    """Return what a look found as a data set with dimensions ``layer``, ``tensor``, ``distance`` and ``length``.

    Args:
        found: What `look` returned.
        facts: Further attributes: text, numbers and truth values; None is left out.

    Returns:
        Every variable has ``units`` and ``long_name``; the answer in words is the attribute ``text``.

    Example:
        >>> import torch
        >>> from thalweg import Problem
        >>> from thalweg.glass.look import look
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 30), torch.nn.ReLU(), torch.nn.Linear(30, 1))
        >>> x = torch.randn(400, 4)
        >>> data = glass_dataset(look(Problem(model, torch.nn.MSELoss(), (x, x[:, :1])), batches=2), {"name": "mine"})
        >>> data.rho.dims, data.rho.attrs["units"], data.attrs["name"]
        (('layer',), 'gradient^2 / weight', 'mine')
    """
    import xarray as xr

    density, exponents = found.density, found.exponents
    variables: dict[str, Any] = {}
    for dim, prefix, rows in (("layer", "", density.layers), ("tensor", "tensor_", density.tensors)):
        variables.update(_rows(dim, prefix, rows))
    powers = exponents.layers
    variables |= {
        "label": variable("layer", [p.label for p in powers], "1", "what its second differences say"),
        "first_power": variable("layer", [p.first for p in powers], "1", "power of first differences"),
        "first_power_error": variable("layer", [p.first_error for p in powers], "1", "its standard error"),
        "second_power": variable("layer", [p.second for p in powers], "1", "power of second differences"),
        "second_power_error": variable("layer", [p.second_error for p in powers], "1", "its standard error"),
        "matters": variable("layer", [m.curvature for m in found.layers], "1", "which curvature matters at this move"),
        "move": variable("layer", [m.move for m in found.layers], "weight", "root mean square move per weight"),
        "effective_crossover": variable(
            "layer", [m.crossover for m in found.layers], "weight", "move below which glass outweighs the Hessian"
        ),
        "distance": variable("distance", exponents.distances, "weight", "distance per weight"),
    }
    for name, values in (
        ("first", exponents.first),
        ("first_error", exponents.first_error),
        ("second", exponents.second),
        ("second_error", exponents.second_error),
    ):
        what = "first" if name.startswith("first") else "second"
        words = f"mean square {what} difference of the gradient"
        words = f"standard error of the {words}" if name.endswith("error") else words
        variables[f"{name}_difference"] = variable(("layer", "distance"), values, "gradient^2", words)
    if found.change is not None:
        variables |= _change(found)
    own = {
        "text": found.text,
        "glassy": found.glassy if found.change is not None else None,
        "sigma": density.sigma,
        "batches": density.batches,
        "batch_size": density.batch_size or None,
        "evaluations": density.evaluations,
        "gradients": density.gradients + exponents.gradients + _gradients(found),
        "products": density.products + (found.change.expected.products if found.change is not None else 0),
        "notes": "\n".join(found.notes),
    }
    return xr.Dataset(variables, attrs=attributes({**own, **(facts or {})}))


def _rows(dim: str, prefix: str, rows: GlassTable) -> dict[str, Any]:
    columns = (
        ("parameters", "1", "number of weights"),
        ("rho", _DENSITY, "glass density"),
        ("rho_error", _DENSITY, "its standard error"),
        ("floor", _DENSITY, "density that rounding alone gives"),
        ("square", _CURVATURE, "mean square of the finite difference"),
        ("square_error", _CURVATURE, "its standard error"),
        ("hessian", _CURVATURE, "mean square of a row of the Hessian"),
        ("hessian_error", _CURVATURE, "its standard error"),
        ("leakage", "1", "share of the squared finite difference that is glass"),
        ("leakage_error", "1", "its standard error"),
        ("crossover", "weight", "move at which glass and Hessian part are equal"),
        ("crossover_error", "weight", "its standard error"),
    )
    found = {dim: variable(dim, [row.name for row in rows], "1", f"name of the {dim}")}
    for name, units, words in columns:
        values = np.array([float(getattr(row, name)) for row in rows])
        found[f"{prefix}{name}"] = variable(dim, values, units, words)
    return found


def _change(found: Glass) -> dict[str, Any]:
    change = found.change
    assert change is not None
    e, m = change.expected, change.measured
    columns = (
        ("change", m.change, "measured change of the loss"),
        ("change_error", m.change_error, "its standard error"),
        ("linear", e.linear, "linear part"),
        ("hessian_part", e.hessian, "Hessian part"),
        ("finite_part", e.finite, "part of the finite-difference curvature"),
        ("glass_part", e.glass, "glass part, from the density along the step"),
        ("glass_part_error", e.glass_error, "its standard error"),
        ("predicted_deviation", e.deviation, "deviation that glass and the mean effect of kinks predict together"),
        ("bound", e.jensen, "bound of the mean deviation for any law of jumps"),
        ("summed_part", e.summed, "glass part with all coordinates added up"),
        ("independent_part", e.independent, "glass part with independent coordinates"),
        ("mean_deviation", change.mean, "mean deviation from the Hessian model"),
        ("mean_deviation_error", change.mean_error, "its standard error"),
        ("deviation", change.size, "mean absolute deviation from the Hessian model"),
        ("deviation_error", change.size_error, "its standard error"),
    )
    parts = {"length": variable("length", e.lengths, "1", "length in updates")}
    parts |= {name: variable("length", values, "loss", words) for name, values, words in columns}
    return parts | {
        "path_power": scalar(e.power, "1", "power of second differences along the update"),
        "path_power_error": scalar(e.power_error, "1", "its standard error"),
    }


def _gradients(found: Glass) -> int:
    return found.change.expected.gradients if found.change is not None else 0
