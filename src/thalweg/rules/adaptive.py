"""Rules with a preconditioner learnt from squared gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from thalweg.rules.base import Rule, State
from thalweg.rules.schedules import Schedule


@dataclass(frozen=True)
class RMSProp(Rule):
    r"""``\nu' = \beta_2 \nu + (1 - \beta_2) g^2``, ``P = \sqrt{\hat\nu'} + \epsilon``, ``w' = w - \eta g / P``.

    ``nu`` starts at zero; ``\hat\nu = \nu`` as in ``torch.optim.RMSprop(alpha=beta2)``, or ``\nu / (1 - \beta_2^t)``
    with bias correction. Threshold ``2 / eta`` on ``P^-1 H`` (arXiv 2410.24206).

    Attributes:
        lr: ``eta``.
        beta2: Decay of the average of squares.
        eps: Added outside the root, in units of the gradient.
        bias_correction: Whether to divide out the start at zero.
        weight_decay: Coupled (L2); it enters the squares too, as in torch.
    """

    beta2: float = 0.99
    eps: float = 1e-8
    bias_correction: bool = False
    weight_decay: float = 0.0
    name: ClassVar[str] = "RMSProp"

    @property
    def kappa(self) -> float:
        """2."""
        return 2.0

    def init(self, w: Tensor) -> State:
        """Zero second moment."""
        return {**super().init(w), "nu": self._square(torch.zeros_like(w)), "gradient": torch.zeros_like(w)}

    def update(self, state: State, gradient: Tensor, w: Tensor) -> State:
        """Take the square of the gradient into its average."""
        gradient = self._with_decay(gradient, w)
        nu = (state["nu"] * self.beta2).add_(self._square(gradient), alpha=1 - self.beta2)
        return {"step": state["step"] + 1, "nu": nu, "gradient": gradient}

    def preconditioner(self, state: State) -> Tensor:
        r"""``\sqrt{\hat\nu} + \epsilon``."""
        nu = state["nu"]
        if self.bias_correction:
            nu = nu / (1 - self.beta2 ** max(int(state["step"]), 1))
        return nu.sqrt().add_(self.eps)

    def step(self, w: Tensor, state: State, gradient: Tensor) -> Tensor:
        """Move against the preconditioned gradient."""
        return w.sub(state["gradient"] / self.preconditioner(state), alpha=self._rate(state))

    def _square(self, gradient: Tensor) -> Tensor:
        return gradient * gradient


@dataclass(frozen=True)
class ScalarRMSProp(RMSProp):
    r"""RMSProp with one scalar second moment, ``\nu' = \beta_2 \nu + (1 - \beta_2) |g|^2``.

    The simplest adaptive rule: its effective step ``eta / sqrt(nu)`` settles at ``2 / sharpness``
    (arXiv 2410.24206). torch has no counterpart. Attributes as for `RMSProp`.
    """

    name: ClassVar[str] = "scalar RMSProp"

    def _square(self, gradient: Tensor) -> Tensor:
        return gradient.dot(gradient)


@dataclass(frozen=True)
class Adam(Rule):
    r"""``m' = \beta_1 m + (1 - \beta_1) g``, ``\nu' = \beta_2 \nu + (1 - \beta_2) g^2``, ``w' = w - \eta m' / P``.

    ``P = (1 - \beta_1^t) (\sqrt{\nu' / (1 - \beta_2^t)} + \epsilon)`` holds both bias corrections, so that the move is
    ``eta P^-1 m'`` with ``m'`` an average of gradients. Threshold ``(2 + 2 beta1) / ((1 - beta1) eta)`` on ``P^-1 H``
    with ``P`` held fixed: 38 / eta at 0.9.

    Attributes:
        lr: ``eta``.
        beta1: Decay of the average of gradients.
        beta2: Decay of the average of squares.
        eps: Added outside the root.
        weight_decay: Coupled (L2), as in ``torch.optim.Adam``.
    """

    lr: float | Schedule = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    name: ClassVar[str] = "Adam"

    @property
    def kappa(self) -> float:
        """``(2 + 2 beta1) / (1 - beta1)``."""
        return (2 + 2 * self.beta1) / (1 - self.beta1)

    def init(self, w: Tensor) -> State:
        """Zero moments."""
        return {**super().init(w), "mu": torch.zeros_like(w), "nu": torch.zeros_like(w)}

    def update(self, state: State, gradient: Tensor, w: Tensor) -> State:
        """Take the gradient into both moments."""
        gradient = self._with_decay(gradient, w)
        return {
            "step": state["step"] + 1,
            "mu": (state["mu"] * self.beta1).add_(gradient, alpha=1 - self.beta1),
            "nu": (state["nu"] * self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2),
        }

    def preconditioner(self, state: State) -> Tensor:
        r"""``(1 - \beta_1^t) (\sqrt{\nu / (1 - \beta_2^t)} + \epsilon)``."""
        t = max(int(state["step"]), 1)
        root = (state["nu"] / (1 - self.beta2**t)).sqrt_().add_(self.eps)
        return root.mul_(1 - self.beta1**t)

    def step(self, w: Tensor, state: State, gradient: Tensor) -> Tensor:
        """Move against the preconditioned average; decoupled decay shrinks the weights first."""
        eta = self._rate(state)
        shrunk = w * (1 - eta * self.decay) if self.decoupled else w
        return shrunk.addcdiv(state["mu"], self.preconditioner(state), value=-eta)


@dataclass(frozen=True)
class AdamW(Adam):
    r"""Adam with decoupled decay, ``w' = (1 - \eta \gamma) w - \eta m' / P``.

    Decay lowers the threshold by ``\gamma (1 + \beta_1) / (1 - \beta_1)``: 19 gamma at 0.9. Attributes as for `Adam`.
    """

    weight_decay: float = 1e-2
    name: ClassVar[str] = "AdamW"
    decoupled: ClassVar[bool] = True
