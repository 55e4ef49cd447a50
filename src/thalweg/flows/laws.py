r"""Update rules as flows see them: a metric, and how averaged squares of gradients move it.

The *metric* is ``P = preconditioner * threshold / 2``, so that the limit of stability of ``P^{-1} H`` is 2 whatever the
rule. Rules without memory of gradients step by ``-P^{-1} g``. An oscillation with covariance ``Sigma`` adds
``H Sigma H`` to the mean of ``g g'``; rules that average squares of gradients see its diagonal, or its trace.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.rules import Adam, RMSProp, Rule, ScalarRMSProp, State

LIMIT = 2.0
"""Largest stable eigenvalue of ``P^{-1} H``, by the choice of the metric."""


class Law(ABC):
    """What a flow needs to know of a rule.

    States are the rule's own; one that has taken in ``n`` gradients belongs to update number ``n - 1``.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    @property
    def decay(self) -> float:
        """Coupled weight decay ``gamma``: the flow runs on ``L + gamma |w|^2 / 2``."""
        return 0.0 if self.rule.decoupled else self.rule.decay

    def force(self, gradient: Tensor, w: Tensor) -> Tensor:
        """Gradient with the coupled decay."""
        return gradient.add(w, alpha=self.decay) if self.decay else gradient

    @abstractmethod
    def absorb(self, state: State, force: Tensor, extra: Tensor | None = None) -> State:
        """Take in a gradient; ``extra`` is added to its square (see `squared`)."""

    @abstractmethod
    def metric(self, state: State) -> Tensor:
        """``P`` of the update that ``state`` belongs to."""

    remembers: bool = False
    """Whether the rule averages gradients, so that a push goes on acting after its step."""

    def gain(self, state: State) -> float:
        """Share of ``P^{-1}`` times a push that the weights move by at once."""
        return 1.0

    def stiffness(self, state: State) -> float:
        """Half the stability threshold: the metric for a preconditioner of one."""
        eta, kappa = learning_rate(self.rule, state), self.rule.kappa
        return kappa / 2 / eta - (kappa / 4 * self.rule.decay if self.rule.decoupled else 0.0)

    def move(self, before: State, after: State, push: Tensor, w: Tensor) -> tuple[Tensor, State]:
        """Return the step that ``push`` gives (gradient and penalty), shape ``(P,)``, and the state with it."""
        return -(push / self.metric(after).to(push)), after

    def squared(self, a: Tensor, b: Tensor) -> Tensor | None:
        """What a term ``a b'`` in the mean of ``g g'`` adds to the averaged squares; None if there are none."""
        return None

    def slope(self, state: State, extra: Tensor) -> Tensor | None:
        """Derivative of `metric` in the direction ``extra`` of the averaged squares ``nu``."""
        return None

    @property
    def share(self) -> float:
        """Share of the newest square in the average, ``1 - b``."""
        return 0.0

    @property
    def speed(self) -> float:
        """Rate of the average in continuous time, ``(1 - b) / b``: its recursion is a step of implicit Euler."""
        return 0.0

    def rate(self, state: State, force: Tensor, extra: Tensor | None = None) -> State:
        """Continuous time: the velocity of each entry of the state, per unit of time."""
        return {"step": torch.ones_like(state["step"], dtype=torch.float64)}


class PlainLaw(Law):
    """Gradient descent: the metric is ``1 / eta``."""

    def absorb(self, state: State, force: Tensor, extra: Tensor | None = None) -> State:
        """Count the step."""
        return {"step": state["step"] + 1}

    def metric(self, state: State) -> Tensor:
        """``1 / eta``."""
        return torch.tensor(self.stiffness(state), dtype=torch.float64)


class SquaresLaw(Law):
    """RMSProp and its scalar form: the metric is ``(sqrt(nu) + eps) / eta``."""

    rule: RMSProp | Adam

    def absorb(self, state: State, force: Tensor, extra: Tensor | None = None) -> State:
        """Average the squares: ``nu' = b nu + (1 - b) (g^2 + extra)``."""
        squares = self.squared(force, force)
        assert squares is not None
        if extra is not None:
            squares = squares + extra
        nu = state["nu"] * self.rule.beta2 + squares * (1 - self.rule.beta2)
        return {"step": state["step"] + 1, "nu": nu, "gradient": force}

    def metric(self, state: State) -> Tensor:
        """``(sqrt(nu_hat) + eps) / eta``."""
        root = (state["nu"] / self._correction(state)).clamp_min(0.0).sqrt()
        return (root + self.rule.eps) * self.stiffness(state)

    def squared(self, a: Tensor, b: Tensor) -> Tensor:
        """``a * b`` per coordinate, or ``a . b`` for the scalar rule."""
        return a.dot(b) if isinstance(self.rule, ScalarRMSProp) else a * b

    def slope(self, state: State, extra: Tensor) -> Tensor:
        """``extra / (2 c sqrt(nu_hat) eta)`` with ``c`` the bias correction."""
        correction = self._correction(state)
        root = (state["nu"] / correction).sqrt().clamp_min(torch.finfo(extra.dtype).tiny)
        return extra * (self.stiffness(state) / (2 * correction)) / root

    @property
    def share(self) -> float:
        """``1 - beta2``."""
        return 1 - self.rule.beta2

    @property
    def speed(self) -> float:
        """``(1 - beta2) / beta2``."""
        return (1 - self.rule.beta2) / self.rule.beta2

    def rate(self, state: State, force: Tensor, extra: Tensor | None = None) -> State:
        """``dnu/dt = (1 - b) / b (g^2 + extra - nu)``: the recursion is a step of implicit Euler for it."""
        squares = self.squared(force, force)
        if extra is not None:
            squares = squares + extra
        return {
            "step": torch.ones((), dtype=torch.float64),
            "nu": (squares - state["nu"]) * self.speed,
        }

    def _correction(self, state: State) -> float:
        if not getattr(self.rule, "bias_correction", True):  # Adam always has it
            return 1.0
        return float(1 - self.rule.beta2 ** max(float(state["step"]), 1.0))


def learning_rate(rule: Rule, state: State) -> float:
    """Learning rate of the update that ``state`` belongs to; interpolated between steps."""
    step = float(state["step"]) - 1
    if not callable(rule.lr):
        eta = float(rule.lr)
    else:  # schedules know whole steps; a flow may ask in between
        low = int(step // 1)
        share = step - low
        eta = float(rule.lr(max(low, 0))) * (1 - share) + (float(rule.lr(max(low, 0) + 1)) * share if share else 0.0)
    if not eta > 0:
        raise InvalidInput(
            explain(
                f"The learning rate of update {step:g} is {eta:g}",
                "the metric of a flow is divided by it",
                "Start the flow where the schedule is positive, or end it before",
            )
        )
    return eta


def largest_rate(rule: Rule, rate: float, sharpness: float) -> float:
    r"""Return the learning rate at which the largest effective eigenvalue would be at its limit at this point.

    ``P`` is proportional to ``1 / eta - d / 2`` at given averages, ``d`` the decoupled decay: so it is
    ``1 / (m (1 / eta - d / 2) + d / 2)`` with ``m`` the eigenvalue over its limit.

    Args:
        rule: The update rule.
        rate: Its learning rate ``eta``.
        sharpness: Largest eigenvalue of ``P^{-1} H`` at that rate.

    Example:
        >>> from thalweg.rules import GradientDescent
        >>> largest_rate(GradientDescent(lr=0.5), 0.5, sharpness=4.0)
        0.25
    """
    half = rule.decay / 2 if rule.decoupled else 0.0
    return 1 / (sharpness / LIMIT * (1 / rate - half) + half)
