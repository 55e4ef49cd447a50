"""Where an optimizer becomes unstable: ``kappa / eta`` for logged curvature, and the linear map it is derived from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thalweg import rules
from thalweg.errors import InvalidInput, explain
from thalweg.rules import Rule

Floats = NDArray[np.float64]

NAMES: Mapping[str, str] = {
    "gd": "GradientDescent",
    "sgd": "GradientDescent",
    "heavy_ball": "HeavyBall",
    "momentum": "HeavyBall",
    "ema": "HeavyBall",
    "nesterov": "Nesterov",
    "adam": "Adam",
    "adamw": "AdamW",
    "rmsprop": "RMSProp",
}
"""Short names of rules; ``ema`` is heavy ball with dampening equal to momentum."""


@dataclass(frozen=True)
class Limit:
    r"""The stability threshold ``\kappa / \eta - shift`` of one optimizer.

    Attributes:
        kappa: ``\kappa``.
        shift: What weight decay takes off, in units of curvature.
        name: The optimizer in words.
        momentum: Whether it keeps a momentum.
        preconditioned: Whether the curvature is that of ``P^{-1} H``.
        assumed: Whether no optimizer was named, and plain descent was taken.
    """

    kappa: float = 2.0
    shift: float = 0.0
    name: str = "gradient descent"
    momentum: bool = False
    preconditioned: bool = False
    assumed: bool = False

    def at(self, learning_rate: ArrayLike) -> Floats:
        """Return the threshold at each learning rate; infinity where the rate is zero."""
        eta = np.asarray(learning_rate, dtype=np.float64)
        with np.errstate(divide="ignore"):
            return np.where(eta > 0, self.kappa / eta - self.shift, np.inf)

    def ratio(self, sharpness: ArrayLike, learning_rate: ArrayLike) -> Floats:
        """Return sharpness over threshold; 1 is the edge of stability."""
        return np.asarray(sharpness, dtype=np.float64) / self.at(learning_rate)


def limit(
    rule: Rule | str | None = None,
    *,
    kappa: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    decay_in_curvature: bool = False,
) -> Limit:
    r"""Return the stability threshold of an optimizer in the units of the curvature that was measured.

    ``2`` for descent and RMSProp, ``2 + 2 \beta`` for heavy ball, ``(2 + 2\beta)/(1 - \beta)`` for averaged momentum
    and Adam, ``(2 + 2\beta)/(1 + 2\beta)`` for Nesterov, all over ``\eta``. Decay ``\gamma`` inside the gradient takes
    ``\gamma`` off where the Hessian was measured without it; decoupled decay takes off ``\gamma \kappa / 2``.

    Args:
        rule: A rule, or a short name of one: see `NAMES`. None: plain descent is assumed.
        kappa: Overrides the rule's.
        momentum: ``\beta`` where ``rule`` is a name.
        weight_decay: ``\gamma`` where ``rule`` is a name, in units of curvature.
        decay_in_curvature: Whether coupled decay is part of the measured curvature, as in `rules.effective_hessian`.

    Returns:
        A `Limit`.

    Raises:
        InvalidInput: The name is unknown, ``kappa`` is not positive, or coupled decay meets a preconditioner whose
            curvature was measured without it, where no single number is right.

    Example:
        >>> limit("heavy_ball").kappa, limit("adamw", weight_decay=0.1).shift, limit("nesterov").at(0.5).round(4).item()
        (3.8, 1.9000000000000004, 2.7143)
    """
    if kappa is not None and not (np.isfinite(kappa) and kappa > 0):
        raise InvalidInput(explain(f"kappa is {kappa}", "a threshold is positive", "Pass a positive number"))
    if rule is None:
        words = "gradient descent" if kappa is None else f"a rule with threshold {kappa:g} / lr"
        return Limit(kappa or 2.0, weight_decay, words, assumed=kappa is None)
    found = _named(rule, momentum, weight_decay) if isinstance(rule, str) else rule
    preconditioned = hasattr(found, "beta2")
    value = found.kappa if kappa is None else kappa
    shift = 0.0
    if found.decay and found.decoupled:
        shift = found.decay * value / 2
    elif found.decay and not decay_in_curvature:
        if preconditioned:
            raise InvalidInput(
                explain(
                    f"{found.name} has weight decay {found.decay:g} in its gradient, and the curvature is without it",
                    "behind a preconditioner the decay shifts each direction differently",
                    "Measure the curvature with the decay (rules.effective_hessian) and pass decay_in_curvature=True",
                )
            )
        shift = found.decay
    carries = bool(getattr(found, "momentum", 0.0) or getattr(found, "beta1", 0.0))
    return Limit(value, shift, found.name, carries, preconditioned)


def companion(rule: Rule, curvature: float, learning_rate: float) -> Floats:
    r"""Return the linear map of one step on ``h w^2 / 2``, with the preconditioner held at one, on ``(w, m)``.

    Heavy ball with dampening ``d``: ``m' = \beta m + (1 - d) h w``, ``w' = w - \eta m'``. Nesterov:
    ``m' = \beta m + h w``, ``w' = w - \eta (h w + \beta m')``.
    Adam: heavy ball with ``d = \beta_1``; decoupled decay multiplies ``w`` by ``1 - \eta \gamma`` first. The step is
    stable where no eigenvalue is larger than 1 in size.

    Args:
        rule: The update rule; its own learning rate is not used.
        curvature: ``h``, without weight decay.
        learning_rate: ``\eta``.

    Returns:
        A ``(2, 2)`` matrix; the momentum of a rule without one stays zero.

    Example:
        >>> from thalweg.rules import GradientDescent
        >>> [round(spectral_radius(GradientDescent(lr=0.1), h, 0.1), 9) for h in (19.0, 21.0)]
        [0.9, 1.1]
    """
    eta, gamma = learning_rate, rule.decay
    kept = 1 - eta * gamma if rule.decoupled else 1.0
    h = curvature if rule.decoupled else curvature + gamma
    if isinstance(rule, rules.Nesterov):
        beta = rule.momentum
        return np.array([[1 - eta * h * (1 + beta), -eta * beta**2], [h, beta]])
    if isinstance(rule, rules.HeavyBall):
        beta, taken = rule.momentum, 1 - rule.dampening
    elif isinstance(rule, rules.Adam):
        beta, taken = rule.beta1, 1 - rule.beta1
    elif isinstance(rule, (rules.GradientDescent, rules.RMSProp)):
        return np.array([[1 - eta * h, 0.0], [0.0, 0.0]])
    else:
        raise InvalidInput(
            explain(f"{type(rule).__name__} is not one of ours", "its linear map is not known", "Use its own kappa")
        )
    return np.array([[kept - eta * taken * h, -eta * beta], [taken * h, beta]])


def spectral_radius(rule: Rule, curvature: float, learning_rate: float) -> float:
    """Return the largest eigenvalue of `companion` in size: above 1 the step is unstable."""
    return float(np.abs(np.linalg.eigvals(companion(rule, curvature, learning_rate))).max())


def _named(name: str, momentum: float, decay: float) -> Rule:
    kind = NAMES.get(name.lower().replace("-", "_"))
    if kind is None:
        raise InvalidInput(
            explain(f"There is no rule {name!r}", "its threshold is not known", f"Choose among: {', '.join(NAMES)}")
        )
    settings: dict[str, float] = {"lr": 1.0, "weight_decay": decay}
    if kind in ("HeavyBall", "Nesterov"):
        settings["momentum"] = momentum
    if name.lower() == "ema":
        settings["dampening"] = momentum
    if kind in ("Adam", "AdamW"):
        settings["beta1"] = momentum
    made: Rule = getattr(rules, kind)(**settings)
    return made
