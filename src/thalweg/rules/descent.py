"""Gradient descent and its two classical momenta, in PyTorch's conventions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from thalweg.rules.base import Rule, State


@dataclass(frozen=True)
class GradientDescent(Rule):
    r"""``w' = w - \eta (g + \gamma w)``. Threshold ``2 / eta``.

    Attributes:
        lr: ``eta``.
        weight_decay: ``gamma``, coupled (L2).

    Example:
        >>> rule = GradientDescent(lr=0.5)
        >>> rule.stability_threshold(), rule.describe()
        (4.0, 'gradient descent, learning rate 0.5')
    """

    weight_decay: float = 0.0
    name: ClassVar[str] = "gradient descent"

    @property
    def kappa(self) -> float:
        """2."""
        return 2.0

    def update(self, state: State, gradient: Tensor, w: Tensor) -> State:
        """Count the step."""
        return {"step": state["step"] + 1}

    def step(self, w: Tensor, state: State, gradient: Tensor) -> Tensor:
        """Move against the gradient."""
        return w.sub(self._with_decay(gradient, w), alpha=self._rate(state))


@dataclass(frozen=True)
class HeavyBall(Rule):
    r"""``m' = \beta m + (1 - d) g`` (first step: ``m' = g``), ``w' = w - \eta m'``.

    Threshold ``(2 + 2 beta) / ((1 - d) eta)``: 3.8 / eta at 0.9, or 38 / eta for an average (``d = beta``).

    Attributes:
        lr: ``eta``.
        momentum: ``beta``.
        dampening: ``d``, as in ``torch.optim.SGD``; ``d = beta`` makes ``m`` an average of gradients.
        weight_decay: Coupled (L2).
    """

    momentum: float = 0.9
    dampening: float = 0.0
    weight_decay: float = 0.0
    name: ClassVar[str] = "heavy ball"

    @property
    def kappa(self) -> float:
        """``(2 + 2 beta) / (1 - d)``."""
        return (2 + 2 * self.momentum) / (1 - self.dampening) if self.dampening < 1 else float("inf")

    def init(self, w: Tensor) -> State:
        """Zero momentum."""
        return {**super().init(w), "momentum": w.new_zeros(w.shape)}

    def update(self, state: State, gradient: Tensor, w: Tensor) -> State:
        """Take the gradient into the momentum."""
        gradient = self._with_decay(gradient, w)
        if int(state["step"]) == 0:
            momentum = gradient.clone()
        else:
            momentum = (state["momentum"] * self.momentum).add_(gradient, alpha=1 - self.dampening)
        return {"step": state["step"] + 1, "momentum": momentum}

    def step(self, w: Tensor, state: State, gradient: Tensor) -> Tensor:
        """Move against the momentum."""
        return w.sub(state["momentum"], alpha=self._rate(state))

    def drift(self, state: State, gradient: Tensor, w: Tensor) -> Tensor:
        r"""Return ``-\eta (1 - d) / (1 - \beta) g``: the flow once momentum has built up."""
        return super().drift(state, gradient, w) * ((1 - self.dampening) / (1 - self.momentum))


@dataclass(frozen=True)
class Nesterov(Rule):
    r"""``m' = \beta m + g``, ``w' = w - \eta (g + \beta m')``, the form of ``torch.optim.SGD(nesterov=True)``.

    Threshold ``(2 + 2 beta) / ((1 + 2 beta) eta)``: 1.357 / eta at 0.9, *below* that of plain descent.

    Attributes:
        lr: ``eta``.
        momentum: ``beta``.
        weight_decay: Coupled (L2).
    """

    momentum: float = 0.9
    weight_decay: float = 0.0
    name: ClassVar[str] = "Nesterov momentum"

    @property
    def kappa(self) -> float:
        """``(2 + 2 beta) / (1 + 2 beta)``."""
        return (2 + 2 * self.momentum) / (1 + 2 * self.momentum)

    def init(self, w: Tensor) -> State:
        """Zero momentum and look-ahead."""
        return {**super().init(w), "momentum": w.new_zeros(w.shape), "direction": w.new_zeros(w.shape)}

    def update(self, state: State, gradient: Tensor, w: Tensor) -> State:
        """Take the gradient into the momentum, and look one step ahead."""
        gradient = self._with_decay(gradient, w)
        momentum = (state["momentum"] * self.momentum).add_(gradient)
        return {
            "step": state["step"] + 1,
            "momentum": momentum,
            "direction": gradient.add(momentum, alpha=self.momentum),
        }

    def step(self, w: Tensor, state: State, gradient: Tensor) -> Tensor:
        """Move against the look-ahead direction."""
        return w.sub(state["direction"], alpha=self._rate(state))

    def drift(self, state: State, gradient: Tensor, w: Tensor) -> Tensor:
        r"""Return ``-\eta / (1 - \beta) g``: the flow once momentum has built up."""
        return super().drift(state, gradient, w) / (1 - self.momentum)
