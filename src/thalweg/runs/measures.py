"""What is measured along a run beside the loop's own rows: the protocol, and the simple measures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from thalweg import _rng
from thalweg.errors import InvalidInput, explain
from thalweg.problem import Problem
from thalweg.rules import Rule
from thalweg.runs.metrics import Event, Value, Variable


@dataclass(frozen=True)
class Context:
    """What a measure sees at step ``t``; none of it is to be changed.

    Attributes:
        step: ``t``, the number of updates done.
        w: ``w_t``, shape ``(P,)``.
        loss: Loss at ``w_t``: of all data, or of this step's mini-batch.
        gradient: Its gradient, shape ``(P,)``.
        update: ``w_{t+1} - w_t``, shape ``(P,)``; None at the last point, which is not left.
        rule: The update rule.
        state: Its state as this step's update uses it, this step's gradient included.
        problem: The problem on all data.
        seed: Root seed of the run.
        events: What `note` has gathered.
    """

    step: int
    w: Tensor
    loss: float
    gradient: Tensor
    update: Tensor | None
    rule: Rule
    state: dict[str, Tensor]
    problem: Problem
    seed: int
    events: list[Event] = field(default_factory=list)

    def note(self, kind: str, text: str) -> None:
        """Record that something of ``kind`` happened at this step; one of each kind a step."""
        self.events.append(Event(self.step, kind, text))

    def generator(self, name: str) -> torch.Generator:
        """Return a random stream of its own for ``name`` at this step, the same in a resumed run."""
        return _rng.generator(self.seed, "measure", name, self.step)


class Measure(ABC):
    """Something measured every ``every`` steps, and at the last one.

    Subclasses, or any object with the same attributes, give ``name``, ``every``, ``variables`` and
    ``measure``. One that remembers something from step to step returns it in ``state_dict``, so that a resumed
    run equals an uninterrupted one, and forgets it at step 0, where another run begins.
    """

    name: str
    every: int

    @property
    @abstractmethod
    def variables(self) -> Mapping[str, Variable]:
        """What `measure` returns, by name: units, long name, second dimension."""

    @abstractmethod
    def measure(self, context: Context) -> Mapping[str, Value]:
        """Return a number, or a 1-D array where announced, for each variable; missing ones read as NaN."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the next measurement depends on."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027 - most measures forget
        """Take back what `state_dict` returned."""

    @staticmethod
    def from_function(
        name: str,
        function: Callable[[Context], Value],
        *,
        every: int = 1,
        units: str = "1",
        long_name: str = "",
        dim: str | None = None,
    ) -> Measure:
        """Make a measure of a plain function of the `Context`.

        Args:
            name: Name of its variable in the run's data.
            function: Returns a number, or a 1-D array if ``dim`` is given. It draws random numbers from
                ``context.generator(name)`` only, or a resumed run differs.
            every: Steps between two measurements.
            units: Units of what it returns.
            long_name: What it is, for axes.
            dim: Name of the second dimension, for arrays.

        Returns:
            A `Measure` without memory.

        Raises:
            InvalidInput: ``every`` is not positive.

        Example:
            >>> largest = Measure.from_function("largest_weight", lambda c: float(c.w.abs().max()), every=10)
            >>> largest.variables["largest_weight"].units
            '1'
        """
        check_every(name, every)
        return _FunctionMeasure(name, function, every, units, long_name or name, dim)


@dataclass(frozen=True)
class _FunctionMeasure(Measure):
    name: str
    function: Callable[[Context], Value]
    every: int
    units: str
    long_name: str
    dim: str | None

    @property
    def variables(self) -> Mapping[str, Variable]:
        return {self.name: Variable(self.units, self.long_name, self.dim)}

    def measure(self, context: Context) -> Mapping[str, Value]:
        return {self.name: self.function(context)}


@dataclass(frozen=True)
class FullLoss(Measure):
    """Loss and gradient norm over all data, for runs whose steps see mini-batches.

    Args:
        every: Steps between two measurements.
    """

    every: int = 1
    name: str = "full_loss"

    def __post_init__(self) -> None:
        check_every(self.name, self.every)

    @property
    def variables(self) -> Mapping[str, Variable]:
        """``full_loss`` and ``full_gradient_norm``."""
        return {
            "full_loss": Variable("loss", "loss over all data"),
            "full_gradient_norm": Variable("loss / weight", "norm of the gradient over all data"),
        }

    def measure(self, context: Context) -> Mapping[str, Value]:
        """Evaluate the loss and the gradient over all data at ``context.w``."""
        value, gradient = context.problem.value_and_gradient(context.w)
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float64)
        return {"full_loss": value.item(), "full_gradient_norm": norm.item()}


def check_every(name: str, every: int) -> None:
    """Raise unless ``every`` is a positive whole number of steps."""
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise InvalidInput(
            explain(
                f"{name!r} is to be measured every {every!r} steps",
                "the interval is a whole number of at least 1",
                "Pass every=1 to measure at each step",
            )
        )
