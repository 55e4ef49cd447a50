"""The cells of a phase diagram as a sweep computes them, and the diagram made of its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from thalweg.errors import InvalidInput, explain
from thalweg.phases.critical import Mode, critical_constants
from thalweg.phases.critical_result import NAMES
from thalweg.phases.diagram import CELL, PhaseDiagram, cell_values
from thalweg.phases.diagram_saturation import with_c_crit
from thalweg.phases.early import EarlyRuns
from thalweg.phases.early_network import EarlySpec, network_runs
from thalweg.phases.labels import Window
from thalweg.sweeps.cells import Cell
from thalweg.sweeps.plan import Plan, plan

DIMS = {
    **dict.fromkeys(("c", "c_low", "c_high", "found", "fallback"), ("constant",)),
    **dict.fromkeys(("run_c", "run_loss", "run_sharpness"), ("run",)),
    **dict.fromkeys(("tau_c", "saturation"), ("tau",)),
}


TAU_STEP = 0.2
"""Distance in ``log2 c`` of runs to the end of the transient."""


@dataclass(frozen=True)
class MeasureCell:
    """Critical constants of one network: what a sweep over depth, width and seed calls for each cell.

    A worker imports it by its name, and its settings are part of what a ledger knows it by.

    Args:
        spec: Model, data, loss and protocol.
        mode: ``"bisect"`` or ``"grid"``.
        grid_step: Distance of grid points in ``log2 c``.
        window: ``"paper"`` or ``"catapult"``.
        eps_sharp: Relative rise of sharpness that does not count.
        barrier: Whether to look for ``c_barrier``.
        product: ``c tau`` of runs to the end of the transient, for ``saturation``; None leaves them out.

    Example:
        >>> measure = MeasureCell(EarlySpec(samples=40, steps=3), grid_step=0.5, barrier=False)
        >>> found = measure(Cell({"depth": 2, "width": 8, "seed": 0}))
        >>> found["c"][0], found["c"][1].shape
        (('constant',), (4,))
    """

    spec: EarlySpec = field(default_factory=EarlySpec)
    mode: Mode = "bisect"
    grid_step: float = 0.1
    window: Window = "paper"
    eps_sharp: float = 0.0
    barrier: bool = True
    product: float | None = None

    def __call__(self, cell: Cell) -> dict[str, Any]:
        """Measure one cell with the axes ``depth``, ``width`` and ``seed``."""
        depth, width, seed = (int(cell[name]) for name in CELL)  # type: ignore[arg-type]
        runs = network_runs(depth, width, (seed,), spec=self.spec)
        found = critical_constants(
            runs,
            mode=self.mode,
            grid_step=self.grid_step,
            window=self.window,
            eps_sharp=self.eps_sharp,
            barrier=self.barrier,
        )
        cost = {name: float(getattr(found.cost, name)) for name in ("products", "gradients", "forwards", "solves")}
        values = {
            name: (DIMS[name], one) if name in DIMS else float(one) for name, one in cell_values(found, 0).items()
        }
        return {**values, **cost, **(self._saturated(runs) if self.product else {})}

    def _saturated(self, runs: EarlyRuns) -> dict[str, Any]:
        """Sharpness at equal gradient-flow time over that at the start, up to the first ``c`` that diverges."""
        assert self.product is not None
        c, level = [], []
        for x in np.arange(-1.0, 4.01, TAU_STEP):
            found = float(runs.sharpness_at([(0, float(2.0**x))], [max(1, round(self.product / 2.0**x))])[0])
            if not np.isfinite(found):
                break
            c.append(float(2.0**x))
            level.append(found / float(runs.sharpness0[0]))
        return {"tau_c": (("tau",), np.array(c)), "saturation": (("tau",), np.array(level))}


def phase_plan(depths: Sequence[int], widths: Sequence[int], seeds: int | Sequence[int] = 5) -> Plan:
    """Return the plan of a phase diagram.

    Args:
        depths: Layers of weights.
        widths: Units or channels of each layer.
        seeds: How many, from 0, or which.

    Raises:
        InvalidInput: A size is below one, or there is none.

    Example:
        >>> phase_plan([4, 8], [64, 128])
        Plan of 20 cells: 2 depth x 2 width x 5 seed
    """
    drawn = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    for name, sizes in (("depth", depths), ("width", widths)):
        wrong = [size for size in sizes if size < 1]
        if wrong or not sizes:
            raise InvalidInput(
                explain(
                    f"A {name} is {wrong[0]}" if wrong else f"There is no {name}",
                    "a network has at least one layer of one unit",
                    f"Give each {name} as a number of at least 1",
                )
            )
    if not drawn:
        raise InvalidInput(explain("There are no seeds", "a constant is read off at least one run", "Ask for 5"))
    return plan(depth=list(depths), width=list(widths), seed=drawn)


def cell_work(cell: Cell) -> float:
    """Multiplications of a cell beside the others', with inputs of 64 numbers: its weights, times a constant."""
    depth, width = float(cell["depth"] or 1), float(cell["width"] or 1)
    return (depth - 2) * width**2 + 74 * width + 3000 if depth > 1 else 3640


def diagram_of(table: xr.Dataset, facts: Mapping[str, Any] | None = None) -> PhaseDiagram:
    """Make a diagram of the table of a sweep of `MeasureCell`; cells that failed are missing in it.

    Args:
        table: ``sweep(...).table()``, or that of several merged ones.
        facts: Attributes of the diagram.

    Raises:
        InvalidInput: It is the table of something else, or no cell succeeded.
    """
    if not {*CELL} <= set(table.dims) or "c" not in table:
        raise InvalidInput(
            explain(
                f"The table has the dimensions {', '.join(map(str, table.dims)) or 'none'}"
                + ("" if "c" in table else ", and no critical constants"),
                "a diagram has depth, width and seed, and at least one cell that succeeded",
                "Sweep MeasureCell over phase_plan, and look at what failed",
            )
        )
    names = [name for name in (*DIMS, "loss0", "sharpness0") if name in table]
    data = table[names].transpose(*CELL, ...).assign_coords(constant=list(NAMES))
    if "saturation" in data:
        grid = np.nanmax(data["tau_c"].values, axis=(0, 1, 2))  # the same for all cells, as far as they go
        data = with_c_crit(data.drop_vars("tau_c").rename(tau="tau_c").assign_coords(tau_c=grid))
    used = np.isfinite(data["found"].values).any(axis=(0, 1, 2))
    kept = data.isel(constant=np.flatnonzero(used)).sortby(list(CELL))
    return PhaseDiagram(kept.assign_attrs(dict(facts or {})))
