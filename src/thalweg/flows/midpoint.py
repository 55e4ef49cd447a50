r"""The midpoint process: the rule's own path without its period-two oscillation, and nothing modelled."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.flows.laws import Law
from thalweg.flows.process import Frame, Process
from thalweg.problem import Problem
from thalweg.rules import State


class Midpoint(Process):
    r"""``w*_t = (w_{t-1} + 2 w_t + w_{t+1}) / 4`` along the rule, and ``w*_0 = w_0``.

    As a filter its response at the angular frequency ``omega`` is ``(1 + cos omega) / 2``, with a double zero at
    period two: an oscillation whose amplitude changes linearly is gone, and nothing lags. The loss there is what the
    loss *at* a central flow is compared with, as its predicted average is with the loss of the rule. It costs two
    gradients a step, since it runs the rule by itself.

    Source: arXiv 2410.24206 (the midpoints of successive midpoints).
    """

    name = "midpoint"

    def __init__(self, problem: Problem, law: Law, w: Tensor, state: State) -> None:
        super().__init__(problem, law, w, state)
        self._now = self.w.clone()
        self._before: Tensor | None = None

    def step(self) -> Frame:
        """Record the midpoint at this time, and take one step of the rule."""
        gradient = self.gradient(self._now)[1]
        after, self.state = self.law.rule.advance(self._now, self.state, gradient)
        if self._before is not None:
            self.w = (self._before + 2 * self._now + after) / 4
        value, slope = self.gradient(self.w)
        frame = Frame(self.time, self.w, {"loss": value, "squared_gradient": float(slope @ slope)})
        self._before, self._now, self.time = self._now, after, self.time + 1
        return frame

    def state_dict(self) -> dict[str, Tensor]:
        """With the two points that the next midpoint needs."""
        before = self._before if self._before is not None else torch.empty(0)
        return super().state_dict() | {"now": self._now.clone(), "before": before.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        super().load_state_dict(state)
        self._now = state["now"].clone()
        self._before = state["before"].clone() if len(state["before"]) else None
