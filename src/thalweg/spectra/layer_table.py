"""What is known of the curvature of every layer, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.spectra.estimate import Estimate
from thalweg.spectra.results import Stop

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Layer:
    """The principal block of an operator on the parameters of one layer.

    Attributes:
        name: As the caller, or the model, names it.
        members: Names of its parameters.
        parameters: Number of their entries.
        eigenvalues: The largest, shape ``(k,)``, descending, in the operator's units.
        residuals: ``|A v - theta v|`` of each, shape ``(k,)``.
        trace: Of the block, with its standard error.
        products: Operator products that this row cost.
        stop: Why the eigensolver ended; why the trace did is in ``trace.stop``.
    """

    name: str
    members: tuple[str, ...]
    parameters: int
    eigenvalues: Tensor
    residuals: Tensor
    trace: Estimate
    products: int
    stop: Stop

    @property
    def unmet(self) -> tuple[str, ...]:
        """What was not reached, in sentences; empty if all was."""
        return tuple(str(stop) for stop in (self.stop, self.trace.stop) if not stop.converged)

    @property
    def converged(self) -> bool:
        """Whether eigenvalues and trace are as exact as was asked."""
        return not self.unmet


@dataclass(frozen=True)
class LayerTable:
    """One `Layer` a row, in the order of the model or of the patterns.

    Attributes:
        rows: The layers.
        products: Operator products of the whole table.
    """

    rows: tuple[Layer, ...]
    products: int

    @property
    def converged(self) -> bool:
        """Whether every row has what was asked for."""
        return all(row.converged for row in self.rows)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Layer:
        for row in self.rows:
            if row.name == name:
                return row
        known = ", ".join(row.name for row in self.rows[:8]) + (", ..." if len(self) > 8 else "")
        raise InvalidInput(explain(f"There is no layer {name!r}", "the table has other rows", f"Choose among: {known}"))

    def columns(self) -> dict[str, list[str] | list[int] | list[float] | list[list[float]]]:
        """Return plain lists, one entry a layer, for a data frame or a file.

        ``layer``, ``parameters``, ``eigenvalues`` and ``residuals`` (a list for each layer), ``trace``,
        ``trace_standard_error``, ``products``, ``unmet`` (a sentence, or nothing).
        """
        return {
            "layer": [row.name for row in self.rows],
            "parameters": [row.parameters for row in self.rows],
            "eigenvalues": [row.eigenvalues.tolist() for row in self.rows],
            "residuals": [row.residuals.tolist() for row in self.rows],
            "trace": [float(row.trace.value) for row in self.rows],
            "trace_standard_error": [float(row.trace.standard_error) for row in self.rows],
            "products": [row.products for row in self.rows],
            "unmet": [" ".join(row.unmet) for row in self.rows],
        }

    def __repr__(self) -> str:
        head = ("layer", "parameters", "largest eigenvalue", "trace", "products", "")
        lines = [
            (
                row.name,
                f"{row.parameters:,}",
                f"{float(row.eigenvalues[0]):.5g} ± {float(row.residuals[0]):.0e}",
                f"{float(row.trace.value):.5g} ± {float(row.trace.standard_error):.1g}",
                f"{row.products:,}",
                "" if row.converged else "not converged",
            )
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in (head, *lines)]
        return "\n".join([*text, f"{len(self)} layers, {self.products:,} products"])

    def plot(self) -> Figure:
        """Draw the leading eigenvalues with their residuals and the trace with its 95 per cent interval, by layer."""
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        names = [row.name for row in self.rows]
        figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
        for i in range(max(len(row.eigenvalues) for row in self.rows)):
            there = [row for row in self.rows if len(row.eigenvalues) > i]
            figure.add_scatter(
                x=[row.name for row in there],
                y=[float(row.eigenvalues[i]) for row in there],
                error_y={"type": "data", "array": [float(row.residuals[i]) for row in there]},
                mode="markers",
                name=f"eigenvalue {i + 1}",
                row=1,
                col=1,
            )
        values = [float(row.trace.value) for row in self.rows]
        ends = [tuple(float(end) for end in row.trace.interval()) for row in self.rows]
        bars = go.Bar(
            x=names,
            y=values,
            error_y={
                "type": "data",
                "array": [high - value for (_, high), value in zip(ends, values)],
                "arrayminus": [value - low for (low, _), value in zip(ends, values)],
            },
            name="trace",
        )
        figure.add_trace(bars, row=2, col=1)
        figure.update_xaxes(type="category")  # names such as "0" and "2" are no numbers
        figure.update_yaxes(title_text="eigenvalue", row=1, col=1)
        figure.update_yaxes(title_text="trace", row=2, col=1)
        return figure.update_layout(title=f"Curvature by layer, {self.products:,} products")
