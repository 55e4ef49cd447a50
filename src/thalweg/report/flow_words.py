"""What a forecast says, in plain words: each sentence only where its numbers support it."""

from __future__ import annotations

import math

import numpy as np

from thalweg.flows.laws import LIMIT
from thalweg.flows.result import FlowResult
from thalweg.report.flow_facts import (
    BOUNCE,
    bounce,
    column,
    comparison,
    constant_rate,
    directions,
    largest,
    onset,
    passes,
    progress,
    sigma_of,
    slope,
    steps,
)
from thalweg.report.numbers import count, fixed, number, share

GOOD, POOR = 0.01, 0.05
"""Mean errors of the predicted loss up to which it is called good, and beyond which it is called poor."""
OVER = 0.02
"""How far eigenvalues may pass the limit, relatively, without a word."""
HARDLY = 0.05
"""Variance, measured over predicted, below which the run has not come to oscillate as the flow says it will."""
WIDTHS = 3.0
"""Widths of smoothing below which a forecast after its onset is too short to judge averages by."""


def headline(result: FlowResult) -> list[str]:
    """Return the paragraph at the top of the page as sentences.

    Args:
        result: What `thalweg.flows.forecast.central_flow` returned.
    """
    parts = (_asked, _onset, _prediction, _progress, _penalty, _other_rates, _largest_rate)
    return [sentence for part in parts for sentence in part(result)]


def caveats(result: FlowResult) -> list[str]:
    """Return what limits the statements of `headline`, one sentence each."""
    notes = [*result.notes, *(line for line in str(result.data.attrs.get("limits", "")).splitlines() if line)]
    found, begin = comparison(result), onset(result)
    if result.data.sizes["time"] < result.data.attrs.get("time", 0):
        notes.append(result.stop)
    if found is None:
        notes.append("The optimizer itself did not run beside its flow, so nothing says how well the flow predicts it.")
    elif begin is not None and result.data.sizes["time"] - begin < WIDTHS * found.sigma:
        notes.append(
            f"The forecast has {count(result.data.sizes['time'] - begin, 'unit')} of time after its onset, and "
            f"averages are taken over a width of {number(found.sigma)}: its errors also measure single bursts."
        )
    values = largest(result)
    worst = float(np.nanmax(values[begin:], initial=0.0)) if begin is not None else 0.0
    if worst > LIMIT * (1 + OVER) and not any("limit" in note for note in result.notes):  # it may know better
        notes.append(
            f"The largest effective eigenvalue along the flow reaches {number(worst)}, above its limit {LIMIT:g}: "
            "there the flow is not resolved, and its oscillation is not to be trusted."
        )
    if (kink := bounce(result)) > BOUNCE:
        notes.append(
            f"The flow itself bounces: its squared gradient or its variance goes up and down by {share(kink)} from one "
            "step to the next, where it should be smooth. How the slope is spent cannot be told."
        )
    if result.mode in ("flow", "reference"):
        notes.append(
            f"In {result.mode} mode the differential equation itself is followed, which is not closer to the "
            "optimizer than the map, as the optimizer takes steps of length one."
        )
    return notes


def verdicts(result: FlowResult) -> list[tuple[str, str]]:
    """Return what the forecast is in a few words each, as ``(words, kind)``."""
    begin, found = onset(result), comparison(result)
    words = [(f"{result.mode} mode", "plain")]
    words.append(
        ("never critical", "plain") if begin is None else (f"critical from step {steps(result)[begin]:,}", "accent")
    )
    if found is not None and begin is not None:
        error = found.loss_error
        kind = "good" if error <= GOOD else "warn" if error <= POOR else "bad"
        words.append((f"average loss off by {share(error)}", kind))
    return words


