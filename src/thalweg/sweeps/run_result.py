"""A sweep on disk: how far it is, what failed, and its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from thalweg.errors import InvalidInput, explain
from thalweg.runs.folder import is_locked
from thalweg.sweeps.ledger import NAME, Ledger, Record
from thalweg.sweeps.plan import Plan, complete
from thalweg.sweeps.run_table import tabulate

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SHOWN = 5
"""Failed cells that a summary names."""


@dataclass(frozen=True)
class Status:
    """How far a sweep is.

    Attributes:
        done: Cells with a result.
        failed: Cells that raised.
        pending: Cells that have not been computed.
        seconds: Of work in all cells.
        running: Whether a driver is at it now.
    """

    done: int
    failed: int
    pending: int
    seconds: float
    running: bool

    @property
    def total(self) -> int:
        """All cells."""
        return self.done + self.failed + self.pending

    def __repr__(self) -> str:
        state = ", running" if self.running else ""
        return (
            f"{self.done} of {self.total} cells done, {self.failed} failed, {self.pending} pending, "
            f"{self.seconds:.3g} s of work{state}"
        )


@dataclass(frozen=True, repr=False)
class Sweep:
    """What is in the ledger of a folder. Records are those of the moment it was opened; `table` reads anew.

    Attributes:
        folder: It.
        records: What is known of each cell, in the order of the plan.
        function: What computes a cell.
    """

    folder: Path
    records: tuple[Record, ...]
    function: str

    @cached_property
    def plan(self) -> Plan:
        """All cells of the ledger."""
        return complete([record.cell.values for record in self.records], self.records[0].cell.version)

    @property
    def failed(self) -> tuple[Record, ...]:
        """Cells that raised, with what they raised."""
        return tuple(record for record in self.records if record.status == "failed")

    @property
    def pending(self) -> tuple[Record, ...]:
        """Cells that have not been computed."""
        return tuple(record for record in self.records if record.status == "pending")

    def status(self) -> Status:
        """Count the cells."""
        counts = {name: sum(record.status == name for record in self.records) for name in ("done", "failed", "pending")}
        seconds = sum(record.seconds for record in self.records)
        return Status(**counts, seconds=seconds, running=is_locked(self.folder / "lock"))

    def table(self, *, long: bool = False, timings: bool = False) -> xr.Dataset:
        """Return all results, labelled.

        Args:
            long: One dimension ``cell`` with the axes along it, instead of one dimension per axis; for plans that are
                no grid.
            timings: Whether ``seconds`` and ``attempts`` go along.

        Returns:
            One dimension per axis; values have those of the function after them, called ``NAME_0``, ``NAME_1`` where
            it names none, and as long as the longest. NaN (text: empty) where a cell failed, is pending, or is not in
            the plan; ``status`` says which of them.

        Raises:
            InvalidInput: Cells disagree about the dimensions of a result, or the grid would be too large.
            RunFolderError: The ledger is damaged.
        """
        with Ledger(self.folder / NAME) as ledger, ledger.snapshot():
            records = ledger.records()
            return tabulate(ledger.plan(), records, ledger.results(), long=long, timings=timings)

    def plot(self, name: str | None = None) -> Figure:
        """Draw a number over the first two axes that have more than one value, averaged over the others.

        Args:
            name: Of a result with one number per cell; None takes the first, or the seconds where there is none.

        Raises:
            InvalidInput: There is no such result.
        """
        import plotly.graph_objects as go

        table = self.table(timings=True)
        axes = self.plan.axes
        choices = [
            key for key, one in table.data_vars.items() if set(one.dims) == set(axes) and one.dtype.kind in "fiub"
        ]
        if name is not None and name not in choices:
            raise InvalidInput(
                explain(f"No number {name!r} per cell", f"there are {', '.join(map(str, choices))}", "Name one of them")
            )
        chosen = name or choices[0]
        wide = [axis for axis, values in axes.items() if len(values) > 1][:2] or list(axes)[:1]
        values = table[chosen].astype(float)
        values = values.mean([axis for axis in axes if axis not in wide], skipna=True).transpose(*reversed(wide))
        labels = [[str(value) for value in axes[axis]] for axis in wide]
        if len(wide) == 1:
            trace: go.Scatter | go.Heatmap = go.Scatter(x=labels[0], y=np.atleast_1d(values.values))
        else:
            trace = go.Heatmap(x=labels[0], y=labels[1], z=values.values, colorbar={"title": chosen})
        figure = go.Figure(trace).update_xaxes(title=wide[0], type="category")
        return figure.update_yaxes(title=chosen) if len(wide) == 1 else figure.update_yaxes(title=wide[1])

    def __repr__(self) -> str:
        head = f"Sweep of {self.function} in {self.folder}: {self.status()}"
        lines = [f"failed: {record.cell}: {record.error}" for record in self.failed[:SHOWN]]
        more = len(self.failed) - SHOWN
        return "\n".join([head, *lines, *([f"and {more} more failed"] if more > 0 else [])])


def open_sweep(folder: str | Path) -> Sweep:
    """Open what a sweep has left in a folder, finished or not, also while a driver goes on.

    Raises:
        RunFolderError: There is no ledger, or it is damaged.
        SchemaError: A later thalweg wrote it.
    """
    with Ledger(Path(folder) / NAME) as ledger, ledger.snapshot():
        return Sweep(Path(folder), ledger.records(), _named(ledger.meta()))


def _named(meta: Mapping[str, str]) -> str:
    return meta.get("function", "no function yet")
