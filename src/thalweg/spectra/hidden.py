"""Whether a spectrum holds more than one Krylov space can see: copies of repeated eigenvalues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thalweg.spectra.krylov import TOUCH, Krylov
from thalweg.spectra.task import SMALL, Array, Task

MISS = 1e-3
"""Largest probability with which a repeated eigenvalue may be missed."""
REACH = 0.05
"""How far beyond the wanted values to look for what a start may have missed, in units of the norm."""
STEPS = 64
"""Products after which a look ends, whatever is still possible."""


@dataclass(frozen=True)
class Edges:
    """Beyond ``bounds`` a value belongs to the result; at ``levels`` or beyond a copy is looked for.

    A copy of the last wanted value changes nothing, so a level is the value before it.
    """

    bounds: tuple[float, float]
    levels: tuple[float, float]

    @classmethod
    def of(cls, task: Task, values: Array, norm: float, reach: float = 0.0) -> Edges:
        """The edges for wanted ``values``.

        Args:
            task: Which end or ends.
            values: What was found.
            norm: Largest magnitude in the spectrum.
            reach: Where there is no value before the last one: how far beyond it to look, in units of ``norm``.
                Zero looks for copies only.
        """
        slack = 4 * task.tol * max(norm * SMALL, float(np.abs(values).min())) + 8 * norm * task.eps
        ordered = np.sort(values)
        low, high = -np.inf, np.inf
        if task.which == "largest":
            high = float(ordered[0])
        elif task.which == "smallest":
            low = float(ordered[-1])
        elif task.which == "both":
            end = min(task.k, len(ordered))
            low, high = float(ordered[end - 1]), float(ordered[-end])
        else:
            high = float(np.abs(ordered).min())
            low = -high
        above, below = ordered[ordered > high + slack], ordered[ordered < low - slack]
        level_high = float(above[0]) if len(above) else high + reach * norm if reach else np.inf
        level_low = float(below[-1]) if len(below) else low - reach * norm if reach else -np.inf
        return cls((low - slack, high + slack), (level_low, level_high))

    def beyond(self, values: Array) -> list[int]:
        """Positions of values that belong to the result."""
        return np.flatnonzero((values < self.bounds[0]) | (values > self.bounds[1])).tolist()


class _Mass:
    r"""How much of the starting vector can lie at or beyond a level, given the Lanczos coefficients so far.

    With the orthonormal polynomials of the vector's spectral measure, an eigenvalue at ``t`` has a mass of at most
    ``1 / sum_i p_i(t)^2`` (Bessel's inequality for the indicator of ``t``; the right side is the Christoffel number).
    Beyond all Ritz values the sum grows with ``|t|``, so the level is the worst case.
    """

    def __init__(self, level: float) -> None:
        self.level = level
        self.now, self.before, self.beta, self.total = 1.0, 0.0, 0.0, 1.0

    def advance(self, alpha: float, beta: float) -> None:
        """Take in one more step of the recurrence ``beta' p' = (t - alpha) p - beta p_before``."""
        if beta <= 0.0 or not np.isfinite(self.total):
            self.total = np.inf
            return
        following = ((self.level - alpha) * self.now - self.beta * self.before) / beta
        self.before, self.now, self.beta = self.now, following, beta
        self.total += following * following

    def chance(self, dimension: int) -> float:
        """Largest probability that a random vector in ``dimension`` dimensions has so little along an eigenvector."""
        return float(np.sqrt(2 * dimension / np.pi / self.total))


def look(
    task: Task, known: Sequence[Tensor | None], edges: Edges, generator: torch.Generator, basis: int | None = None
) -> tuple[Tensor | None, float]:
    """Run Lanczos from a random vector in the complement of ``known`` until nothing can hide there.

    Args:
        task: The operator.
        known: Blocks of orthonormal rows, orthonormal together: what has been seen.
        edges: What is looked for.
        generator: Source of the vector.
        basis: Vectors that may be kept at once; with fewer, more may be missed.

    Returns:
        A vector with much of what was hidden, or None, and the probability that something was missed.
    """
    masses = [_Mass(level) for level in edges.levels if np.isfinite(level)]
    free = task.operator.size - sum(len(block) for block in known if block is not None)
    if free <= 0 or not masses:
        return None, 0.0
    probe = Krylov(task.operator, min(STEPS, free, basis or STEPS), generator, *known)
    probe.begin(None)
    chance = 1.0
    while probe.size < probe.capacity and task.spent < task.budget:
        probe.expand()
        seen, coordinates, _ = probe.ritz()
        beyond = edges.beyond(seen)
        if beyond:
            return probe.vectors(coordinates[:, beyond]).sum(dim=0), 1.0
        if probe.room == 0:
            return None, 0.0
        for mass in masses:
            mass.advance(float(probe.matrix[probe.size - 1, probe.size - 1]), probe.beta)
        chance = min(sum(mass.chance(free) for mass in masses), 1.0)
        if chance < MISS:
            break
    return None, chance


def start_saw_all(task: Task, space: Krylov, values: Array, norm: float) -> bool:
    """Whether a run from a given start would have seen anything that stands out from ``values``.

    The start has a touch of a random vector, so an eigenvector has some of it with a known probability; what can be
    left at a level, the coefficients of the run itself say. No product is needed. Levels are beyond the ends, and
    between wanted values that lie apart.
    """
    if not space.whole:
        return False
    ordered = np.sort(values)
    reach = REACH * norm
    levels = []
    if task.which != "smallest":
        levels.append(ordered[-1] + reach)
    if task.which != "largest":
        levels.append(ordered[0] - reach)
    apart = np.flatnonzero(np.diff(ordered) > 2 * reach)
    if task.which in ("largest", "smallest"):
        levels += [(ordered[i] + ordered[i + 1]) / 2 for i in apart]
    chance = 0.0
    for level in levels:
        mass = _Mass(float(level))
        for j in range(space.size):
            beta = space.matrix[j + 1, j] if j + 1 < space.size else space.beta
            mass.advance(float(space.matrix[j, j]), float(beta))
        chance += mass.chance(task.room) / TOUCH
    return chance < MISS
