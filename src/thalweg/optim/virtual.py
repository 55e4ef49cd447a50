"""Updates that are tried and not taken: what an optimizer would do, on copies of everything that it changes."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.problem.guards import preserved_rng
from thalweg.problem.problem import Problem
from thalweg.rules.base import Rule, State
from thalweg.rules.live import Source, check_live

_NOT_OURS = ("step", "_opt_called", "_step_count")
"""What schedulers and profilers hang onto an optimizer: it calls back to the live one."""


class VirtualUpdate(ABC):
    """The next updates of an optimizer at any learning rate; nothing of it, nor of the model, is changed.

    Attributes:
        problem: Model, loss and data.
        w: The point, shape ``(P,)``.
        gradient: What the first update takes in, shape ``(P,)``.
        rate: Learning rate that the optimizer has now: of the group with most parameters.
        rates: Learning rates of all groups.
    """

    def __init__(self, problem: Problem, w: Tensor, gradient: Tensor, rates: tuple[float, ...], reference: int) -> None:
        self.problem, self.w, self.gradient = problem, w, gradient
        self.rates, self._reference = rates, reference

    @property
    def rate(self) -> float:
        """Learning rate of the group with most parameters, which is the one that is quoted."""
        return self.rates[self._reference]

    def scaled(self, lr: float) -> tuple[float, ...]:
        """Return the rates of all groups when that of the largest one is ``lr``."""
        return tuple(lr * ratio for ratio in _ratios(self.rates, self._reference))

    @abstractmethod
    def path(self, lr: float) -> Iterator[Tensor]:
        """Yield the weights after one, two, ... updates at ``lr``, each of shape ``(P,)``."""

    def step(self, lr: float) -> Tensor:
        """Return the weights after one update at ``lr``, shape ``(P,)``."""
        return next(self.path(lr))


class RuleUpdate(VirtualUpdate):
    """Updates of a rule of `thalweg.rules`."""

    def __init__(self, problem: Problem, rule: Rule, w: Tensor, state: State | None, gradient: Tensor) -> None:
        self._rule, self._state = rule, rule.init(w) if state is None else state
        super().__init__(problem, w, gradient, (rule.learning_rate_at(int(self._state["step"])),), 0)

    def path(self, lr: float) -> Iterator[Tensor]:
        """Yield the weights after one, two, ... updates at ``lr``."""
        rule, w, state, gradient = replace(self._rule, lr=lr), self.w, self._state, self.gradient
        while True:
            w, state = rule.advance(w, state, gradient)
            yield w
            gradient = self.problem.gradient(w)


class TorchUpdate(VirtualUpdate):
    """Updates of a torch optimizer, made by its own code on copies of weights and state."""

    def __init__(self, problem: Problem, optimizer: torch.optim.Optimizer, w: Tensor, gradient: Tensor) -> None:
        closure = inspect.signature(type(optimizer).step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise InvalidInput(
                explain(
                    f"{type(optimizer).__name__}.step() needs a closure",
                    "it chooses its own points, so that there is no single update to try",
                    "Use an optimizer whose step takes one gradient",
                )
            )
        self._optimizer = optimizer
        self._mine = [problem.model.get_parameter(name) for name in problem.layout.names]
        held = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
        counts = [sum(p.numel() for p in self._mine if id(p) in group) for group in held]
        if not sum(counts):
            raise InvalidInput(
                explain(
                    "The optimizer holds none of the problem's parameters",
                    "its steps do not move them",
                    "Build both on the same model",
                )
            )
        rates = tuple(float(group["lr"]) for group in optimizer.param_groups)
        if not any(rates):  # a schedule that starts at zero keeps what it rises to
            rates = tuple(float(group.get("initial_lr", 0.0)) for group in optimizer.param_groups)
        super().__init__(problem, w, gradient, rates, counts.index(max(counts)))

    def path(self, lr: float) -> Iterator[Tensor]:
        """Yield the weights after one, two, ... updates at ``lr``."""
        layout = self.problem.layout
        leaves = [leaf.clone().requires_grad_() for leaf in layout.split(self.w)]
        twin, gradient = self._twin(leaves, lr), self.gradient
        step = type(twin).step
        if getattr(step, "hooked", False):  # hooks are the user's, and may write anywhere
            step = step.__wrapped__  # type: ignore[attr-defined]
        while True:
            for leaf, force in zip(leaves, layout.split(gradient)):
                leaf.grad = force.clone()
            with preserved_rng(self.problem.device):
                step(twin)
            w = torch.cat([leaf.detach().reshape(-1) for leaf in leaves])
            yield w
            gradient = self.problem.gradient(w)

    def _twin(self, leaves: list[Tensor], lr: float) -> torch.optim.Optimizer:
        """A copy of the optimizer that holds ``leaves`` in the place of the model's parameters."""
        memo: dict[int, Any] = {id(p): leaf for p, leaf in zip(self._mine, leaves)}
        kind = type(self._optimizer)
        twin: torch.optim.Optimizer = kind.__new__(kind)
        for name, value in self._optimizer.__dict__.items():
            if name not in _NOT_OURS and not name.endswith("_hooks"):
                setattr(twin, name, copy.deepcopy(value, memo))
        for leaf in leaves:
            for key, entry in twin.state.get(leaf, {}).items():
                if isinstance(entry, Tensor) and entry.shape == leaf.shape and entry.is_floating_point() and entry.ndim:
                    twin.state[leaf][key] = entry.to(leaf.device, leaf.dtype)
        for group, rate in zip(twin.param_groups, self.scaled(lr)):
            group["lr"] = torch.full_like(group["lr"], rate) if isinstance(group["lr"], Tensor) else rate
        return twin


