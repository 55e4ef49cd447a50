"""A trajectory map as an xarray dataset, everything with names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from thalweg.trajectories.averages import WEIGHTINGS

if TYPE_CHECKING:
    from thalweg.trajectories.map import TrajectoryMap

COMPONENTS = 3


def dataset(found: TrajectoryMap) -> xr.Dataset:
    """Return maps, traces, angles and averages of every group.

    Args:
        found: The map.

    Returns:
        Dims ``group``, ``step``, ``step2``, ``increment`` and ``increment2`` (steps that updates start from), ``lag``
        (in checkpoints), ``weighting``, ``component``. Angles are in degrees.
    """
    names, steps = list(found.groups), found.steps
    measured = {name: found.complexity(name) for name in names}
    floors = {name: found.precision(name) for name in names}
    averages = {name: found.mds_of(name) for name in names}
    weightings = [w for w in WEIGHTINGS if any(w in by for by in averages.values())]
    count = min(COMPONENTS, len(steps) - 1)

    def stack(values: list[Any]) -> Any:
        return np.stack([np.asarray(value, dtype=np.float64) for value in values])

    variables: dict[str, Any] = {
        "similarity": (("group", "step", "step2"), stack([found.paths[n].similarity for n in names])),
        "relative": (("group", "step", "step2"), stack([found.paths[n].relative(found.anchor) for n in names])),
        "updates": (("group", "increment", "increment2"), stack([found.paths[n].updates for n in names])),
        "length": (("group", "increment"), stack([measured[n].lengths for n in names])),
        "update_ratio": (("group", "increment"), stack([measured[n].update_ratio for n in names])),
        "unchanged": (("group", "increment"), stack([floors[n].unchanged for n in names])),
        "below_floor": (("group", "increment"), np.stack([floors[n].below for n in names])),
        "norm": (("group", "step"), stack([measured[n].norms for n in names])),
        "radius": (("group", "step"), stack([measured[n].radii for n in names])),
        "residual": (("group", "step"), stack([measured[n].principal.residual for n in names])),
        "coordinates": (
            ("group", "step", "component"),
            stack([measured[n].principal.coordinates[:, :count] for n in names]),
        ),
        "explained": (("group", "component"), stack([measured[n].principal.explained[:count] for n in names])),
    }
    for key in ("turning", "apex_origin", "apex_anchor"):
        variables[key] = (("group", "lag", "step"), stack([getattr(measured[n], key) for n in names]))
    for key in ("tortuosity", "turning_cosine"):
        variables[key] = (("group", "lag"), stack([getattr(measured[n], key) for n in names]))
    for key in ("path_length", "net", "straightness", "displacement", "radius_slope", "norm_slope"):
        variables[key] = (("group",), stack([getattr(measured[n], key) for n in names]))
    for key in ("omega", "omega_off", "relative", "relative_off", "skipped", "skipped_relative"):
        table = [[getattr(averages[n][w], key) if w in averages[n] else np.nan for w in weightings] for n in names]
        name = {"relative": "omega_relative", "relative_off": "omega_relative_off"}.get(key, key)
        variables[name] = (("group", "weighting"), np.asarray(table, dtype=np.float64))
    if found.decay is not None:
        variables["decay_null"] = (("group", "step", "step2"), stack([found.decay_null(n) for n in names]))
        variables["persistence"] = (("group", "step", "step2"), stack([found.persistence(n) for n in names]))
    for key, values in found.schedule.items():
        variables[key if key not in variables else f"schedule_{key}"] = (("step",), values)
    return xr.Dataset(
        variables,
        coords={
            "group": names,
            "step": steps,
            "step2": steps,
            "increment": steps[:-1],
            "increment2": steps[:-1],
            "lag": measured[names[0]].lags,
            "weighting": weightings,
        },
        attrs={"anchor": found.anchor, "sketch": found.sketch or 0, "notes": "\n".join(found.notes)},
    )
