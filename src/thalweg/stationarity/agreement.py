"""Whether an observable has settled over a window: the same level and the same distribution in all of it.

No single number decides. A trend or a jump that chance does not explain says no, as does a block permutation test
between the two halves; too few effective samples, too few blocks, or quarters whose R-hat is still large leave it
open; what remains has settled as far as this window can tell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from thalweg.stationarity import refusals
from thalweg.stationarity.autocorrelation import Floats, integrated_times, is_constant
from thalweg.stationarity.change import Jump, jump
from thalweg.stationarity.series import (
    BAD,
    Mean,
    RHat,
    effective_size,
    geweke,
    normal_scores,
    refusal,
    split_rhat,
    time_average,
)
from thalweg.stationarity.trend import Trend, line
from thalweg.stationarity.two_sample import BlockTest, block_test, slowest

State = Literal["settled", "falling", "rising", "changed", "open"]
ALPHA = 0.01
"""Of the block test: with tau estimated its true level is nearly twice the nominal one."""
SLOPE = 0.001
"""Of the trend, on normal scores."""
CLEAR = 3.0
"""Errors between the levels of two halves that make a difference between them one of level."""
NOTHING = 1e-12
"""Effect that is rounding: where all blocks are one whole cycle, chance has no scale."""
POINTS = 400
"""Snapshots of a half that the block test looks at, at most twice this."""


@dataclass(frozen=True, eq=False)
class Agreement:
    """What a window says of one observable.

    Attributes:
        name: Of the observable.
        state: ``settled``; ``falling``, ``rising`` or ``changed`` (a distribution that moved without its level);
            ``open``.
        why: What decided, in a sentence.
        n: Snapshots.
        ess: Effective ones; NaN where there are none to speak of.
        tau: Autocorrelation time, in snapshots.
        needed: Snapshots that the window would need for an answer; None where that is not the matter.
        mean: Time average; None of vectors and where refused.
        rhat: Of quarters; None likewise.
        geweke: Tenth at the start against half at the end; None likewise.
        trend: Of normal scores against time; None likewise.
        jump: Of normal scores; None likewise.
        test: Between the halves; None where it was not reached.
    """

    name: str
    state: State
    why: str
    n: int
    ess: float = math.nan
    tau: float = math.nan
    needed: int | None = None
    mean: Mean | None = None
    rhat: RHat | None = None
    geweke: float | None = None
    trend: Trend | None = None
    jump: Jump | None = None
    test: BlockTest | None = None

    def __repr__(self) -> str:
        return f"{self.name}: {self.state}. {self.why}"


def agreement(values: Floats, name: str = "the series", *, permutations: int = 199, seed: int = 0) -> Agreement:
    """Say whether an observable has settled over a window.

    Args:
        values: One row for each snapshot, shape ``(n,)`` or ``(n, k)``, as recorded: NaN may be in it.
        name: What messages call it.
        permutations: Of the block test between halves, 99 or more.
        seed: Of these.

    Returns:
        The answer, with the reason for it. A scalar is judged by normal scores of its values, so that neither heavy
        tails nor a logarithm changes anything.

    Example:
        >>> noise = np.random.default_rng(0).standard_normal(2000)
        >>> agreement(noise).state, agreement(noise - np.arange(2000) / 500).state, agreement(noise.cumsum()).state
        ('settled', 'falling', 'open')
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim == 2:
        return _vector(x, name, permutations, seed)
    n = len(x)
    if not np.isfinite(x).all() or n < refusals.ENOUGH or is_constant(x):
        why = refusal(x, name) or ""
        needed = math.ceil(refusals.ENOUGH) if n < refusals.ENOUGH and np.isfinite(x).all() else None
        return Agreement(name, "open", why, n, needed=needed)

    x = tied(x)
    scores, ess = normal_scores(x), effective_size(x, name)
    found = Agreement(
        name,
        "open",
        "",
        n,
        ess=ess,
        tau=n / ess,
        mean=time_average(x, name),
        rhat=split_rhat(x, name),
        geweke=geweke(x, name=name),
        trend=line(scores, np.arange(float(n)), degree=3),
        jump=jump(scores),
    )
    moved = _moved(found, scores)
    if moved is not None:
        return moved
    if ess < refusals.ENOUGH:
        why = refusals.too_correlated(name, ess, n)
        return replace(found, why=why, needed=n + refusals.missing(ess, n))
    return _halves(found, thinned(x[:, None]), permutations, seed)


def _steady(scores: Floats) -> int:
    """Return -1 or 1 where the means of ten parts fall or rise without exception.

    Ten independent means do so once in 3.6 million times, and those of a random walk about once in a hundred.
    """
    steps = np.sign(np.diff([part.mean() for part in np.array_split(scores, 10)]))
    return int(steps[0]) if (steps == steps[0]).all() else 0


