"""Where indicators on a grid turn from no to yes: many searches in step, with doubts about monotonicity."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Ask = Callable[[list[tuple[int, int]]], list[bool]]
"""Answers many questions at once: is the indicator of this seed true at this point of the grid?"""


WALK = 4
"""Points asked at a time where all are; those beyond the first true one are for nothing."""


@dataclass(frozen=True)
class Turn:
    """The first point of a grid where an indicator is true.

    Attributes:
        low: Last point before it, where it is false; None where it is true at the lowest point already.
        high: First point where it is true; None where it is false up to the last point.
        fallback: Whether answers contradicted a single turn, so that every point was asked from the lowest on.
        asked: How many points were asked.
    """

    low: int | None
    high: int | None
    fallback: bool
    asked: int


@dataclass
class _Search:
    """One seed's: all that is known, and what to ask next."""

    start: int
    lowest: int
    highest: int
    probes: int
    near: int = 0
    growth: int = 2
    known: dict[int, bool] = field(default_factory=dict)
    stride: int = 1
    done: int = 0
    """Probes so far."""
    walking: bool = False
    """Whether every point is asked, from the lowest on."""
    looked: bool = False
    """Whether the neighbourhood below the turn has been asked."""

    @property
    def low(self) -> int | None:
        """Last point known to be false below the first that is known to be true."""
        high = self.high
        return max((k for k, yes in self.known.items() if not yes and (high is None or k < high)), default=None)

    @property
    def high(self) -> int | None:
        return min((k for k, yes in self.known.items() if yes), default=None)

    @property
    def contradicted(self) -> bool:
        high = self.high
        return high is not None and any(k > high for k, yes in self.known.items() if not yes)

    def next(self) -> list[int]:
        """The next points to ask, none when done."""
        if self.contradicted:
            self.walking = True
        if self.walking:
            return self._walk()
        one = self._halve()
        if one is None and not self.looked:
            self.looked = True
            top = self.highest + 1 if self.high is None else self.high
            some = [k for k in range(max(self.lowest, top - self.near), top) if k not in self.known]
            if some:
                return some
        if one is None:
            one = self._probe()
        return [] if one is None else [one]

    def _halve(self) -> int | None:
        """The next point on the way to a bracket of neighbours, or None where there is one."""
        low, high = self.low, self.high
        if low is None and high is None:
            return min(max(self.start, self.lowest), self.highest)
        if high is None:
            assert low is not None
            return self._stride(low, up=True) if low < self.highest else None
        if low is None:
            return self._stride(high, up=False) if high > self.lowest else None
        return (low + high) // 2 if high - low > 1 else None

    def _stride(self, edge: int, *, up: bool) -> int:
        """A point beyond the edge, each time ``growth`` times as far."""
        step, self.stride = self.stride, self.growth * self.stride
        return min(edge + step, self.highest) if up else max(edge - step, self.lowest)

    def _probe(self) -> int | None:
        """A point below the turn where false is taken for granted: the nearest, then the middle of the widest gap."""
        if self.done >= self.probes:
            return None
        self.done += 1
        top = self.highest + 1 if self.high is None else self.high
        unknown = [k for k in range(self.lowest, top) if k not in self.known]
        if not unknown or self.done % 2:
            return unknown[-1] if unknown else None
        points = [self.lowest - 1, *sorted(k for k in self.known if k <= top), top]
        return max((b - a, (a + b) // 2) for a, b in itertools.pairwise(points))[1]

    def _walk(self) -> list[int]:
        some: list[int] = []
        for k in range(self.lowest, self.highest + 1):
            if self.known.get(k) or len(some) == WALK:
                break
            if k not in self.known:
                some.append(k)
        return some

    def turn(self) -> Turn:
        high = self.high
        low = None if high == self.lowest else (self.highest if high is None else high - 1)
        return Turn(low, high, self.walking, len(self.known))


def first_true(
    ask: Ask,
    start: Sequence[int],
    *,
    lowest: int | Sequence[int],
    highest: int | Sequence[int],
    known: Sequence[dict[int, bool]] | None = None,
    stride: int = 1,
    probes: int = 1,
    near: int = 0,
    growth: int = 2,
) -> list[Turn]:
    """Find, for every seed, the first grid point where an indicator is true, by few questions.

    Each search strides from its start until it has a bracket, with steps that grow, and halves it. All searches ask
    in step, so that their questions can be answered together. The answer is the first true point if there is a single
    turn from false to true. Whether there is, is checked on all that was asked, on what is known from elsewhere, and on
    ``probes`` more points below the turn, near it and in the widest gaps by turns; where a false point lies above a
    true one, every point is asked from the lowest on, a few at a time. A turn and return between two points that were
    asked is not seen.

    Args:
        ask: Answers a list of ``(seed's place, grid point)``.
        start: Where each search begins.
        lowest: First point of the grid.
        highest: Last point of the grid, the same for all or one per seed.
        known: Answers known before, per seed.
        stride: First step away from the start.
        probes: Points to check monotonicity at, beyond the search's own.
        near: Points right below the turn that are all asked, at once.
        growth: Factor from one stride to the next; with 1, no island wider than a stride is missed on the way up.

    Returns:
        One `Turn` per seed.

    Example:
        >>> asked = []
        >>> def ask(points):
        ...     asked.extend(points)
        ...     return [k >= (23, 31)[seed] for seed, k in points]
        >>> [turn.high for turn in first_true(ask, [16, 16], lowest=0, highest=100)], len(asked) < 25
        ([23, 31], True)
    """
    count = len(start)
    lows = [lowest] * count if isinstance(lowest, int) else list(lowest)
    tops = [highest] * count if isinstance(highest, int) else list(highest)
    before = [{} for _ in start] if known is None else known
    searches = [
        _Search(s, low, top, probes, near, growth, {k: v for k, v in b.items() if low <= k <= top}, stride)
        for s, low, top, b in zip(start, lows, tops, before)
    ]
    open_ = list(range(count))
    while open_:
        questions = [(i, k) for i in open_ for k in searches[i].next()]
        for (i, k), yes in zip(questions, ask(questions) if questions else []):
            searches[i].known[k] = bool(yes)
        open_ = list(dict.fromkeys(i for i, _ in questions))
    return [search.turn() for search in searches]
