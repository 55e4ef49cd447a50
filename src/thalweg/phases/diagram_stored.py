"""A phase diagram on disk: one labelled netCDF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from thalweg.phases.diagram import PhaseDiagram
from thalweg.runs.analyses import read_analysis, variable, write_analysis

KIND = "phase-diagram"
"""What these files are called."""

WORDS = {
    "c": ("1", "learning rate in units of 1 / sharpness at the start: geometric mean of the bracket"),
    "c_low": ("1", "last point of the grid before the constant"),
    "c_high": ("1", "first point of the grid beyond the constant"),
    "found": ("1", "1 where the constant lies on the grid, 0 where beyond it, NaN where not measured"),
    "fallback": ("1", "1 where the whole grid was asked, as the quick search was contradicted"),
    "loss0": ("loss", "loss at the start"),
    "sharpness0": ("loss / weight^2", "largest eigenvalue of the Hessian at the start"),
    "run_c": ("1", "c of a short run"),
    "run_loss": ("1", "largest loss of a short run over that at its start; infinite if it diverged"),
    "run_sharpness": ("1", "largest measured sharpness of a short run over that at its start"),
    "saturation": ("1", "sharpness after the transient over that at the start"),
    "c_crit": ("1", "c at which the mean saturated sharpness bends down most"),
    "c_crit_low": ("1", "lower end of the bootstrap interval of c_crit"),
    "c_crit_high": ("1", "upper end of the bootstrap interval of c_crit"),
    "depth": ("1", "layers of weights"),
    "width": ("1", "units or channels of a layer"),
    "seed": ("1", "seed of the initialisation"),
    "constant": ("1", "critical constant"),
    "tau_c": ("1", "c of a run to the end of the transient"),
}
"""Unit and name in words of what a diagram holds."""


def save_diagram(diagram: PhaseDiagram, path: str | Path, facts: Mapping[str, object] | None = None) -> Path:
    """Write a diagram.

    Args:
        diagram: It.
        path: The netCDF file to write or replace.
        facts: Further attributes; one called ``mode`` is written as ``search``.

    Returns:
        The path.

    Raises:
        StorageError: The file cannot be written; what was there before stays.

    Example:
        >>> from thalweg.phases.critical import critical_constants
        >>> from thalweg.phases.diagram import phase_diagram
        >>> from thalweg.phases.uv import UVModel
        >>> from thalweg.phases.uv_runs import UVRuns
        >>> found = phase_diagram({(2, 8): critical_constants(UVRuns(UVModel(8)), barrier=False)})
        >>> again = open_diagram(save_diagram(found, "phases.nc", {"model": "uv"}))
        >>> again.widths, again.data.attrs["model"], bool((again.data.c == found.data.c).all())
        ([8], 'uv', True)
    """
    held = {}
    for name, values in diagram.data.variables.items():
        units, words = WORDS.get(str(name), ("1", str(name).replace("_", " ")))
        array = np.asarray(values.values)
        array = array.astype(np.str_) if array.dtype == object else array
        held[str(name)] = variable(tuple(map(str, values.dims)), array, units, words)
    own = {str(key): value for key, value in {**diagram.data.attrs, **(facts or {})}.items()}
    if "mode" in own:  # SciPy's writer takes an attribute of this name for its own
        own["search"] = own.pop("mode")
    return write_analysis(Path(path), xr.Dataset(held), KIND, own)


def open_diagram(path: str | Path) -> PhaseDiagram:
    """Read a diagram that `save_diagram` or ``thalweg phase`` wrote.

    Raises:
        RunFolderError: The file is missing, damaged or of another kind.
        SchemaError: A newer thalweg wrote it.
    """
    data = read_analysis(Path(path), KIND)
    whole = {name: data[name].values.astype(np.int64) for name in ("depth", "width", "seed")}
    return PhaseDiagram(data.assign_coords(whole))
