"""Excursions of the loss: catapults, wiggles of a momentum, spikes, and divergence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thalweg.errors import InvalidInput, explain

Floats = NDArray[np.float64]
Label = Literal["catapult", "loss-sharpness catapult", "momentum wiggle", "spike", "diverged"]

LEAST = 0.05
"""A rise by less than this share of the loss is no event."""
WIDE = 11
"""Points of the median filter that mini-batch losses pass first."""
NOISES = 4.0
"""A mini-batch loss must rise by so many times the noise of single steps."""
FALL = 0.1
"""A catapult lowers sharpness by at least this share."""
UNSTABLE = 0.9
"""Below this share of the threshold nothing is thrown."""
NEAR = 5
"""Events closer than this many steps are one."""


@dataclass(frozen=True)
class Catapult:
    """One excursion of the loss above its lowest value so far.

    Attributes:
        label: ``catapult``: from the threshold, and sharpness fell. ``loss-sharpness catapult``: sharpness rose inside
            first. ``momentum wiggle``: far below the threshold, with momentum. ``spike``: anything else, or unknown.
            ``diverged``: it did not come back.
        opened: Step at which the loss left the lowest value by more than ``delta``.
        peak: Step of the largest loss.
        closed: Step at which the loss was as low as before; None if it never was.
        height: Largest loss over the lowest one before.
        before: Sharpness before it opened; NaN where unknown, as in what follows.
        inside: Largest sharpness during it.
        after: Sharpness after it.
        ratio: Largest ratio of sharpness to the threshold, from the measurement before to its end.
    """

    label: Label
    opened: int
    peak: int
    closed: int | None
    height: float
    before: float = np.nan
    inside: float = np.nan
    after: float = np.nan
    ratio: float = np.nan

    def __repr__(self) -> str:
        end = "open" if self.closed is None else self.closed
        return f"Catapult({self.label}, steps {self.opened}-{end}, peak {self.height:.3g}x at {self.peak})"


@dataclass(frozen=True)
class Excursions:
    """What `find_catapults` found, and the rise it asked for.

    Attributes:
        events: In order.
        delta: The rise, as a share of the lowest loss so far, from which on an excursion counts.
        window: Points of the median filter; 1 is none.
    """

    events: tuple[Catapult, ...]
    delta: float
    window: int = 1


def find_catapults(
    loss: ArrayLike,
    *,
    steps: ArrayLike | None = None,
    sharpness: ArrayLike | None = None,
    sharpness_steps: ArrayLike | None = None,
    ratio: ArrayLike | None = None,
    momentum: bool = False,
    full_batch: bool = True,
    cutoff: float | None = None,
    delta: float | None = None,
) -> Excursions:
    r"""Find where the loss rose above ``(1 + \delta) \min_{s \le t} L_s``, and say why.

    Mini-batch losses pass a running median first, and ``\delta`` is four times the median absolute deviation of the
    logarithm of ``L_{t+1} / L_t`` before it, at least 5 %: the lowest of many noisy values lies deep, so that the rise
    asked for is that of single steps though the noise left by the median is less.

    Args:
        loss: ``(n,)``; not finite counts as beyond every bound.
        steps: Step of each loss, increasing; default ``0, 1, ...``.
        sharpness: ``(k,)``.
        sharpness_steps: ``(k,)``, increasing; default: as for the loss.
        ratio: Sharpness over the stability threshold, ``(k,)``.
        momentum: Whether the optimizer keeps a momentum.
        full_batch: Whether the loss is that of all data.
        cutoff: An unresolved excursion that ends above this has diverged; default 1e5 times the first loss.
        delta: Overrides the rise asked for.

    Returns:
        An `Excursions`.

    Raises:
        InvalidInput: Lengths differ, steps do not increase, or the first loss is not positive and finite.

    Example:
        >>> find_catapults([1.0, 1.6, 0.8, 0.5], sharpness=[9, 9, 3, 3], ratio=[1.5, 1.5, 0.5, 0.5]).events
        (Catapult(catapult, steps 1-2, peak 1.6x at 1),)
    """
    raw = np.asarray(loss, dtype=np.float64)
    at = np.arange(len(raw)) if steps is None else np.asarray(steps)
    if raw.ndim != 1 or at.shape != raw.shape or (np.diff(at) <= 0).any():
        raise InvalidInput(
            explain(
                f"Loss and steps have shapes {raw.shape} and {at.shape}",
                "each loss has a step, and steps increase",
                "Sort them by step",
            )
        )
    if len(raw) == 0 or not np.isfinite(raw[0]):
        raise InvalidInput(
            explain("The first loss is missing or not finite", "later ones are held against it", "Cut the start off")
        )
    values = np.where(np.isfinite(raw), raw, np.inf)
    bound = cutoff if cutoff is not None else 1e5 * abs(float(raw[0]))
    window = 1
    if not full_batch:
        values, window = _smoothed(values)
    rise = delta if delta is not None else LEAST if full_batch else max(LEAST, NOISES * step_noise(raw))
    found = _excursions(values, at, rise, bound)
    known = None if sharpness is None else np.asarray(sharpness, dtype=np.float64)
    when = at if sharpness_steps is None else np.asarray(sharpness_steps)
    r = np.full(len(when), np.nan) if ratio is None else np.asarray(ratio, dtype=np.float64)
    return Excursions(
        tuple(_judged(event, known, when, r, momentum=momentum, end=int(at[-1])) for event in found),
        float(rise),
        window,
    )


def step_noise(loss: Floats) -> float:
    """Return the relative noise of single steps: the median absolute deviation of the logarithm of their ratio.

    Example:
        >>> round(step_noise(np.exp(-0.01 * np.arange(99.0))), 9)
        0.0
    """
    logs = np.log(loss[np.isfinite(loss) & (loss > 0)])
    change = np.diff(logs)
    return float(np.expm1(np.median(np.abs(change - np.median(change))))) if len(change) else 0.0


def _smoothed(values: Floats) -> tuple[Floats, int]:
    from scipy.ndimage import median_filter

    window = min(WIDE, max(1, 2 * (len(values) // 20) + 1))
    smooth: Floats = median_filter(values, size=window, mode="nearest")
    smooth[~np.isfinite(values)] = np.inf
    return smooth, window


def _excursions(values: Floats, at: NDArray[np.int64], rise: float, bound: float) -> list[Catapult]:
    """Return the excursions, without a judgement; those closer than `NEAR` steps are joined."""
    lowest = np.minimum.accumulate(values)
    home = np.flatnonzero(values <= lowest)  # the loss is as low as it ever was
    high = values > (1 + rise) * lowest if (lowest > 0).all() else values > lowest + rise * np.abs(values[0])
    events: list[Catapult] = []
    starts = np.flatnonzero(high)
    last_end = -1
    for start in starts:
        if start <= last_end:
            continue
        following = np.searchsorted(home, start)
        end = int(home[following]) if following < len(home) else len(values)
        last_end = end - 1
        peak = int(start + np.argmax(values[start:end]))
        closed = int(at[end]) if end < len(values) else None
        label: Label = "diverged" if closed is None and not values[-1] <= bound else "spike"
        base = float(lowest[start])
        height = float(values[peak]) / base if base > 0 else np.inf
        event = Catapult(label, int(at[start]), int(at[peak]), closed, height)
        previous = events[-1] if events else None
        if previous is not None and previous.closed is not None and event.opened - previous.closed < NEAR:
            tallest = event if event.height > previous.height or label == "diverged" else previous
            events[-1] = replace(tallest, opened=previous.opened, closed=closed, label=label)
        else:
            events.append(event)
    return events


def _judged(
    event: Catapult, sharpness: Floats | None, when: NDArray[np.int64], ratio: Floats, *, momentum: bool, end: int
) -> Catapult:
    if sharpness is None or not np.isfinite(sharpness).any():
        return event
    finite = np.isfinite(sharpness)
    when, sharpness, ratio = when[finite], sharpness[finite], ratio[finite]
    closed = end if event.closed is None else event.closed
    first = max(int(np.searchsorted(when, event.opened, side="right")) - 1, 0)
    # The loss at the step of opening already shows the throw; sharpness before it is the last one of a step earlier.
    if first > 0 and when[first] == event.opened:
        first -= 1
    last = min(int(np.searchsorted(when, closed)), len(when) - 1)
    before, after = float(sharpness[first]), float(sharpness[last])
    inner = (when >= event.opened) & (when <= closed)
    inside = float(sharpness[inner].max()) if inner.any() else np.nan
    known = ratio[first : last + 1]
    known = known[np.isfinite(known)]
    highest = float(known.max()) if len(known) else np.nan
    label = event.label
    if label != "diverged":
        if highest >= UNSTABLE and event.closed is not None and 1 - after / before >= FALL:
            label = "loss-sharpness catapult" if inside > before else "catapult"
        elif momentum and highest < UNSTABLE:
            label = "momentum wiggle"
        else:
            label = "spike"
    return replace(event, label=label, before=before, inside=inside, after=after, ratio=highest)
