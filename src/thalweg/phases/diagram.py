"""The phase diagram of an architecture: critical constants over depth, width and seed, and what they say.

Source: arXiv 2302.12250.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from thalweg.errors import InvalidInput, explain
from thalweg.phases.critical_result import NAMES, CriticalConstants, Status
from thalweg.phases.fits import Array, Summary, summarise

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Against: TypeAlias = Literal["width", "ratio"]
"""The vertical axis: ``1 / width`` with a panel for each depth, or ``depth / width`` for all together."""
CELL = ("depth", "width", "seed")
QUADRATIC = 2.0
"""``c`` at which a quadratic loss would turn from falling to rising along its sharpest direction."""
NEAR = 0.15
"""Means of ``c_loss`` within so much of 2 count as two."""


@dataclass(frozen=True, eq=False, repr=False)
class PhaseDiagram:
    """Critical constants of one architecture over its depth and width.

    Made by `phase_diagram`, or from the table of a sweep by `diagram_of`.

    Attributes:
        data: Dimensions ``depth``, ``width``, ``seed`` and ``constant``. Variables ``c`` (geometric mean of the
            bracket, NaN beyond the grid), ``c_low``, ``c_high``, ``found`` (1 where the constant lies on the grid, 0
            where it lies beyond it, NaN where the cell is missing), ``loss0``, ``sharpness0``. Where runs were kept,
            ``run_c``, ``run_loss`` and ``run_sharpness``, the largest loss and sharpness of each short run in units of
            those at its start, over the dimension ``run``. Where saturation was measured, ``saturation`` over
            ``tau_c``, and ``c_crit``, ``c_crit_low`` and ``c_crit_high``.
    """

    data: xr.Dataset

    def __post_init__(self) -> None:
        lacking = [name for name in ("c", "c_low", "c_high") if name not in self.data]
        if lacking or set(self.data["c"].dims) != {*CELL, "constant"}:
            raise InvalidInput(
                explain(
                    f"The dataset has the dimensions {', '.join(map(str, self.data.sizes))}",
                    "a diagram has c, c_low and c_high over depth, width, seed and constant",
                    "Build it with phase_diagram, or with diagram_of from a sweep's table",
                )
            )

    @property
    def depths(self) -> list[int]:
        """Depths, ascending."""
        return sorted(int(value) for value in self.data["depth"].values)

    @property
    def widths(self) -> list[int]:
        """Widths, ascending."""
        return sorted(int(value) for value in self.data["width"].values)

    @property
    def constants(self) -> list[str]:
        """Names of the constants, in the order of the paper."""
        present = [str(name) for name in self.data["constant"].values]
        return [name for name in ("c_loss", "c_sharp", "c_barrier", "c_max") if name in present]

    def values(self, constant: str, depth: int, width: int) -> Array:
        """One constant of every seed of a cell; NaN where it lies beyond the grid or was not measured.

        Raises:
            InvalidInput: There is no such constant, depth or width.
        """
        try:
            found = self.data["c"].sel(constant=constant, depth=depth, width=width)
        except KeyError as error:
            raise InvalidInput(
                explain(
                    f"Asked for {constant} at depth {depth}, width {width}",
                    f"there are {', '.join(self.constants)} at depths {self.depths} and widths {self.widths}",
                    "Choose among these",
                )
            ) from error
        return np.asarray(found.values, dtype=np.float64)

    def summary(self, constant: str, depth: int, width: int) -> Summary:
        """Mean, 25 % and 75 % quantiles and a bootstrap interval of one constant over the seeds of a cell."""
        return summarise(self.values(constant, depth, width))

    def beyond(self, constant: str, depth: int, width: int) -> int:
        """Seeds of a cell whose constant lies beyond the grid."""
        cell = self.data["found"].sel(constant=constant, depth=depth, width=width).values
        return int((cell == 0).sum())

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Depth and width of every cell that was measured."""
        return [
            (depth, width)
            for depth in self.depths
            for width in self.widths
            if np.isfinite(self.data["found"].sel(depth=depth, width=width).values).any()
        ]

    @property
    def missing(self) -> list[tuple[int, int, int]]:
        """Depth, width and seed of what was not measured, or failed."""
        lost = self.data["found"].isnull().all("constant")
        return [
            (int(d), int(w), int(s))
            for d in self.data["depth"].values
            for w in self.data["width"].values
            for s in self.data["seed"].values
            if bool(lost.sel(depth=d, width=w, seed=s))
        ]

    @property
    def sentence(self) -> str:
        """What the diagram shows."""
        from thalweg.phases.diagram_words import sentence

        return sentence(self)

    def table(self) -> str:
        """Means and quantiles of all constants, one line a cell."""
        from thalweg.phases.diagram_words import table

        return table(self)

    def __repr__(self) -> str:
        seeds = self.data.sizes["seed"]
        return (
            f"PhaseDiagram(depths {self.depths}, widths {self.widths}, {seeds} seeds, "
            f"{', '.join(self.constants)}{f', {len(self.missing)} missing' if self.missing else ''})\n{self.table()}"
        )

    def plot(self, against: Against = "width") -> Figure:
        """Draw regions, critical lines with quantiles, and the line at 2.

        Args:
            against: ``"width"``: ``1 / width``, one panel a depth. ``"ratio"``: ``depth / width``, all depths together.
        """
        from thalweg.phases.diagram_figure import diagram_figure

        return diagram_figure(self, against)

    def plot_runs(self) -> Figure:
        """Draw the short runs of the cell that is selected: how far loss and sharpness rose, against ``c``."""
        from thalweg.phases.diagram_runs import runs_figure

        return runs_figure(self)

    def plot_saturation(self) -> Figure:
        """Draw the normalised sharpness after the transient against ``c``, with ``c_crit``."""
        from thalweg.phases.diagram_saturation import saturation_figure

        return saturation_figure(self)

    def save(self, path: str | Path, facts: Mapping[str, object] | None = None) -> Path:
        """Write the diagram as netCDF, which `open_diagram` and any reader of netCDF opens.

        Args:
            path: The file to write or replace.
            facts: Further attributes: text, numbers and truth values.

        Raises:
            StorageError: The file cannot be written; what was there before stays.
        """
        from thalweg.phases.diagram_stored import save_diagram

        return save_diagram(self, path, facts)


