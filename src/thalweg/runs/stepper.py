"""One step of training, and the row that it leaves."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, NonFinite, explain
from thalweg.problem import Problem
from thalweg.rules import Rule
from thalweg.runs.measures import Context, Measure
from thalweg.runs.metrics import Event, Value, Variable
from thalweg.runs.minibatches import MiniBatches
from thalweg.runs.state import Position

DIVERGED = 1e6
"""A loss this many times the first one is recorded as divergence; training goes on while all is finite."""

VARIABLES: Mapping[str, Variable] = {
    "loss": Variable("loss", "training loss"),
    "gradient_norm": Variable("loss / weight", "norm of the gradient"),
    "weight_norm": Variable("weight", "norm of the weights"),
    "distance": Variable("weight", "distance from the start"),
    "path_length": Variable("weight", "length of the path so far"),
    "update_norm": Variable("weight", "norm of the update that leaves this point"),
    "update_cosine": Variable("1", "cosine between this update and the one before"),
    "learning_rate": Variable("weight^2 / loss", "learning rate"),
    "stability_threshold": Variable("loss / weight^2", "largest stable eigenvalue of the preconditioned Hessian"),
    "seconds_step": Variable("s", "time for the loss, the gradient and the update", timing=True),
    "seconds_measure": Variable("s", "time for the measures", timing=True),
}


@dataclass
class Row:
    """What one step leaves in the metrics, and the error that ends the run if there is one."""

    values: dict[str, Value] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    error: NonFinite | None = None


class Stepper:
    """Evaluates, measures and updates, one step at a time.

    Args:
        problem: The problem on all data.
        rule: The update rule.
        measures: What to measure on the way.
        batches: Mini-batches, or None for full-batch training.
        seed: Root seed.
        last: The step that is evaluated and measured, and not left.
    """

    def __init__(
        self,
        problem: Problem,
        rule: Rule,
        measures: Sequence[Measure],
        batches: MiniBatches | None,
        seed: int,
        last: int,
    ) -> None:
        self.problem, self.rule, self.measures = problem, rule, measures
        self._batches, self._seed, self._last = batches, seed, last
        self._start = problem.initial

    def begin(self) -> Position:
        """Return the position at the start."""
        return Position(0, self._start.clone(), self.rule.init(self._start))

    def step(self, position: Position) -> tuple[Row, Position]:
        """Evaluate step ``position.step``; return its row and the next position (the same one at the end)."""
        began = time.perf_counter()
        t, w, row = position.step, position.w, Row()
        part = self.problem if self._batches is None else self.problem.subset(self._batches.indices(t))
        loss_tensor, gradient = part.value_and_gradient(w)
        loss, gradient_norm = loss_tensor.item(), _norm(gradient)
        row.values = {
            "loss": loss,
            "gradient_norm": gradient_norm,
            "weight_norm": _norm(w),
            "distance": _norm(w - self._start),
            "path_length": position.path,
            "learning_rate": float(self.rule.learning_rate_at(t)),
            "stability_threshold": float(self.rule.stability_threshold(t)),
        }
        first = position.first_loss if position.first_loss is not None else loss
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            row.error = _not_finite(t, loss, gradient_norm, row.values["learning_rate"])
            row.events.append(Event(t, "non_finite", f"loss {loss}, gradient norm {gradient_norm}"))
            row.values["seconds_step"] = time.perf_counter() - began
            return row, position
        diverged = abs(loss) > DIVERGED * (abs(first) or 1.0)
        if diverged and not position.diverged:
            row.events.append(Event(t, "diverged", f"the loss is {loss:.3g}; it began at {first:.3g}"))
        state = self.rule.update(position.rule, gradient, w)
        update, following = None, position
        if t < self._last:
            w_next = self.rule.step(w, state, gradient)
            update = w_next - w
            norm = _norm(update)
            row.values["update_norm"] = norm
            row.values["update_cosine"] = _cosine(update, position.previous)
            following = Position(t + 1, w_next, state, update, position.path + norm, first, diverged)
        evaluated = time.perf_counter()
        row.values["seconds_step"] = evaluated - began
        context = Context(t, w, loss, gradient, update, self.rule, state, self.problem, self._seed, row.events)
        self._measure(context, row)
        row.values["seconds_measure"] = time.perf_counter() - evaluated
        return row, following

    def remember(self, position: Position) -> Position:
        """Fill in the measures' states, to be saved with ``position``."""
        position.measures = {measure.name: measure.state_dict() for measure in self.measures}
        return position

    def restore(self, position: Position) -> None:
        """Give the measures back the states that came with ``position``."""
        for measure in self.measures:
            measure.load_state_dict(position.measures.get(measure.name, {}))

    def _measure(self, context: Context, row: Row) -> None:
        for measure in self.measures:
            if context.step % measure.every == 0 or context.step == self._last:
                row.values.update(measure.measure(context))


def all_variables(measures: Sequence[Measure]) -> dict[str, Variable]:
    """Gather the loop's variables and the measures'.

    Raises:
        InvalidInput: Two measures share their name or one of their variables.
    """
    found, owner = dict(VARIABLES), dict.fromkeys(VARIABLES, "the training loop")
    names: set[str] = set()
    for measure in measures:
        if measure.name in names or "/" in measure.name:
            raise InvalidInput(
                explain(
                    f"The measure name {measure.name!r} is taken twice or holds a slash",
                    "its saved state is filed under that name",
                    "Give each measure a name of its own",
                )
            )
        names.add(measure.name)
        for name, variable in measure.variables.items():
            if name in found:
                raise InvalidInput(
                    explain(
                        f"Both {owner[name]} and the measure {measure.name!r} record {name!r}",
                        "a variable has one source",
                        "Rename one of them, or drop the second measure",
                    )
                )
            found[name], owner[name] = variable, f"the measure {measure.name!r}"
    return found


def _norm(v: Tensor) -> float:
    return float(torch.linalg.vector_norm(v, dtype=torch.float64))


def _cosine(u: Tensor, v: Tensor | None) -> float:
    if v is None:
        return math.nan
    scale = _norm(u) * _norm(v)
    return torch.sum(u * v, dtype=torch.float64).item() / scale if scale > 0 else math.nan


def _not_finite(step: int, loss: float, gradient_norm: float, learning_rate: Value) -> NonFinite:
    return NonFinite(
        explain(
            f"At step {step} the loss is {loss} and the gradient norm {gradient_norm}",
            f"training at learning rate {learning_rate:.6g} diverged, or the model overflows there",
            "Lower the learning rate, warm it up, or evaluate in float64; the steps before are recorded",
        )
    )
