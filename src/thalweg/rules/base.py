"""The contract of an update rule: pure functions of weights, gradient and state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.operators import Operator, preconditioned
from thalweg.rules.schedules import Schedule

State: TypeAlias = "dict[str, Tensor]"
"""Named tensors; ``"step"``, a 0-dim int64, counts the updates done. It can be saved as it is."""


@dataclass(frozen=True)
class Rule(ABC):
    r"""An optimizer as pure functions, ``s' = F(s, g, w)`` and ``w' = w - \eta P(s')^{-1} m(s', g)``.

    Order within a step: `update` takes in the gradient, then `step` moves with the *updated* state; `advance`
    does both.     Nothing is changed in place.

    Attributes:
        lr: Learning rate ``eta``, a number or a function of the step.
    """

    lr: float | Schedule
    name: ClassVar[str] = "rule"
    decoupled: ClassVar[bool] = False
    """Whether weight decay acts on the weights directly, outside the gradient."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if callable(value) or isinstance(value, bool):
                continue
            unit = field.name.startswith(("beta", "momentum", "dampening"))
            if not (math.isfinite(value) and value >= 0) or (
                unit and not value < (2 if field.name == "dampening" else 1)
            ):
                raise InvalidInput(
                    explain(
                        f"{type(self).__name__} got {field.name}={value}",
                        "it must lie in [0, 1)" if unit else "it must be finite and not negative",
                        "Correct the argument",
                    )
                )

    @property
    def decay(self) -> float:
        """Weight decay coefficient."""
        return float(getattr(self, "weight_decay", 0.0))

    def learning_rate_at(self, step: int) -> float:
        """``eta`` of update number ``step``, counted from zero."""
        return float(self.lr(step)) if callable(self.lr) else float(self.lr)

    def init(self, w: Tensor) -> State:
        """Return the state before the first update; ``w`` has shape ``(P,)``."""
        return {"step": torch.zeros((), dtype=torch.int64)}

    @abstractmethod
    def update(self, state: State, gradient: Tensor, w: Tensor) -> State:
        """Return the state after taking in ``gradient``, shape ``(P,)``, found at ``w``."""

    @abstractmethod
    def step(self, w: Tensor, state: State, gradient: Tensor) -> Tensor:
        """Return the next weights from the *updated* state."""

    def advance(self, w: Tensor, state: State, gradient: Tensor) -> tuple[Tensor, State]:
        """Return next weights and next state."""
        state = self.update(state, gradient, w)
        return self.step(w, state, gradient), state

    def preconditioner(self, state: State) -> Tensor | None:
        """Diagonal of ``P``, shape ``(P,)`` or ``()``, without the learning rate; None is the identity."""
        return None

    @property
    @abstractmethod
    def kappa(self) -> float:
        """The stability threshold times the learning rate, without weight decay."""

    def stability_threshold(self, step: int = 0) -> float:
        r"""Return ``kappa / eta``, less the share of decoupled decay, for eigenvalues of the effective Hessian.

        On a quadratic with the preconditioner held fixed, update number ``step`` is stable along an eigenvector of
        `effective_hessian` if and only if its eigenvalue lies below this. Units: those of the eigenvalue.
        """
        eta = self.learning_rate_at(step)
        if eta == 0:
            return math.inf
        return (self.kappa - (eta * self.decay * self.kappa / 2 if self.decoupled else 0.0)) / eta

    def drift(self, state: State, gradient: Tensor, w: Tensor) -> Tensor:
        r"""Return ``dw/dt = -\eta P^{-1} g``, the stable flow, in units of one step; shape ``(P,)``.

        Source: arXiv 2410.24206, the stable flow of section 2, with ``eta`` written apart from ``P``.
        """
        eta = self.learning_rate_at(int(state["step"]))
        flow = self._with_decay(gradient, w)
        diagonal = self.preconditioner(state)
        flow = -eta * (flow if diagonal is None else flow / diagonal)
        return flow - eta * self.decay * w if self.decoupled else flow

    def describe(self) -> str:
        """Return the rule in words, for titles and headlines."""
        rate = f"learning rate {self.lr:g}" if not callable(self.lr) else f"learning rate {self.lr}"
        others = [
            f"{field.name.replace('_', ' ')} {getattr(self, field.name):g}"
            for field in fields(self)
            if field.name not in ("lr", "eps", "bias_correction") and getattr(self, field.name)
        ]
        return ", ".join([self.name, rate, *others])

    def _with_decay(self, gradient: Tensor, w: Tensor) -> Tensor:
        return gradient if self.decoupled or not self.decay else gradient.add(w, alpha=self.decay)

    def _rate(self, state: State) -> float:
        """``eta`` of the update that ``state`` has just taken in."""
        return self.learning_rate_at(int(state["step"]) - 1)


def effective_hessian(rule: Rule, state: State, hessian: Operator) -> Operator:
    r"""Return ``P^{-1/2} (H + \gamma I) P^{-1/2}``: the operator whose eigenvalues meet ``rule.stability_threshold``.

    Coupled weight decay ``gamma`` is part of the gradient, so it is part of the curvature.

    Args:
        rule: The update rule.
        state: Its state, after at least one update for preconditioned rules.
        hessian: The Hessian of the loss without decay.

    Returns:
        An operator on the same vectors; without preconditioner and decay the Hessian itself.

    Example:
        >>> from thalweg.operators import from_dense
        >>> from thalweg.rules import GradientDescent
        >>> H = from_dense(torch.eye(2))
        >>> rule = GradientDescent(lr=0.1, weight_decay=0.5)
        >>> effective_hessian(rule, rule.init(torch.zeros(2)), H).dense().diagonal().tolist()
        [1.5, 1.5]
    """
    if rule.decay and not rule.decoupled:
        hessian = hessian.shift(rule.decay)
    diagonal = rule.preconditioner(state)
    return hessian if diagonal is None else preconditioned(hessian, diagonal)