def phase_diagram(
    cells: Mapping[tuple[int, int], CriticalConstants], facts: Mapping[str, Any] | None = None
) -> PhaseDiagram:
    """Put the critical constants of several depths and widths together.

    Args:
        cells: By depth and width. Seeds may differ; what is missing is NaN.
        facts: Attributes of the diagram, such as the data.

    Raises:
        InvalidInput: There is no cell.

    Example:
        >>> from thalweg.phases.critical import critical_constants
        >>> from thalweg.phases.uv import UVModel
        >>> from thalweg.phases.uv_runs import UVRuns
        >>> found = phase_diagram({(2, w): critical_constants(UVRuns(UVModel(w))) for w in (4, 64)})
        >>> found.widths, found.constants
        ([4, 64], ['c_loss', 'c_sharp', 'c_barrier', 'c_max'])
    """
    if not cells:
        raise InvalidInput(explain("There is no cell", "a diagram shows at least one", "Give critical constants"))
    rows = []
    for (depth, width), found in cells.items():
        for at, seed in enumerate(found.seeds):
            rows.append(((depth, width, seed), cell_values(found, at)))
    return assemble(rows, facts)


def cell_values(found: CriticalConstants, at: int) -> dict[str, Array]:
    """What a diagram keeps of one seed.

    Args:
        found: Critical constants of one architecture.
        at: Place of the seed.

    Returns:
        Arrays over the constants in the order of `NAMES`, numbers of the start, and arrays over the seed's runs.
    """
    kept = [found.constants.get(name) for name in NAMES]
    nan = np.nan
    rows = [row for row, (seed, _) in enumerate(found.curves.rows) if seed == at]
    rows.sort(key=lambda row: found.curves.rows[row][1])
    loss, sharpness = found.curves.loss[rows, 1:], found.curves.sharpness[rows, 1:]
    gone: NDArray[np.bool_] = np.asarray(~(loss <= found.cutoff).all(axis=1))
    measured = np.isfinite(sharpness).any(axis=1) & ~gone
    highest = np.max(np.where(np.isfinite(sharpness), sharpness, -np.inf), axis=1, initial=-np.inf)
    tallest = np.max(np.where(gone[:, None], 0.0, loss), axis=1, initial=0.0)
    return {
        "c": np.array([nan if one is None else one.value[at] for one in kept]),
        "c_low": np.array([nan if one is None else one.low[at] for one in kept]),
        "c_high": np.array([nan if one is None else one.high[at] for one in kept]),
        "found": np.array([nan if one is None else float(one.status[at] is Status.FOUND) for one in kept]),
        "fallback": np.array([nan if one is None else float(one.fallback[at]) for one in kept]),
        "loss0": np.asarray(found.loss0[at]),
        "sharpness0": np.asarray(found.sharpness0[at]),
        "run_c": np.array([found.curves.rows[row][1] for row in rows]),
        "run_loss": np.where(gone, np.inf, tallest / found.loss0[at]),
        "run_sharpness": np.where(measured, highest / found.sharpness0[at], nan),
    }


