r"""The central flow in map mode: the rule's own step, plus the penalty on curvature that its oscillation exerts."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from thalweg.errors import NonFinite, NotConverged, explain
from thalweg.flows.frames import oscillation
from thalweg.flows.laws import LIMIT, Law
from thalweg.flows.process import Frame, Process
from thalweg.flows.settings import BOLD, CAREFUL, FAR, FIRST, LOOSE, LOST, Settings
from thalweg.flows.subspace import Critical, react, refuse_unstable
from thalweg.operators import hessian, preconditioned
from thalweg.operators.third import third_derivative
from thalweg.problem import Problem
from thalweg.rules import State
from thalweg.spectra import Eigenpairs, EigenTracker


class CentralMap(Process):
    r"""``w' = w - P^{-1} [ g + 1/2 grad <H, Sigma> ]``, ``s' = F(s, g g' + H Sigma H)``, Sigma from complementarity.

    Away from the edge of stability this is the rule itself. Time is cut into segments. At the start of each the
    leading eigenpairs are solved for, and the third derivatives on the critical ones; within it one gradient a step
    is enough, since the curvature moves by its own prediction. At its end fresh eigenvalues judge: where they
    differ too much from the prediction, or one has come past the limit without having been watched, the
    segment is thrown away and done again at half its length.

    Source: arXiv 2410.24206 (the flow); the step of the map and the segments are our own.
    """

    name = "central"

    def __init__(self, problem: Problem, law: Law, w: Tensor, state: State, settings: Settings | None = None) -> None:
        super().__init__(problem, law, w, state)
        self.settings = settings = settings or Settings()
        self.tracker = self._new_tracker()
        self.block: Critical | None = None
        self.leading: Tensor | None = None
        self.start: Tensor | None = None
        self.interval = 1
        self.rejected = 0
        self.excess = 0.0
        self._rate = 0.0
        self.looks: list[tuple[float, float]] = []
        self._squares: Tensor | None = None
        self._ready: list[Frame] = []
        self._here: tuple[float, Tensor] | None = None
        self._resume: dict[str, Tensor] = {}
        self._emitted = 0

    def _new_tracker(self) -> EigenTracker:
        return EigenTracker(1, threshold=self.settings.candidate / LIMIT, max_k=self.settings.max_critical + 1)

    def step(self) -> Frame:
        """Return the next frame; a segment of them is computed where none is left."""
        if not self._ready:
            self._segment()
        self._emitted += 1
        return self._ready.pop(0)

    def _segment(self) -> None:
        """Compute frames until fresh eigenvalues accept them."""
        if self.leading is None:
            fresh, _ = self._refresh(first=True)
            self.interval = FIRST if float(fresh[0]) < FAR else 1
        self._resume, self._emitted = self._snapshot(), 0
        while True:
            begin = (self.w, self.state, self.time, self.block, self.start, self.leading, self._here, self._squares)
            watched = 0 if self.block is None else self.block.count
            block = None if self.block is None else Critical(self.block.U, self.block.A, self.block.D)
            self.block = block
            before = begin[5]
            assert before is not None
            if block is None:
                fresh, metric = self._free(before)
            else:
                self._ready = [self._one() for _ in range(self.interval)]
                fresh, metric = self._refresh()
            error = 0.0
            if block is not None:
                expected = block.eigenvalues(metric)
                shared = min(len(expected), len(fresh))
                error = float((expected[:shared] - fresh[:shared]).abs().max())
            unseen = len(fresh) > watched and float(fresh[watched]) > self._past
            if self.interval == 1 or not (unseen or error > 4 * self.settings.tolerance):
                self._judge(fresh)
                watching = 0 if block is None else block.count
                self._ready = [
                    _between(f, before, fresh, i / self.interval, watching) for i, f in enumerate(self._ready)
                ]
                self._choose_interval(error, before, fresh)
                return
            self.rejected += 1
            self.w, self.state, self.time, self.block, self.start, self.leading, self._here, self._squares = begin
            self.interval //= 2

    def _free(self, before: Tensor) -> tuple[Tensor, Tensor]:
        """A segment of the rule alone. Where it ran past the limit, it is cut short: its steps were the rule's own."""
        trail = []
        self._ready = []
        for _ in range(self.interval):
            self._ready.append(self._one())
            trail.append((self.w, self.state))
        begin = self.time - self.interval
        fresh, metric = self._refresh(may_return=self.interval > 1)
        while float(fresh[0]) > self._past and self.interval > 1:
            self.rejected += 1
            share = (self.settings.candidate - float(before[0])) / (float(fresh[0]) - float(before[0]))
            self.interval = max(1, min(self.interval - 1, int(share * self.interval)))
            self._ready, self.time = self._ready[: self.interval], begin + self.interval
            (self.w, self.state), self._here = trail[self.interval - 1], None
            fresh, metric = self._refresh(may_return=self.interval > 1)
        return fresh, metric

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

    def _one(self) -> Frame:
        """One step of the map."""
        value, gradient = self._gradient_here()
        self._here = None
        force = self.law.force(gradient, self.w)
        state = plain = self.law.absorb(self.state, force)
        metric = self.law.metric(plain)
        reaction, damp = None, self._damping()
        if self.block is not None:
            # The next point is judged by the metric there, which will have taken in such a gradient twice.
            after = self.law.absorb(plain, force)
            reaction = react(
                self.block,
                self.law,
                force,
                metric,
                self.law.metric(after),
                lambda squares: self.law.slope(after, squares * self.law.share * (2 - self.law.share)),
                self._move(plain, force, damp)[0],
                self.law.gain(plain),
                start=self.start,
                penalised=not self.settings.ablated,
                damp=damp,
            )
            self.start = reaction.solution.X
            state = self.law.absorb(self.state, force, reaction.squares)
            metric = self.law.metric(state)
        self._squares = None if reaction is None else reaction.squares
        known = self.leading
        frame = oscillation(self.time, self.w, value, gradient, metric, self.law, self.block, reaction, known)
        push = force if reaction is None else force + reaction.penalty
        move, state = self._move(state, push, damp)
        if self.block is not None:
            self.block.move(move)
        self.w, self.state, self.time = self.w + move, state, self.time + 1
        return frame

    def _move(self, after: State, push: Tensor, damp: float) -> tuple[Tensor, State]:
        """The rule's step, less the share ``damp`` of it within the critical subspace."""
        move, state = self.law.move(self.state, after, push, self.w)
        if damp and self.block is not None:
            move = move + damp * (self.block.U @ (self.block.U.T @ push))
        return move, state

    def _damping(self) -> float:
        """Share of a step that is taken back along directions that oscillate.

        There the curvature is at the limit, and a step of length one would carry the flow to the other wall and back
        for ever: its multiplier is -1. The flow itself decays, ``exp(-2)`` in a unit of time, and so does this step.
        """
        if not self.settings.damped or self.law.remembers or self.start is None or not float(self.start.trace()) > 0:
            return 0.0
        return 1 - (1 - math.exp(-LIMIT)) / LIMIT

    def _gradient_here(self) -> tuple[float, Tensor]:
        """Value and gradient at the present point, once."""
        if self._here is None:
            self._here = self.gradient(self.w)
        return self._here

    def _metric_here(self, gradient: Tensor) -> Tensor:
        """``P`` at the present point, taking what oscillates to add to the averaged squares what it did last."""
        return self.law.metric(self.law.absorb(self.state, self.law.force(gradient, self.w), self._squares))

    def _refresh(self, first: bool = False, may_return: bool = False) -> tuple[Tensor, Tensor]:
        """Solve for the leading eigenpairs here, take third derivatives on the critical ones; values and metric.

        With ``may_return`` a point past the limit is only looked at: the caller goes back from it. ``looks`` remembers
        when eigenvalues were looked at, and what that cost: it pays for the units that follow.
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
        third = third_derivative(self.problem, self.w, U, method=self.settings.third, gradient=gradient)
        self.ledger.gradients += third.gradients
        return Critical(U, torch.diag(pairs.values[:count].to("cpu", torch.float64)), third.rows)

    def _choose_interval(self, error: float, before: Tensor, fresh: Tensor) -> None:
        """Aim at the tolerance, and look out for the next eigenvalue that may become critical."""
        elapsed = self.interval
        if error > self.settings.tolerance:
            self.interval = max(1, self.interval // 2)
        elif error < self.settings.tolerance / 4:
            free = self.block is None
            self.interval = min((3 if free else 2) * self.interval, self.settings.max_interval * (3 if free else 1))
        below = fresh[fresh <= self.settings.candidate]
        shared = min(len(fresh), len(before))
        found = max(0.0, float((fresh[:shared] - before[:shared]).max()) / elapsed)
        rate, self._rate = found + max(0.0, found - self._rate) / 2, found  # it may speed up as it did before
        if len(below) and rate > 0:  # it may rise as fast as the fastest of them has done
            part = BOLD if self.block is None else CAREFUL  # too far costs one look at eigenvalues, or the segment
            self.interval = max(1, min(self.interval, int((LIMIT - float(below[0])) / rate * part)))

    def _snapshot(self) -> dict[str, Tensor]:
        """The start of this segment: it is computed again, to the same bits, after a resume."""
        state = super().state_dict() | {f"tracker.{k}": t for k, t in self.tracker.state_dict().items()}
        state["map"] = torch.tensor([self.interval, self.rejected, self.excess, self._rate], dtype=torch.float64)
        for name, tensor in (("leading", self.leading), ("start", self.start), ("squares", self._squares)):
            if tensor is not None:
                state[name] = tensor.clone()
        if self.block is not None:
            state |= {"U": self.block.U.clone(), "A": self.block.A.clone(), "D": self.block.D.clone()}
        return state

    def state_dict(self) -> dict[str, Tensor]:
        """The start of the present segment, and how much of it was given out."""
        return (self._resume or self._snapshot()) | {"emitted": torch.tensor(self._emitted)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        super().load_state_dict({k: t for k, t in state.items() if not k.startswith("tracker.")})
        known = {k.removeprefix("tracker."): t for k, t in state.items() if k.startswith("tracker.")}
        self.tracker.load_state_dict(known)
        self.interval, self.rejected = int(state["map"][0]), int(state["map"][1])
        self.excess, self._rate = float(state["map"][2]), float(state["map"][3])
        self.leading, self.start, self._squares = state.get("leading"), state.get("start"), state.get("squares")
        self.block = Critical(state["U"], state["A"], state["D"]) if "U" in state else None
        self._here, self._ready = None, []
        for _ in range(int(state["emitted"])):
            self.step()


def _between(frame: Frame, before: Tensor, after: Tensor, share: float, watched: int) -> Frame:
    """Fill in eigenvalues that were looked at only at both ends of a segment, on a line."""
    if frame.eigenvalues is None:
        return frame
    shared = min(len(before), len(after), len(frame.eigenvalues))
    values = frame.eigenvalues.clone()
    values[watched:shared] = before[watched:shared] * (1 - share) + after[watched:shared] * share
    return replace(frame, eigenvalues=values)
