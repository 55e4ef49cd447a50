r"""The rod flow: centre and extent of one oscillation, as differential equations that hold for widths of any size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thalweg.flows.laws import Law
from thalweg.flows.process import Frame
from thalweg.flows.stabilised import chebyshev_step
from thalweg.flows.walls import SEED, Walls
from thalweg.problem import Problem
from thalweg.rules import State

STAGES = 6
"""Gradients of both walls, and as many along them, in a unit of time: stable up to effective eigenvalues of 5.8."""


class RodFlow(Walls):
    r"""Gradient descent as a rod ``c - d`` to ``c + d`` between successive points, in continuous time.

    .. math::
        \dot c = -\tfrac{\eta}{2} (g_+ + g_-) - \tfrac{\eta^2}{8} (H_+ + H_-) (g_+ + g_-), \qquad
        \dot \Sigma = \tfrac{\eta^2}{4} (g_+ g_+' + g_- g_-') - 2 \Sigma , \qquad \Sigma \approx d d' ,

    with gradients and Hessians at both ends. The second term of ``\dot c`` is what makes a flow of a map. In
    ``g_+ g_+' + g_- g_-' = 2 m m' + 2 r r'``, with ``m`` the mean and ``r`` half the difference of the gradients, the
    part ``m m'`` is the drift of the centre and no oscillation: kept, it turns the rod along the drift, away from the
    sharp direction, before anything oscillates. It is left out here. The rest, projected onto matrices of
    rank one, moves direction ``u`` and half length ``a`` of the rod, with ``s = u' r / a`` the secant curvature:

    .. math::
        \frac{d}{dt} \ln a = \tfrac{\eta^2 s^2}{4} - 1, \qquad
        \dot u = \tfrac{\eta^2 s}{2} (I - u u') \, r / a .

    On a quadratic of sharpness ``S`` that is ``\dot \Sigma = (\eta^2 S^2 / 2 - 2) \Sigma``; on the quartic
    ``S w^2 / 2 - Q w^4 / 4`` it rests at ``a^2 = S / Q - 2 / (\eta Q)``. One direction only.

    A unit of time is one step of a stabilised method of second order; products with the Hessians are differences of
    gradients, so it costs 4 gradients a stage.

    A reconstruction: the equations of centre and extent are second-hand (Regis and Chewi, arXiv 2602.01480), how
    the rod is kept of rank one, and free of the drift, is our own.

    Args:
        problem: Model, loss and data.
        law: Of gradient descent.
        w: Starting point, shape ``(P,)``.
        state: State of the rule there.
        seed: First half length of the rod over the length of the weights.
    """

    name = "rod"

    def __init__(self, problem: Problem, law: Law, w: Tensor, state: State, seed: float = SEED) -> None:
        super().__init__(problem, law, w, state, seed)
        self._short = torch.finfo(w.dtype).eps ** 0.5 * max(float(self.w.norm()), 1.0)

    def step(self) -> Frame:
        """Record the flow at this time, and integrate over one unit."""
        frame, _, _ = self.look()
        size = torch.tensor([math.log(self.amplitude)], dtype=self.w.dtype, device=self.w.device)
        begin = [self.w, self.direction, size]
        end = chebyshev_step(begin, self._velocity(0.0, begin), 1.0, self._velocity, STAGES)
        self.arrive(end[0], end[1], math.exp(min(float(end[2]), 80.0)))
        return frame

    def _velocity(self, time: float, point: list[Tensor]) -> list[Tensor]:
        """Velocities of the centre, of the direction, and of the logarithm of the half length."""
        c, eta = point[0], self.rate(time)
        u = point[1] / point[1].norm()
        h = max(math.exp(min(float(point[2]), 80.0)), self._least)
        up, down = self._force(c + h * u), self._force(c - h * u)
        mean, image = (up + down) / 2, (up - down) / (2 * h)
        secant = float(u @ image)
        move = -eta * mean
        length = float(mean.norm())
        if length > 0:
            e = self._short / length
            turned = (self._force(c + h * u + e * mean) + self._force(c - h * u + e * mean)) / 2
            move = move - eta**2 / 2 * (turned - mean) / e
        growth = torch.full_like(point[2], (eta * secant) ** 2 / 4 - 1)
        return [move, (eta**2 * secant / 2) * (image - secant * u), growth]

    def _force(self, w: Tensor) -> Tensor:
        return self.law.force(self.gradient(w)[1], w)
