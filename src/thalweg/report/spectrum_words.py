"""What a spectrum shows, in plain words: only what its numbers support, residuals and standard errors included."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import xarray as xr

from thalweg.report.numbers import count, fixed, number, seconds, share, share_error, with_error
from thalweg.report.spectrum_figures import threshold_shown

SURE = 2.0
"""Standard errors that a statement about an order must keep."""
APART = 4.0
"""Combined standard errors beyond which two estimates of one number contradict each other."""
SMALL = 0.01
"""Share of the largest eigenvalue below which another counts as small."""

OPERATORS = {
    "hessian": "Hessian",
    "gauss-newton": "Gauss-Newton matrix",
    "fisher": "empirical Fisher matrix",
}


def operator_name(data: xr.Dataset) -> str:
    """Return what the eigenvalues are of, in words."""
    name = OPERATORS.get(str(data.attrs.get("operator")), "operator")
    return f"preconditioned {name}" if data.attrs.get("preconditioned") == "yes" else name


def place(data: xr.Dataset) -> str:
    """Return where the spectrum was measured, in words."""
    step = data.attrs.get("step")
    return "these weights" if step is None else f"step {int(step):,}"


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
    for name, words in (
        ("eigenvalues", "eigenvalues"),
        ("trace", "trace"),
        ("density", "density"),
        ("layers", "layers"),
    ):
        if data.attrs.get(f"{name}_converged") == "no":
            notes.append(f"The {words} did not reach the accuracy asked for. {data.attrs.get(f'{name}_stop', '')}")
    estimates = list(traces(data))
    for position, (name, value, error) in enumerate(estimates):
        for other, theirs, their_error in estimates[position + 1 :]:
            scale = math.hypot(error, their_error)
            if abs(value - theirs) > APART * scale and scale > 0:
                notes.append(
                    f"{name} gives a trace of {with_error(value, error)} and {other[0].lower()}{other[1:]} one of "
                    f"{with_error(theirs, their_error)}: these contradict each other: an error is too small."
                )
    if data.attrs.get("rule") and "stability_threshold" in data and "edge_sharpness" not in data:
        notes.append(
            f"The stability threshold of {data.attrs['rule']} is for another curvature than this one: "
            "the two do not compare."
        )
    return notes


def verdicts(data: xr.Dataset) -> list[tuple[str, str]]:
    """Return what the spectrum is in a few words each, as ``(words, kind)``."""
    words = [(operator_name(data), "plain"), ("complete", "good")]
    if data.attrs.get("missing"):
        words[1] = ("stopped early", "warn")
    elif any(data.attrs.get(f"{name}_converged") == "no" for name in ("eigenvalues", "trace", "density", "layers")):
        words[1] = ("not all converged", "warn")
    if (edge := _ratio(data)) is not None:
        ratio, error = edge
        side = "at" if abs(ratio - 1) <= error else "above" if ratio > 1 else "below"
        words.append((f"{side} the stability threshold", "accent" if side != "below" else "plain"))
    return words


def tiles(data: xr.Dataset) -> list[tuple[str, str, str]]:
    """Return the key numbers as ``(label, value, remark)``."""
    rows = []
    largest, smallest = _end(data, 1), _end(data, -1)
    if largest is not None:
        rows.append(("Largest eigenvalue", number(largest[0]), f"residual {number(largest[1])}"))
    if (edge := _ratio(data)) is not None:
        threshold = number(float(data["stability_threshold"]))
        rows.append(("Of the threshold", share(edge[0]), f"which is {threshold}"))
    if smallest is not None:
        rows.append(("Smallest eigenvalue", number(smallest[0]), f"residual {number(smallest[1])}"))
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
    whole = _end(data, 1)
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


def shares(data: xr.Dataset) -> tuple[np.ndarray, np.ndarray] | None:
    r"""Return each layer's part of the sum of all their traces, ``s_l = t_l / T``, with its standard error.

    By linear propagation of independent errors, ``var s_l = ((1 - s_l)^2 e_l^2 + s_l^2 \sum_{j \ne l} e_j^2) / T^2``.
    None where the sum is not clearly positive, or a part is clearly negative: shares then mean nothing.
    """
    if "layer_trace" not in data:
        return None
    value = data["layer_trace"].to_numpy().astype(np.float64)
    error = data["layer_trace_standard_error"].to_numpy().astype(np.float64)
    total, scale = value.sum(), math.sqrt(float((error**2).sum()))
    if not np.isfinite([value, error]).all() or total <= 3 * scale or (value < -SURE * error).any():
        return None
    part = value / total
    rest = (error**2).sum() - error**2
    return part, np.sqrt((1 - part) ** 2 * error**2 + part**2 * rest) / total


def traces(data: xr.Dataset) -> Iterator[tuple[str, float, float]]:
    """Yield every estimate of the trace as ``(source, value, standard error)``, the direct one first."""
    if "trace" in data:
        name = str(data.attrs.get("trace_method", "a direct estimate"))
        yield name, float(data["trace"]), float(data["trace_standard_error"])
    if "density_trace" in data:
        yield "The density", float(data["density_trace"]), float(data["density_trace_standard_error"])
    if "layer_trace" in data and data.attrs.get("layers_cover") == "yes":
        error = math.sqrt(float((data["layer_trace_standard_error"] ** 2).sum()))
        yield "The sum over layers", float(data["layer_trace"].sum()), error


def _end(data: xr.Dataset, end: int) -> tuple[float, float] | None:
    """Value and residual of the outermost eigenvalue at one end."""
    if "eigenvalues" not in data:
        return None
    chosen = np.flatnonzero(data["eigen_end"].to_numpy() == end)
    if not len(chosen):
        return None
    at = chosen[0] if end > 0 else chosen[-1]
    return float(data["eigenvalues"][at]), float(data["eigen_residuals"][at])


def _layer(data: xr.Dataset, position: int) -> str:
    """A layer's name as it can stand in a sentence."""
    return f"layer {data['layer'].to_numpy()[position]}"


