"""A forecast on disk: one labelled netCDF file that any reader of netCDF opens, and that becomes a result again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import torch
import xarray as xr

from thalweg.flows.result import FlowResult
from thalweg.runs.analyses import read_analysis, scalar, write_analysis

KIND = "flow"
"""What these files are called among the analyses of a run."""


def save_flow(
    result: FlowResult, path: str | Path, *, sigma: float = 20.0, facts: Mapping[str, object] | None = None
) -> Path:
    """Write a forecast with its costs, end weights and its comparison with the discrete run, whole or not at all.

    Args:
        result: What `central_flow` returned.
        path: The netCDF file to write or replace.
        sigma: Width of the Gaussian, in steps, that the comparison smooths with. It is recorded beside its numbers.
        facts: Further attributes, such as the rule and the fingerprints of the problem.

    Returns:
        The path.

    Raises:
        StorageError: The file cannot be written; what was there before stays.

    Example:
        >>> from thalweg import Problem
        >>> from thalweg.flows.forecast import central_flow
        >>> from thalweg.rules import GradientDescent
        >>> x = torch.randn(9, 2)
        >>> problem = Problem(torch.nn.Linear(2, 1), torch.nn.MSELoss(), (x, x.sum(1, keepdim=True)))
        >>> flow = central_flow(problem, GradientDescent(lr=0.1), time=5)
        >>> found = open_flow(save_flow(flow, "forecast.nc"))
        >>> found.mode, found.compare() == flow.compare(), torch.equal(found.points["central"], flow.points["central"])
        ('map', True, True)
    """
    data = result.data.copy()
    for name, w in result.points.items():
        kept = w.detach().to("cpu", w.dtype if w.dtype in (torch.float32, torch.float64) else torch.float32)
        words = {"units": "weight", "long_name": f"weights of the {name} process at the end"}
        data[f"end_{name}"] = xr.Variable("weight", kept.numpy(), words)
        words_of_cost = f"gradient-equivalents a unit of time of the {name} process"
        data[f"cost_{name}"] = scalar(result.cost[name], "1 / step", words_of_cost)
    own: dict[str, object] = {"flow_mode": result.mode, "processes": " ".join(result.points), "stop": result.stop}
    own |= {"notes": "\n".join(result.notes), "smoothing": float(sigma)}
    own |= {f"comparison_{name}": value for name, value in comparison_numbers(result, sigma).items()}
    return write_analysis(Path(path), data, KIND, {**(facts or {}), **own})


def open_flow(path: str | Path) -> FlowResult:
    """Read a forecast that `save_flow` or ``thalweg flow`` wrote.

    Returns:
        The result; the attributes of its ``data`` say what was forecast.

    Raises:
        RunFolderError: The file is missing, damaged, or holds something else.
        SchemaError: A newer thalweg wrote it.
    """
    data = read_analysis(Path(path), KIND)
    names = str(data.attrs["processes"]).split()
    ends = {name: data[f"end_{name}"].to_numpy() for name in names}
    return FlowResult(
        data=data.drop_vars([f"{part}_{name}" for name in names for part in ("end", "cost")]),
        mode=str(data.attrs["flow_mode"]),
        points={name: torch.tensor(w.astype(w.dtype.newbyteorder("="))) for name, w in ends.items()},
        cost={name: float(data[f"cost_{name}"]) for name in names},
        stop=str(data.attrs["stop"]),
        notes=tuple(line for line in str(data.attrs.get("notes", "")).splitlines() if line),
    )


def comparison_numbers(result: FlowResult, sigma: float) -> dict[str, float]:
    """Return the numbers of ``result.compare(sigma)`` by name; empty where there is nothing to compare with."""
    if "loss_discrete" not in result.data or result.data.sizes["time"] < 3:
        return {}
    found = dataclasses.asdict(result.compare(sigma))
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}
