"""What the loss alone tells where sharpness was not measured: oscillations of period two, rests, noise."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thalweg.phases.partition import partition
from thalweg.phases.regimes_labels import MOVED
from thalweg.phases.regimes_turns import DOUBLING, noise

if TYPE_CHECKING:
    from thalweg.phases.regimes_result import Regimes

Floats = NDArray[np.float64]
Steps = NDArray[np.int64]

WINDOW = 64
"""Steps of a window in which an oscillation is looked for."""
ALTERNATES = 0.6
"""Correlation at lag two beyond which the loss alternates; noise without memory has 1/6, a smooth curve about 0."""
RISING = 0.3
"""Share of steps at which the loss must rise."""
LEAST = 1e-6
"""Size of an oscillation that is seen, as a share of the loss."""
EARLY = 16
"""Steps that belong to the start."""
GRID = 80


@dataclass(frozen=True)
class LossSigns:
    """What a loss tells by itself.

    Attributes:
        bounces: First and last step of each stretch in which it goes up and down at every other step.
        rests: First and last step of each stretch after the start in which it stays within 10 % while the time since
            the start doubles at least.
        jitter: Median size of single steps, relative, where they look like noise without memory from the start on; 0
            elsewhere.
        dense: Whether the loss was recorded at successive steps, long enough for an oscillation to be seen.
    """

    bounces: tuple[tuple[int, int], ...]
    rests: tuple[tuple[int, int], ...]
    jitter: float
    dense: bool


def loss_signs(loss: ArrayLike, steps: ArrayLike | None = None) -> LossSigns:
    r"""Look for what a loss tells without sharpness.

    With ``h_t = l_t - (l_{t-1} + l_{t+1}) / 2`` of its logarithm, an oscillation of period two has a correlation of
    ``h_t`` and ``h_{t+2}`` near 1, as at the edge of stability of gradient descent, whose unstable direction turns its
    sign at each step. Noise without memory has 1/6 there, so that mini-batches are not taken for it. Rests are straight
    pieces of the logarithm of the loss over that of time.

    Args:
        loss: ``(n,)``, finite at the start; what is not finite, and all behind it, is left out.
        steps: ``(n,)``, increasing; default ``0, 1, ...``.

    Returns:
        `LossSigns`.

    Example:
        >>> t = np.arange(2000)
        >>> loss = np.exp(-t / 1000) * np.where((t > 999) & (t % 2 == 1), 1.01, 1.0)
        >>> loss_signs(loss).bounces
        ((1024, 1999),)
    """
    values = np.asarray(loss, dtype=np.float64)
    at = np.arange(len(values)) if steps is None else np.asarray(steps, dtype=np.int64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        values, at = values[: bad[0]], at[: bad[0]]
    positive = len(values) > 0 and bool((values > 0).all())
    curve = np.log(values) if positive else values / max(float(np.abs(values).max(initial=0.0)), 1e-300)
    bounces, jitter, dense = _windows(curve, at)
    return LossSigns(bounces, _rests(curve / np.log(10), at) if positive else (), jitter, dense)


def _windows(curve: Floats, at: Steps) -> tuple[tuple[tuple[int, int], ...], float, bool]:
    """Return stretches of period two, the noise of single steps, and whether there was a window at all."""
    whole = range(0, len(curve) - WINDOW + 1, WINDOW)
    starts = [s for s in whole if at[s + WINDOW - 1] - at[s] == WINDOW - 1]  # successive steps only
    states: list[str] = []
    for s in starts:
        piece = curve[s : s + WINDOW]
        h = piece[1:-1] - (piece[:-2] + piece[2:]) / 2
        square = float(h @ h)
        rising = float((np.diff(piece) > 0).mean()) >= RISING and square > len(h) * LEAST**2
        twice = float(h[2:] @ h[:-2]) / square if rising else 0.0
        states.append("calm" if not rising else "bounces" if twice > ALTERNATES else "noise")
    for k in range(1, len(states) - 1):  # one window of another kind does not part a stretch
        if states[k - 1] == states[k + 1] == "bounces":
            states[k] = "bounces"
    found, k = [], 0
    for state, group in groupby(states):
        size = len(list(group))
        if state == "bounces" and size > 1:
            found.append((int(at[starts[k]]), int(at[min(starts[k + size - 1] + WINDOW, len(at)) - 1])))
        k += size
    noisy = len(states) > 1 and states.count("noise") > 0.8 * len(states) and states[0] == "noise"
    jitter = float(np.median(np.abs(np.diff(curve)))) if noisy else 0.0
    return _joined(found, at), jitter, len(starts) > 1


def _joined(found: list[tuple[int, int]], at: Steps) -> tuple[tuple[int, int], ...]:
    """Let a stretch that ends less than a window before the last step reach it."""
    if found and len(at) and at[-1] - found[-1][1] < WINDOW:
        found[-1] = (found[-1][0], int(at[-1]))
    return tuple(found)


def _rests(y: Floats, at: Steps) -> tuple[tuple[int, int], ...]:
    """Return where the logarithm of the loss hardly changes while time doubles, from medians over logarithmic bins."""
    x = np.log10(1.0 + at - at[0]) if len(at) else np.empty(0)
    if len(x) < 4 or x[-1] < np.log10(1 + EARLY):
        return ()
    place = np.minimum((x / x[-1] * GRID).astype(int), GRID - 1)
    bins = np.unique(place)
    middle = np.array([np.median(x[place == b]) for b in bins])
    level = np.array([np.median(y[place == b]) for b in bins])
    grid = np.linspace(middle[0], middle[-1], GRID)
    values = np.interp(grid, middle, level)
    cut = partition(grid, values, penalty=9 * noise(middle, level) ** 2 * np.log(GRID))
    flat = [
        (grid[i], grid[j - 1])
        for (i, j), (slope, _) in zip(zip(cut.bounds, cut.bounds[1:]), cut.lines)
        if abs(slope) * (grid[j - 1] - grid[i]) <= MOVED
    ]
    step, found = grid[1] - grid[0], list[tuple[float, float]]()
    for begin, end in flat:
        if found and begin - found[-1][1] < 1.5 * step:
            found[-1] = (found[-1][0], end)
        else:
            found.append((begin, end))
    kept = []
    for begin, end in found:
        begin = max(begin, float(np.log10(1 + EARLY)))
        inside = (grid >= begin) & (grid <= end)
        if end - begin < DOUBLING or inside.sum() < 4:
            continue
        slope = float(np.polyfit(grid[inside], values[inside], 1)[0])
        if abs(slope) * (end - begin) <= MOVED:
            kept.append((int(at[0] + np.round(10**begin - 1)), int(at[0] + np.round(10**end - 1))))
    return tuple(kept)


def loss_words(regimes: Regimes) -> list[str]:
    """Return what the loss of a run without sharpness tells, in sentences, and what to do next."""
    curves = regimes.curves
    signs = loss_signs(curves.loss, curves.steps)
    told = []
    if signs.bounces:
        where = [f"{begin:,}-{end:,}" for begin, end in signs.bounces[:5]]
        more = f" ({len(signs.bounces) - 5} more such stretches)" if len(signs.bounces) > 5 else ""
        told.append(
            f"Steps {_listed(where)}{more}: the loss goes up and down at every other step, as at the edge of stability"
            f"{_threshold(regimes, signs.bounces[0][0])}; two batches that take turns do that as well."
        )
    for begin, end in signs.rests[:3]:
        after = curves.loss[(curves.steps > end) & np.isfinite(curves.loss)]
        here = curves.loss[(curves.steps >= begin) & (curves.steps <= end)]
        fell = len(after) and after[-1] < 0.9 * np.median(here)
        rest = f", and falls to {100 * after[-1] / np.median(here):.2g}% of that later" if fell else ""
        told.append(f"Steps {begin:,}-{end:,}: the loss stays within 10%{rest}.")
    early = [e for e in regimes.catapults if e.opened <= EARLY and e.closed is not None]
    if early:
        told.append("The excursion at the start is a catapult if sharpness fell in it.")
    if signs.jitter and curves.full_batch:
        told.append(
            f"Single steps change the loss by {100 * signs.jitter:.2g}% without a pattern, as mini-batches do: give "
            "batch size and number of samples, so that this noise is not taken for excursions."
        )
    if "diverged" in regimes.flags:
        return [*told, "A smaller learning rate is needed: thalweg lr finds the largest whose first step is stable."]
    if not signs.dense:
        told.append("Too few successive steps were recorded to see an oscillation from one to the next.")
    lacking = ["sharpness at some 50 steps, close together early and ever wider apart"]
    lacking += ["the learning rate"] if curves.rate is None else []
    lacking += ["the optimizer"] if curves.limit is None or curves.limit.assumed else []
    told.append(
        f"To be told regimes, give {_listed(lacking)}; thalweg.critical_sharpness measures it with forward passes only."
    )
    return told


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"


def _threshold(regimes: Regimes, step: int) -> str:
    """Return where sharpness must then be, if the learning rate is known."""
    curves = regimes.curves
    if curves.rate is None or curves.limit is None:
        return ""
    at = float(curves.limit.at(curves.rate[int(np.searchsorted(curves.steps, step))]))
    return f", where sharpness is near {at:.3g} (the threshold of {curves.limit.name})" if np.isfinite(at) else ""
