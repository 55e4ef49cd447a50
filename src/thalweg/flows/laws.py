r"""Update rules as flows see them: a metric, and how averaged squares of gradients move it.

Every rule here has the form: take the gradient into the state, then step by ``-P^{-1} g`` with the *metric*
``P = preconditioner / learning rate``, so that time is counted in steps and the limit of stability of ``P^{-1} H``
is 2 whatever the rule. An oscillation with covariance ``Sigma`` adds ``H Sigma H`` to the mean of ``g g'``; rules that
average squares of gradients see its diagonal, or its trace.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.rules import GradientDescent, RMSProp, Rule, ScalarRMSProp, State

LIMIT = 2.0
"""Largest stable eigenvalue of ``P^{-1} H`` for rules without momentum."""


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
    def metric(self, state: State, ahead: int = 0) -> Tensor:
        """``P`` of the update that ``state`` belongs to, or with the learning rate ``ahead`` updates later."""

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

    def metric(self, state: State, ahead: int = 0) -> Tensor:
        """``1 / eta``."""
        return torch.tensor(1.0 / _eta(self.rule, state, ahead), dtype=torch.float64)


class SquaresLaw(Law):
    """RMSProp and its scalar form: the metric is ``(sqrt(nu) + eps) / eta``."""

    rule: RMSProp

    def absorb(self, state: State, force: Tensor, extra: Tensor | None = None) -> State:
        """Average the squares: ``nu' = b nu + (1 - b) (g^2 + extra)``."""
        squares = self.squared(force, force)
        assert squares is not None
        if extra is not None:
            squares = squares + extra
        nu = state["nu"] * self.rule.beta2 + squares * (1 - self.rule.beta2)
        return {"step": state["step"] + 1, "nu": nu, "gradient": force}

    def metric(self, state: State, ahead: int = 0) -> Tensor:
        """``(sqrt(nu_hat) + eps) / eta``."""
        root = (state["nu"] / self._correction(state)).clamp_min(0.0).sqrt()
        return (root + self.rule.eps) / _eta(self.rule, state, ahead)

    def squared(self, a: Tensor, b: Tensor) -> Tensor:
        """``a * b`` per coordinate, or ``a . b`` for the scalar rule."""
        return a.dot(b) if isinstance(self.rule, ScalarRMSProp) else a * b

    def slope(self, state: State, extra: Tensor) -> Tensor:
        """``extra / (2 c sqrt(nu_hat) eta)`` with ``c`` the bias correction."""
        correction = self._correction(state)
        root = (state["nu"] / correction).sqrt().clamp_min(torch.finfo(extra.dtype).tiny)
        return extra / (2 * correction * _eta(self.rule, state, 0)) / root

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
        if not self.rule.bias_correction:
            return 1.0
        return float(1 - self.rule.beta2 ** max(float(state["step"]), 1.0))


def law_of(rule: Rule) -> Law:
    """Return the law of ``rule``.

    Raises:
        InvalidInput: No central flow is known for it here: momentum and Adam are not derived, decoupled decay neither.

    Example:
        >>> law_of(GradientDescent(lr=0.5)).metric({"step": torch.tensor(1)}).item()
        2.0
    """
    if isinstance(rule, GradientDescent):
        return PlainLaw(rule)
    if isinstance(rule, RMSProp):
        if not 0 < rule.beta2 < 1:
            raise InvalidInput(
                explain(
                    f"beta2 is {rule.beta2}", "the flow of an average needs 0 < beta2 < 1", "Use a value such as 0.9"
                )
            )
        return SquaresLaw(rule)
    raise InvalidInput(
        explain(
            f"No central flow is known for {rule.name}",
            "its unstable mode lives in weights and momentum together, which the published equations do not cover",
            "Use gradient descent, scalar RMSProp or RMSProp",
        )
    )


def _eta(rule: Rule, state: State, ahead: int) -> float:
    step = float(state["step"]) - 1 + ahead
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
