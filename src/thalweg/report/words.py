"""What a run shows, in plain words: only claims that the rules in `facts` support."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from thalweg.report.facts import (
    ENOUGH,
    FALLING,
    ROSE,
    UNSTEADY,
    Edge,
    Loss,
    edge,
    loss_facts,
    losses,
    oscillation,
    residuals,
    rises,
)
from thalweg.report.numbers import count, fixed, number, share
from thalweg.report.series import Series, series
from thalweg.report.setting import Setting, setting

CLOSE = 0.1
"""Relative distance from the threshold up to which one says "within"."""


def headline(data: xr.Dataset, manifest: Mapping[str, Any] | None = None) -> list[str]:
    """Return the paragraph at the top of the page as sentences.

    Args:
        data: A run's data with its attributes.
        manifest: Its manifest as a mapping; without it full-batch training is assumed.
    """
    how, steps = setting(manifest), _last_step(data)
    loss, found = loss_facts(data, noisy=not how.full_batch), edge(data)
    sentences = _state(data, loss)
    if found is None:
        curvature = ["Curvature was not measured, so nothing is said about stability."]
    elif not how.comparable:
        curvature = [
            f"The largest eigenvalue of the plain Hessian went from {number(found.first)} to {number(found.last)}."
        ]
    else:
        curvature = _curvature(data, found, how, loss)
    sentences += curvature
    if loss is not None and steps > 0:
        sentences += _loss(loss, how)
    if found is not None and how.comparable and how.full_batch:
        sentences += _at_the_edge(data, found, loss)
    if steps < ENOUGH:
        sentences.append(f"With {count(steps, 'step')}, this is too short to tell how training went.")
    elif loss is not None and data.attrs.get("state") == "finished" and how.full_batch and not loss.diverged:
        sentences += _convergence(loss)
    return sentences


def caveats(data: xr.Dataset, manifest: Mapping[str, Any] | None = None) -> list[str]:
    """Return what limits the statements of `headline`, one sentence each."""
    how, found = setting(manifest), edge(data)
    notes = []
    if not how.full_batch:
        notes.append(
            f"Each step saw a mini-batch of {how.batch_size:,} samples: loss and gradient are those of the batch, and "
            "the threshold, which is that of full-batch steps, does not by itself decide what is stable."
        )
    if found is not None and not how.comparable:
        notes.append(
            "The eigenvalues are those of the plain Hessian, while the stability threshold of this optimizer is for "
            "the preconditioned one: the two do not compare."
        )
    if found is not None and how.measured is not None and how.measured < (how.samples or np.inf):
        notes.append(f"Curvature was measured on the first {how.measured:,} samples only.")
    worst = residuals(data)
    if len(worst) and how.tolerance is not None:
        missed = worst.values > how.tolerance
        if missed.any():
            notes.append(
                f"At {missed.sum():,} of {count(len(worst), 'measurement')} the eigenvalues did not reach the accuracy "
                f"that was asked for; the largest residual is {share(worst.values.max())} of the sharpness."
            )
    return notes


def verdicts(data: xr.Dataset, manifest: Mapping[str, Any] | None = None) -> list[tuple[str, str]]:
    """Return what a run is in a few words each, as ``(words, kind)``; kind is good, warn, bad or plain."""
    how, state = setting(manifest), str(data.attrs.get("state", "unknown"))
    loss, found = loss_facts(data, noisy=not how.full_batch), edge(data)
    kinds = {"finished": "good", "failed": "bad", "interrupted": "warn", "running": "warn"}
    words = [(state, kinds.get(state, "plain"))]
    words.append(("full batch" if how.full_batch else f"mini-batches of {how.batch_size:,}", "plain"))
    if loss is not None and loss.diverged:
        words.append(("diverged", "bad"))
    if found is None:
        words.append(("no curvature", "plain"))
    elif how.comparable:
        if found.sharpened and not (loss is not None and loss.diverged):
            words.append(("progressive sharpening", "accent"))
        if _at_edge(data, found, how, loss):
            words.append(("edge of stability", "accent"))
        if found.crossed is None:
            words.append(("below the threshold", "plain"))
    return words


def tiles(data: xr.Dataset, manifest: Mapping[str, Any] | None = None) -> list[tuple[str, str, str]]:
    """Return the key numbers as ``(label, value, remark)``."""
    how, rows = setting(manifest), list[tuple[str, str, str]]()
    loss, found = loss_facts(data, noisy=not how.full_batch), edge(data)
    if loss is not None:
        rows.append(("Batch loss, median" if loss.noisy else "Loss", number(loss.last), f"from {number(loss.first)}"))
    if found is not None:
        remark = f"{number(found.end_ratio)} × threshold" if how.comparable else "plain Hessian"
        rows.append(("Sharpness", number(found.last), remark))
    if found is not None and how.comparable:
        rows.append(("Stability threshold", number(found.threshold), "at the last measurement"))
        reached = "not reached" if found.crossed is None else f"step {found.crossed:,}"
        rows.append(("Threshold reached", reached, f"in {count(_last_step(data), 'step')}"))
    distance, path = series(data, "distance"), series(data, "path_length")
    if len(distance) and len(path) and path.values[-1] > 0:
        went = f"{number(distance.values[-1])} from the start by a path of {number(path.values[-1])}"
        rows.append(("Straightness", share(distance.values[-1] / path.values[-1]), went))
    products = series(data, "eigen_products")
    if len(products):
        rows.append(
            (
                "Hessian products",
                number(products.values.mean()),
                f"per measurement, {products.values.sum():,.0f} in all",
            )
        )
    return rows


def _last_step(data: xr.Dataset) -> int:
    return int(data["step"].max()) if data.sizes["step"] else 0


def _state(data: xr.Dataset, loss: Loss | None) -> list[str]:
    state, steps = str(data.attrs.get("state", "")), _last_step(data)
    planned = count(int(data.attrs.get("steps", steps)), "step")
    if loss is not None and loss.stopped_being_finite is not None:
        return [
            f"The run diverged: its loss was {number(loss.last)} at step {loss.last_step:,} and no longer finite at "
            f"step {loss.stopped_being_finite:,} of {planned} planned."
        ]
    if state == "failed":
        return [f"The run failed at step {steps:,} of {planned} planned."]
    if state == "interrupted":
        return [f"The run stopped early, at step {steps:,} of {planned} planned."]
    return [f"The run is still going on, at step {steps:,} of {planned}."] if state == "running" else []


def _loss(loss: Loss, how: Setting) -> list[str]:
    name = "the loss" if how.full_batch else "the loss per mini-batch" if not loss.noisy else "the median batch loss"
    if loss.stopped_being_finite is not None:
        return []
    if loss.diverged:
        return [f"The run diverged: {name} rose from {number(loss.first)} to {number(loss.last)}."]
    span = f"from {number(loss.first)} to {number(loss.last)} in {count(loss.last_step, 'step')}"
    if number(loss.first) == number(loss.last):
        return [f"{name.capitalize()} began and ended at {number(loss.last)}."]
    return [f"{name.capitalize()} {'fell' if loss.last < loss.first else 'rose'} {span}."]


def _convergence(loss: Loss) -> list[str]:
    if loss.falling is None or loss.falling < FALLING:
        return []
    return [
        f"The loss was still falling at the end, by {share(loss.falling)} over the last tenth of the run: "
        "not converged."
    ]


def _curvature(data: xr.Dataset, found: Edge, how: Setting, loss: Loss | None) -> list[str]:
    if found.crossed is None:
        return _below(found, how)
    there = number(found.threshold_there)
    when = f"at step {found.crossed:,}"
    if found.before is not None and found.crossed - found.before > 1:
        when = f"between steps {found.before:,} and {found.crossed:,}"
    if found.sharpened:
        words = (
            f"Sharpness rose from {number(found.first)} ({share(found.start_ratio)} of the threshold) and reached "
            f"{how.limit} = {there} {when}"
        )
        # A loss that blows up takes the curvature with it, which is not what the term means.
        words += "." if loss is not None and loss.diverged else ": progressive sharpening."
    elif found.start_ratio >= 1:
        words = f"Sharpness began at {number(found.first)}, {fixed(found.start_ratio)} times {how.limit} = {there}."
    elif found.threshold_there * ROSE <= found.first_threshold:
        words = (
            f"{_capital(how.limit)} came down from {number(found.first_threshold)} to {there} and met a sharpness of "
            f"{number(found.there)} {when}."
        )
    else:
        words = (
            f"Sharpness began at {share(found.start_ratio)} of {how.limit} and was first measured above it, at "
            f"{number(found.there)}, {when}."
        )
    return [words, _afterwards(data, found, how, loss)]


def _below(found: Edge, how: Setting) -> list[str]:
    if found.total < 2:
        return [f"Sharpness was measured once: {number(found.first)}, {share(found.start_ratio)} of {how.limit}."]
    ratio = found.last / found.first if found.first > 0 else 1.0
    verb = "rose" if ratio >= ROSE else "fell" if ratio <= 1 / ROSE else "went"
    return [
        f"Sharpness {verb} from {number(found.first)} to {number(found.last)}, and was below {how.limit} = "
        f"{number(found.threshold)} at each of {found.total:,} measurements; it came closest at step "
        f"{found.highest_at:,}, with {share(found.highest)} of it."
    ]


def _at_edge(data: xr.Dataset, found: Edge, how: Setting, loss: Loss | None) -> bool:
    """Whether a full-batch run stayed at the threshold, its loss unsteady, and went on training there."""
    if found.crossed is None or not found.stayed or not how.full_batch or loss is None or loss.diverged:
        return False
    rose = rises(losses(data).after(found.crossed))
    return rose is not None and rose >= UNSTEADY and loss.last < loss.first


def _afterwards(data: xr.Dataset, found: Edge, how: Setting, loss: Loss | None) -> str:
    if found.measured < ENOUGH:
        return f"Only {count(found.measured, 'measurement')} from there on: too few to say whether it stays."
    if found.rising:
        return (
            f"In the {found.measured:,} measurements from there on it went on rising, to "
            f"{fixed(found.end_ratio)} times the threshold, and did not settle."
        )
    if not found.stayed:
        return (
            f"It did not stay there: from then on its median is {fixed(found.median)} times the threshold, and 90% of "
            f"{found.measured:,} measurements lie between {fixed(found.low)} and {fixed(found.high)} times."
        )
    far = max(abs(found.low - 1), abs(found.high - 1))
    words = (
        f"It then stayed within {share(far, up=True)} of it"
        if far <= CLOSE
        else f"It then stayed between {fixed(found.low)} and {fixed(found.high)} times the threshold"
    )
    words += f" (90% of {found.measured:,} measurements, median {fixed(found.median)} times)"
    return words + (": the edge of stability." if _at_edge(data, found, how, loss) else ".")


def _at_the_edge(data: xr.Dataset, found: Edge, loss: Loss | None) -> list[str]:
    """Say how loss and updates went from the crossing on, where there is enough of it."""
    sentences: list[str] = []
    if found.crossed is None or loss is None or loss.diverged:
        return sentences
    curve = losses(data).after(found.crossed)
    rose = rises(curve)
    if found.stayed and rose is not None:
        before, after = _ends(curve)
        trend = (
            f"still fell over longer times, from a median of {number(before)} in the first tenth to "
            f"{number(after)} in the last"
            if after < before
            else "did not fall over longer times either"
        )
        sentences.append(f"From step {found.crossed:,} on, the loss rose at {share(rose)} of the steps and {trend}.")
    early, late = oscillation(data, 0, found.crossed), oscillation(data, found.crossed)
    if late.cosine is not None and late.cosine < -0.5:
        before_it = f", against {fixed(early.cosine)} before" if early.cosine is not None else ""
        sentences.append(
            f"From there on successive updates mostly point back at each other: the median cosine between them is "
            f"{fixed(late.cosine)}{before_it}."
        )
    return sentences


def _ends(curve: Series) -> tuple[float, float]:
    tenth = max(len(curve) // 10, 1)
    return float(np.median(curve.values[:tenth])), float(np.median(curve.values[-tenth:]))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
