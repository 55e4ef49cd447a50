"""Results that are computed from a run afterwards: labelled netCDF files in ``analyses/``, one an analysis."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from thalweg.errors import InvalidInput, RunFolderError, SchemaError, explain
from thalweg.runs.files import inside, replacing, storing
from thalweg.runs.manifest import now

SCHEMA = 1
"""Version of these files. Raise it when a variable changes its meaning."""

_STEP = re.compile(r"-(\d+)\.nc")


def variable(dims: str | tuple[str, ...], values: Any, units: str, words: str) -> xr.Variable:
    """Return a variable as the files hold it: on the CPU, with its unit and its name in words.

    Args:
        dims: Its dimensions; ``()`` for a number.
        values: A tensor, an array or numbers. Tensors become float64, as do whole numbers of 64 bits: the file format
            has 32 bits at most, and float64 is exact up to 2^53.
        units: For example ``"loss / weight^2"``; ``"1"`` where there is none.
        words: What it is.

    Example:
        >>> variable("eigenvalue", torch.tensor([2.0, 1.0]), "loss / weight^2", "eigenvalue").attrs["units"]
        'loss / weight^2'
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    values = np.asarray(values)
    if values.dtype == np.int64:
        values = values.astype(np.float64)
    return xr.Variable(dims, values, {"units": units, "long_name": words})


def scalar(value: float, units: str, words: str) -> xr.Variable:
    """Return a single number as a variable."""
    return variable((), float(value), units, words)


def attributes(facts: Mapping[str, object]) -> dict[str, Any]:
    """Return ``facts`` as the files hold them: text and numbers; truth values are yes and no, None is left out.

    Example:
        >>> attributes({"complete": True, "step": None, "k": 4})
        {'complete': 'yes', 'k': 4}
    """
    return {key: _attribute(value) for key, value in facts.items() if value is not None}


def write_analysis(path: Path, data: xr.Dataset, kind: str, facts: Mapping[str, object] | None = None) -> Path:
    """Write a result as netCDF (classic format with 64-bit offsets, through SciPy), whole or not at all.

    Args:
        path: The file to write or replace; its folder is made if its parent exists.
        data: The result. Every variable has the attributes ``units`` and ``long_name``.
        kind: What kind of analysis it is, for example ``"spectrum"``.
        facts: Further attributes: text, numbers and truth values; None is left out.

    Returns:
        ``path``.

    Raises:
        InvalidInput: A variable has no units or no name in words.
        StorageError: The file cannot be written; what was there before stays.

    Example:
        >>> trace = xr.Dataset({"trace": ((), 3.0, {"units": "loss / weight^2", "long_name": "trace"})})
        >>> file = write_analysis(Path("trace-7.nc"), trace, "trace", {"operator": "hessian"})
        >>> found = read_analysis(file, "trace")
        >>> float(found.trace), found.attrs["operator"], found.trace.attrs["units"]
        (3.0, 'hessian', 'loss / weight^2')
    """
    for name, variable in data.variables.items():
        lacking = [key for key in ("units", "long_name") if not variable.attrs.get(key)]
        if lacking:
            raise InvalidInput(
                explain(
                    f"The variable {name!r} has no {lacking[0]}",
                    "a number without them cannot be read by anyone else",
                    f"Set data[{name!r}].attrs[{lacking[0]!r}]",
                )
            )
    general = {"kind": kind, "schema": SCHEMA, "thalweg": version("thalweg"), "created": now()}
    whole = data.copy()
    whole.attrs = attributes({**data.attrs, **(facts or {}), **general})
    with storing(path.parent):
        path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary:
        whole.to_netcdf(temporary, engine="scipy", format="NETCDF3_64BIT")
    return path


def read_analysis(path: Path, kind: str) -> xr.Dataset:
    """Read what `write_analysis` wrote, into memory.

    Args:
        path: The file.
        kind: The kind that it must be.

    Raises:
        RunFolderError: The file is missing, damaged, or of another kind.
        SchemaError: A newer thalweg wrote it.
    """
    try:
        data = xr.load_dataset(path, engine="scipy")
    except Exception as error:  # a damaged file can break the reader anywhere
        reason = str(error).strip().splitlines() or [""]
        raise _damaged(path, f"{type(error).__name__}: {reason[0]}") from error
    schema = data.attrs.get("schema")
    if data.attrs.get("kind") != kind or schema is None or int(schema) < 1:
        raise _damaged(path, f"it holds no analysis of the kind {kind!r}")
    if int(schema) > SCHEMA:
        raise SchemaError(
            explain(
                f"The file {path} has schema {int(schema)}",
                f"this thalweg ({version('thalweg')}) reads schemas up to {SCHEMA}",
                "Upgrade thalweg: pip install --upgrade thalweg",
            )
        )
    return data


def analyses(run: Path, kind: str) -> list[tuple[int, Path]]:
    """List ``(step, file)`` of the analyses called ``KIND-STEP.nc`` in the run folder ``run``, by step.

    Raises:
        RunFolderError: One is a link out of the run folder.
    """
    found = []
    for path in sorted((run / "analyses").glob(f"{kind}-*.nc")):
        match = _STEP.fullmatch(path.name.removeprefix(kind))
        if match:
            found.append((int(match[1]), inside(run, path)))
    return sorted(found)


def _attribute(value: object) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, (int, float, str)) else str(value)


def _damaged(path: Path, reason: str) -> RunFolderError:
    return RunFolderError(
        explain(
            f"The file {path} cannot be read: {reason}",
            "it must be a netCDF file that thalweg wrote",
            "Delete it, and run the analysis again",
        )
    )
