"""What a spectrum shows, in plain words: only what its numbers support, residuals and standard errors included."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from thalweg.report.numbers import count, fixed, number, seconds, share, share_error, with_error
from thalweg.report.spectrum_facts import (
    SURE,
    converged,
    edge_ratio,
    end_of,
    operator_name,
    place,
    settled,
    shares,
    traces,
)
from thalweg.report.spectrum_figures import threshold_shown

APART = 4.0
"""Combined standard errors beyond which two estimates of one number contradict each other."""
STAGES = ("eigenvalues", "edge", "trace", "density", "layers")
SMALL = 0.01
"""Share of the largest eigenvalue below which another counts as small."""


def headline(data: xr.Dataset) -> list[str]:
    """Return the paragraph at the top of the page as sentences.

    Args:
        data: A spectrum, as ``thalweg spectrum`` writes it.
    """
    return [*_ends(data), *_edge(data), *_trace(data), *_bulk(data), *_layer_shares(data, only_clear=True)]


def caveats(data: xr.Dataset) -> list[str]:
    """Return what limits the statements of `headline`, one sentence each."""
    notes = [line for line in str(data.attrs.get("notes", "")).splitlines() if line]
    if missing := str(data.attrs.get("missing", "")):
        notes.append(f"The measurement stopped early; missing: {missing}.")
    for name in STAGES:
        if converged(data, name):
            continue
        why, words = data.attrs.get(f"{name}_stop", ""), "sharpness" if name == "edge" else name
        if data.attrs.get(f"{name}_left_out") == "yes":
            notes.append(f"The {words} {'were' if words.endswith('rs') else 'was'} left out. {why}")
        else:
            notes.append(f"The {words} did not reach the accuracy asked for. {why}")
    estimates = list(traces(data))
    for position, (name, value, error) in enumerate(estimates):
        for other, theirs, their_error in estimates[position + 1 :]:
            scale = math.hypot(error, their_error)
            if abs(value - theirs) > APART * scale and scale > 0:
                notes.append(
                    f"{name} gives a trace of {with_error(value, error)} and {other[0].lower()}{other[1:]} one of "
                    f"{with_error(theirs, their_error)}: these contradict each other: an error is too small."
                )
    if data.attrs.get("rule") and "stability_threshold" in data and edge_ratio(data) is None:
        notes.append(
            f"The stability threshold of {data.attrs['rule']} is for another curvature than this one: "
            "the two do not compare."
        )
    if "layer_trace" in data and not data["layer_eigenvalue"].any() and not data["layer_trace"].any():
        notes.append(
            "No layer has curvature of its own: the loss is linear between kinks in the weights of each, as with "
            "L1Loss and ReLU. What the kinks do to it no second derivative shows."
        )
    return notes


def verdicts(data: xr.Dataset) -> list[tuple[str, str]]:
    """Return what the spectrum is in a few words each, as ``(words, kind)``."""
    words = [(operator_name(data), "plain"), ("complete", "good")]
    if data.attrs.get("missing"):
        words[1] = ("stopped early", "warn")
    elif any(data.attrs.get(f"{name}_left_out") == "yes" for name in STAGES):
        words[1] = ("parts left out", "warn")
    elif not all(converged(data, name) for name in STAGES):
        words[1] = ("not all converged", "warn")
    if (side := _side(data)) is not None:
        words.append((f"{side} the stability threshold", "accent" if side != "below" else "plain"))
    return words


def tiles(data: xr.Dataset) -> list[tuple[str, str, str]]:
    """Return the key numbers as ``(label, value, remark)``."""
    rows = []
    largest, smallest = end_of(data, 1), end_of(data, -1)
    bounds = ["" if settled(data, end) else sign for end, sign in ((1, "≥ "), (-1, "≤ "))]
    if largest is not None:
        rows.append(("Largest eigenvalue", f"{bounds[0]}{number(largest[0])}", f"residual {number(largest[1])}"))
    if (edge := edge_ratio(data)) is not None:
        threshold = number(float(data["stability_threshold"]))
        rows.append(("Of the threshold", f"{'' if edge[2] else '≥ '}{share(edge[0])}", f"which is {threshold}"))
    if smallest is not None:
        rows.append(("Smallest eigenvalue", f"{bounds[1]}{number(smallest[0])}", f"residual {number(smallest[1])}"))
    for name, value, error in list(traces(data))[:1]:
        rows.append(
            (
                "Trace",
                with_error(value, error),
                f"by {name[:1].lower()}{name[1:]}" if name.startswith("The ") else f"by {name}",
            )
        )
    if "loss" in data:
        rows.append(("Loss", number(float(data["loss"])), "there"))
    if "stage_products" in data:
        spent = float(data["stage_seconds"].sum())
        rows.append(("Products", f"{float(data['stage_products'].sum()):,.0f}", seconds(spent)))
    return rows


def density_finding(data: xr.Dataset) -> str:
    """Say what the figure of the density shows."""
    parts = []
    values, high = data.get("eigenvalues"), -math.inf
    if values is not None:
        parts.append(f"{count(len(values), 'eigenvalue')} found singly, residuals at most {_worst(data)}")
        high = float(values.max())
    if "density_width" in data:
        parts.append(f"the hills of the density have a standard deviation of {number(float(data['density_width']))}")
    if data.attrs.get("comparable") == "yes" and "stability_threshold" in data and threshold_shown(data, high) is None:
        parts.append(f"the stability threshold, {number(float(data['stability_threshold']))}, lies far to the right")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def layer_finding(data: xr.Dataset) -> str:
    """Say where the curvature is."""
    sentences = _layer_shares(data)
    whole = end_of(data, 1)
    if "layer_eigenvalue" in data and whole is not None and whole[0] > 0:
        tops = data["layer_eigenvalue"].to_numpy()
        best = int(np.argmax(tops))
        sentences.append(
            f"The largest eigenvalue of one layer's block, {number(tops[best])} in {_layer(data, best)}, is "
            f"{share(tops[best] / whole[0])} of that of all weights together."
        )
    return " ".join(sentences)


def cost_finding(data: xr.Dataset) -> str:
    """Say what the measurement cost."""
    if "stage_products" not in data:
        return ""
    products, spent = float(data["stage_products"].sum()), float(data["stage_seconds"].sum())
    words = f"{products:,.0f} products in {seconds(spent)}"
    words += f", the time of {float(data['stage_gradients'].sum()):,.0f} gradients"
    peak = float(data["peak_memory"])
    return f"{words}; the process held up to {memory(peak)}." if math.isfinite(peak) else f"{words}."


def memory(size: float) -> str:
    """Format a number of bytes.

    Example:
        >>> memory(5.2e8), memory(3.3e9)
        ('496 MiB', '3.1 GiB')
    """
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else f"{size / 2**30:,.1f} GiB"


def _layer(data: xr.Dataset, position: int) -> str:
    """A layer's name as it can stand in a sentence."""
    return f"layer {data['layer'].to_numpy()[position]}"


