"""What a check found, and all of them together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from thalweg.errors import InvalidInput, explain

Status = Literal["ok", "warn", "fail", "skipped"]


@dataclass(frozen=True)
class Check:
    """One question about a problem, and its answer.

    Attributes:
        name: What was checked.
        status: ``ok``; ``warn`` for what needs care; ``fail`` for numbers that would be wrong; ``skipped``.
        value: The number that was measured, usually a relative difference; None where there is none.
        tolerance: What ``value`` may be at most.
        meaning: What was found, in a sentence.
        remedy: What to do; empty where nothing is to be done.
    """

    name: str
    status: Status
    value: float | None
    tolerance: float | None
    meaning: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """The checks in the order in which they ran.

    Attributes:
        checks: One entry each.
        summary: What was examined.
    """

    checks: tuple[Check, ...]
    summary: str

    @property
    def healthy(self) -> bool:
        """Whether nothing failed; warnings do not count."""
        return all(check.status != "fail" for check in self.checks)

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def __getitem__(self, name: str) -> Check:
        for check in self.checks:
            if check.name == name:
                return check
        raise InvalidInput(
            explain(
                f"There is no check {name!r}",
                "a diagnosis holds the checks that were run",
                f"Choose among: {', '.join(check.name for check in self.checks)}",
            )
        )


def judged(name: str, value: float, tolerance: float, good: str, bad: str, remedy: str) -> Check:
    """Return ``ok`` where ``value`` is within ``tolerance``, else ``fail``; NaN is not within."""
    if value <= tolerance:
        return Check(name, "ok", value, tolerance, good)
    return Check(name, "fail", value, tolerance, bad, remedy)
