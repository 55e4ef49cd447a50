"""Trajectory maps over a grid of hyper-parameters: one plain run, and one map, per cell and seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from thalweg.errors import InvalidInput, NonFinite, explain
from thalweg.runs import Run
from thalweg.runs.sources import trajectory
from thalweg.trajectories.averages import WEIGHTINGS, Weighting
from thalweg.trajectories.map import TrajectoryMap, trajectory_map
from thalweg.trajectories.nulls import Decay

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MEASURES = {
    "omega": "mean directional similarity",
    "omega_off": "mean directional similarity without the diagonal",
    "omega_decay": "the same as omega_off of the decay null",
    "persistence": "omega_off less that of the decay null",
    "relative_off": "mean relative similarity without the diagonal",
    "displacement": "distance from the start over its norm",
    "straightness": "distance between the ends over length of the path",
    "turning": "mean turning angle",
    "loss": "loss at the last checkpoint",
}
"""What is tabulated, and what it is."""


@dataclass(frozen=True)
class GridCell:
    """One run of a grid.

    Attributes:
        settings: Hyper-parameters.
        seed: Of the run.
        map: Its trajectory map; None where the run failed.
        failure: Why it failed; empty where it did not.
    """

    settings: Mapping[str, Any]
    seed: int
    map: TrajectoryMap | None
    failure: str = ""


@dataclass(frozen=True)
class Effect:
    """A difference between settings, all others equal, averaged over them and over seeds.

    Attributes:
        what: Which settings are compared.
        measure: Of what.
        value: The difference.
        standard_error: Of ``value``, from the spread between seeds; NaN for one seed.
        seeds: The difference per seed, shape ``(seeds,)``.
    """

    what: str
    measure: str
    value: float
    standard_error: float
    seeds: np.ndarray

    def __repr__(self) -> str:
        return f"{self.what}: {self.measure} {self.value:+.4g} +- {self.standard_error:.2g} ({len(self.seeds)} seeds)"


@dataclass(frozen=True, repr=False)
class MapGrid:
    """Maps over a grid.

    Attributes:
        axes: Values of each hyper-parameter, in order.
        seeds: Seeds of each cell.
        cells: All runs, seeds last.
        weighting: Weights of checkpoints in mean similarities.
    """

    axes: Mapping[str, tuple[Any, ...]]
    seeds: tuple[int, ...]
    cells: tuple[GridCell, ...]
    weighting: Weighting = "uniform"

    def cell(self, seed: int | None = None, **settings: Any) -> GridCell:
        """Return one run.

        Raises:
            InvalidInput: There is none with these settings.
        """
        wanted = self.seeds[0] if seed is None else seed
        for one in self.cells:
            if one.seed == wanted and all(one.settings.get(name) == value for name, value in settings.items()):
                return one
        raise InvalidInput(
            explain(
                f"No cell with {settings}, seed {wanted}", f"axes are {dict(self.axes)}", "Ask for values on the axes"
            )
        )

    @cached_property
    def data(self) -> xr.Dataset:
        """Numbers of all cells: one dimension per hyper-parameter, and ``seed``; NaN where a run failed."""
        shape = (*(len(values) for values in self.axes.values()), len(self.seeds))
        rows = [_numbers(cell.map, self.weighting) for cell in self.cells]
        dims = (*self.axes, "seed")
        found = xr.Dataset(
            {
                key: (dims, np.array([row[key] for row in rows]).reshape(shape), {"long_name": name})
                for key, name in MEASURES.items()
            },
            coords={**{name: list(values) for name, values in self.axes.items()}, "seed": list(self.seeds)},
        )
        return found.assign_attrs(weighting=self.weighting)

    def effect(self, axis: str, measure: str = "omega_off") -> Effect:
        """Return the last level of an axis less the first, all others equal, averaged.

        Raises:
            InvalidInput: There is no such axis or measure.
        """
        values = self._values(measure, axis)
        change = values.isel({axis: -1}) - values.isel({axis: 0})
        low, high = self.axes[axis][0], self.axes[axis][-1]
        return _effect(f"{axis} {low} to {high}", measure, change)

    def interaction(self, first: str, second: str, measure: str = "omega_off") -> Effect:
        """Return the effect of one axis at the last level of another less that at its first level, averaged.

        Raises:
            InvalidInput: There is no such axis or measure.
        """
        values = self._values(measure, first, second)
        change = values.isel({first: -1}) - values.isel({first: 0})
        return _effect(f"{first} with {second}", measure, change.isel({second: -1}) - change.isel({second: 0}))

    def _values(self, measure: str, *axes: str) -> xr.DataArray:
        if measure not in MEASURES or any(axis not in self.axes for axis in axes) or len(set(axes)) < len(axes):
            raise InvalidInput(
                explain(
                    f"Asked for {measure!r} along {', '.join(axes)}",
                    f"measures are {', '.join(MEASURES)}; axes are {', '.join(self.axes)}",
                    "Choose among these, each axis once",
                )
            )
        return self.data[measure]

    def plot(self) -> Figure:
        """Draw the map of each cell, first seed, on one scale; the last axis goes to the right, the others down."""
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        from thalweg.trajectories.figure import SIMILAR, heatmap

        columns = len(list(self.axes.values())[-1])
        cells = [cell for cell in self.cells if cell.seed == self.seeds[0]]
        rows = math.ceil(len(cells) / columns)
        titles = [_title(cell, self.weighting) for cell in cells]
        figure: go.Figure = make_subplots(rows, columns, subplot_titles=titles, vertical_spacing=0.35 / max(rows, 2))
        maps = [cell.map.similarity for cell in cells if cell.map is not None]
        low = min((float(np.nanmin(one)) for one in maps), default=0.0)
        for place, cell in enumerate(cells):
            if cell.map is None:
                continue
            row, column = place // columns + 1, place % columns + 1
            trace = heatmap(
                cell.map.similarity, cell.map.steps, name="cosine", most=100, zmin=low, zmax=1.0, colorscale=SIMILAR
            )
            trace.showscale = place == 0
            figure.add_trace(trace, row, column)
            figure.update_xaxes(type="category", nticks=4, row=row, col=column)
            figure.update_yaxes(type="category", nticks=4, autorange="reversed", row=row, col=column)
        return figure.update_layout(height=120 + 260 * rows, title=f"Maps over {', '.join(self.axes)}")

    def __repr__(self) -> str:
        failed = [cell for cell in self.cells if cell.map is None]
        head = (
            f"MapGrid over {' x '.join(f'{len(v)} {name}' for name, v in self.axes.items())}, {len(self.seeds)} seeds"
        )
        wide = [max(len(name), *(len(str(value)) for value in values)) + 2 for name, values in self.axes.items()]
        keys = ("omega_off", "omega_decay", "displacement", "turning")
        lines = [head, "".join(n.ljust(w) for n, w in zip(self.axes, wide)) + "".join(k.rjust(14) for k in keys)]
        means = self.data.mean("seed")
        for at in itertools.product(*(range(len(values)) for values in self.axes.values())):
            one = means.isel(dict(zip(self.axes, at)))
            names = [str(values[i]).ljust(w) for values, i, w in zip(self.axes.values(), at, wide)]
            lines.append("".join(names) + "".join(f"{float(one[key]):14.4f}" for key in keys))
        return "\n".join([*lines, *(f"{dict(cell.settings)}, seed {cell.seed}: {cell.failure}" for cell in failed)])


def map_grid(
    run: Callable[..., Any],
    grid: Mapping[str, Sequence[Any]],
    *,
    seeds: Sequence[int] = (0,),
    weights: Weighting = "uniform",
    coupled: bool = True,
    done: Callable[[GridCell], None] | None = None,
    **options: Any,
) -> MapGrid:
    """Run each cell of a grid with each seed, one after the other, and map its path.

    Where a grid has ``weight_decay`` and ``learning_rate`` (or the run recorded the rate), the decay null goes along;
    it uses ``momentum``, too, where decay is coupled.

    Args:
        run: Called as ``run(**settings, seed=seed)``; returns a `Run`, a trajectory, a folder of checkpoints, inner
            products, or a map of its own. A run that diverges raises `NonFinite`, and the grid goes on without it.
        grid: Values of each hyper-parameter, for instance ``{"momentum": [0, 0.9], "weight_decay": [0, 1e-3]}``.
        seeds: Of each cell.
        weights: Weights of checkpoints in the tabulated similarities.
        coupled: Whether decay is added to the gradient (SGD), or to the step (AdamW).
        done: Is told each cell when it is done.
        options: For `trajectory_map`.

    Returns:
        All maps, their numbers as a dataset, effects and interactions.

    Raises:
        InvalidInput: The grid is empty, or an axis is called ``seed``.

    Example:
        >>> def walk(spread, seed):
        ...     steps = np.random.default_rng(seed).standard_normal((12, 400)) * spread
        ...     return torch.tensor(np.cumsum(steps, axis=0) + 1)
        >>> import torch
        >>> found = map_grid(walk, {"spread": [0.1, 0.3]}, seeds=(0, 1))
        >>> found.data.omega_off.dims, found.effect("spread").value < 0
        (('spread', 'seed'), True)
    """
    axes = {name: tuple(values) for name, values in grid.items()}
    if not axes or not seeds or not all(axes.values()) or "seed" in axes or weights not in WEIGHTINGS:
        raise InvalidInput(
            explain(
                f"Got axes {axes}, seeds {list(seeds)}, weights {weights!r}",
                "each axis has values, seeds are given apart, and at least one",
                "Correct the argument",
            )
        )
    cells = []
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values))
        for seed in seeds:
            try:
                found = _mapped(run(**settings, seed=seed), settings, coupled, weights, options)
                cell = GridCell(settings, seed, found)
            except NonFinite as error:
                cell = GridCell(settings, seed, None, str(error))
            cells.append(cell)
            if done is not None:
                done(cell)
    return MapGrid(axes, tuple(seeds), tuple(cells), weights)


def _mapped(
    source: Any, settings: Mapping[str, Any], coupled: bool, weights: Weighting, options: Mapping[str, Any]
) -> TrajectoryMap:
    if isinstance(source, TrajectoryMap):
        return source
    decay = options.get("decay")
    if decay is None and "weight_decay" in settings:
        momentum = float(settings.get("momentum", 0.0)) if coupled else 0.0
        decay = Decay(float(settings["weight_decay"]), momentum, coupled, settings.get("learning_rate"))
    if isinstance(source, Run):
        opened: Any = trajectory(source.path)
    elif hasattr(source, "G") or hasattr(source, "tensors"):
        opened = source
    elif hasattr(source, "shape") or (isinstance(source, Sequence) and not isinstance(source, str)):
        from thalweg.runs.sources import Trajectory

        opened = Trajectory.from_arrays(source)
    else:
        opened = trajectory(source)
    return trajectory_map(opened, **{**options, "decay": decay, "weights": weights})


def _numbers(found: TrajectoryMap | None, weighting: Weighting) -> dict[str, float]:
    if found is None:
        return dict.fromkeys(MEASURES, math.nan)
    similar, shape = found.mds.get(weighting), found.complexity()
    numbers = {
        "omega": math.nan if similar is None else similar.omega,
        "omega_off": math.nan if similar is None else similar.omega_off,
        "relative_off": math.nan if similar is None else similar.relative_off,
        "omega_decay": math.nan,
        "displacement": shape.displacement,
        "straightness": shape.straightness,
        "turning": shape.turning_summary(1)["mean"],
        "loss": float(found.schedule["loss"][-1]) if "loss" in found.schedule else math.nan,
    }
    known = found.decay is not None and (
        found.decay.weight_decay == 0 or found.decay.learning_rate is not None or found.learning_rate is not None
    )
    if known:
        numbers["omega_decay"] = found.table()["omega_off"].decay
    return {**numbers, "persistence": numbers["omega_off"] - numbers["omega_decay"]}


def _effect(what: str, measure: str, change: xr.DataArray) -> Effect:
    seeds = change.mean([dim for dim in change.dims if dim != "seed"]).values
    error = float(np.std(seeds, ddof=1) / np.sqrt(len(seeds))) if len(seeds) > 1 else math.nan
    return Effect(what, measure, float(seeds.mean()), error, seeds)


def _title(cell: GridCell, weighting: Weighting) -> str:
    names = ", ".join(f"{name} {value}" for name, value in cell.settings.items())
    found = None if cell.map is None else cell.map.mds.get(weighting)
    return f"{names}: {'failed' if found is None else f'{found.omega_off:.3f}'}"
