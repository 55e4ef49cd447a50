"""The first rise of a noisy function of one variable, by few evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from thalweg.errors import InvalidInput, explain


class CrossingStop(StrEnum):
    """Why a search for the first rise ended; the value is a sentence that says what to try."""

    CONVERGED = "The function was seen on either side of its start, within the tolerance."
    NEVER_RISES = "The function did not rise as far as it was followed."
    RISES_AT_ONCE = "The function rises from the start: the direction does not descend."
    BUDGET = "The evaluations ran out: raise max_evaluations, loosen tol, or pass a guess."
    ROUNDING = "Changes are as small as rounding: evaluate in a wider dtype (problem.in_dtype), or loosen tol."

    @property
    def converged(self) -> bool:
        """Whether this is an answer; a function without a rise, or without a fall, is one."""
        return self not in (CrossingStop.BUDGET, CrossingStop.ROUNDING)


@dataclass(frozen=True)
class Crossing:
    """Where a function with ``f(0) = 0`` is back at zero for the first time.

    Attributes:
        root: The crossing; infinite if it never rises, 0 if it rises at once.
        bracket: ``(low, high)`` with ``f(low) < -noise`` and ``f(high) > noise`` as seen; 0 or infinite where not seen.
        points: Every ``(x, f(x))`` evaluated, by ``x``.
        stop: Why the search ended.
    """

    root: float
    bracket: tuple[float, float]
    points: tuple[tuple[float, float], ...]
    stop: CrossingStop


def first_rise(
    function: Callable[[float], float],
    first: float,
    *,
    slope: float | None = None,
    tol: float = 0.01,
    max_evaluations: int = 8,
    largest: float = math.inf,
    noise: float = 0.0,
    confident: bool = False,
) -> Crossing:
    r"""Find the smallest ``x > 0`` with ``f(x) >= 0`` for a function that starts at ``f(0) = 0`` and falls.

    The secant slope ``s(x) = f(x) / x`` has the same sign without the root at zero, and is a straight line where ``f``
    is a quadratic: two values of it (or one and ``s(0) = f'(0)``) give the crossing. Once there is a bracket, the next
    points lie a little beyond the predicted crossing, on the side that closes it. The first crossing on the points
    that were visited is returned; an earlier one between them cannot be excluded.

    Args:
        function: ``f``, with absolute errors up to ``noise``; infinite or NaN counts as risen.
        first: Where to evaluate first, positive.
        slope: ``-f'(0)``, if known.
        tol: Relative width of the bracket to reach.
        max_evaluations: Budget.
        largest: Do not look beyond.
        noise: Values within ``noise`` of zero have no sign.
        confident: Whether ``first`` is near the crossing, so that the second point stays close to it.

    Returns:
        A `Crossing`, with the crossing interpolated inside the bracket.

    Raises:
        InvalidInput: An argument is out of range.

    Example:
        >>> found = first_rise(lambda x: -3 * x + x**2, first=0.1)
        >>> round(found.root, 9), found.stop.name
        (3.0, 'CONVERGED')
    """
    good = 0 < first < math.inf and 0 < tol < 1 and max_evaluations >= 1 and largest > 0 and noise >= 0
    if not good:
        raise InvalidInput(
            explain(
                f"The search got a first point {first}, tol {tol}, {max_evaluations} evaluations, "
                f"a limit of {largest}, noise {noise}",
                "it starts at a positive point, with 0 < tol < 1, room for an evaluation and noise >= 0",
                "Correct the argument that breaks this",
            )
        )
    search = _Search(slope, tol, noise, largest, 1.25 if confident else 8.0)
    x = min(first, largest)
    for _ in range(max_evaluations):
        value = function(x)
        search.add(x, math.inf if math.isnan(value) else value)
        stop = search.verdict()
        if stop is not None:
            return search.result(stop)
        x = search.propose()
    return search.result(search.exhausted())


_SHARE = 0.45
"""Distance of a closing point from the predicted crossing, in units of the tolerance."""


class _Search:
    def __init__(self, slope: float | None, tol: float, noise: float, largest: float, step: float) -> None:
        self.slope, self.tol, self.noise, self.largest, self.step = slope, tol, noise, largest, step
        self.points: list[tuple[float, float]] = []
        self.widths: list[float] = []
        self.predicted: float | None = None

    def add(self, x: float, value: float) -> None:
        self.points = sorted([*self.points, (x, value)])
        if self.bracketed:
            self.widths.append(math.log(self.high / self.low))

    @property
    def high(self) -> float:
        """The smallest point that was seen to have risen."""
        return min((x for x, f in self.points if f > self.noise), default=math.inf)

    @property
    def low(self) -> float:
        """The largest point before it that was seen to have fallen."""
        return max((x for x, f in self.points if f < -self.noise and x < self.high), default=0.0)

    @property
    def flat(self) -> list[float]:
        """Points without a sign between the two."""
        return [x for x, f in self.points if abs(f) <= self.noise and self.low < x < self.high]

    @property
    def bracketed(self) -> bool:
        return self.low > 0 and self.high < math.inf

    def verdict(self) -> CrossingStop | None:
        """Whether to stop now, and why."""
        low, high = self.low, self.high
        if self.slope is not None and self.slope <= 0:
            return CrossingStop.RISES_AT_ONCE
        if self.bracketed:
            if high <= low * (1 + self.tol):
                return CrossingStop.CONVERGED
            return CrossingStop.ROUNDING if self.flat and self.blur() > _SHARE * self.tol else None
        if high == math.inf:
            return CrossingStop.NEVER_RISES if self.points[-1][0] >= self.largest else None
        if self.flat and high <= 4 * max(self.flat) and min(self.flat) <= 0.5 * max(self.flat):
            return CrossingStop.ROUNDING  # whatever dip there is before the rise is too shallow to see
        return CrossingStop.RISES_AT_ONCE if self.straight_up() else None

    def straight_up(self) -> bool:
        """Whether three risen points extrapolate to a positive slope at zero: ``s`` is nearly constant there."""
        secants = [(x, f / x) for x, f in self.points if f < math.inf]
        if self.slope is not None or len(secants) < 3 or self.flat:
            return False
        (a, sa), (b, sb) = secants[:2]
        intercept = sa - a * (sb - sa) / (b - a)
        return intercept > 0.5 * sa

    def exhausted(self) -> CrossingStop:
        """Why the search has failed once the budget is spent."""
        if self.high == math.inf:
            return CrossingStop.NEVER_RISES if self.low > 0 else CrossingStop.ROUNDING
        if self.low == 0 and self.slope is None and not self.flat:
            return CrossingStop.RISES_AT_ONCE
        return CrossingStop.BUDGET

    def blur(self) -> float:
        """Relative error of the crossing that ``noise`` makes: ``noise / (x f'(x))``, with ``f' = x s'`` there."""
        known = dict(self.points)
        rise = (known[self.high] / self.high - known[self.low] / self.low) / (self.high - self.low)
        return self.noise / (rise * self.low**2) if rise < math.inf else 0.0

    def secants(self) -> list[tuple[float, float]]:
        """Points ``(x, s(x))`` that can be interpolated, those nearest to the crossing first."""
        known = [(x, f / x) for x, f in self.points if math.isfinite(f) and abs(f) > self.noise]
        known.sort(key=lambda p: abs(p[1]))
        if self.bracketed:  # the two ends first
            known.sort(key=lambda p: p[0] not in (self.low, self.high))
        return [*known, (0.0, -self.slope)] if self.slope is not None else known

    def predict(self) -> float | None:
        """The crossing of a parabola in the bracket, or else of a line, through the secant slopes nearest to it."""
        near = self.secants()
        low, high = (self.low, self.high) if self.bracketed else (0.0, math.inf)
        if self.bracketed and len(near) >= 3:
            inside = [root for root in _parabola(near[:3]) if low < root < high]
            if inside:
                return min(inside)
        if len(near) < 2:
            return None
        (a, sa), (b, sb) = near[:2]
        rise = (sb - sa) / (b - a)
        root = a - sa / rise if rise > 0 else math.inf
        return root if low < root < high else None

    def propose(self) -> float:
        """The next point."""
        root, margin = self.predict(), 1 + _SHARE * self.tol
        if self.bracketed:
            return self.inside(root, margin)
        if self.low > 0:  # fallen, not yet risen
            top = max(x for x, _ in self.points)
            target = self.step * top if root is None else max(root * margin, top * (1 + self.tol))
            if root is not None and self.predicted is not None and root > 1.2 * self.predicted:
                target = max(target, 2 * top)  # the curve bends down: predictions creep up
            self.step, self.predicted = 8.0, root
            target = min(target, 32 * top)
            return min(target, self.largest)
        if self.high < math.inf and not self.flat:  # risen, not yet fallen
            target = self.high / self.step if root is None else max(root / margin, self.high / 64)
            self.step = 8.0
            return min(target, self.high / (1 + 2 * _SHARE * self.tol))
        if self.high < math.inf:  # from unseen to risen; at the crossing itself nothing is seen, but halfway there is
            return math.sqrt(max(self.flat) * self.high) if self.high > 4 * max(self.flat) else 0.5 * max(self.flat)
        return min(8 * self.points[-1][0], self.largest)

    def inside(self, root: float | None, margin: float) -> float:
        """The next point of a bracket: beyond the predicted crossing, or its middle if that has not helped."""
        low, high = self.low, self.high
        middle = math.sqrt(low * high)
        slow = len(self.widths) >= 4 and self.widths[-1] > 0.5 * self.widths[-4]
        if root is None or (slow and self.widths[-1] > 4 * self.tol):
            return middle
        close = 1 + 2 * _SHARE * self.tol
        if root <= low * margin * (1 + 1e-12):
            point = low * close
        elif high <= root * margin * (1 + 1e-12):
            point = high / close
        else:
            point = root * margin if high / root > root / low else root / margin
        return point if low < point < high else middle

    def result(self, stop: CrossingStop) -> Crossing:
        """Put together what was seen."""
        low, high = self.low, self.high
        if stop is CrossingStop.NEVER_RISES:
            root = math.inf
        elif stop is CrossingStop.RISES_AT_ONCE:
            low = root = 0.0
        elif self.bracketed:
            root = self.predict() or math.sqrt(low * high)
        else:
            start = max(self.flat, default=min(x for x, _ in self.points) / 2)
            root = math.sqrt(start * high) if high < math.inf else math.inf
        return Crossing(root, (low, high), tuple(self.points), stop)


def _parabola(points: list[tuple[float, float]]) -> list[float]:
    """Real roots of the parabola through three points."""
    (a, fa), (b, fb), (c, fc) = points
    first, second = (fb - fa) / (b - a), (fc - fb) / (c - b)
    bend = (second - first) / (c - a)
    tangent = first + bend * (a - b)  # derivative at a
    # f(a + t) = fa + tangent t + bend t^2, solved without cancellation
    inside = tangent * tangent - 4 * bend * fa
    if inside < 0:
        return []
    q = -0.5 * (tangent + math.copysign(math.sqrt(inside), tangent))
    return [a + t for t in ((fa / q) if q else math.nan, (q / bend) if bend else math.nan) if math.isfinite(t)]
