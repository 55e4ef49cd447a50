"""One step of a flow in continuous time, and what lies within it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thalweg.flows.frames import oscillation
from thalweg.flows.laws import Law
from thalweg.flows.process import Frame
from thalweg.flows.stabilised import Point, hermite
from thalweg.flows.subspace import Critical, Reaction
from thalweg.rules import State


@dataclass(frozen=True)
class Piece:
    """One accepted step: states and velocities at its ends, and the mean oscillation between them.

    ``move`` is how far the weights go; ``after`` the curvature of the critical subspace at the end;
    ``trend`` by how much X changes in a unit of time, from the step before to this one.
    """

    begin: float
    length: float
    ends: tuple[Point, Point]
    slopes: tuple[Point, Point]
    losses: tuple[float, float]
    gradients: tuple[Tensor, Tensor]
    move: float
    block: Critical | None
    reaction: Reaction | None
    after: Tensor | None
    trend: Tensor | None

    @property
    def middle(self) -> float:
        """Time in the middle, to which the mean over the step belongs."""
        return self.begin + self.length / 2

    @property
    def end(self) -> float:
        """Time at the end."""
        return self.begin + self.length

    def at(self, time: float) -> Point:
        """State at a time within the step."""
        s = (time - self.begin) / self.length
        return self.ends[0] if s == 0 else hermite(s, self.length, *self.ends, *self.slopes)

    def frame(self, law: Law, time: float, state: State, known: Tensor) -> Frame:
        """Return the flow at a time within the step; loss comes from its slope at both ends, without another gradient.

        Args:
            law: The rule's law.
            time: Within the step.
            state: State of the rule then.
            known: Effective eigenvalues from the last look.
        """
        s, h, w = (time - self.begin) / self.length, self.length, self.at(time)[0]
        (value, end_value), (gradient, end_gradient) = self.losses, self.gradients
        if s > 0:
            rates = [[torch.dot(g, f[0])] for g, f in zip(self.gradients, self.slopes, strict=True)]
            ends = [[torch.tensor(v, dtype=torch.float64)] for v in (value, end_value)]
            value = float(hermite(s, h, *ends, *rates)[0])
            gradient = (1 - s) * gradient + s * end_gradient
        block, reaction = self.block, self.reaction
        if block is not None:
            block = Critical(block.U, block.A, block.D)
            block.move(w - self.ends[0][0])
        if reaction is not None and self.trend is not None:
            X = reaction.solution.X + (time - self.middle) * self.trend
            reaction = replace(reaction, solution=replace(reaction.solution, X=X))
        return oscillation(time, w, value, gradient, law.metric(state), law, block, reaction, known)
