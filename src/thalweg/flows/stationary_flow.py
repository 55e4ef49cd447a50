r"""The stationary flow: the central flow of a rule whose averages of squares come to rest at once."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.flows.laws import LIMIT, Law
from thalweg.flows.process import Frame, Process
from thalweg.flows.stationary import Stationary, stationary_preconditioner
from thalweg.flows.subspace import DAMP
from thalweg.operators.packing import svec
from thalweg.operators.third import third_derivative
from thalweg.problem import Problem
from thalweg.rules import Adam, State

TOLERANCE = 1e-3
"""Relative change of the averages at which they rest."""


class StationaryFlow(Process):
    r"""``w' = w - Pbar(w)^{-1} [ g + 1/2 grad <H, Sigma> ]`` in steps of length one, for RMSProp and its scalar form.

    ``Pbar(w)`` is the metric at which the averages of squares rest while the weights stand at ``w``, and ``Sigma`` the
    oscillation that goes with it; see `stationary_preconditioner`. It is a limit, of averages that are infinitely
    fast, and close to the rule only after these have caught up with the weights, at the edge of stability;
    ``frame.metric`` is there to be compared with the rule's own. Each unit of time costs tens of Hessian products.

    Args:
        problem: Model, loss and data.
        law: Of RMSProp or scalar RMSProp, with a constant learning rate.
        w: Starting point, shape ``(P,)``.
        state: State of the rule there; its averages are where the first search begins.

    Source: arXiv 2410.24206 (the stationary preconditioner); the step is that of our map.
    """

    name = "stationary"

    def __init__(self, problem: Problem, law: Law, w: Tensor, state: State) -> None:
        if not law.share or isinstance(law.rule, Adam) or callable(law.rule.lr):
            raise InvalidInput(
                explain(
                    f"The stationary flow was asked for with {law.rule.name}",
                    "it is known for RMSProp and scalar RMSProp at a constant learning rate",
                    "Leave the stationary process out",
                )
            )
        super().__init__(problem, law, w, state)
        self.nu: Tensor | None = None

    def step(self) -> Frame:
        """Record the flow at this time, and take a step."""
        found = stationary_preconditioner(self.problem, self.law.rule, self.w, start=self.nu, tol=TOLERANCE)
        self.nu = found.nu
        self.ledger.products += found.products
        self.ledger.linearisations += 1
        self.ledger.gradients += 1  # the search takes one of its own
        value, gradient = self.gradient(self.w)
        metric, U, xi = found.preconditioner, found.directions, found.covariance
        force = self.law.force(gradient, self.w)
        push = force + self._penalty(U, xi, gradient)
        active = U[:, : int((xi > 0).sum())]
        move = DAMP * (active @ (active.T @ push)) - push / metric.to(push)
        sharpness = torch.tensor([found.sharpness], dtype=torch.float64)
        frame = Frame(self.time, self.w, self._values(value, gradient, found), sharpness, xi, U, metric=metric)
        self.w, self.time = self.w + move, self.time + 1
        return frame

    def _penalty(self, U: Tensor, xi: Tensor, gradient: Tensor) -> Tensor:
        """``1/2 grad_w <H, Sigma>``: half the sum of ``xi_i T[u_i, u_i]``."""
        active = int((xi > 0).sum())
        if not active:
            return torch.zeros_like(gradient)
        third = third_derivative(self.problem, self.w, U[:, :active], gradient=gradient)
        self.ledger.gradients += third.gradients
        return 0.5 * (third.rows.T @ svec(torch.diag(xi[:active])).to(third.rows))

    def _values(self, value: float, gradient: Tensor, found: Stationary) -> dict[str, float]:
        """Averages over the oscillation, with ``H u = 2 P u`` on it."""
        U, xi = found.directions, found.covariance
        scale = found.preconditioner.to(U)
        images = LIMIT * (U * (scale[:, None] if scale.ndim else scale))
        squared, total = float(gradient @ gradient), float((U.square().sum(0) * xi.to(U)).sum())
        return {
            "loss": value,
            "squared_gradient": squared,
            "predicted_loss": value + float(xi.sum()) - 0.5 * self.law.decay * total,
            "predicted_squared_gradient": squared + float((images.square().sum(0) * xi.to(images)).sum()),
            "critical": float((xi > 0).sum()),
            "residual": found.residual,
        }

    def state_dict(self) -> dict[str, Tensor]:
        """With the averages."""
        return super().state_dict() | ({} if self.nu is None else {"nu": self.nu.clone()})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        super().load_state_dict(state)
        self.nu = state["nu"].clone() if "nu" in state else None
