r"""The central flow as the differential equation that it is, in long steps of a stabilised method."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thalweg.errors import NonFinite, explain
from thalweg.flows.laws import LIMIT, Law
from thalweg.flows.pieces import Piece
from thalweg.flows.segmented import Segmented, between
from thalweg.flows.settings import CAREFUL, FAR, FIRST, FlowSettings
from thalweg.flows.stabilised import Point, along, chebyshev_step, error_estimate, stages_for
from thalweg.flows.subspace import Critical, Reaction, entry, push, react, turned_rows
from thalweg.operators.packing import smat
from thalweg.problem import Problem
from thalweg.rules import State

GRID = 64
"""Segments begin and end at multiples of the reciprocal, so that times add up without rounding."""
SAFETY, GROWTH = 0.85, 3.0
FIRST_STEP = 0.25
STEADY = 0.25
"""An oscillation that changes by less from step to step is drawn on a line; otherwise it may have leapt."""
ONE = torch.ones((), dtype=torch.float64)


class CentralFlow(Segmented):
    r"""``w' = -P^{-1} [ g + 1/2 grad <H, Sigma> ]``, ``nu' = c (g g' + H Sigma H - nu)``, Sigma from complementarity.

    Steps are as long as the accuracy allows, mostly many units of time, by a Runge-Kutta-Chebyshev method whose
    number of stages grows with the root of the length. Over a step the oscillation is constant. A step is
    taken with that of the step before; then the slack at its end, ``alpha + beta[X]``, determines the right one, and
    state and velocity are corrected by the difference. Where that is too large for a linear correction, the
    estimated error shows it, and the step is done again, shorter, with the better X. What is reported is this mean
    over a step, on a line where it hardly changes: a violation that a refresh finds is repaid over a whole step and
    not at once. A step that a direction would join midway ends where it joins.

    Third derivatives are taken where eigenvectors are, at the ends of segments, and continued on a line between
    them in the turning basis, so that curvature is predicted to second order.

    Source: arXiv 2410.24206 (the flow); the method of integration is our own.
    """

    settings: FlowSettings

    def __init__(
        self, problem: Problem, law: Law, w: Tensor, state: State, settings: FlowSettings | None = None
    ) -> None:
        super().__init__(problem, law, w, state, settings or FlowSettings())
        self.length, self.span, self.path = FIRST_STEP, 1.0, 0.0
        self._drift: Tensor | None = None
        self._begun = False
        self._due = 0
        self._middle = 0.0

    def _segment(self) -> None:
        """Go on to the next look at eigenvalues, and do it again at half the length where they say so."""
        if not self._begun:
            force = self.law.force(self._gradient_here()[1], self.w)
            state = self.law.absorb(self.state, force)
            self.state, self._begun = {k: t for k, t in state.items() if k in ("step", "nu")}, True
        if self.leading is None:
            fresh, _ = self._renew(0.0, first=True)
            self.span = float(FIRST) if float(fresh[0]) < FAR else 1.0
        self._hold()
        begin, here, clock = self.time, self._here, float(self.state["step"])
        point, origin, path = self._point(), (self.block, self.start, self._drift, self._middle), self.path
        before = self.leading
        assert before is not None
        pieces: list[Piece] = []
        while True:
            while self.time < begin + self.span:
                pieces.append(self._advance(begin + self.span, begin))
            block = self.block
            fresh, metric = self._renew(self.span, may_return=block is None and self.span > self.settings.shortest)
            error = 0.0
            if block is not None:
                expected = block.eigenvalues(metric)
                shared = min(len(expected), len(fresh))
                error = float((expected[:shared] - fresh[:shared]).abs().max())
            watched = 0 if block is None else block.count
            unseen = len(fresh) > watched and float(fresh[watched]) > LIMIT + 2 * self.settings.eigen_error
            if self.span <= self.settings.shortest or not (unseen or error > 4 * self.settings.eigen_error):
                break
            self.rejected += 1
            span = self.span / 2
            if block is None:  # it knows by now when the limit comes
                target = (self._target - float(before[0])) / (float(fresh[0]) - float(before[0]))
                span = self.span * min(0.9, max(0.1, target))
            self.span = self._snapped(span)
            # Steps that end before the new end are right as they are.
            pieces = [piece for piece in pieces if piece.end <= begin + self.span]
            self.leading, (self.block, self.start, self._drift, self._middle) = before, origin
            self.time, self.path = begin, path + sum(piece.move for piece in pieces)
            if pieces:
                last = pieces[-1]
                self.time, point, here = last.end, last.ends[1], (last.losses[1], last.gradients[1])
                if self.block is not None and last.reaction is not None and last.after is not None:
                    self.start, self._middle = last.reaction.solution.X, last.middle
                    self.block = Critical(self.block.U, last.after, self.block.D)
            self.w, self.state, self._here = point[0], self._state(clock + self.time - begin, point), here
        self._judge(fresh)
        self._ready = []
        for piece in pieces:
            while self._due < piece.end:
                share = (self._due - begin) / self.span
                since = clock - begin + self._due
                frame = piece.frame(self.law, float(self._due), self._state(since, piece.at(self._due)), before)
                self._ready.append(between(frame, before, fresh, share, watched))
                self._due += 1
        self._choose_span(error, before, fresh)

    def _advance(self, end: float, begun: float) -> Piece:
        """One accepted step that ends not after ``end``."""
        begin, y = self.time, self._point()
        value, gradient = self._gradient_here()
        force, metric = self.law.force(gradient, self.w), self.law.metric(self.state)
        clock, block, former = float(self.state["step"]), self.block, self.start
        soon = math.inf
        for _ in range(60):
            rest = end - begin
            h = rest / max(1, math.ceil(rest / min(self.length, soon) - 1e-6))
            penalty, spread = torch.zeros_like(force), None
            if block is not None:
                rows = block.D if self._drift is None else block.D + (begin - begun + h / 2) * self._drift
                here = Critical(block.U, block.A, rows)
                penalty, spread = push(here, self.law, ONE, self.start, not self.settings.ablated)

            def velocity(since: float, point: Point, p: Tensor = penalty, q: Tensor | None = spread) -> Point:
                pull = self.law.force(self.gradient(point[0])[1], point[0])
                return self._slope(clock + since, point, pull, p, q)

            slope = self._slope(clock, y, force, penalty, spread)
            new = chebyshev_step(y, slope, h, velocity, stages_for(h * self._stiffness(end - begun)))
            reaction = None
            if block is not None:
                after = self._state(clock + h, new)
                enters = entry(here, metric, self.law.metric(after), new[0] - y[0], self.start)
                if soon == math.inf and self.settings.shortest <= enters * h <= h - self.settings.shortest:
                    soon = enters * h  # what it is after must not be averaged with what it is before
                    continue
                reaction, correction, spread = self._correct(
                    here, force, metric, after, new[0] - y[0], penalty, spread, h
                )
                new = along(new, correction, 1.0)
                penalty = reaction.penalty
                self.start = reaction.solution.X
            end_value, end_gradient = self.gradient(new[0])
            end_force = self.law.force(end_gradient, new[0])
            slope = self._slope(clock, y, force, penalty, spread)
            end_slope = self._slope(clock + h, new, end_force, penalty, spread)
            error = self._error(y, new, slope, end_slope, h)
            if error <= 1:
                break
            self.length = h * max(0.2, SAFETY * error**-0.5)
        else:
            raise NonFinite(
                explain(
                    f"The central flow cannot go on at time {begin:g}",
                    "no step is short enough: loss or gradient is not finite or not smooth there",
                    "Check the loss there, or use smooth activations",
                )
            )
        grown = h * min(GROWTH, SAFETY * (error + 1e-12) ** -0.5)
        self.length = max(grown, self.length) if h < self.length / 2 else grown  # the end may have cut it short
        move = new[0] - y[0]
        length = float(move.norm())
        self.path += length
        if block is not None:
            moved = block.A + smat((here.D @ move).to("cpu", torch.float64))
            self.block = Critical(block.U, moved, block.D)
        middle, trend = begin + h / 2, None
        if reaction is not None and former is not None:
            change = reaction.solution.X - former
            if float(change.norm()) < STEADY * float(former.norm()):
                trend = change / (middle - self._middle)
        self._middle = middle
        self.w, self.state = new[0], self._state(clock + h, new)
        self.time = end if h == rest else begin + h
        self._here = (end_value, end_gradient)
        return Piece(
            begin,
            self.time - begin,
            (y, new),
            (slope, end_slope),
            (value, end_value),
            (gradient, end_gradient),
            length,
            None if block is None else here,
            reaction,
            None if block is None else moved,
            trend,
        )

    def _correct(
        self,
        block: Critical,
        force: Tensor,
        metric: Tensor,
        after: State,
        move: Tensor,
        penalty: Tensor,
        spread: Tensor | None,
        h: float,
    ) -> tuple[Reaction, Point, Tensor | None]:
        """Solve for the oscillation that keeps the limit at the end of a step, given the step with another one."""
        # A constant push moves a direction of curvature 2 by (1 - exp(-2h)) / 2, all others by nearly h.
        damp = 1 - (1 - math.exp(-LIMIT * h)) / (LIMIT * h)
        ahead = self.law.metric(after)
        middle = (metric + ahead) / 2
        share = -math.expm1(-self.law.speed * h)

        def response(force: Tensor) -> Tensor:
            inside: Tensor = block.U @ (block.U.T @ force)
            return -h * (force / middle.to(force) - damp * inside)

        # What a look at eigenvalues found above the limit is paid back in a unit of time, or in a longer step.
        values, basis = torch.linalg.eigh(LIMIT * block.in_metric(metric) - block.A)
        left = max(0.0, 1 - h) * (basis * values.clamp_max(0.0)) @ basis.T
        former = None if spread is None else self.law.slope(after, spread * middle.to(spread).square() * share)
        reaction = react(
            Critical(block.U, block.A + left, block.D),
            self.law,
            force,
            middle,
            ahead if former is None else ahead - former.to(ahead),
            lambda extra: self.law.slope(after, extra * share),
            move - response(penalty),
            h,
            start=self.start,
            penalised=not self.settings.ablated,
            damp=damp,
        )
        correction = [response(reaction.penalty - penalty)]
        if spread is not None and reaction.squares is not None:
            square = middle.to(spread).square()
            correction.append((reaction.squares - spread * square) * share)
            spread = reaction.squares / square
        return reaction, correction, spread

    def _error(self, y: Point, new: Point, slope: Point, end_slope: Point, h: float) -> float:
        """Estimated error over what is allowed: a share of the path for weights, of their size for averages."""
        errors = [float(part.norm()) for part in error_estimate(y, new, slope, end_slope, h)]
        move = float((new[0] - y[0]).norm())
        speed = (self.path + move) / (self.time + h)
        rounding = 30 * torch.finfo(y[0].dtype).eps * float(y[0].norm())
        sizes = [max(move, h * speed) + rounding / self.settings.accuracy, *(float(part.norm()) for part in new[1:])]
        error = max(e / (s * self.settings.accuracy) if s > 0 else 0.0 for e, s in zip(errors, sizes, strict=True))
        return error if math.isfinite(error) else 1e9

    def _point(self) -> Point:
        return [self.w, *([self.state["nu"]] if "nu" in self.state else [])]

    def _state(self, clock: float, point: Point) -> State:
        state: State = {"step": torch.tensor(clock, dtype=torch.float64)}
        return state if len(point) == 1 else state | {"nu": point[1]}

    def _slope(self, clock: float, point: Point, force: Tensor, penalty: Tensor, spread: Tensor | None) -> Point:
        """The velocity. With ``H Sigma = 2 P Sigma``, ``H Sigma H`` is ``4 P Sigma P``: ``spread`` is ``4 Sigma``."""
        state = self._state(clock, point)
        metric = self.law.metric(state).to(force)
        weights = -(force + penalty) / metric
        squares = None if spread is None else spread * metric.square()
        return [weights, *([self.law.rate(state, force, squares)["nu"]] if len(point) > 1 else [])]

    def _stiffness(self, span: float) -> float:
        """A bound on effective eigenvalues over a segment."""
        assert self.leading is not None
        top = float(self.leading[0])
        top = max(top, LIMIT) if self.block is not None else min(top + self._rate * span, max(top, LIMIT))
        return 1.1 * top + 0.05 + self.law.speed

    def _renew(self, elapsed: float, first: bool = False, may_return: bool = False) -> tuple[Tensor, Tensor]:
        """Refresh eigenpairs and third derivatives; carry oscillation and drift of the latter to the new basis."""
        old, X = self.block, self.start
        fresh, metric = self._refresh(first, may_return)
        self.start, self._drift = None, None
        if old is None or self.block is None:
            return fresh, metric
        U = self.block.U
        turn = (U.T @ (old.U * (metric.to(U)[:, None] if metric.ndim else metric.to(U)))).to("cpu", torch.float64)
        self.start = None if X is None else turn @ X @ turn.T
        if old.count == self.block.count and elapsed > 0 and float(torch.linalg.svdvals(turn)[-1]) > 0.95:
            self._drift = (self.block.D - turned_rows(old.D, turn)) / elapsed
        return fresh, metric

    def _metric_here(self, gradient: Tensor) -> Tensor:
        return self.law.metric(self.state)

    def _choose_span(self, error: float, before: Tensor, fresh: Tensor) -> None:
        """Aim at the tolerance, and look out for the next eigenvalue that may become critical."""
        elapsed = self.span
        longest = self.settings.max_interval * (1 if self.block is not None else 2)
        most = GROWTH if self.block is None else 2.0
        factor = min(most, max(0.5, 0.8 * (self.settings.eigen_error / (error + 1e-12)) ** 0.5))
        span = min(elapsed * factor, longest)
        below = fresh[fresh <= self.settings.candidate]
        rate = self._speed(before, fresh, elapsed)
        if len(below) and rate > 0:  # it may rise as fast as the fastest of them has done
            room = (LIMIT - float(below[0])) * CAREFUL if self.block is not None else self._target - float(below[0])
            span = min(span, room / rate)
        self.span = self._snapped(span)

    @property
    def _target(self) -> float:
        """Where a first critical eigenvalue should be found: past what makes it a candidate, before the limit."""
        return (self.settings.candidate + LIMIT) / 2

    def _snapped(self, span: float) -> float:
        """On the grid; whole units where it is longer than one."""
        span = max(span, self.settings.shortest)
        return math.floor(span * GRID) / GRID if span < 2 else float(math.floor(span))

    def _snapshot(self) -> dict[str, Tensor]:
        numbers = [self.length, self.span, self.path, float(self._begun), float(self._due), self._middle]
        state = super()._snapshot() | {"flow": torch.tensor(numbers, dtype=torch.float64)}
        return state if self._drift is None else state | {"drift": self._drift.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        self.length, self.span, self.path, begun, due, self._middle = state["flow"].tolist()
        self._begun, self._due, self._drift = bool(begun), int(due), state.get("drift")
        super().load_state_dict(state)
