"""Learning rates as functions of the step, counted from zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from thalweg.errors import InvalidInput, explain

Schedule: TypeAlias = Callable[[int], float]


def _check(name: str, **values: float) -> None:
    bad = {key: value for key, value in values.items() if not (math.isfinite(value) and value >= 0)}
    if bad:
        raise InvalidInput(
            explain(f"{name} got {bad}", "a schedule is finite and not negative", "Correct the argument")
        )


@dataclass(frozen=True)
class Constant:
    """``eta(t) = lr``."""

    lr: float

    def __post_init__(self) -> None:
        _check("Constant", lr=self.lr)

    def __call__(self, step: int) -> float:
        """Return the rate of update number ``step``."""
        return self.lr


@dataclass(frozen=True)
class Cosine:
    """``eta(t) = floor + (peak - floor) (1 + cos(pi t / steps)) / 2``, and ``floor`` after ``steps``."""

    peak: float
    steps: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check("Cosine", peak=self.peak, steps=self.steps - 1, floor=self.floor)

    def __call__(self, step: int) -> float:
        """Return the rate of update number ``step``."""
        share = min(step / self.steps, 1.0)
        return self.floor + (self.peak - self.floor) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class Warmup:
    """Linear from ``start`` to ``then(0)`` over ``steps``, then ``then`` from its own step zero.

    Example:
        >>> eta = Warmup(steps=4, then=Constant(0.4))
        >>> [round(eta(t), 3) for t in range(6)]
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.4]
    """

    steps: int
    then: Schedule
    start: float = 0.0

    def __post_init__(self) -> None:
        _check("Warmup", steps=self.steps - 1, start=self.start)

    def __call__(self, step: int) -> float:
        """Return the rate of update number ``step``."""
        if step >= self.steps:
            return self.then(step - self.steps)
        return self.start + (self.then(0) - self.start) * step / self.steps


@dataclass(frozen=True)
class Step:
    """``eta(t) = initial gamma^floor(t / every)``."""

    initial: float
    gamma: float
    every: int

    def __post_init__(self) -> None:
        _check("Step", initial=self.initial, gamma=self.gamma, every=self.every - 1)

    def __call__(self, step: int) -> float:
        """Return the rate of update number ``step``."""
        return float(self.initial * self.gamma ** (step // self.every))
