r"""The central flow in map mode: the rule's own step, plus the penalty on curvature that its oscillation exerts."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from thalweg.flows.frames import oscillation
from thalweg.flows.laws import LIMIT, Law
from thalweg.flows.process import Frame
from thalweg.flows.segmented import Segmented, between
from thalweg.flows.settings import BOLD, CAREFUL, FAR, FIRST, Settings
from thalweg.flows.subspace import DAMP, Critical, misjudged, react
from thalweg.problem import Problem
from thalweg.rules import State


class CentralMap(Segmented):
    r"""``w' = w - P^{-1} [ g + 1/2 grad <H, Sigma> ]``, ``s' = F(s, g g' + H Sigma H)``, Sigma from complementarity.

    Away from the edge of stability this is the rule itself. Time is cut into segments. At the start of each the
    leading eigenpairs are solved for, and the third derivatives on the critical ones; within it one gradient a step
    is enough, since the curvature moves by its own prediction. At its end fresh eigenvalues judge: where they
    differ too much from the prediction, or one has come past the limit without having been watched, the
    segment is thrown away and done again at half its length. What a segment has missed, of second order in time, is
    added to the prediction of the next.

    Source: arXiv 2410.24206 (the flow); the step of the map and the segments are our own.
    """

    def __init__(self, problem: Problem, law: Law, w: Tensor, state: State, settings: Settings | None = None) -> None:
        super().__init__(problem, law, w, state, settings or Settings())
        self.interval = 1
        self._squares: Tensor | None = None
        self._bend: Tensor | None = None
        self._age = 0

    def _segment(self) -> None:
        """Compute frames until fresh eigenvalues accept them."""
        if self.leading is None:
            fresh, _ = self._refresh(first=True)
            self.interval = FIRST if float(fresh[0]) < FAR else 1
        self._hold()
        while True:
            begin = (self.w, self.state, self.time, self.block, self.start, self.leading, self._here, self._squares)
            watched = 0 if self.block is None else self.block.count
            block = None if self.block is None else Critical(self.block.U, self.block.A, self.block.D)
            self.block, self._age = block, 0
            before = begin[5]
            assert before is not None
            if block is None:
                fresh, metric = self._free(before)
            else:
                self._ready = [self._stripped(self._one()) for _ in range(self.interval)]
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
                    between(f, before, fresh, i / self.interval, watching) for i, f in enumerate(self._ready)
                ]
                if self.settings.replay:
                    self._again = self._from_start()
                self._learn(block, metric)
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
            self._ready.append(self._stripped(self._one()))
            if not self.settings.replay:
                trail.append((self.w, self.state))
        begin = self.time - self.interval
        fresh, metric = self._refresh(may_return=self.interval > 1)
        while float(fresh[0]) > self._past and self.interval > 1:
            self.rejected += 1
            share = (self.settings.candidate - float(before[0])) / (float(fresh[0]) - float(before[0]))
            self.interval = max(1, min(self.interval - 1, int(share * self.interval)))
            self._ready, self.time = self._ready[: self.interval], begin + self.interval
            if self.settings.replay:
                again = self._from_start()
                for _ in range(self.interval):
                    again._one()
                trail = [(again.w, again.state)]
            (self.w, self.state), self._here = trail[min(self.interval, len(trail)) - 1], None
            fresh, metric = self._refresh(may_return=self.interval > 1)
        return fresh, metric

    def _from_start(self) -> CentralMap:
        """Return the flow as it was at the start of this segment, at the expense of this one."""
        again = copy.copy(self._held)
        assert isinstance(again, CentralMap)
        again.ledger, again.interval, again._age = self.ledger, self.interval, 0
        again.block = None if again.block is None else Critical(again.block.U, again.block.A, again.block.D)
        return again

    def _stripped(self, frame: Frame) -> Frame:
        if not self.settings.replay:
            return frame
        metric = None if frame.metric is None or frame.metric.ndim else frame.metric
        return replace(frame, w=frame.w.new_empty(0), metric=metric)

    def _refilled(self, frame: Frame) -> Frame:
        full = self._one()
        return replace(frame, w=full.w, metric=full.metric)

    def _one(self) -> Frame:
        """One step of the map."""
        value, gradient = self._gradient_here()
        self._here = None
        force = self.law.force(gradient, self.w)
        state = plain = self.law.absorb(self.state, force)
        metric = self.law.metric(plain)
        reaction, damp = None, self._damping()
        # Where every step is asked to have its own look it is the plain scheme.
        bend = None if self._bend is None or self.settings.max_interval == 1 else self._bend * (2 * self._age + 1)
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
                bend=bend,
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
            self.block.move(move, bend)
            self._age += 1
        self.w, self.state, self.time = self.w + move, state, self.time + 1
        return frame

    def _move(self, after: State, push: Tensor, damp: float) -> tuple[Tensor, State]:
        """The rule's step, less the share ``damp`` of it within the critical subspace."""
        move, state = self.law.move(self.state, after, push, self.w)
        if damp and self.block is not None:
            move = move + damp * (self.block.U @ (self.block.U.T @ push))
        return move, state

    def _damping(self) -> float:
        """Share of a step that is taken back along directions that oscillate: see `DAMP`."""
        still = self.start is None or not float(self.start.trace()) > 0
        return 0.0 if still or not self.settings.damped or self.law.remembers else DAMP

    def _metric_here(self, gradient: Tensor) -> Tensor:
        """``P`` at the present point, taking what oscillates to add to the averaged squares what it did last."""
        return self.law.metric(self.law.absorb(self.state, self.law.force(gradient, self.w), self._squares))

    def _learn(self, block: Critical | None, metric: Tensor) -> None:
        """What the segment behind missed, of second order in time, the next one will miss again: it is told."""
        found = None if block is None or self.block is None else misjudged(block, self.block, metric)
        former, self._bend = self._bend, None
        if found is not None and float(found[0].abs().max()) <= 4 * self.settings.tolerance:  # a leap is not repeated
            missed, turn = found
            bend = missed / self.interval**2
            if former is not None:
                bend = bend + turn @ former @ turn.T
            self._bend = (bend + bend.T) / 2

    def _choose_interval(self, error: float, before: Tensor, fresh: Tensor) -> None:
        """Aim at the tolerance, and look out for the next eigenvalue that may become critical."""
        elapsed = self.interval
        if error > self.settings.tolerance:
            self.interval = max(1, self.interval // 2)
        else:
            free = self.block is None
            factor = min(3.0 if free else 2.0, max(1.0, (0.5 * self.settings.tolerance / (error + 1e-12)) ** 0.5))
            self.interval = min(round(factor * self.interval), self.settings.max_interval * (3 if free else 1))
        below = fresh[fresh <= self.settings.candidate]
        rate = self._speed(before, fresh, elapsed)
        if len(below) and rate > 0:  # it may rise as fast as the fastest of them has done
            part = BOLD if self.block is None else CAREFUL  # too far costs one look at eigenvalues, or the segment
            self.interval = max(1, min(self.interval, int((LIMIT - float(below[0])) / rate * part)))

    def _snapshot(self) -> dict[str, Tensor]:
        state = super()._snapshot() | {"interval": torch.tensor(self.interval)}
        kept = {"squares": self._squares, "bend": self._bend}
        return state | {name: tensor.clone() for name, tensor in kept.items() if tensor is not None}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        self.interval, self._squares, self._bend = int(state["interval"]), state.get("squares"), state.get("bend")
        super().load_state_dict(state)