def assemble(
    rows: Sequence[tuple[tuple[int, int, int], Mapping[str, Any]]], facts: Mapping[str, Any] | None = None
) -> PhaseDiagram:
    """Build a diagram from what `cell_values` gave for each ``(depth, width, seed)``; None of the rest is made up.

    Args:
        rows: Place and values of each seed of each cell; values may be empty for one that failed.
        facts: Attributes of the diagram.
    """
    axes = {name: sorted({place[at] for place, _ in rows}) for at, name in enumerate(CELL)}
    if not rows:
        raise InvalidInput(explain("There is no cell", "a diagram shows at least one", "Give critical constants"))
    coords: dict[str, Any] = {**axes, "constant": list(NAMES)}
    shape = tuple(len(axes[name]) for name in CELL)
    longest = {
        "run": max((len(values.get("run_c", ())) for _, values in rows), default=0),
        "tau_c": max((len(values.get("tau_c", ())) for _, values in rows), default=0),
    }
    layout = {
        **dict.fromkeys(("c", "c_low", "c_high", "found", "fallback"), "constant"),
        **dict.fromkeys(("loss0", "sharpness0"), ""),
        **dict.fromkeys(("run_c", "run_loss", "run_sharpness"), "run"),
        **dict.fromkeys(("saturation",), "tau_c"),
    }
    tables: dict[str, tuple[tuple[str, ...], Array]] = {}
    for name, last in layout.items():
        size = {"constant": (len(NAMES),), "": ()}.get(last, (longest.get(last, 0),))
        if 0 in size:
            continue
        table = np.full((*shape, *size), np.nan)
        for place, values in rows:
            if name in values:
                at = tuple(axes[axis].index(value) for axis, value in zip(CELL, place))
                own = np.asarray(values[name], dtype=np.float64)
                if last:
                    table[at][: own.size] = own
                else:
                    table[at] = own
        tables[name] = ((*CELL, *((last,) if last else ())), table)
    if longest["tau_c"]:
        coords["tau_c"] = next(np.asarray(v["tau_c"]) for _, v in rows if len(v.get("tau_c", ())) == longest["tau_c"])
    used = np.isfinite(tables["found"][1]).any(axis=(0, 1, 2)) if "found" in tables else np.ones(len(NAMES), bool)
    found = xr.Dataset({k: (dims, values) for k, (dims, values) in tables.items()}, coords=coords)
    if used.any():
        found = found.isel(constant=np.flatnonzero(used))
    return PhaseDiagram(found.assign_attrs(dict(facts or {})))
