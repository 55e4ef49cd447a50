"""Regimes in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from thalweg.phases.regimes_result import Regimes, Segment

MEANINGS = {
    "transient": "loss and sharpness settle from the start",
    "saturation": "sharpness hardly changes",
    "sharpening": "sharpness rises",
    "edge of stability": "sharpness stays at the threshold, and the loss falls only over longer times",
    "reduction": "sharpness falls",
    "late reduction": "sharpness falls after it had risen, as cross-entropy does when all samples are fitted",
    "diverged": "the loss left and did not come back",
    "undetermined": "the data do not decide",
}


def explanation(regimes: Regimes, *, notes: bool = True) -> str:
    """Return what was found, one sentence for each segment, then events, then (``notes``) what to keep in mind."""
    sentences = [sentence(segment) for segment in regimes.segments]
    sentences += [_edge(regimes), _events(regimes), *_loss(regimes), *(regimes.notes if notes else ())]
    return " ".join(part for part in sentences if part)


def sentence(segment: Segment) -> str:
    """Return a segment in words, with its evidence.

    Example:
        >>> from thalweg.phases.regimes_result import Segment
        >>> sentence(Segment("sharpening", 200, 1800, change=1.0, ratio=0.4, confidence=1.0))
        'Steps 200-1,800: sharpening (sharpness rises; 10 times, median 0.40 of the threshold; all settings agree).'
    """
    facts = [MEANINGS[segment.label]]
    numbers = []
    if segment.measured != 1 and np.isfinite(segment.change) and segment.label != "edge of stability":
        factor = 10**segment.change
        numbers.append(f"{factor:.3g} times" if factor >= 1 else f"to {100 * factor:.2g}% of its start")
    ratio, kind = (
        (segment.ratio, "") if not np.isfinite(segment.batch_ratio) else (segment.batch_ratio, "batch sharpness ")
    )
    if np.isfinite(ratio):
        numbers.append(f"median {kind}{ratio:.2f} of the threshold")
    if numbers:
        facts.append(", ".join(numbers))
    if segment.label == "edge of stability" and np.isfinite(segment.rate):
        facts.append(f"{segment.rate:.2g} excursions of the loss per 1,000 steps")
    if np.isfinite(segment.confidence):
        whole = segment.confidence > 0.995
        facts.append("all settings agree" if whole else f"{100 * segment.confidence:.0f}% of settings agree")
    return f"Steps {segment.start:,}-{segment.end:,}: {segment.label} ({'; '.join(facts)})."


def summary(regimes: Regimes) -> str:
    """Return the regimes with their ends in one sentence."""
    parts = [f"{s.label} to step {s.end:,}" for s in regimes.segments[:-1]]
    last = regimes.segments[-1]
    edge = last.ratio if not np.isfinite(last.batch_ratio) else last.batch_ratio
    where = f", at {edge:.2f} of the threshold" if last.label == "edge of stability" and np.isfinite(edge) else ""
    told = ", ".join([*parts, f"{last.label} to the end{where}"])
    rest = [part for part in (_edge(regimes), _events(regimes), *_loss(regimes)) if part]
    return " ".join([f"{told[0].upper()}{told[1:]}.", *rest])


def _edge(regimes: Regimes) -> str:
    """Say where a run stands that never came to the edge."""
    ratio = regimes.curves.batch_ratio if not regimes.curves.full_batch else regimes.curves.ratio
    ratio = ratio[np.isfinite(ratio)]
    if "edge of stability" in regimes.order or not len(ratio) or "diverged" in regimes.flags:
        return ""
    return f"The edge of stability was not seen; the last measurement is at {ratio[-1]:.2f} of the threshold."


def _loss(regimes: Regimes) -> list[str]:
    """Say what the loss alone tells where there is no sharpness."""
    if "no sharpness" not in regimes.flags:
        return []
    from thalweg.phases.regimes_loss import loss_words

    return loss_words(regimes)


def _events(regimes: Regimes) -> str:
    if not regimes.catapults:
        return ""
    names = {
        label: sum(e.label == label for e in regimes.catapults)
        for label in dict.fromkeys(e.label for e in regimes.catapults)
    }
    told = ", ".join(f"{count} x {label}" if count > 1 else label for label, count in names.items())
    first = regimes.catapults[0]
    return (
        f"Excursions of the loss by more than {100 * regimes.delta:.0f}%: {told}; the first at step {first.opened:,}."
    )
