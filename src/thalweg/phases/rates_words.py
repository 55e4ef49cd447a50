"""A report on learning rates in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from thalweg.optim.search import RateStop

if TYPE_CHECKING:
    from thalweg.phases.rates import LearningRateReport


def sentence(report: LearningRateReport) -> str:
    """Return the answer: largest stable first step, warm-up or not, distance to divergence."""
    parts = [_critical(report), _quadratic(report), _divergence(report), _warmup(report)]
    return " ".join(part for part in parts if part)


def evidence(report: LearningRateReport) -> list[tuple[str, str, str]]:
    """Return rows of ``(what, value, how it was found)``."""
    r = report
    low, high = r.bracket
    below, beyond = r.divergence_bracket
    rows = [
        ("loss", f"{r.loss:.6g}", "at this point"),
        ("critical learning rate", _rate(r.learning_rate), f"one step, seen between {low:.4g} and {high:.4g}"),
        ("sharpness", f"{r.sharpness:.5g}", f"largest eigenvalue, residual {r.residual:.1e}"),
        ("stable on the quadratic", _rate(r.local_limit), "threshold of the rule / sharpness"),
        ("directional sharpness", f"{r.directional:.5g}", "d'Hd / d'g along the update"),
        ("critical, quadratic", _rate(r.quadratic), "2 / directional sharpness"),
        ("c1", f"{r.c1:.4g}", f"sharpness x critical learning rate; the quadratic says {r.quadratic_c1:.4g}"),
        ("anharmonicity", f"{r.anharmonicity:.3g}", "measured / quadratic: 1 where the quadratic is right"),
        ("divergence", _rate(r.divergence), f"{len(r.runs)} runs of {r.steps} steps, {below:.4g} to {beyond:.4g}"),
    ]
    if r.target is not None:
        rows.append(("target", f"{r.target:.4g}", _relative(r.target, r.learning_rate, r.divergence)))
    rows.append(("cost", f"{r.forwards} forward passes", f"{r.gradients} gradients, {r.products} Hessian products"))
    return rows


def _rate(rate: float) -> str:
    return "none seen" if rate == math.inf else "not known" if math.isnan(rate) else f"{rate:.4g}"


def _relative(target: float, critical: float, divergence: float) -> str:
    words = [
        f"{target / rate:.3g} x {name}"
        for rate, name in ((critical, "critical"), (divergence, "divergence"))
        if 0 < rate < math.inf
    ]
    return ", ".join(words) or "nothing to compare with was seen"


def _critical(r: LearningRateReport) -> str:
    if r.stop is RateStop.RISES_AT_START:
        return (
            f"The loss rises already at learning rate {r.learning_rate:.4g}, the smallest that was tried: this step "
            "does not descend."
        )
    if r.learning_rate == math.inf:
        tried = max(eta for eta, _ in r.points)
        return f"No learning rate up to {tried:.4g} makes the first step raise the loss."
    return f"The first step lowers the loss up to learning rate {r.learning_rate:.4g}."


def _quadratic(r: LearningRateReport) -> str:
    ratio = r.anharmonicity
    if not math.isfinite(ratio) or r.stop is RateStop.RISES_AT_START:
        return ""
    if ratio > 1.5 or ratio < 1 / 1.5:
        way = "larger" if ratio > 1 else "smaller"
        factor = ratio if ratio > 1 else 1 / ratio
        return f"That is {factor:.3g} times {way} than the local curvature says ({r.quadratic:.4g})."
    return f"The local curvature says about the same ({r.quadratic:.4g})."


def _divergence(r: LearningRateReport) -> str:
    if r.divergence == math.inf:
        return f"No run of {r.steps} steps diverged, up to {r.divergence_bracket[0]:.4g}."
    if r.divergence_bracket[0] == 0:
        return f"Runs of {r.steps} steps diverge even at {r.divergence_bracket[1]:.4g}."
    return f"Runs of {r.steps} steps diverge beyond {r.divergence:.4g}."


def _warmup(r: LearningRateReport) -> str:
    if r.target is None or r.warmup is None:
        return ""
    name = r.warmup.name
    if name == "NOT_NEEDED":
        words = f"A target of {r.target:.4g} needs no warm-up on this account"
        far = f", and is {r.divergence / r.target:.3g} times below divergence" if r.divergence < math.inf else ""
        return f"{words}{far}."
    if r.stop is RateStop.RISES_AT_START:
        return "Where to start a warm-up cannot be said."
    if r.divergence < r.learning_rate:
        return (
            f"A target of {r.target:.4g} diverges from here and needs a warm-up: start at {r.start:.4g}, not at "
            "the critical learning rate: there the first step descends, but those after it do not."
        )
    share = r.saved_share or 0.0
    start = f"start at {r.learning_rate:.4g}, to be at the target {share:.1%} sooner than a ramp from zero"
    if r.saved is not None:
        start += f" ({r.saved:.3g} of {r.warmup_steps} steps, the search paid for)"
    if name == "OPTIONAL":
        return (
            f"A target of {r.target:.4g} raises the loss at first without diverging (a catapult); to avoid it, warm "
            f"up: {start}."
        )
    return f"A target of {r.target:.4g} diverges from here and needs a warm-up: {start}."