def tiles(result: FlowResult) -> list[tuple[str, str, str]]:
    """Return the key numbers as ``(label, value, remark)``."""
    begin, found, active = onset(result), comparison(result), directions(result)
    rows = [("Time", f"{result.data.sizes['time']:,}", f"steps {steps(result)[0]:,} to {steps(result)[-1]:,}")]
    if begin is not None:
        rows.append(("Critical from", f"{steps(result)[begin]:,}", f"at most {count(int(active.max()), 'direction')}"))
    if found is not None:
        width = f"smoothed over {number(found.sigma)} steps"
        if begin is not None:
            rows.append(("Error of the loss", share(found.loss_error), width))
            rows.append(("End distance", share(found.distance), "of the distance travelled"))
        if math.isfinite(found.variance_ratio):
            rows.append(("Variance", fixed(found.variance_ratio), "measured / predicted"))
    rows.append(("Cost", f"{result.cost['central']:.1f}", "gradients a unit of time"))
    return rows


def _asked(result: FlowResult) -> list[str]:
    """What was asked where the rule is not that of the run."""
    asked, own = result.data.attrs.get("asked"), result.data.attrs.get("run_optimizer")
    if not asked or not own:
        return []
    run = str(result.data.attrs.get("run", "the run"))
    return [
        f"From here on the rule is not that of the run: {asked}. The question is what the optimizer would do with it; "
        f"what is called the run below is that optimizer, going on from the checkpoint, and not {run} as recorded."
    ]


def _onset(result: FlowResult) -> list[str]:
    begin, active, values = onset(result), directions(result), largest(result)
    if begin is None:
        if not np.isfinite(values).any():
            return []
        return [
            f"The flow stays below the limit of stability: its largest effective eigenvalue is at most "
            f"{number(float(np.nanmax(values)))} of {LIMIT:g}, so it predicts no oscillation."
        ]
    most, last = int(active.max()), int(active[-1])
    where = "from the start" if begin == 0 else f"at step {steps(result)[begin]:,}"
    at_end = "" if last == most else f", {last or 'none'} at the end"
    many = f"at most {count(most, 'direction')} at once{at_end}" if most > 1 else f"one direction{at_end}"
    text = f"The flow is critical {where}" if begin == 0 else f"The flow becomes critical {where}"
    return [f"{text}: from there on it predicts an oscillation along {many}."]


def _prediction(result: FlowResult) -> list[str]:
    found, begin = comparison(result), onset(result)
    if found is None:
        return []
    sentences = []
    if begin is not None:
        sentences.append(
            f"Against the run smoothed over {number(found.sigma)} steps, the average loss that it predicts is off by "
            f"{share(found.loss_error)} on average and {share(found.loss_error_max)} at most"
        )
        better = found.loss_error_without > found.loss_error
        sentences[-1] += (
            f"; without the oscillation it would be off by {share(found.loss_error_without)}."
            if better
            else f", no better than the loss at the flow without the oscillation ({share(found.loss_error_without)})."
        )
    if begin is None and result.mode == "map":
        sentences.append("Below the limit the map is the optimizer itself, so there is nothing to compare.")
    elif math.isfinite(found.distance):
        text = f"It ends {share(found.distance)} of the distance travelled away from the run"
        if math.isfinite(found.stable_distance):
            text += f", the stable flow, which knows no oscillation, {share(found.stable_distance)}"
        sentences.append(f"{text}.")
    if math.isfinite(found.variance_ratio) and found.variance_ratio < HARDLY:
        sentences.append(
            f"The run hardly oscillates yet: the variance measured is {share(found.variance_ratio)} of the predicted "
            "one."
        )
    elif math.isfinite(found.variance_ratio):
        sentences.append(
            f"The oscillation measured is {fixed(found.variance_ratio)} times the predicted one (variance)."
        )
    return sentences


def _progress(result: FlowResult) -> list[str]:
    found = progress(result)
    if found is None:
        return []
    way = f"from {number(found.first)} to {number(found.last)}"
    if found.last >= found.first:
        return [f"The loss at the flow does not fall after that: it goes {way}."]
    if found.falls >= 0.99:
        text = f"The loss at the flow falls {'all the way' if found.falls == 1 else 'nearly all the way'}, {way}"
        if found.rises > GOOD:
            text += f", though the loss of the run rises at {share(found.rises)} of its steps"
            return [f"{text}: progress is made along the flow, and the ups and downs are the oscillation across it."]
        return [f"{text}."]
    return [f"The loss at the flow falls {way}, at {share(found.falls)} of the times."]


