r"""The edge flow: centre, direction and amplitude of one oscillation, which it can see grow, overshoot and settle."""

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
"""First amplitude over the length of the weights (or 1): like the rule, the flow needs something to grow from."""


class EdgeFlow(Process):
    r"""Gradient descent as a centre ``c`` that two walls ``c + a u`` and ``c - a u`` pull at, in steps of length one.

    .. math::
        c' = c - \tfrac{\eta}{2} (g_+ + g_-), \qquad a' = a\,|\eta s - 1|, \qquad
        u' \propto u + \eta\,(I - u u') H u, \qquad s = u' (g_+ - g_-) / 2a ,

    with ``g_+`` and ``g_-`` the gradients at the walls. The secant curvature ``s`` and ``H u`` are their difference,
    so a unit of time costs two gradients, and no third derivative. It follows one direction only, and keeps the
    overshoot at the onset and the ringing after it, which the central flow averages away.

    A reconstruction from what is publicly said of the model (Marion, arXiv 2606.18080), in a discrete form of our own:
    not its authors' equations.

    Args:
        problem: Model, loss and data.
        law: Of gradient descent.
        w: Starting point, shape ``(P,)``.
        state: State of the rule there.
        seed: First amplitude over the length of the weights.
    """

    name = "edge"

    def __init__(self, problem: Problem, law: Law, w: Tensor, state: State, seed: float = SEED) -> None:
        if not isinstance(law.rule, GradientDescent) or not seed > 0:
            raise InvalidInput(
                explain(
                    f"The edge flow was asked for with {law.rule.name} and seed={seed}",
                    "it is known for gradient descent, and grows from a positive amplitude",
                    "Leave the edge process out, or use GradientDescent",
                )
            )
        super().__init__(problem, law, w, state)
        length = float(self.w.norm())
        self.amplitude = seed * max(length, 1.0 if length == 0 else length)
        self._least = torch.finfo(w.dtype).eps ** (1 / 3) * max(length, 1.0)
        self._direction: Tensor | None = None

    def step(self) -> Frame:
        """Record the flow at this time, and take a step."""
        if self._direction is None:
            with hessian(self.problem, self.w) as curvature:
                pairs = top_eigenpairs(curvature, 1, tol=1e-2)
                self.ledger.products += curvature.products
                self.ledger.linearisations += 1
            self._direction = pairs.vectors[:, 0]
        u, a, eta = self._direction, self.amplitude, learning_rate(self.law.rule, {"step": self.state["step"] + 1})
        h = max(a, self._least)  # shorter secants would be rounding
        (high, up), (low, down) = self.gradient(self.w + h * u), self.gradient(self.w - h * u)
        up, down = self.law.force(up, self.w + h * u), self.law.force(down, self.w - h * u)
        image = (up - down) / (2 * h)
        curvature_along = float(u @ image)
        centre = float(self.problem.value(self.w))
        self.ledger.gradients += 0.35  # a forward pass
        mean = (up + down) / 2
        values = {
            "loss": centre,
            "squared_gradient": float(mean @ mean),
            "predicted_loss": (high + low) / 2 if h == a else centre + (a / h) ** 2 * ((high + low) / 2 - centre),
            "amplitude": a,
            "effective_sharpness": eta * curvature_along,
        }
        frame = Frame(self.time, self.w, values)
        self.w = self.w - eta * mean
        turned = u + eta * (image - curvature_along * u)
        self._direction = turned / turned.norm()
        # Where a wall is stable the rule's own amplitude would die to rounding; the seed is as small as it gets.
        self.amplitude = max(a * abs(eta * curvature_along - 1), 1e-3 * self._least)
        self.state, self.time = {"step": self.state["step"] + 1}, self.time + 1
        return frame

    def state_dict(self) -> dict[str, Tensor]:
        """With amplitude and direction."""
        state = super().state_dict() | {"amplitude": torch.tensor(self.amplitude, dtype=torch.float64)}
        return state if self._direction is None else state | {"direction": self._direction.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        super().load_state_dict(state)
        self.amplitude = float(state["amplitude"])
        self._direction = state["direction"].clone() if "direction" in state else None
