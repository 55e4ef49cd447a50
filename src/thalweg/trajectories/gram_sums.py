"""Partial results of a Gram, added up in a fixed order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thalweg.errors import InvalidInput, explain
from thalweg.trajectories.gram_result import Grams, facts
from thalweg.trajectories.gram_store import Partial
from thalweg.trajectories.products import Bad
from thalweg.trajectories.tiles import Layout, PartsOf, Source, layout


def combine(
    trajectory: Source,
    partials: Iterable[Partial],
    *,
    parts: PartsOf | None = None,
    fingerprints: tuple[str, ...] | None = None,
) -> Grams:
    """Add the results of tasks to `Grams`, by tensors and ranges in their order, whatever order they come in.

    Args:
        trajectory: What the tasks were made of.
        partials: One result for each of them.
        parts: As given to `tasks`.
        fingerprints: Of the checkpoints, if they are known already.

    Raises:
        InvalidInput: A range is missing, or is there twice.
    """
    layouts = [layout(tensor, parts) for tensor in trajectory.tensors]
    units, points = sum(len(one.labels) for one in layouts), len(trajectory)
    g, c, m = np.empty((units, points - 1, points - 1)), np.empty((units, points - 1)), np.empty(units)
    unchanged, spent, at = np.empty((units, points - 1)), Spent(), 0
    for one, mine in gather(layouts, partials, spent):
        to = at + len(one.labels)
        moments = sum_of([partial.moments for partial in mine])
        g[at:to], c[at:to], m[at:to] = moments[:, 1:, 1:], moments[:, 0, 1:], moments[:, 0, 0]
        unchanged[at:to] = sum_of([partial.unchanged for partial in mine]) / np.maximum(1, one.sizes())[:, None]
        at = to
    return Grams(**described(trajectory, layouts, g, c, m, fingerprints), unchanged=unchanged, **spent.facts())


@dataclass
class Spent:
    """What the partial results have in common, added up."""

    bytes_read: int = 0
    flops: int = 0
    reused: int = 0
    bad: list[Bad] = field(default_factory=list)

    def add(self, partial: Partial) -> None:
        """Count one."""
        self.bytes_read += partial.bytes_read
        self.flops += 0 if partial.reused else partial.flops
        self.reused += partial.reused
        self.bad += partial.bad

    def facts(self) -> dict[str, Any]:
        """As `Grams` names them."""
        own = {"bytes_read": self.bytes_read, "flops": self.flops, "reused": self.reused}
        return {**own, "bad": tuple(self.bad)}


def gather(
    layouts: Sequence[Layout], partials: Iterable[Partial], spent: Spent
) -> Iterator[tuple[Layout, list[Partial]]]:
    """Yield each tensor with its results in the order of their ranges.

    Raises:
        InvalidInput: They do not cover it once, or there are no tensors, or results of others.
    """
    by_name: dict[str, list[Partial]] = {}
    for partial in partials:
        by_name.setdefault(partial.tensor, []).append(partial)
    foreign = [name for name in by_name if name not in {one.name for one in layouts}]
    if foreign or not layouts:
        found = f"There is a result for {foreign[0]!r}" if foreign else "The trajectory has no tensors"
        why = "the trajectory has no such tensor" if foreign else "there is nothing to measure"
        raise InvalidInput(explain(found, why, "Pass the trajectory that the tasks were made of"))
    for one in layouts:
        mine = sorted(by_name.get(one.name, []), key=lambda partial: partial.start)
        ends = [0, *(partial.stop for partial in mine)]
        if [partial.start for partial in mine] != ends[:-1] or ends[-1] != one.numel or not mine:
            ranges = [(partial.start, partial.stop) for partial in mine]
            raise InvalidInput(
                explain(
                    f"The results for {one.name!r} cover the ranges {ranges} of {one.numel} elements",
                    "every element must be there once",
                    "Pass the result of each task once",
                )
            )
        for partial in mine:
            spent.add(partial)
        yield one, mine


def sum_of(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Add in the order given."""
    total = arrays[0]
    for array in arrays[1:]:
        total = total + array
    return total


def fingerprints_of(trajectory: Source) -> tuple[str, ...]:
    """Return the fingerprint of each checkpoint."""
    return tuple(trajectory.fingerprint(index) for index in range(len(trajectory)))


def described(
    trajectory: Source,
    layouts: Sequence[Layout],
    g: np.ndarray,
    c: np.ndarray,
    m: np.ndarray,
    prints: tuple[str, ...] | None,
) -> dict[str, Any]:
    """Return the fields of `Grams` that follow from the trajectory, the tensors and the sums."""
    return {
        **facts(trajectory.steps, layouts, g, c, m),
        "schedule": {name: np.asarray(values) for name, values in trajectory.schedule.items()},
        "fingerprints": prints or fingerprints_of(trajectory),
    }