def _penalty(result: FlowResult) -> list[str]:
    found, price, sentences = progress(result), slope(result), []
    if found is not None and math.isfinite(found.added) and found.added > 0:
        sentences.append(f"The oscillation itself makes up {share(found.added)} of the average loss.")
    if price is not None:
        closing = f" (before, where there is none, the same account misses {share(price.closing)})"
        sentences.append(
            f"The implicit penalty on curvature takes {share(price.share)} of the slope: the steps along the gradient "
            f"at the flow were worth a fall of {number(price.along)}, of which {number(price.fallen)} became one"
            f"{closing if math.isfinite(price.closing) else ''}."
        )
    if result.data.attrs.get("rule") != "GradientDescent" and found is not None:
        step = column(result.data, "effective_step")[onset(result) or 0 :]
        sentences.append(f"The mean step size goes from {number(float(step[0]))} to {number(float(step[-1]))}.")
    return sentences


def _other_rates(result: FlowResult) -> list[str]:
    """What the theory says of other learning rates: where gradient descent would meet its limit ``2 / eta``."""
    rate, begin = constant_rate(result), onset(result)
    if rate is None:
        scalar = result.data.attrs.get("rule") == "ScalarRMSProp" and begin is not None
        return (
            [
                "By the theory another learning rate would not move the limit of stability, to which the rule adapts "
                "its step: a larger one makes the oscillation, and with it the penalty on curvature, stronger."
            ]
            if scalar
            else []
        )
    top = largest(result)
    now = f"At learning rate {number(rate)} sharpness is limited to 2/η = {number(2 / rate)}"
    if begin is None:
        most = float(np.nanmax(top, initial=0.0))
        if not 0 < most < LIMIT:
            return []
        return [f"{now}; only rates above {number(rate * LIMIT / most)} would meet their limit on this stretch."]
    before = top[: begin + 1]
    half = passes(result, LIMIT / 2)
    if half is None or half > begin or not np.isfinite(before).any():
        return []
    if half == 0:
        return [
            f"{now}; at twice the rate the limit would be {number(1 / rate)}, below the sharpness at the start, and at "
            f"half the rate {number(4 / rate)}, which this flow does not reach."
        ]
    return [
        f"{now}. At twice the rate the limit would be {number(1 / rate)}, which this path passes at about step "
        f"{steps(result)[half]:,}; at half the rate it would be {number(4 / rate)}, which this flow does not reach."
    ]


def _largest_rate(result: FlowResult) -> list[str]:
    """What the eigenvalues at the start say of other learning rates from there."""
    rate, name, values = result.data.attrs.get("learning_rate"), result.data.attrs.get("rule"), largest(result)
    if rate is None or name == "AdamW" or not np.isfinite(values[0]) or not values[0] > 0:  # its limit has two terms
        return []
    averages = "" if name == "GradientDescent" else ", with the averages that the rule has there"
    if values[0] > LIMIT * (1 - OVER):
        return [f"At its start the flow is at the limit{averages}: any larger rate is unstable there at once."]
    most = number(float(rate) * LIMIT / float(values[0]))
    return [
        f"From its eigenvalues at the start, the largest rate that keeps it stable is {most}{averages}: a larger one "
        "is above its limit there at once."
    ]


def figure_words(result: FlowResult) -> dict[str, str]:
    """Return what each figure shows this time, by its key."""
    found = comparison(result)
    told = {"loss": "", "eigenvalues": "", "variance": "", "distance": ""}
    if found is None:
        return told
    told["loss"] = f"The width of the smoothing is {number(sigma_of(result))} steps."
    if onset(result) is not None:
        told["eigenvalues"] = f"Largest after the onset: {number(found.largest_eigenvalue)}."
    if math.isfinite(found.variance_ratio):
        told["variance"] = f"Measured over predicted, all directions and times: {fixed(found.variance_ratio)}."
        if math.isfinite(found.variance_correlation):
            told["variance"] += f" Correlation of the smoothed sums: {fixed(found.variance_correlation)}."
    if math.isfinite(found.distance) and onset(result) is not None:
        told["distance"] = f"At the end: central flow {share(found.distance)}"
        if math.isfinite(found.stable_distance):
            told["distance"] += f", stable flow {share(found.stable_distance)}"
        told["distance"] += "."
    return told
