"""Bounds that Alice sets herself: opened where the loss change that her model predicted was confirmed, else closed.

For the step ``delta`` of all tensors, ending at the look-ahead point, the model predicts the decrease

    P = sum |g| d - h d^2/2 - c rho^(1/2) d^(3/2),            d = omega |delta|

and the next batch's gradient ``g'``, which is taken there, measures it by the trapezoidal rule,

    M = sum (|g| d - omega delta g') / 2,

exactly on a quadratic. ``g'`` comes from a batch of its own and its noise averages out; no evaluation is added. The
ratio of both running averages moves the share of ``lr_max`` that is in force, as a trust region's radius is moved
(Conn, Gould and Toint, *Trust-Region Methods*, 2000, algorithm 6.1.1), on every batch by a little.

There is one ratio for all tensors, not one for each: a tensor's part of ``g'`` is changed by what all others did, and a
tensor that is blamed for that is closed for good, since closing it further mends nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.optim.alice_arithmetic import Piece, curvature_used
from thalweg.optim.alice_settings import Coefficients

if TYPE_CHECKING:
    from thalweg.optim.alice_state import Held

CLOSE, OPEN = 0.25, 0.75
"""Below the one the bound is closed, above the other it is opened."""
CLOSING, OPENING = 0.8, 1.25
"""By how much on one batch."""
BINDING = 0.1
"""The bound is opened only if so much of the linear decrease is of coordinates at it: elsewhere it does nothing."""
LEAST = 1e-4
"""A bound is never closed further than to this share of ``lr_max``."""
PUBLISHED = 2.0
"""The bound that a run starts with, in learning rates."""


NUMBERS = ("trust_share", "trust_linear", "trust_decrease", "trust_binding", "trust_measured", "trust_predicted")
"""What a group keeps, so that a state dictionary has it: the share; the last step's linear and whole predicted
decrease, and how much of the former is of coordinates at the bound; the two running averages. All groups with trust
keep the same, but for the share."""


def begin(group: dict[str, Any]) -> None:
    """Complete a new group with trust: it starts at the published bound."""
    start = min(1.0, PUBLISHED * group["bounds_lr"] / group["lr_max"]) if group["lr_max"] > 0 else 1.0
    for name, value in zip(NUMBERS, (start, 0.0, 0.0, 0.0, 0.0, 0.0)):
        group.setdefault(name, value)


def bounded(k: Coefficients, group: Mapping[str, Any]) -> Coefficients:
    """Return the coefficients with the upper bound that is in force."""
    assert isinstance(k.upper, float)
    assert isinstance(k.lower, float)
    return replace(k, upper=max(k.lower, group["trust_share"] * k.upper))


def judge(groups: Sequence[dict[str, Any]], batch: Mapping[Tensor, Held]) -> None:
    """Compare the last step's prediction with this batch's gradients, and move the bounds.

    Args:
        groups: All groups; those without trust are left out.
        batch: What is held of the parameters, before this batch's gradients are taken into the averages.
    """
    groups = [group for group in groups if group["trust"]]
    if not groups or groups[0]["trust_linear"] == 0:
        return
    linear, predicted = groups[0]["trust_linear"], groups[0]["trust_decrease"]
    ahead = sum(
        _slope(batch[p].piece(), group)
        for group in groups
        for p in group["params"]
        if p in batch and p.grad is not None and "descent" in batch[p].state
    )
    measured = (linear + ahead) / 2
    if not math.isfinite(measured):  # that is no descent
        measured = -abs(linear)
    beta = float(groups[0]["betas"][0])
    measured = beta * groups[0]["trust_measured"] + (1 - beta) * measured
    predicted = beta * groups[0]["trust_predicted"] + (1 - beta) * predicted
    confirmed = measured / predicted if predicted > 0 else math.nan
    for group in groups:
        group["trust_measured"], group["trust_predicted"] = measured, predicted
        if confirmed < CLOSE:
            group["trust_share"] = max(LEAST, group["trust_share"] * CLOSING)
        elif confirmed > OPEN and group["trust_binding"] >= BINDING:
            group["trust_share"] = min(1.0, group["trust_share"] * OPENING)


def _slope(piece: Piece, group: Mapping[str, Any]) -> float:
    """Return the decrease per unit of the last step that is left at its end."""
    gradient = piece.gradient.to(piece.mean.dtype)
    gradient = gradient.neg() if group["maximize"] else gradient
    if group["w1"] or group["w2"]:
        centre = piece.parameter if piece.rest is None else piece.parameter.to(piece.rest.dtype).add(piece.rest)
        look = centre.add(piece.descent, alpha=-piece.reach)
        gradient = gradient + group["w2"] * look + group["w1"] * (1 - 2 * look.lt(0).to(look.dtype))
    return float(group["omega"] * _sum(piece.descent * gradient))


def foresee(groups: Sequence[dict[str, Any]], took: Sequence[tuple[Piece, Coefficients]]) -> None:
    """Note what the model says of the step just taken.

    Args:
        groups: All groups.
        took: Views after the step, and its coefficients, of the parameters in groups with trust.
    """
    linear = bent = bound = 0.0
    for piece, k in took:
        if k.moving == 0:
            continue
        length = piece.descent.abs().mul_(k.omega)
        gains = piece.descent * piece.mean
        linear += _sum(gains) * k.omega
        bound += _sum(gains * at_bound(piece, k)) * k.omega
        h = curvature_used(piece, k)
        if h is not None:
            bent += _sum(h * length * length) / 2
        if k.glass and piece.glass is not None:
            bent += math.sqrt(8 / 9 * k.constant) * _sum(piece.glass.sqrt() * length**1.5)
    for group in groups:
        if group["trust"]:
            group["trust_linear"], group["trust_decrease"] = linear, linear - bent
            group["trust_binding"] = bound / linear if linear > 0 else 0.0


def at_bound(piece: Piece, k: Coefficients) -> Tensor:
    """Say which coordinates' last step was as long as the upper bound lets it be."""
    size = piece.descent.abs()
    if k.limit_method == "adam":
        unit: Tensor | float = piece.mean.abs() / (piece.square.sqrt() + k.eps)
    else:
        unit = 1.0 if k.limit_method == "fixed" else piece.mean.abs()
    return size >= unit * k.upper * (1 - 1e-5)


def check_whole(parameter: Tensor) -> None:
    """Refuse a shard, on which sums over a tensor would differ from process to process.

    Raises:
        InvalidInput: The parameter is sharded.
    """
    if getattr(parameter, "placements", None) is not None:
        why = "trust sums over whole tensors, and each process sees only its own piece"
        raise InvalidInput(explain("trust=True was given for a sharded parameter", why, "Leave trust out"))


def _sum(values: Tensor) -> float:
    return float(values.double().sum())
