r"""Rules that average gradients, as flows see them: the buffer takes in gradient and penalty, and moves the weights.

An oscillation of period two along an eigenvector is stable below the rule's own threshold, and the mean of the
gradients that the buffer takes in is ``g + 1/2 grad <H, Sigma>`` as for any rule. So the map keeps the buffer exactly,
and asks of ``Sigma`` what it asks elsewhere: that no eigenvalue passes the threshold at the end of the step. Our own
derivation; it neglects the cycles that a long memory makes of the penalty, which it delays.
"""

from __future__ import annotations

from torch import Tensor

from thalweg.flows.laws import PlainLaw, SquaresLaw, learning_rate
from thalweg.rules import Adam, HeavyBall, Nesterov, State


class BufferLaw(PlainLaw):
    """Heavy ball and Nesterov momentum: ``m' = b m + (1 - d) push``, and the weights move along it."""

    rule: HeavyBall | Nesterov
    remembers = True

    def absorb(self, state: State, force: Tensor, extra: Tensor | None = None) -> State:
        """Count the step; the buffer takes in the whole push, in `move`."""
        return {**state, "step": state["step"] + 1}

    def gain(self, state: State) -> float:
        """``1 + b``, and ``(1 + b)^2 / (1 + 2 b)`` for Nesterov: step over threshold."""
        return self._share(state) * learning_rate(self.rule, state) * self.stiffness(state)

    def move(self, before: State, after: State, push: Tensor, w: Tensor) -> tuple[Tensor, State]:
        """Take the push into the buffer, and step along it."""
        b, eta = self.rule.momentum, learning_rate(self.rule, after)
        if isinstance(self.rule, Nesterov):
            buffer = before["momentum"] * b + push
            along = push + b * buffer
            return -eta * along, {**after, "momentum": buffer, "direction": along}
        first = int(before["step"]) == 0
        buffer = push if first else before["momentum"] * b + (1 - self.rule.dampening) * push
        return -eta * buffer, {**after, "momentum": buffer}

    def _share(self, state: State) -> float:
        """How much of a push moves the weights in its own step."""
        if isinstance(self.rule, Nesterov):
            return 1 + self.rule.momentum
        return 1.0 if int(state["step"]) <= 1 else 1 - self.rule.dampening


class AdamLaw(SquaresLaw):
    """Adam and AdamW: an average of gradients over the root of an average of squares."""

    rule: Adam
    remembers = True

    def absorb(self, state: State, force: Tensor, extra: Tensor | None = None) -> State:
        """Average the squares; the average of gradients takes in the whole push, in `move`."""
        taken = super().absorb(state, force, extra)
        return {"step": taken["step"], "nu": taken["nu"], "mu": state["mu"]}

    def metric(self, state: State) -> Tensor:
        """``(1 - b1^t) (sqrt(nu_hat) + eps)`` times half the threshold."""
        return super().metric(state) * self._begun(state)

    def slope(self, state: State, extra: Tensor) -> Tensor:
        """Of the metric, along ``extra`` of the averaged squares."""
        return super().slope(state, extra) * self._begun(state)

    def gain(self, state: State) -> float:
        """``1 + b1`` without decoupled decay."""
        return (1 - self.rule.beta1) * learning_rate(self.rule, state) * self.stiffness(state)

    def move(self, before: State, after: State, push: Tensor, w: Tensor) -> tuple[Tensor, State]:
        """Take the push into the average, and step along it over the root; decoupled decay shrinks the weights."""
        eta, rule = learning_rate(self.rule, after), self.rule
        mean = before["mu"] * rule.beta1 + (1 - rule.beta1) * push
        divisor = self.metric(after) / self.stiffness(after)
        step = -eta * mean / divisor
        return (step - eta * rule.decay * w if rule.decoupled else step), {**after, "mu": mean}

    def _begun(self, state: State) -> float:
        return float(1 - self.rule.beta1 ** max(float(state["step"]), 1.0))