def _worst(data: xr.Dataset) -> str:
    return number(float(data["eigen_residuals"].max()))


def _ends(data: xr.Dataset) -> list[str]:
    largest, smallest = _end(data, 1), _end(data, -1)
    name, where = operator_name(data), place(data)
    words = []
    if largest is not None:
        words.append(f"At {where} the largest eigenvalue of the {name} is {number(largest[0])}")
    if smallest is not None:
        text = (
            f"the smallest is {number(smallest[0])}"
            if words
            else (f"At {where} the smallest eigenvalue of the {name} is {number(smallest[0])}")
        )
        if smallest[0] < -smallest[1]:
            text += ", so that the loss curves downwards along some directions" if name == "Hessian" else ""
        words.append(text)
    return [" and ".join(words) + "."] if words else []


def _ratio(data: xr.Dataset) -> tuple[float, float] | None:
    """Sharpness over the stability threshold, and its residual in the same unit."""
    if "edge_sharpness" not in data or "stability_threshold" not in data:
        return None
    limit = float(data["stability_threshold"])
    if not limit > 0:
        return None
    return float(data["edge_sharpness"]) / limit, float(data["edge_residual"]) / limit


def _edge(data: xr.Dataset) -> list[str]:
    edge = _ratio(data)
    if edge is None:
        return []
    ratio, error = edge
    limit = number(float(data["stability_threshold"]))
    name = "the stability threshold 2/⁠η" if data.attrs.get("rule") == "GradientDescent" else "the stability threshold"
    rule = "" if data.attrs.get("rule") == "GradientDescent" else f" of {data.attrs.get('rule')}"
    sharpness = number(float(data["edge_sharpness"]))
    if abs(ratio - 1) <= error:
        return [f"The sharpness, {sharpness}, equals {name}{rule} = {limit} within its residual."]
    far = share(ratio) if ratio < 2 else f"{fixed(ratio)} times"
    return [f"The sharpness, {sharpness}, is {far} of {name}{rule} = {limit}: {'below' if ratio < 1 else 'above'} it."]


def _trace(data: xr.Dataset) -> list[str]:
    known = list(traces(data))
    if not known:
        return []
    _, value, error = known[0]
    text = f"The trace is {with_error(value, error)}"
    if "eigenvalues" not in data or value <= 3 * error:
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
    largest = _end(data, 1)
    if "density_nodes" not in data or largest is None or largest[0] <= 0:
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