def _worst(data: xr.Dataset) -> str:
    return number(float(data["eigen_residuals"].max()))


def _ends(data: xr.Dataset) -> list[str]:
    """Name the outermost eigenvalues. A Ritz value that has not converged still bounds the one beyond it."""
    largest, smallest = end_of(data, 1), end_of(data, -1)
    name = operator_name(data)
    words: list[str] = []
    for found, end, which, bound in ((largest, 1, "largest", "at least"), (smallest, -1, "smallest", "at most")):
        if found is None:
            continue
        done = settled(data, end)
        of = f"the {which}" if words else f"At {place(data)} the {which} eigenvalue of the {name}"
        text = f"{of} is {'' if done else f'{bound} '}{number(found[0])}"
        if which == "smallest" and found[0] < (-found[1] if done else 0) and name == "Hessian":
            text += ", so that the loss curves downwards along some directions"
        words.append(text)
    return [" and ".join(words) + "."] if words else []


def _side(data: xr.Dataset) -> str | None:
    """Return on which side of the threshold the sharpness is; None where that is not known."""
    edge = edge_ratio(data)
    if edge is None:
        return None
    ratio, error, done = edge
    if not done:  # what was found is a lower bound
        return "above" if ratio > 1 else None
    return "at" if abs(ratio - 1) <= error else "above" if ratio > 1 else "below"


