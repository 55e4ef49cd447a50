"""A trajectory map on disk: one labelled netCDF file that any reader of netCDF opens, and that becomes a map again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from thalweg.errors import InvalidInput, explain
from thalweg.runs.analyses import read_analysis, variable, write_analysis
from thalweg.trajectories.kernels import Kernels
from thalweg.trajectories.map import TrajectoryMap
from thalweg.trajectories.nulls import Decay
from thalweg.trajectories.oscillation import Burst

KIND = "trajectory"
"""What these files are called among the analyses of a run."""

SQUARE = "weight^2"
WORDS = {
    "similarity": ("1", "cosine between the weights at two checkpoints"),
    "relative": ("1", "cosine between two checkpoints as seen from the anchor"),
    "updates": ("1", "cosine between two updates"),
    "decay_null": ("1", "cosine if updates were unrelated to the weights that decay"),
    "persistence": ("1", "cosine less its decay null"),
    "length": ("weight", "length of the update"),
    "update_ratio": ("1", "length of the update over the norm of the weights"),
    "unchanged": ("1", "share of weights bitwise equal between neighbours"),
    "below_floor": ("1", "1 where rounding of stored weights rules the update"),
    "norm": ("weight", "norm of the weights"),
    "radius": ("weight", "distance from the anchor"),
    "residual": ("weight", "distance from the plane of the first two components"),
    "coordinates": ("weight", "coordinate along a principal component"),
    "explained": ("1", "share of the variance"),
    "turning": ("degree", "angle between the stretches before and after a checkpoint"),
    "apex_origin": ("degree", "angle between two checkpoints as seen from the origin"),
    "apex_anchor": ("degree", "angle between two checkpoints as seen from the anchor"),
    "tortuosity": ("1", "length over distance of a stretch"),
    "turning_cosine": ("1", "mean cosine of the turning angle"),
    "path_length": ("weight", "length of the path"),
    "net": ("weight", "distance between the ends"),
    "straightness": ("1", "distance between the ends over length of the path"),
    "displacement": ("1", "distance between the ends over the first norm"),
    "radius_slope": ("1", "log-log slope of the distance from the anchor"),
    "norm_slope": ("1", "log-log slope of the norm"),
    "omega": ("1", "mean directional similarity"),
    "omega_off": ("1", "mean directional similarity without the diagonal"),
    "omega_relative": ("1", "mean directional similarity as seen from the anchor"),
    "omega_relative_off": ("1", "the same without the diagonal"),
    "skipped": ("1", "checkpoints without a direction"),
    "skipped_relative": ("1", "checkpoints without a direction as seen from the anchor"),
    "group": ("1", "group of parameters"),
    "step": ("step", "step of the checkpoint"),
    "step2": ("step", "step of the other checkpoint"),
    "increment": ("step", "step that the update starts from"),
    "increment2": ("step", "step that the other update starts from"),
    "lag": ("checkpoint", "distance in checkpoints"),
    "weighting": ("1", "weights of the checkpoints"),
    "component": ("1", "principal component"),
}
"""Unit and name in words of what `TrajectoryMap.data` holds."""


def save_map(found: TrajectoryMap, path: str | Path, facts: Mapping[str, object] | None = None) -> Path:
    """Write a map: the inner products of its groups, from which it is made again, and all that follows from them.

    Maps of cosines are written in float32, everything else in float64.

    Args:
        found: A trajectory map.
        path: The netCDF file to write or replace.
        facts: Further attributes, such as the source and the time that it took.

    Returns:
        The path.

    Raises:
        InvalidInput: The decay of the map has a function for its learning rate, which no file can hold.
        StorageError: The file cannot be written; what was there before stays.

    Example:
        >>> from thalweg.trajectories.nulls import line
        >>> found = TrajectoryMap({"whole": line(range(5))}, anchor=1)
        >>> again = open_map(save_map(found, "map.nc", {"source": "a line"}))
        >>> again.anchor, bool((again.similarity == found.similarity).all())
        (1, True)
    """
    data, names = found.data, list(found.groups)
    paths = [found.paths[name] for name in names]
    variables = {str(name): _labelled(str(name), data[name]) for name in data.variables}
    two = ("group", "increment")
    variables |= {
        "inner": variable((*two, "increment2"), np.stack([p.G for p in paths]), SQUARE, "inner product of two updates"),
        "first": variable(two, np.stack([p.c for p in paths]), SQUARE, "inner product of first weights and update"),
        "square": variable("group", [p.m for p in paths], SQUARE, "squared norm of the first weights"),
        "quantum": variable("group", [p.quantum for p in paths], "1", "relative rounding of the stored weights"),
    }
    own = {
        "anchor": found.anchor,
        "weights": found.weighting,
        "lags": json.dumps(found.lags),
        "scalars": json.dumps({name: name if name not in WORDS else f"schedule_{name}" for name in found.schedule}),
        "decay": json.dumps(_plain(found.decay)),
        "sketch": found.sketch or 0,
        "notes": "\n".join(found.notes),
        "bursts": json.dumps([{k: np.asarray(v).tolist() for k, v in vars(one).items()} for one in found.bursts]),
    }
    return write_analysis(Path(path), xr.Dataset(variables), KIND, {**(facts or {}), **own})


def open_map(path: str | Path) -> TrajectoryMap:
    """Read a map that `save_map` or ``thalweg map`` wrote.

    Raises:
        RunFolderError: The file is missing, damaged or of another kind.
        SchemaError: A newer thalweg wrote it.
    """
    return map_of(read_analysis(Path(path), KIND))


def map_of(data: xr.Dataset) -> TrajectoryMap:
    """Return the map that a file's data hold.

    Args:
        data: What `read_analysis` returned.
    """
    steps, names = data["step"].values.astype(np.int64), [str(name) for name in data["group"].values]
    numbers = {key: _native(data[key].values) for key in ("inner", "first", "square", "quantum", "unchanged")}
    paths = {
        name: Kernels(
            steps,
            numbers["inner"][at],
            numbers["first"][at],
            float(numbers["square"][at]),
            float(numbers["quantum"][at]),
        )
        for at, name in enumerate(names)
    }
    facts = data.attrs
    lags, decay = json.loads(facts["lags"]), json.loads(facts["decay"])
    if decay is not None and isinstance(decay["learning_rate"], list):
        decay["learning_rate"] = np.asarray(decay["learning_rate"], dtype=np.float64)
    return TrajectoryMap(
        paths=paths,
        anchor=int(facts["anchor"]),
        weighting=facts["weights"],
        lags=None if lags is None else tuple(lags),
        schedule={name: _native(data[key].values) for name, key in json.loads(facts["scalars"]).items()},
        decay=None if decay is None else Decay(**decay),
        unchanged={name: numbers["unchanged"][at] for at, name in enumerate(names)},
        sketch=int(facts["sketch"]) or None,
        notes=tuple(line for line in str(facts["notes"]).splitlines() if line),
        bursts=tuple(_burst(one) for one in json.loads(facts.get("bursts", "[]"))),
    )


def _labelled(name: str, values: Any) -> xr.Variable:
    units, words = WORDS.get(name, ("1", name.removeprefix("schedule_").replace("_", " ")))
    array = np.asarray(values.values)
    if array.dtype == np.bool_:
        array = array.astype(np.int8)
    if array.ndim == 3 and array.shape[-1] == array.shape[-2] and "group" in values.dims:
        array = array.astype(np.float32)  # maps
    return variable(values.dims, array.astype(np.str_) if array.dtype == object else array, units, words)


def _burst(told: dict[str, Any]) -> Burst:
    arrays = {key: np.asarray(told[key], dtype=np.float64) for key in ("lag_cosines", "expected")}
    return Burst(**(told | arrays | {"lags": np.asarray(told["lags"], dtype=np.int64)}))


def _native(array: Any) -> Any:
    return np.asarray(array).astype(np.float64)


def _plain(decay: Decay | None) -> dict[str, Any] | None:
    if decay is None:
        return None
    rate = decay.learning_rate
    if callable(rate):
        raise InvalidInput(
            explain(
                "The learning rate of the decay null is a function",
                "a file cannot hold it",
                "Give one number per step instead",
            )
        )
    told = np.asarray(rate).tolist() if isinstance(rate, np.ndarray) else rate
    return {
        "weight_decay": decay.weight_decay,
        "momentum": decay.momentum,
        "coupled": decay.coupled,
        "learning_rate": told,
    }