def virtual_update(
    problem: Problem,
    source: Source,
    w: Tensor | None = None,
    state: State | None = None,
    *,
    gradient: Tensor | None = None,
) -> VirtualUpdate:
    r"""Return the next updates ``w \to w'(\eta)`` of ``source``, to be tried at any learning rate.

    A torch optimizer is copied and its own ``step`` is called, so that every optimizer will do: what it does at
    ``\eta`` is found, not modelled, and all groups are scaled alike. Its hooks are not called.

    Args:
        problem: Model, loss and data.
        source: A rule, or a live torch optimizer on ``problem.model``.
        w: The point, shape ``(P,)``; default ``problem.initial``.
        state: The rule's state before the update; default its initial one.
        gradient: What the first update takes in, shape ``(P,)``; default the gradient over all data at ``w``.

    Returns:
        A `VirtualUpdate`.

    Raises:
        InvalidInput: The source is neither, needs a closure, or does not hold the parameters.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> problem = Problem(model, torch.nn.MSELoss(), (x, 0 * x))
        >>> update = virtual_update(problem, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> float(problem.value(update.step(0.1)) / problem.value(problem.initial)) < 1e-20  # one step of 1 / curvature
        True
    """
    point = problem.initial if w is None else w.detach().to(problem.device, problem.dtype)
    force = problem.gradient(point) if gradient is None else gradient.detach().to(problem.device, problem.dtype)
    problem.layout.split(force)  # checks the shape
    if isinstance(source, Rule):
        return RuleUpdate(problem, source, point, state, force)
    check_live(source)
    if state is not None:
        raise InvalidInput(
            explain("A state was given beside a live optimizer", "the optimizer holds its own", "Leave state out")
        )
    return TorchUpdate(problem, source, point, force)


def _ratios(rates: tuple[float, ...], reference: int) -> list[float]:
    """Rates relative to the reference's; alike where none is known."""
    if not any(rates):
        return [1.0] * len(rates)
    if rates[reference] == 0:
        raise InvalidInput(
            explain(
                f"The learning rates of the groups are {list(rates)}",
                "the largest group does not move, so that there is no rate to scale the others by",
                "Give it a learning rate, or leave it out of the optimizer",
            )
        )
    return [rate / rates[reference] for rate in rates]