def _edge(data: xr.Dataset) -> list[str]:
    edge, side = edge_ratio(data), _side(data)
    if edge is None:
        return []
    limit = float(data["stability_threshold"])
    plain = data.attrs.get("rule") == "GradientDescent"
    name = f"the stability threshold {'2/⁠η' if plain else 'of ' + str(data.attrs.get('rule'))} = {number(limit)}"
    sharpness = number(edge[0] * limit)
    if side == "at":
        return [f"The sharpness, {sharpness}, equals {name} within its residual."]
    least = "" if edge[2] else "at least "
    far = share(edge[0]) if edge[0] < 2 else f"{fixed(edge[0])} times"
    return [f"The sharpness, {least}{sharpness}, is {least}{far} of {name}{f': {side} it' if side else ''}."]


def _trace(data: xr.Dataset) -> list[str]:
    known = list(traces(data))
    if not known:
        return []
    _, value, error = known[0]
    text = f"The trace is {with_error(value, error)}"
    if "eigenvalues" not in data or value <= 3 * error or not converged(data, "eigenvalues"):
        return [f"{text}."]
    top = data["eigenvalues"].to_numpy()[data["eigen_end"].to_numpy() == 1]
    top = top[top > 0]
    if not len(top):
        return [f"{text}."]
    part = top.sum() / value
    spread = part * error / value
    which = "the largest eigenvalue is" if len(top) == 1 else f"the {len(top)} largest eigenvalues are"
    text += f"; {which} {share_error(part, spread)} of it"
    if part > 1 + SURE * spread:
        text += ", as negative ones take from the sum"
    return [f"{text}."]


def _bulk(data: xr.Dataset) -> list[str]:
    """Say how many eigenvalues are small, from the quadrature of each probe, where the probes agree on it."""
    largest = end_of(data, 1)
    if "density_nodes" not in data or largest is None or largest[0] <= 0 or not converged(data, "eigenvalues"):
        return []
    small = np.abs(data["density_nodes"].to_numpy()) < SMALL * largest[0]
    part = (data["density_weights"].to_numpy() * small).sum(axis=1)
    if len(part) < 2:
        return []
    error = float(part.std(ddof=1) / math.sqrt(len(part)))
    if error > 0.05:
        return []
    return [f"About {share(float(part.mean()))} of all eigenvalues are below {share(SMALL)} of the largest in size."]


def _layer_shares(data: xr.Dataset, *, only_clear: bool = False) -> list[str]:
    found = shares(data)
    if found is None or len(found[0]) < 2:
        return []
    part, error = found
    first, second = (int(i) for i in np.argsort(-part)[:2])
    clear = part[first] - part[second] > SURE * math.hypot(error[first], error[second])
    told = f"{share_error(part[first], error[first])}"
    if not clear:
        return (
            []
            if only_clear
            else [
                f"No layer stands out: {_layer(data, first)} has {told} of the trace and {_layer(data, second)} "
                f"{share_error(part[second], error[second])}, which the errors do not tell apart."
            ]
        )
    size = data["layer_parameters"].to_numpy()
    weights = share(float(size[first] / size.sum()))
    return [f"{told} of the curvature's trace is in {_layer(data, first)}, which has {weights} of the weights."]
