r"""The central flow in small Euler steps with fresh derivatives: slow, plain, and the measure of everything faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.flows.frames import oscillation
from thalweg.flows.laws import LIMIT, Law
from thalweg.flows.process import Frame, Process
from thalweg.flows.subspace import Critical, Reaction, react, refuse_unstable
from thalweg.operators import hessian, preconditioned
from thalweg.operators.third import Choice, third_derivative
from thalweg.problem import Problem
from thalweg.rules import State
from thalweg.spectra import EigenTracker


@dataclass(frozen=True)
class Euler:
    """Settings of the reference.

    Attributes:
        substeps: Euler steps per unit of time; more come closer to the differential equation.
        refresh: Whether eigenvectors are solved for at every unit of time, or at every substep.
        candidate: Effective eigenvalue above which a direction takes part in the complementarity problem.
        third: Method of the third derivatives.
        eigen_tol: Relative residual of eigenpairs.
        ablated: Leave the penalty out of the motion of the weights; then the metric alone keeps the flow stable.
    """

    substeps: int = 4
    refresh: Literal["unit", "substep"] = "unit"
    candidate: float = 1.95
    third: Choice = "exact"
    eigen_tol: float = 1e-6
    ablated: bool = False

    def __post_init__(self) -> None:
        if self.substeps < 1:
            raise InvalidInput(
                explain(
                    f"substeps is {self.substeps}", "a unit of time takes at least one Euler step", "Pass 1 or more"
                )
            )


class CentralReference(Process):
    r"""Explicit Euler for the central flow, the constraint imposed at the end of each substep.

    .. math::
        \dot w = -P(s)^{-1} [ g + \tfrac12 \nabla \langle H, \Sigma \rangle ], \qquad
        \dot s = f(s, g g' + H \Sigma H), \qquad
        2 P - H \succeq 0, \; \Sigma \succeq 0, \; \langle \Sigma, 2 P - H \rangle = 0 .

    The state begins with the first gradient taken in, so that flow and rule make their first move with the same metric.
    Between refreshes eigenvectors stand still; the curvature within their span is measured anew.

    Source: arXiv 2410.24206 (central flows for gradient descent, scalar RMSProp and RMSProp).
    """

    name = "central"

    def __init__(self, problem: Problem, law: Law, w: Tensor, state: State, settings: Euler = Euler()) -> None:
        super().__init__(problem, law, w, state)
        self.settings = settings
        self.tracker = EigenTracker(1, threshold=0.75, tol=settings.eigen_tol)
        self._begun = False
        self._axes: Tensor | None = None
        self._values: Tensor | None = None

    def step(self) -> Frame:
        """Record the flow at this time, and take the substeps of one unit."""
        frame: Frame | None = None
        dt = 1.0 / self.settings.substeps
        for number in range(self.settings.substeps):
            value, gradient = self.gradient(self.w)
            force = self.law.force(gradient, self.w)
            if not self._begun:
                self.state, self._begun = self.law.absorb(self.state, force), True
            metric = self.law.metric(self.state)
            block = self._block(metric, solve=number == 0 or self.settings.refresh == "substep")
            reaction = self._react(block, force, metric, dt)
            if frame is None:
                frame = oscillation(self.time, self.w, value, gradient, metric, self.law, block, reaction, self._values)
            self._move(force, metric, reaction, dt)
        assert frame is not None
        self.time += 1
        return frame

    def _block(self, metric: Tensor, solve: bool) -> Critical | None:
        """Curvature in the critical subspace, with its third derivatives."""
        scale = metric.to(self.w).rsqrt()
        with hessian(self.problem, self.w) as curvature:
            self.ledger.linearisations += 1
            operator = curvature.shift(self.law.decay) if self.law.decay else curvature
            effective = preconditioned(operator, metric.to(self.w))
            if solve or self._axes is None or self._values is None:
                pairs = self.tracker.update(effective, LIMIT, w=self.w)
                if self._values is None:
                    refuse_unstable(float(pairs.values[0]))
                self._axes, self._values = pairs.vectors, pairs.values.to("cpu", torch.float64)
                inner = torch.diag(self._values)
                keep = int((self._values > self.settings.candidate).sum())
            else:
                inner = (self._axes.T @ effective.matmat(self._axes)).to("cpu", torch.float64)
                inner = (inner + inner.T) / 2
                keep = int((inner.diagonal() > self.settings.candidate).sum())
            self.ledger.products += curvature.products
        if not keep:
            return None
        chosen = torch.argsort(inner.diagonal(), descending=True)[:keep]
        U = self._axes[:, chosen] * (scale[:, None] if scale.ndim else scale)
        third = third_derivative(self.problem, self.w, U, method=self.settings.third)
        self.ledger.gradients += third.gradients
        return Critical(U, inner[chosen][:, chosen], third.rows)

    def _react(self, block: Critical | None, force: Tensor, metric: Tensor, dt: float) -> Reaction | None:
        if block is None:
            return None
        rate = self.law.rate(self.state, force)
        ahead = self.law.metric({key: t + dt * rate[key] if key in rate else t for key, t in self.state.items()})
        return react(
            block,
            self.law,
            force,
            metric,
            ahead,
            lambda squares: self.law.slope(self.state, squares * (dt * self.law.speed)),
            -dt * force / metric.to(force),
            dt,
            penalised=not self.settings.ablated,
        )

    def _move(self, force: Tensor, metric: Tensor, reaction: Reaction | None, dt: float) -> None:
        rate = self.law.rate(self.state, force, None if reaction is None else reaction.squares)
        push = force if reaction is None else force + reaction.penalty
        self.w = self.w - dt * push / metric.to(push)
        self.state = {key: t + dt * rate[key].to(t.device) if key in rate else t for key, t in self.state.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything the next step depends on."""
        state = super().state_dict() | {f"tracker.{k}": t for k, t in self.tracker.state_dict().items()}
        return state | {"begun": torch.tensor(self._begun)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        super().load_state_dict(state)
        self.tracker.load_state_dict(
            {k.removeprefix("tracker."): t for k, t in state.items() if k.startswith("tracker.")}
        )
        self._begun = bool(state["begun"])
