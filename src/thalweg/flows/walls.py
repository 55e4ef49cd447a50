"""What flows of one oscillation share: a centre between two walls, a direction and an amplitude."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.flows.laws import Law, learning_rate
from thalweg.flows.process import Frame, Process
from thalweg.operators import hessian
from thalweg.problem import Problem
from thalweg.rules import GradientDescent, State
from thalweg.spectra import top_eigenpairs

SEED = 1e-3
"""First amplitude over the length of the weights (or 1): like the rule, a flow needs something to grow from."""


class Walls(Process):
    """Gradient descent between ``c + a u`` and ``c - a u``; subclasses say how the three move.

    Args:
        problem: Model, loss and data.
        law: Of gradient descent.
        w: Starting point, shape ``(P,)``.
        state: State of the rule there.
        seed: First amplitude over the length of the weights.
    """

    def __init__(self, problem: Problem, law: Law, w: Tensor, state: State, seed: float = SEED) -> None:
        if not isinstance(law.rule, GradientDescent) or not seed > 0:
            raise InvalidInput(
                explain(
                    f"The {self.name} flow was asked for with {law.rule.name} and seed={seed}",
                    "it is known for gradient descent, and grows from a positive amplitude",
                    f"Leave the {self.name} process out, or use GradientDescent",
                )
            )
        super().__init__(problem, law, w, state)
        length = float(self.w.norm())
        self.amplitude = seed * max(length, 1.0 if length == 0 else length)
        self._least = torch.finfo(w.dtype).eps ** (1 / 3) * max(length, 1.0)
        self._direction: Tensor | None = None

    @property
    def direction(self) -> Tensor:
        """``u``, at first the leading eigenvector."""
        if self._direction is None:
            with hessian(self.problem, self.w) as curvature:
                pairs = top_eigenpairs(curvature, 1, tol=1e-2)
                self.ledger.products += curvature.products
                self.ledger.linearisations += 1
            self._direction = pairs.vectors[:, 0]
        return self._direction

    def rate(self, time: float = 0.0) -> float:
        """Learning rate of this step, or ``time`` after it."""
        return learning_rate(self.law.rule, {"step": self.state["step"] + 1 + time})

    def look(self) -> tuple[Frame, Tensor, Tensor]:
        """Return the frame at this time, the mean gradient of the walls, and ``H u`` as their secant."""
        u, a = self.direction, self.amplitude
        h = max(a, self._least)  # shorter secants would be rounding
        (high, up), (low, down) = self.gradient(self.w + h * u), self.gradient(self.w - h * u)
        up, down = self.law.force(up, self.w + h * u), self.law.force(down, self.w - h * u)
        mean, image = (up + down) / 2, (up - down) / (2 * h)
        centre = float(self.problem.value(self.w))
        self.ledger.gradients += 0.35  # a forward pass
        values = {
            "loss": centre,
            "squared_gradient": float(mean @ mean),
            "predicted_loss": (high + low) / 2 if h == a else centre + (a / h) ** 2 * ((high + low) / 2 - centre),
            "amplitude": a,
            "effective_sharpness": self.rate() * float(u @ image),
        }
        return Frame(self.time, self.w, values), mean, image

    def arrive(self, w: Tensor, direction: Tensor, amplitude: float) -> None:
        """Take over where a unit of time leads."""
        self.w, self._direction = w, direction / direction.norm()
        # Where a wall is stable the amplitude would die to rounding; the seed is as small as it gets.
        self.amplitude = max(amplitude, 1e-3 * self._least)
        self.state, self.time = {"step": self.state["step"] + 1}, self.time + 1

    def state_dict(self) -> dict[str, Tensor]:
        """With amplitude and direction."""
        state = super().state_dict() | {"amplitude": torch.tensor(self.amplitude, dtype=torch.float64)}
        return state if self._direction is None else state | {"direction": self._direction.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        super().load_state_dict(state)
        self.amplitude = float(state["amplitude"])
        self._direction = state["direction"].clone() if "direction" in state else None
