"""Which curvature matters, said in sentences that the numbers and their errors support."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from thalweg.glass.change import SMOOTH
from thalweg.glass.estimators import CROSSOVER
from thalweg.glass.table import jackknife

if TYPE_CHECKING:
    from thalweg.glass.change import LossChange
    from thalweg.glass.density import GlassDensity
    from thalweg.glass.exponents import Exponents
    from thalweg.glass.look import Glass

Curvature = Literal["glass", "Hessian", "both", "neither", "unsure"]
MOST = 6
"""Layers named in a sentence."""
SMOOTH_LOSS = 3.5
"""Power along the update from which its loss is called smooth; below it gradients have corners."""


@dataclass(frozen=True)
class LayerMatter:
    """Which curvature matters in one layer at one length.

    Attributes:
        name: Of the layer.
        curvature: glass, Hessian, both (neither is clearly larger), neither (both are below rounding), or unsure (too
            few kinks were met to tell whether there is glass).
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
        crossover = 0.0 if power.continuous else row.crossover
        curvature: Curvature = "Hessian"
        if not row.resolved or power.label == "rounding":
            crossover, curvature = 0.0, "Hessian" if _curved(row.square, row.square_error) else "neither"
        elif crossover:
            reach = 2 * row.crossover_error if math.isfinite(row.crossover_error) else 0.0
            seen = power.label != "unsure" and not row.rho < 2 * row.rho_error
            if move - crossover < reach or crossover >= move:  # else the Hessian's is larger, be there glass or not
                larger: Curvature = "glass" if crossover - move >= reach else "both"
                curvature = larger if seen else "unsure"
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
    every = [layer.name for layer in layers]
    held = [(words, [layer.name for layer in layers if layer.curvature == kind]) for kind, words in kinds]
    held = [(words, names) for words, names in held if names]
    rest = max(held, key=lambda pair: len(pair[1]))
    few = all(len(names) <= MOST for words, names in held if words != rest[0])
    if len(held) > 1 and len(rest[1]) > MOST and few:  # all others are named, so that these need not be
        held.remove(rest)
        parts = [*(f"{words} in {_list(names, every)}" for words, names in held)]
        parts.append(f"{rest[0]} in the other {len(rest[1])} layers")
    else:
        parts = [f"{words} in {_list(names, every)}" for words, names in held]
    sentences = [f"At moves of {where} per weight the curvature that matters is {_and(parts)}."]
    if any(layer.curvature == "unsure" for layer in layers):
        sentences.append("Where it is not clear too few kinks were met: look at more batches.")
    glassy = [layer for layer in layers if layer.curvature in ("glass", "both") and math.isfinite(layer.crossover)]
    if glassy:
        least, most = min(glassy, key=lambda x: x.crossover), max(glassy, key=lambda x: x.crossover)
        errors = {row.name: row.crossover_error / row.crossover for row in found.density.layers if row.crossover}
        error = max((errors[layer.name] for layer in glassy if math.isfinite(errors[layer.name])), default=math.nan)
        reach = f"{least.crossover:.1e} ({least.name})"
        if most is not least:
            reach += f" to {most.crossover:.1e} ({most.name})"
        reach += f", with standard errors of {error:.0%} at most" if math.isfinite(error) else ""
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
    low, high = (f"{pick(min(row.leakage, 1.0) for row in leaky):.0%}" for pick in (min, max))  # above 1 by error only
    part = low if high == low else f"{low} to {high}"
    error = max((row.leakage_error for row in leaky if math.isfinite(row.leakage_error)), default=math.nan)
    error_words = f" (standard errors up to {error:.0%})" if math.isfinite(error) else ""
    names = _list([row.name for row in leaky], [row.name for row in found.density.layers])
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
    if not glassy(found):
        if any(layer.crossover for layer in found.layers):
            return [f"{told}: by smooth curvature beyond the Hessian's, beside which glass does not show."]
        why = "the loss is smooth" if not e.power < SMOOTH_LOSS else "gradients do not jump"
        return [f"{told}; {why} along it, and glass has no part in that."]
    predicted, effect = e.deviation[at], e.finite[at] - e.hessian[at]
    verdict = "which kinks explain"
    spread = 2 * math.hypot(error, e.glass_error[at])
    if math.isfinite(spread) and size < predicted - spread:
        verdict = "somewhat less than kinks predict" if size > predicted / 2 else "less than kinks predict"
    elif math.isfinite(spread) and size > predicted + spread:
        verdict = "more than kinks explain"
    bend = abs(e.hessian[at])
    beside = f"; the Hessian part is {bend:.1e}" if bend else ""
    sentences = [
        f"{told}, {verdict} ({predicted:.1e} predicted from both glass, {glass:.1e}, and the kinks' mean effect, "
        f"{effect:+.1e}{beside})."
    ]
    mean, mean_error = change.mean[at], change.mean_error[at]
    if abs(mean) > 2 * mean_error and abs(mean) > size / 2 and abs(effect - mean) < abs(mean) / 2:
        sentences.append(
            f"Most of it has one sign, {mean:+.1e} ± {mean_error:.0e}: curvature that finite differences see and "
            "Hessian products do not."
        )
    return [*sentences, *_crossing(change)]


def glassy(found: Glass) -> bool:
    """Return whether kinks show in the loss along the update: by its power, and in doubt by those of the layers."""
    if found.change is None or not found.change.expected.glassy:
        return False
    layers = any(layer.label != "rounding" and not layer.continuous for layer in found.exponents.layers)
    return layers or found.change.expected.power < SMOOTH


def _crossing(change: LossChange) -> list[str]:
    """Say up to which length of the update glass outweighs the Hessian: no further than it was followed."""
    e = change.expected

    def where(kept: np.ndarray) -> np.ndarray:
        return np.asarray(CROSSOVER * kept[:, 0].mean() / kept[:, 1].mean() ** 2)

    along = "In the loss along it, where curvature of all weights adds up,"
    value, error = jackknife(where, np.stack([e.densities, e.curvatures], axis=1))
    if not (math.isfinite(value) and value > 0):
        return []
    if value > e.lengths.max():
        return [f"{along} glass outweighs the Hessian at all lengths up to {e.lengths.max():g} updates."]
    if value < e.lengths.min():
        return [f"{along} the Hessian outweighs glass from {e.lengths.min():g} updates on."]
    known = f" ± {error:.1g}" if math.isfinite(error) else ""
    return [f"{along} glass outweighs the Hessian up to {value:.2g}{known} updates."]


def _curved(square: float, error: float) -> bool:
    return square > 0 and not square < 3 * error


def _list(names: Sequence[str], every: Sequence[str]) -> str:
    """Name the layers; of many those that are left out, where they are fewer."""
    if len(names) <= MOST:
        return f"{'layer' if len(names) == 1 else 'layers'} {_and(names)}"
    others = [name for name in every if name not in names]
    if not others:
        return f"all {len(every)} layers"
    if len(others) <= MOST:
        return f"{len(names)} of {len(every)} layers, all but {_and(others)}"
    return f"{len(names)} of {len(every)} layers ({_and([*names[: MOST - 1], f'{len(names) - MOST + 1} more'])})"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
