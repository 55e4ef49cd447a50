r"""The edge flow: centre, direction and amplitude of one oscillation, which it can see grow, overshoot and settle."""

from __future__ import annotations

from thalweg.flows.process import Frame
from thalweg.flows.walls import Walls


class EdgeFlow(Walls):
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

    def step(self) -> Frame:
        """Record the flow at this time, and take a step."""
        frame, mean, image = self.look()
        u, eta = self.direction, self.rate()
        secant = float(u @ image)
        turned = u + eta * (image - secant * u)
        self.arrive(self.w - eta * mean, turned, self.amplitude * abs(eta * secant - 1))
        return frame
