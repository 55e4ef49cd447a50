"""What Alice can be told, checked; and the numbers that one step makes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain

Scalar: TypeAlias = float | Tensor
LIMITS = ("adam", "sgdm", "fixed")
CURVATURES = ("abs", "rms", "zero", "hutchinson", "rms_deleaked")
BOUNDS = {"gaussian": 3 / (4 * math.pi), "jensen": 3 / 8}
"""Constant in ``alpha = constant * rho / |g|``: 9/8 of the square of 2/(3 pi)**(1/2), or of 1/3**(1/2)."""
TRUSTED = 200.0
"""The upper bound in learning rates, with ``trust`` and without a given ``lr_max``."""


@dataclass(frozen=True)
class Coefficients:
    """Everything that the arithmetic of one step needs besides tensors; 0-d tensors where the step is one."""

    gradient: Scalar
    square: Scalar
    curvature: Scalar
    probe: Scalar
    lower: Scalar
    upper: Scalar
    moving: Scalar
    decay: Scalar
    eps: float
    constant: float
    phi: float
    omega: float
    w1: float
    w2: float
    hess_comp: str
    limit_method: str
    glass: bool
    maximize: bool


def warm_steps(beta1: float) -> int:
    """Return how many steps pass before the first that moves: those ``t`` with ``t <= 1/(1 - beta1)``.

    Both the difference and the quotient are rounded to float32, as in the published program: at 0.9 the quotient is
    9.999998, and the tenth step moves, which exact arithmetic would not let.

    Example:
        >>> warm_steps(0.9), warm_steps(0.5), warm_steps(0.99)
        (9, 2, 100)
    """
    one = np.float32(1)
    return math.floor(one / (one - np.float32(beta1)))


def period(group: Mapping[str, Any]) -> int:
    """Return every how many batches curvature is sampled."""
    every = group["sample_every"]
    return int(every if every is not None else group["quick_steps"] + 1)


def phi_of(group: Mapping[str, Any]) -> float:
    """Return the fraction of the step that the centre advances; ``None`` follows the current ``betas``."""
    phi = group["phi"]
    if phi is None:
        return float(1 - group["betas"][0])
    return float((1 - group["betas"][0]) * group["omega"]) if phi == "coupled" else float(phi)


def coefficients(group: Mapping[str, Any], step: float | Tensor, samples: int | None = None) -> Coefficients:
    """Make the numbers of step ``step`` (counted from 1) from a group's settings of this moment.

    ``beta_t = min(beta, (step - 1)/step)`` for the three averages, so that each is a plain mean at first and needs no
    correction of its bias.

    Args:
        group: An entry of ``param_groups``.
        step: Counting batches, this one included; a 0-d tensor where the optimizer is capturable.
        samples: Counting samples of curvature, where these are to be weighted by it.

    Returns:
        The coefficients.
    """
    beta1, beta2 = (float(beta) for beta in group["betas"])
    beta3 = 1 - period(group) * (1 - beta2)
    rate = group["lr"]
    if isinstance(rate, Tensor) and not isinstance(step, Tensor):
        rate = rate.item()
    scale = rate / group["bounds_lr"] if group["scale_bounds_with_lr"] else 1.0
    sigma = rate if group["sigma"] is None else group["sigma"]
    floor = group["sigma_floor"]
    moving = 1.0 * (step > warm_steps(beta1)) if group["move"] else 0.0
    return Coefficients(
        gradient=_fresh(beta1, step),
        square=_fresh(beta2, step),
        curvature=_fresh(beta3, step if samples is None else samples),
        probe=sigma.clamp_min(floor) if isinstance(sigma, Tensor) else max(sigma, floor),
        lower=group["lr_min"] * scale,
        upper=group["lr_max"] * scale,
        moving=moving,
        decay=1 - rate * group["weight_decay"] * moving,
        eps=group["eps"],
        constant=BOUNDS[group["glass_bound"]],
        phi=phi_of(group),
        omega=float(group["omega"]),
        w1=group["w1"],
        w2=group["w2"],
        hess_comp=group["hess_comp"],
        limit_method=group["limit_method"],
        glass=group["grad_glass"],
        maximize=group["maximize"],
    )


def _fresh(beta: float, step: float | Tensor) -> Scalar:
    """Return ``1 - min(beta, (step - 1)/step)``, the weight of the newest."""
    if isinstance(step, Tensor):
        return (1 / step).clamp_min(1 - beta)
    return max(1 - beta, 1 / step)


def check(group: dict[str, Any]) -> None:
    """Check one group's settings and complete those that follow from its own learning rate.

    Raises:
        InvalidInput: A value is out of its range, or two of them contradict each other.
    """
    rate = group["lr"]
    if isinstance(rate, Tensor) and rate.numel() != 1:
        raise _wrong("lr", f"a tensor of shape {tuple(rate.shape)}", "a number or a tensor of one element")
    number = float(rate)
    _want(math.isfinite(number) and number >= 0, "lr", number, "0 or more")
    if group["lr_max"] is None:
        ratio = TRUSTED if group["trust"] else 2.0
        group["lr_max"] = ratio * (number if number > 0 or not group["scale_bounds_with_lr"] else 1.0)
    elif number == 0 and group["scale_bounds_with_lr"] and group["lr_max"] > 0:
        raise _wrong(
            "lr_max", f"{group['lr_max']} at lr=0", "left out, or scale_bounds_with_lr=False, if lr starts at 0"
        )
    group.setdefault("bounds_lr", number if number > 0 else 1.0)
    group.setdefault("batches", 0)
    betas = group["betas"]
    _want(len(betas) == 2 and all(0 <= float(b) < 1 for b in betas), "betas", betas, "two numbers in [0, 1)")
    quick, every = group["quick_steps"], group["sample_every"]
    _want(isinstance(quick, int) and quick >= 0, "quick_steps", quick, "a whole number, 0 or more")
    _want(every is None or (isinstance(every, int) and every >= 1), "sample_every", every, "None or a whole number")
    if not period(group) * (1 - float(betas[1])) <= 1:
        raise _wrong(
            "quick_steps", f"{period(group) - 1} at beta2={betas[1]}", "such that (quick_steps+1)(1-beta2) <= 1"
        )
    for name in ("eps", "omega", "sigma_floor"):
        _want(0 < group[name] < math.inf, name, group[name], "above 0")
    for name in ("w1", "w2", "weight_decay", "lr_min"):
        _want(0 <= group[name] < math.inf, name, group[name], "0 or more")
    _want(group["lr_max"] >= group["lr_min"], "lr_max", group["lr_max"], f"at least lr_min={group['lr_min']}")
    phi, sigma = group["phi"], group["sigma"]
    _want(
        phi in (None, "coupled") or (not isinstance(phi, str) and 0 < phi < 2),
        "phi",
        phi,
        'None, "coupled" or a number in (0, 2)',
    )
    _want(sigma is None or 0 < sigma < math.inf, "sigma", sigma, "None or above 0")
    _want(group["limit_method"] in LIMITS, "limit_method", group["limit_method"], f"one of {', '.join(LIMITS)}")
    _want(group["hess_comp"] in CURVATURES, "hess_comp", group["hess_comp"], f"one of {', '.join(CURVATURES)}")
    _want(group["glass_bound"] in BOUNDS, "glass_bound", group["glass_bound"], f"one of {', '.join(BOUNDS)}")
    if group["hess_comp"] == "zero" and not group["grad_glass"]:
        raise _wrong("hess_comp", '"zero" with grad_glass=False', "another, since no curvature is left to step by")
    if group["foreach"] and group["capturable"]:
        raise _wrong("foreach", "True with capturable=True", "left out: the capturable path takes tensors one by one")
    if group["compiled"] and (group["foreach"] or group["capturable"]):
        raise _wrong("compiled", "True with foreach or capturable", "the only one of the three")
    if group["count_samples"] and group["capturable"]:
        raise _wrong("count_samples", "True with capturable=True", "left out: samples are counted on the host")
    if group["trust"] and group["capturable"]:
        raise _wrong("trust", "True with capturable=True", "left out: the host decides about bounds")
    if group["differentiable"]:
        raise _wrong("differentiable", "True", "False: no derivative through the steps is offered")


def _want(holds: bool, name: str, value: object, range_: str) -> None:
    if not holds:
        raise _wrong(name, repr(value), range_)


def _wrong(name: str, value: str, range_: str) -> InvalidInput:
    return InvalidInput(explain(f"The setting {name} is {value}", "Alice cannot work with it", f"Make it {range_}"))


def check_parameter(parameter: Tensor) -> None:
    """Refuse what element-wise real arithmetic is wrong for.

    Raises:
        InvalidInput: The parameter is complex, or no floating-point tensor.
    """
    if parameter.is_complex():
        why = "a sign and an absolute value per coordinate mean nothing for complex numbers"
        raise InvalidInput(
            explain("A parameter is complex", why, "Pass a real view of it: torch.view_as_real(parameter)")
        )
    if not parameter.is_floating_point():
        raise InvalidInput(explain(f"A parameter is {parameter.dtype}", "it has no gradient", "Leave it out"))


def check_gradient(gradient: Tensor) -> None:
    """Refuse a sparse gradient.

    Raises:
        InvalidInput: It is sparse.
    """
    if gradient.layout != torch.strided:
        why = "the averages and the probe need every coordinate at every step"
        raise InvalidInput(
            explain("A gradient is sparse", why, "Make it dense (sparse=False) or leave it to torch.optim.SparseAdam")
        )
