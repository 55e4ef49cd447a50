"""Progress of a forecast: time, the number of critical eigenvalues, and the predicted loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.console import Console

from thalweg.cli.meter import BarMeter, LineMeter, RunMeter


class FlowMeter(RunMeter):
    """What the two meters share."""

    noun, unit = "time", "units"

    reached = 0
    """Units of time that are computed."""

    def step(self, values: Mapping[str, float]) -> None:
        """Show a unit of time."""
        self.reached = int(values["step"])
        super().step(values)

    def _text(self, values: Mapping[str, float]) -> str:
        critical = int(values.get("critical", 0))
        noun = "eigenvalue" if critical == 1 else "eigenvalues"
        return f"{critical} critical {noun}, predicted loss {values['loss']:.4g}"


class FlowBar(FlowMeter, BarMeter):
    """A bar that is redrawn in place."""


class FlowLines(FlowMeter, LineMeter):
    """A line at every tenth of the time."""


def flow_meter(console: Console, at_work: Callable[[], None] | None = None) -> FlowMeter:
    """Return a bar for a terminal, lines for a file or a pipe; ``at_work`` is called after the first unit."""
    return (FlowBar if console.is_terminal else FlowLines)(console, at_work)
