"""Processes that go on from one look at eigenvalues to the next: what a look is, what it judges, what it costs."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, NonFinite, NotConverged, NotDifferentiable, explain
from thalweg.flows.laws import LIMIT, Law
from thalweg.flows.process import Frame, Process
from thalweg.flows.settings import FAR, LOOSE, LOST, Settings
from thalweg.flows.subspace import Critical, refuse_unstable
from thalweg.operators import hessian, preconditioned
from thalweg.operators.third import third_derivative
from thalweg.problem import Problem
from thalweg.rules import State
from thalweg.spectra import Eigenpairs, EigenTracker
from thalweg.sweeps.stack import Stack


class Segmented(Process):
    """A central flow in segments: at the ends of each are eigenpairs, and third derivatives on the critical ones.

    Frames are computed a segment at a time, and given out one by one once its end has accepted them.
    A resume starts from the beginning of the present segment, which is computed again to the same bits.

    Attributes:
        block: The critical subspace, None while nothing is near the limit.
        leading: Effective eigenvalues at the last look, descending.
        start: The last oscillation in the basis of ``block``.
        rejected: Segments that were thrown away or cut short.
        excess: How far an effective eigenvalue has come past the limit.
        looks: When eigenvalues were looked at, and what that cost in gradients: it pays for the units that follow.
    """

    name = "central"

    def __init__(self, problem: Problem, law: Law, w: Tensor, state: State, settings: Settings) -> None:
        super().__init__(problem, law, w, state)
        self.settings = settings
        self.tracker = self._new_tracker()
        self.block: Critical | None = None
        self.leading: Tensor | None = None
        self.start: Tensor | None = None
        self.rejected = 0
        self.excess = 0.0
        self._rate = 0.0
        self.looks: list[tuple[float, float]] = []
        self._ready: list[Frame] = []
        self._here: tuple[float, Tensor] | None = None
        self._held: Segmented | None = None
        self._emitted = 0
        self._again: Segmented | None = None

    @cached_property
    def _many(self) -> Callable[[Tensor], Tensor] | None:
        """Gradients at two points at once, where that is known to be faster: on networks so small that calls cost."""
        if self.problem.batch_count != 1:
            return None
        try:
            stack = Stack(self.problem, method="mlp")
        except (InvalidInput, NotDifferentiable):
            return None
        return (lambda W: stack.value_and_gradient(W)[1]) if stack.rows_at_once > 1 else None

    @property
    def point(self) -> Tensor:
        """Weights at the time of the next frame."""
        if not self._ready:
            return self.w
        return self._ready[0].w if self._again is None else self._again.w

    def step(self) -> Frame:
        """Return the next frame; segments are computed until there is one."""
        while not self._ready:
            self._segment()
        self._emitted += 1
        frame = self._ready.pop(0)
        return frame if self._again is None else self._again._refilled(frame)

    def _refilled(self, frame: Frame) -> Frame:
        """The frame with the vectors that it was stripped of."""
        return frame

    @abstractmethod
    def _segment(self) -> None:
        """Compute frames until fresh eigenvalues accept them."""

    @abstractmethod
    def _metric_here(self, gradient: Tensor) -> Tensor:
        """``P`` at the present point."""

    def _new_tracker(self) -> EigenTracker:
        return EigenTracker(1, threshold=self.settings.candidate / LIMIT, max_k=self.settings.max_critical + 1)

    @property
    def _past(self) -> float:
        """An eigenvalue above this has passed the limit without having been watched."""
        return LIMIT + 2 * self.settings.tolerance

    def _judge(self, fresh: Tensor) -> None:
        """Refuse to go on where even steps of one unit lose the limit, or more is critical than is followed."""
        self.excess = max(self.excess, float(fresh[0]) - LIMIT)
        if self.excess > LOST:
            raise NotConverged(
                explain(
                    f"At time {self.time:g} the flow has an effective eigenvalue of {float(fresh[0]):.3g}",
                    f"the limit is {LIMIT:g}, and the curvature changes by more in one step than its derivative tells",
                    "Lower the learning rate, or let the rule itself pass this place (warm_start=)",
                )
            )
        if len(fresh) > self.settings.max_critical and float(fresh[-1]) > self.settings.candidate:
            raise NotConverged(
                explain(
                    f"At time {self.time:g} more than {self.settings.max_critical} eigenvalues are critical",
                    "that is how many directions are followed",
                    "Raise max_critical, or lower the learning rate",
                )
            )

    def _gradient_here(self) -> tuple[float, Tensor]:
        """Value and gradient at the present point, once."""
        if self._here is None:
            self._here = self.gradient(self.w)
        return self._here

    def _refresh(self, first: bool = False, may_return: bool = False) -> tuple[Tensor, Tensor]:
        """Solve for the leading eigenpairs here, take third derivatives on the critical ones; values and metric.

        With ``may_return`` a point past the limit is only looked at: the caller goes back from it.
        """
        spent = self.ledger.equivalents
        found = self._look(first, may_return)
        self.looks.append((self.time, self.ledger.equivalents - spent))
        return found

    def _look(self, first: bool, may_return: bool) -> tuple[Tensor, Tensor]:
        with hessian(self.problem, self.w, with_gradient=self._here is None) as curvature:
            self.ledger.linearisations += 1
            if curvature.gradient is not None and curvature.value is not None:
                self._here = float(curvature.value), curvature.gradient
            value, gradient = self._gradient_here()
            if not math.isfinite(value):
                raise NonFinite(
                    explain(
                        f"The loss along the flow is {value} at time {self.time:g}",
                        "the learning rate is too large for this start",
                        "Lower it, or warm up",
                    )
                )
            metric = self._metric_here(gradient)
            operator = curvature.shift(self.law.decay) if self.law.decay else curvature
            effective = preconditioned(operator, metric.to(self.w))
            pairs = None
            last = 0.0 if self.leading is None else float(self.leading[0])
            if last < FAR:  # the error of the value is the square of its vector's
                self.tracker.tol = max(self.settings.eigen_tol, LOOSE * (1 - last / LIMIT))
                pairs = self.tracker.update(effective, w=self.w, start=gradient)
            beyond = may_return and pairs is not None and float(pairs.values[0]) > self._past
            if pairs is None or (float(pairs.values[0]) >= FAR and not beyond):
                if first:  # a glance is no start for what must not miss anything
                    self.tracker = self._new_tracker()
                self.tracker.tol = self.settings.eigen_tol
                pairs = self.tracker.update(effective, LIMIT, w=self.w)
            self.ledger.products += curvature.products
        fresh = pairs.values.to("cpu", torch.float64)
        if first:
            refuse_unstable(float(fresh[0]))
        if may_return and float(fresh[0]) > self._past:
            return fresh, metric
        self.leading = fresh
        count = int((fresh > self.settings.candidate).sum())
        known, self.block = self.block, self._critical(pairs, count, metric, gradient) if count else None
        same = known is not None and self.block is not None and known.count == count and self.start is not None
        if same and known is not None and self.block is not None and self.start is not None:
            scaled = known.U * (metric.to(known.U)[:, None] if metric.ndim else metric.to(known.U))
            turn = (self.block.U.T @ scaled).to("cpu", torch.float64)
            self.start = turn @ self.start @ turn.T  # the former X in the new basis
        else:
            self.start = None
        return fresh, metric

    def _critical(self, pairs: Eigenpairs, count: int, metric: Tensor, gradient: Tensor) -> Critical:
        scale = metric.to(self.w).rsqrt()
        U = pairs.vectors[:, :count] * (scale[:, None] if scale.ndim else scale)
        third = third_derivative(
            self.problem, self.w, U, method=self.settings.third, gradient=gradient, many=self._many
        )
        self.ledger.gradients += third.gradients
        return Critical(U, torch.diag(pairs.values[:count].to("cpu", torch.float64)), third.rows)

    def _speed(self, before: Tensor, fresh: Tensor, elapsed: float) -> float:
        """How fast the fastest eigenvalue rises, per unit of time; it may speed up again as it did before."""
        shared = min(len(fresh), len(before))
        found = max(0.0, float((fresh[:shared] - before[:shared]).max()) / elapsed)
        rate, self._rate = found + max(0.0, found - self._rate) / 2, found
        return rate

    def _snapshot(self) -> dict[str, Tensor]:
        """The start of this segment: it is computed again, to the same bits, after a resume."""
        state = super().state_dict() | {f"tracker.{k}": t for k, t in self.tracker.state_dict().items()}
        state["watch"] = torch.tensor([self.rejected, self.excess, self._rate], dtype=torch.float64)
        for name, tensor in (("leading", self.leading), ("start", self.start)):
            if tensor is not None:
                state[name] = tensor.clone()
        if self.block is not None:
            state |= {"U": self.block.U.clone(), "A": self.block.A.clone(), "D": self.block.D.clone()}
        return state

    def _hold(self) -> None:
        """Remember this point as the start of a segment. Vectors are shared: nothing writes into them."""
        self._held = self._again = None
        held = copy.copy(self)
        held.ledger, held.tracker, held._ready = copy.copy(self.ledger), copy.copy(self.tracker), []
        self._held, self._emitted = held, 0

    def state_dict(self) -> dict[str, Tensor]:
        """The start of the present segment, and how much of it was given out."""
        return (self._held or self)._snapshot() | {"emitted": torch.tensor(self._emitted)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        super().load_state_dict({k: t for k, t in state.items() if not k.startswith("tracker.")})
        known = {k.removeprefix("tracker."): t for k, t in state.items() if k.startswith("tracker.")}
        self.tracker.load_state_dict(known)
        self.rejected, self.excess, self._rate = (
            int(state["watch"][0]),
            float(state["watch"][1]),
            float(state["watch"][2]),
        )
        self.leading, self.start = state.get("leading"), state.get("start")
        self.block = Critical(state["U"], state["A"], state["D"]) if "U" in state else None
        self._here, self._ready = None, []
        for _ in range(int(state["emitted"])):
            self.step()


def between(frame: Frame, before: Tensor, after: Tensor, share: float, watched: int) -> Frame:
    """Fill in eigenvalues that were looked at only at both ends of a segment, on a line."""
    if frame.eigenvalues is None:
        return frame
    shared = min(len(before), len(after), len(frame.eigenvalues))
    values = frame.eigenvalues.clone()
    values[watched:shared] = before[watched:shared] * (1 - share) + after[watched:shared] * share
    return replace(frame, eigenvalues=values)
