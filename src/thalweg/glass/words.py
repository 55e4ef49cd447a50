"""Which curvature matters, said in sentences that the numbers and their errors support."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from thalweg.glass.change import LossChange
    from thalweg.glass.density import GlassDensity
    from thalweg.glass.exponents import Exponents
    from thalweg.glass.look import Glass

Curvature = Literal["glass", "Hessian", "both", "neither", "unsure"]
MOST = 6
"""Layers named in a sentence."""


@dataclass(frozen=True)
class LayerMatter:
    """Which curvature matters in one layer at one length.

    Attributes:
        name: Of the layer.
        curvature: glass, Hessian, both (neither is clearly larger), neither (both are below rounding), or unsure.
        move: Root mean square move per coordinate, in weights, at which this holds.
        crossover: Move below which the glass part is the larger one; 0 where there is no glass, infinite without a
            Hessian.
    """

    name: str
    curvature: Curvature
    move: float
    crossover: float


def matters(
    density: GlassDensity, exponents: Exponents, moves: Sequence[float] | np.ndarray
) -> tuple[LayerMatter, ...]:
    """Decide for each layer at its own move, by its powers first, then by the crossover and its error."""
    found = []
    for row, power, move in zip(density.layers, exponents.layers, moves):
        crossover = row.crossover if power.label in ("glass", "mixed", "unsure") else 0.0
        curvature: Curvature = "Hessian"
        if not row.resolved or power.label == "rounding":
            crossover, curvature = 0.0, "Hessian" if _curved(row.square, row.square_error) else "neither"
        elif crossover:
            reach = 2 * row.crossover_error if math.isfinite(row.crossover_error) else 0.0
            sure = "glass" if power.label != "unsure" else "unsure"
            curvature = "both" if abs(crossover - move) < reach else "Hessian"
            if crossover - move >= reach:
                curvature = "glass" if sure == "glass" else "unsure"
        found.append(LayerMatter(row.name, curvature, float(move), float(crossover)))
    return tuple(found)


def summary(found: Glass) -> str:
    """Return the answer as one paragraph."""
    return " ".join([*layer_sentences(found), *leakage_sentences(found), *change_sentences(found.change, found)])


def layer_sentences(found: Glass) -> list[str]:
    """Say which curvature matters in which layers, and up to which move."""
    layers = found.layers
    low, high = min(layer.move for layer in layers), max(layer.move for layer in layers)
    where = f"{low:.1e}" if high < 1.05 * low else f"{low:.1e} to {high:.1e}"
    kinds = [
        ("glass", "glass"),
        ("Hessian", "the Hessian"),
        ("both", "both alike"),
        ("unsure", "not clear"),
        ("neither", "neither, as nothing stands out from rounding,"),
    ]
    parts = []
    for kind, words in kinds:
        names = [layer.name for layer in layers if layer.curvature == kind]
        if names:
            parts.append(f"{words} in {_list(names)}")
    sentences = [f"At moves of {where} per weight the curvature that matters is {_and(parts)}."]
    glassy = [layer for layer in layers if layer.curvature in ("glass", "both") and math.isfinite(layer.crossover)]
    if glassy:
        least, most = min(glassy, key=lambda x: x.crossover), max(glassy, key=lambda x: x.crossover)
        reach = f"{least.crossover:.1e} ({least.name})"
        if most is not least:
            reach += f" to {most.crossover:.1e} ({most.name})"
        sentences.append(f"There glass outweighs the Hessian up to moves of {reach}.")
    return sentences


def leakage_sentences(found: Glass) -> list[str]:
    """Say what a finite-difference Hessian would be made of."""
    leaky = [
        row
        for row, power in zip(found.density.layers, found.exponents.layers)
        if power.label in ("glass", "mixed") and row.leakage > 0.1 and row.resolved
    ]
    if not leaky:
        return []
    low, high = min(leaky, key=lambda r: r.leakage), max(leaky, key=lambda r: r.leakage)
    part = f"{low.leakage:.0%}" if high is low else f"{low.leakage:.0%} to {high.leakage:.0%}"
    error = max(row.leakage_error for row in leaky)
    error_words = f" (standard errors up to {error:.0%})" if math.isfinite(error) else ""
    names = _list([row.name for row in leaky])
    return [
        f"Squared finite differences over {found.density.sigma:.1e} are {part}{error_words} glass in {names}, "
        "not the Hessian: adding both counts it twice."
    ]


def change_sentences(change: LossChange | None, found: Glass) -> list[str]:
    """Say what the update does to the loss beyond its Hessian model, and whether glass explains it."""
    if change is None:
        return []
    e = change.expected
    at = int(np.argmin(np.abs(np.log(e.lengths))))
    t, size, error, glass = e.lengths[at], change.size[at], change.size_error[at], e.glass[at]
    batch = f"a batch of {found.density.batch_size}" if found.density.batch_size else "a batch"
    length = "the update" if t == 1 else f"{t:g} updates"
    told = f"Along {length} the loss of {batch} deviates from its Hessian model by {size:.1e} ± {error:.0e} on average"
    if not math.isfinite(error):
        told = told.replace(" ± nan", "")
    if not e.glassy:
        return [f"{told}; the loss is smooth along it, and glass has no part in that."]
    predicted, effect = e.deviation[at], e.finite[at] - e.hessian[at]
    verdict = "which kinks explain"
    spread = 2 * math.hypot(error, e.glass_error[at])
    if math.isfinite(spread) and size < predicted - spread:
        verdict = "somewhat less than kinks predict" if size > predicted / 2 else "less than kinks predict"
    elif math.isfinite(spread) and size > predicted + spread:
        verdict = "more than kinks explain"
    bend = abs(e.hessian[at])
    beside = f", beside a Hessian part of {bend:.1e}" if bend else ""
    sentences = [
        f"{told}, {verdict} ({predicted:.1e} predicted, of which glass {glass:.1e} and their mean effect {effect:+.1e}"
        f"{beside})."
    ]
    mean, mean_error = change.mean[at], change.mean_error[at]
    if abs(mean) > 2 * mean_error and abs(mean) > size / 2 and abs(effect - mean) < abs(mean) / 2:
        sentences.append(
            f"Most of it has one sign, {mean:+.1e} ± {mean_error:.0e}: curvature that finite differences see and "
            "Hessian products do not."
        )
    crossing = (e.glass[at] / bend) ** 2 * t if bend else math.inf
    if math.isfinite(crossing) and crossing > 0:
        sentences.append(f"In the loss along it glass outweighs the Hessian up to {crossing:.2g} updates.")
    return sentences


def _curved(square: float, error: float) -> bool:
    return square > 0 and not square < 3 * error


def _list(names: Sequence[str]) -> str:
    shown = list(names[:MOST])
    if len(names) > MOST:
        shown = [*names[: MOST - 1], f"{len(names) - MOST + 1} more"]
    return f"{'layer' if len(names) == 1 else 'layers'} {_and(shown)}"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
