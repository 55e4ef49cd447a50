"""How a run shows its progress: not at all, unless given a meter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Meter(Protocol):
    """What `train` calls while it works. The command line gives one that draws a bar."""

    def init(self, steps: int, start: int = 0) -> None:
        """Training is to reach ``steps`` updates and begins after ``start``."""

    def step(self, values: Mapping[str, float]) -> None:
        """A step is recorded; ``values`` has ``step``, ``loss`` and every other number of this step."""

    def close(self) -> None:
        """Training ended, for whatever reason."""


class Silent:
    """The meter that shows nothing."""

    def init(self, steps: int, start: int = 0) -> None:
        """Show nothing."""

    def step(self, values: Mapping[str, float]) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Show nothing."""