def _moved(found: Agreement, scores: Floats) -> Agreement | None:
    """Return a clear trend or jump; it has to stand out from a rest that is worth enough samples itself."""
    steady = _steady(scores)
    if steady:
        words = f"It {'falls' if steady < 0 else 'rises'} from each tenth of the window to the next"
        return replace(found, state="falling" if steady < 0 else "rising", why=f"{words}.")
    trend, jumped = found.trend, found.jump
    assert trend is not None
    assert jumped is not None
    if trend.p < SLOPE and trend.ess >= refusals.ENOUGH:
        drop = trend.slope * found.n
        words = f"Its trend over the window is {drop:+.2g} standard deviations, p = {trend.p:.1g}"
        return replace(found, state="falling" if trend.slope < 0 else "rising", why=f"{words}.")
    if jumped.clear and jumped.ess >= refusals.ENOUGH:
        place = jumped.place / found.n
        words = f"It jumps by {jumped.size:+.2g} standard deviations {place:.0%} into the window"
        return replace(found, state="falling" if jumped.size < 0 else "rising", why=f"{words}.")
    return None


def _halves(found: Agreement, points: Floats, permutations: int, seed: int) -> Agreement:
    """Test the halves against each other, on thinned snapshots, and then hear R-hat."""
    stride = max(1, round(found.n / len(points)))
    half = len(points) // 2
    a, b = points[-2 * half : -half], points[-half:]
    test = block_test(a, b, permutations=permutations, scale="ranks", seed=seed, name=found.name)
    found = replace(found, test=test)
    if test.refused is not None:
        return replace(found, why=test.refused, needed=2 * test.needed * stride)
    if test.p <= ALPHA and test.effect > NOTHING:
        state: State = "changed"
        apart = _apart(a, b) if found.mean is not None else 0.0
        if abs(apart) > CLEAR:
            state = "rising" if apart > 0 else "falling"
        words = f"Its halves differ: p = {test.p:.2g} by blocks of {test.block * stride}, effect {test.effect:.2g}"
        return replace(found, state=state, why=f"{words}.")
    words = f"Its halves agree: p = {test.p:.2g} by blocks of {test.block * stride}, effect {test.effect:.2g}"
    if found.rhat is not None and found.rhat.worst > BAD:
        # chance alone brings R-hat to about 1 + tau / (2 N) in quarters of N
        more = math.ceil(4 * found.tau / (2 * (BAD - 1)))
        why = f"{words}, but quarters do not yet (R-hat {found.rhat.worst:.3f})."
        return replace(found, why=why, needed=max(found.n + found.n // 2, more))
    return replace(found, state="settled", why=f"{words}.")


def _apart(a: Floats, b: Floats) -> float:
    """Return the difference of the mean normal scores of two halves, over its error."""
    scores = normal_scores(np.concatenate([a[:, 0], b[:, 0]]))
    means = [time_average(part) for part in (scores[: len(a)], scores[len(a) :])]
    return (means[1].value - means[0].value) / math.hypot(*(mean.standard_error for mean in means))


def _vector(x: Floats, name: str, permutations: int, seed: int) -> Agreement:
    """Judge a sketch: one tau for all of it, and the block test between halves."""
    n = len(x)
    good = np.isfinite(x).all(axis=1)
    if not good.all():
        why = refusals.not_finite(name, int((~good).sum()), n, int((~good).argmax()))
        return Agreement(name, "open", why, n)
    if n < refusals.ENOUGH:
        return Agreement(name, "open", refusals.too_few(name, n), n, needed=math.ceil(refusals.ENOUGH))
    moving = ~np.atleast_1d(is_constant(x))
    if not moving.any():
        return Agreement(name, "open", refusals.constant(name, float(x[0, 0])), n)
    x = tied(x[:, moving])
    scores = normal_scores(x)
    half = n // 2
    tau = max(1.0, slowest(scores[-2 * half : -half], scores[-half:]))  # about centres of their own: a shift shows
    whole = max(tau, float(np.nanmax(integrated_times(x))))  # about one centre: a drift counts
    found = Agreement(name, "open", "", n, ess=n / whole, tau=whole)
    if n / tau >= refusals.ENOUGH:
        tested = _halves(found, thinned(x), permutations, seed)
        if tested.state == "changed" or n / whole >= refusals.ENOUGH:
            return tested
    why = refusals.too_correlated(name, n / whole, n)
    return replace(found, why=why, needed=n + refusals.missing(n / whole, n))


def tied(x: Floats) -> Floats:
    """Return values on a grid of a billionth of their spread: an exact cycle repeats, and rounding must not rank it.

    Args:
        x: Shape ``(n,)`` or ``(n, k)``: each column on its own.

    Example:
        >>> len(set(tied(np.array([1.0, 2.0, 1.0 + 1e-15, 2.0, 3.0]))))
        3
    """
    low, middle, high = np.quantile(x, [0.1, 0.5, 0.9], axis=0)
    spread = np.where(high > low, high - low, x.std(axis=0))
    grid = np.where(spread > 0, 1e-9 * spread, 1.0)
    return np.asarray(middle + np.round((x - middle) / grid) * grid)


def thinned(x: Floats, most: int = 2 * POINTS) -> Floats:
    """Return every s-th snapshot, s odd, so that about ``most`` are left and no oscillation of period two is lost.

    Args:
        x: Shape ``(n, k)``.
        most: Snapshots wanted.

    Example:
        >>> thinned(np.arange(2000.0)[:, None], 500).shape  # every fifth
        (400, 1)
    """
    stride = -(-len(x) // most)
    return x[:: stride + (stride % 2 == 0)]
