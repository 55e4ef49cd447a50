"""Which steps a recorder looks at, and what it keeps of each."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias

from thalweg.errors import InvalidInput, explain

When: TypeAlias = "Literal['linear', 'log'] | Collection[int]"
Keep: TypeAlias = "Literal['all', 'sketches'] | int"


@dataclass(frozen=True)
class Retention:
    """What is kept of which step.

    A step is *due* at 0 and at the multiples of ``every``; with ``schedule="log"`` also at the powers of two below
    ``every``; with steps given as the schedule, at these. Of a due step the weights are kept: of each with
    ``keep="all"``, of each k-th with ``keep=k``, of the first alone with ``keep="sketches"``; in the last two cases
    a projection of each due step is kept. A burst keeps projections of ``count`` steps in a row and of the point
    that they start from, at each multiple of ``period``.

    Attributes:
        every: Steps between two due ones.
        schedule: As above.
        keep: As above.
        bursts: ``(count, period)``, or None for no bursts.

    Example:
        >>> retention = Retention(every=10, schedule="log", keep=2, bursts=(2, 20))
        >>> [step for step in range(32) if retention.due(step)], [s for s in range(32) if retention.weights(s)]
        ([0, 1, 2, 4, 8, 10, 20, 30], [0, 2, 8, 20])
        >>> [step for step in range(32) if retention.sketch(step)]
        [0, 1, 2, 4, 8, 10, 20, 21, 22, 30]
    """

    every: int = 100
    schedule: When = "linear"
    keep: Keep = "all"
    bursts: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _whole("every", self.every)
        if isinstance(self.schedule, str):
            if self.schedule not in ("linear", "log"):
                raise _bad("schedule", self.schedule, "Pass 'linear', 'log' or the steps themselves")
        else:
            steps = sorted(set(self.schedule) | {0})
            if any(not isinstance(step, int) or isinstance(step, bool) or step < 0 for step in steps):
                raise _bad("schedule", list(self.schedule)[:8], "Pass whole numbers of at least 0")
            object.__setattr__(self, "schedule", tuple(steps))
        if self.keep not in ("all", "sketches"):
            _whole("keep", self.keep)
        if self.bursts is not None:
            if not isinstance(self.bursts, tuple) or len(self.bursts) != 2:
                raise _bad("bursts", self.bursts, "Pass (steps in a row, steps between two beginnings) or None")
            _whole("bursts[0]", self.bursts[0])
            _whole("bursts[1]", self.bursts[1])
            if self.bursts[0] > self.bursts[1]:
                raise _bad("bursts", self.bursts, "Pass a period that is at least as long as the burst")

    def due(self, step: int) -> bool:
        """Whether the schedule looks at ``step``."""
        if not isinstance(self.schedule, str):
            return step in self.schedule
        powers = self.schedule == "log" and step < self.every and step & (step - 1) == 0
        return step % self.every == 0 or powers

    def weights(self, step: int) -> bool:
        """Whether the weights of ``step`` are kept."""
        if not self.due(step) or self.keep == "all":
            return self.due(step)
        return step == 0 or (isinstance(self.keep, int) and self.order(step) % self.keep == 0)

    def sketch(self, step: int) -> bool:
        """Whether a projection of the weights of ``step`` is kept."""
        return self.burst(step) or (self.keep != "all" and self.due(step))

    def burst(self, step: int) -> bool:
        """Whether ``step`` belongs to a burst: one of its steps in a row, or the point that they start from."""
        if self.bursts is None:
            return False
        count, period = self.bursts
        return step % period <= count or (step > 0 and (step - 1) % period < count)

    def looks(self, step: int) -> bool:
        """Whether the weights of ``step`` are needed for anything."""
        return self.due(step) or self.burst(step)

    def order(self, step: int) -> int:
        """Count the due steps before ``step``, step 0 among them."""
        if not isinstance(self.schedule, str):
            return sum(1 for other in self.schedule if other < step)
        multiples = -(-step // self.every)
        powers = (min(step, self.every) - 1).bit_length() if self.schedule == "log" and step > 0 else 0
        return multiples + powers

    def counts(self, steps: int) -> tuple[int, int]:
        """Return how many weights a run of ``steps`` keeps, the last included, and at most how many projections."""
        if isinstance(self.schedule, str):
            due = self.order(steps + 1)
        else:
            due = sum(1 for step in self.schedule if step <= steps)
        kept = due if self.keep == "all" else 1 if self.keep == "sketches" else -(-due // self.keep)
        kept += not self.weights(steps)
        sketches = 0 if self.keep == "all" else due
        if self.bursts is not None:
            count, period = self.bursts
            sketches += (steps // period) * (count + 1) + min(steps % period, count) + 1
        return kept, min(sketches, steps + 1)


def _whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _bad(name, value, "Pass a whole number of at least 1")


def _bad(name: str, value: object, remedy: str) -> InvalidInput:
    return InvalidInput(explain(f"{name}={value!r} is out of range", "it says which steps are recorded", remedy))
