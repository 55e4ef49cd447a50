r"""The stable flow: what the rule would follow if its steps were small."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, NonFinite, explain
from thalweg.flows.laws import Law
from thalweg.flows.process import Frame, Process
from thalweg.problem import Problem
from thalweg.rules import State

SAFETY, SHRINK, GROW = 0.9, 0.2, 4.0


class StableFlow(Process):
    r"""``dw/dt = -P(s)^{-1} g(w)``, ``ds/dt = f(s, g)``: gradient flow in units of steps, for gradient descent.

    Integrated by the embedded pair of Bogacki and Shampine (third order, error by a second): three gradients
    a step, of any length that the tolerance allows. Points at whole times are interpolated by the cubic
    Hermite polynomial, so far from stability limits a step may span many of them. Nothing holds the sharpness of
    this flow back; where it has grown, steps become short, and the flow stops being worth its price.

    Args:
        problem: Model, loss and data.
        law: The rule as flows see it.
        w: Starting point, shape ``(P,)``.
        state: State of the rule there.
        rtol: Error of a step over the length of that step's move.
        max_steps: Steps per unit of time at most, before the flow is given up.
    """

    name = "stable"

    def __init__(
        self, problem: Problem, law: Law, w: Tensor, state: State, rtol: float = 1e-3, max_steps: int = 20
    ) -> None:
        super().__init__(problem, law, w, state)
        if not rtol > 0:
            raise InvalidInput(explain(f"rtol is {rtol}", "a step needs a positive tolerance", "Pass 1e-4"))
        self.rtol, self.max_steps = rtol, max_steps
        self._length = 0.5
        self._point: list[Tensor] = []
        self._slope: list[Tensor] = []
        self._clock = 0.0
        self._past: tuple[float, list[Tensor], list[Tensor]] | None = None
        self._reached = 0.0

    def step(self) -> Frame:
        """Record the flow at this time, and go on until it is known one unit later."""
        if not self._point:
            force = self.law.force(self.gradient(self.w)[1], self.w)
            state = self.law.absorb(self.state, force)
            self._clock = float(state["step"])
            self._point = [self.w, *([state["nu"]] if "nu" in state else [])]
            self._slope = self._velocity(0.0, self._point)
        value = float(self.problem.value(self.w))
        self.ledger.gradients += 0.35  # a forward pass
        frame = Frame(self.time, self.w, {"loss": value})
        self.time += 1
        for _ in range(self.max_steps):
            if self._reached >= self.time:
                break
            self._advance()
        else:
            raise NonFinite(
                explain(
                    f"The stable flow needs more than {self.max_steps} steps from time {self.time - 1:g}",
                    "its sharpness, which nothing holds back, has made it stiff",
                    "Leave the stable flow out, or end it earlier",
                )
            )
        self.w = self._at(self.time)[0]
        return frame

    def _velocity(self, time: float, point: list[Tensor]) -> list[Tensor]:
        w = point[0]
        force = self.law.force(self.gradient(w)[1], w)
        state: State = {"step": torch.tensor(self._clock + time, dtype=torch.float64)}
        if len(point) > 1:
            state["nu"] = point[1]
        metric = self.law.metric(state)
        rate = self.law.rate(state, force)
        return [-force / metric.to(force), *([rate["nu"]] if len(point) > 1 else [])]

    def _advance(self) -> None:
        """One accepted step of the embedded pair."""
        for _ in range(60):
            h, t, y, k1 = self._length, self._reached, self._point, self._slope
            k2 = self._velocity(t + h / 2, _add(y, k1, h / 2))
            k3 = self._velocity(t + 3 * h / 4, _add(y, k2, 3 * h / 4))
            new = _add(_add(_add(y, k1, 2 * h / 9), k2, h / 3), k3, 4 * h / 9)
            k4 = self._velocity(t + h, new)
            # Both parts count: weights against their move, averages of squares against their size.
            errors = [
                h * (5 / 72 * a - b / 12 - c / 9 + d / 8).norm() for a, b, c, d in zip(k1, k2, k3, k4, strict=True)
            ]
            sizes = [(new[0] - y[0]).norm(), *(part.norm() for part in new[1:])]
            error = max((float(e / s) if float(s) > 0 else 0.0) for e, s in zip(errors, sizes)) / self.rtol
            if error != error or error == float("inf"):
                error = 1e9
            factor = min(GROW, max(SHRINK, SAFETY * (error + 1e-12) ** (-1 / 2)))
            if error <= 1:
                self._past = (t, y, k1)
                self._point, self._slope, self._reached = new, k4, t + h
                self._length = h * factor
                return
            self._length = h * factor
        raise NonFinite(
            explain(
                f"The stable flow cannot go on at time {self._reached:g}",
                "no step is short enough: loss or gradient is not finite or not smooth there",
                "Check the loss there, or use smooth activations",
            )
        )

    def _at(self, time: float) -> list[Tensor]:
        """Cubic Hermite interpolation within the last step."""
        if self._past is None:
            return self._point
        begin, y0, f0 = self._past
        h = self._reached - begin
        s = (time - begin) / h
        a, b = 1 + s * s * (2 * s - 3), s * s * (3 - 2 * s)
        c, d = h * s * (1 - s) ** 2, h * s * s * (s - 1)
        return [a * p + b * q + c * u + d * v for p, q, u, v in zip(y0, self._point, f0, self._slope, strict=True)]

    def state_dict(self) -> dict[str, Tensor]:
        """The last step with both ends, for interpolation goes on between them."""
        state = super().state_dict()
        numbers = [self._length, self._reached, self._clock, -1.0 if self._past is None else self._past[0]]
        state["numbers"] = torch.tensor(numbers, dtype=torch.float64)
        groups = {"point": self._point, "slope": self._slope}
        if self._past is not None:
            groups |= {"before": self._past[1], "slope_before": self._past[2]}
        for name, parts in groups.items():
            state |= {f"{name}.{i}": part.clone() for i, part in enumerate(parts)}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        super().load_state_dict(state)
        self._length, self._reached, self._clock, begin = state["numbers"].tolist()

        def group(name: str) -> list[Tensor]:
            return [state[f"{name}.{i}"].clone() for i in range(2) if f"{name}.{i}" in state]

        self._point, self._slope = group("point"), group("slope")
        self._past = (begin, group("before"), group("slope_before")) if begin >= 0 else None


def _add(y: list[Tensor], slope: list[Tensor], factor: float) -> list[Tensor]:
    return [a.add(b, alpha=factor) for a, b in zip(y, slope, strict=True)]
