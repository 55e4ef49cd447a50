"""What the warm-up callbacks of both Trainers share: a measurement at the first update, and a ramp over a schedule."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.errors import InvalidInput, explain
from thalweg.optim.gi_adam import gi_adam_
from thalweg.optim.search import CriticalRate, as_problem, critical_learning_rate
from thalweg.optim.warmup import CriticalRamp
from thalweg.problem.losses import batch_loss
from thalweg.problem.problem import Problem

Where = Callable[[Any], Any]
"""Takes the model, returns a Problem or ``(model, loss, batch)``."""

WRAPPERS = ("accelerate", "lightning", "pytorch_lightning")

_measured: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


class Everywhere(Problem):
    """A problem whose value is the mean over all processes of ``torch.distributed``, the same bits in each."""

    def value(self, w: Tensor) -> Tensor:
        """Return the mean of the processes' losses, summed in the order of their ranks."""
        mine = super().value(w).double()
        parts = [torch.zeros_like(mine) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, mine)
        return torch.stack(parts).mean().to(self.dtype)


def everywhere(problem: Problem) -> Problem:
    """Return the problem over the data of all processes, where there are several.

    Each must ask for the same values in the same order, as a search does whose weights and gradient are the same.
    """
    one = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    if one or torch.distributed.get_world_size() == 1:
        return problem
    joined = copy.copy(problem)
    joined.__class__ = Everywhere
    return joined


def first_problem(model: nn.Module, evaluate: Callable[[Any, Any], Tensor], batches: Sequence[Any]) -> Problem:
    """Return the mean loss over the batches of the first update, each with the same weight, as they are accumulated.

    Args:
        model: Whose weights are tried.
        evaluate: ``evaluate(model, batch)`` returns the loss of one batch.
        batches: Those of which the gradient has been accumulated.

    Raises:
        InvalidInput: There are none.
    """
    if not batches:
        raise InvalidInput(
            explain(
                "No batch was seen before the first update",
                "the critical learning rate is measured on it",
                "Pass where=lambda model: (model, loss, batch), and say so with it",
            )
        )

    @batch_loss
    def loss(model: Any, batch: Any) -> tuple[Tensor, int]:
        return evaluate(model, batch), 1

    return Problem(model, loss, list(batches), check=False)


def first_gradient_adam(optimizer: torch.optim.Optimizer) -> None:
    """Set Adam's second moment to the square of the gradient that is there; see `gi_adam_`.

    Raises:
        InvalidInput: The critical learning rate was measured already, with the Adam that was before.
    """
    if optimizer in _measured:
        raise InvalidInput(
            explain(
                "The critical learning rate was measured before the second moment was set",
                "it is that of another first step, many times smaller",
                "List GIAdamCallback before CriticalWarmupCallback",
            )
        )
    gi_adam_(optimizer)  # type: ignore[arg-type]  # which says what it takes


class Warming:
    r"""``\eta(t) = s(t) \min(1, \eta_c / \eta^* + t / T)``: a ramp over what the schedule ``s`` gives.

    ``\eta^* = s(0)``, and ``t`` counts updates. Schedulers that are attached see their own rates when they step, never
    the ramp's, so that recursive ones (``CosineAnnealingLR``, ``ReduceLROnPlateau``) stay right; what they report as
    last rate is the rate that was used. When the ramp is over nothing is left behind.

    Args:
        steps: ``T``.
        search: Further arguments of `critical_learning_rate`.

    Attributes:
        found: The measurement; None before it, and where a checkpoint brought its result.
        ramp: The factor on the schedule; None before it is known.
        done: Updates since the start.
    """

    def __init__(self, steps: int, search: Mapping[str, Any]) -> None:
        CriticalRamp(1.0, 1.0, steps)  # checks it
        self.steps, self.search = steps, dict(search)
        self.found: CriticalRate | None = None
        self.ramp: CriticalRamp | None = None
        self.done = 0
        self._scheduled: list[float] = []
        self._applied: list[float] = []
        self._optimizer: torch.optim.Optimizer | None = None
        self._schedulers: list[tuple[Any, type]] = []
        self._hook: Any = None

    @property
    def attached(self) -> bool:
        """Whether there is an optimizer to look at."""
        return self._optimizer is not None

    @property
    def active(self) -> bool:
        """Whether rates are still the ramp's."""
        return self._optimizer is not None and self.ramp is not None

    def attach(self, optimizer: Any, schedulers: Iterable[Any]) -> None:
        """Take over an optimizer and its schedulers, wrapped by accelerate or not."""
        self.detach()
        if self.ramp is not None and self.done >= self.ramp.length:
            return  # resumed after the end of the ramp
        optimizer = bare(optimizer, "optimizer")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InvalidInput(
                explain(
                    f"The optimizer is a {type(optimizer).__name__}",
                    "steps are tried on copies of an optimizer of torch",
                    "Use one, or leave the warm-up to a scheduler",
                )
            )
        _refuse_shards(optimizer)
        self._optimizer = optimizer
        for scheduler in schedulers:
            if scheduler is not None:
                self._follow(bare(scheduler, "scheduler"))
        self._hook = optimizer.register_step_post_hook(self._count)
        if self.ramp is not None:  # resumed
            if len(self._scheduled) != len(optimizer.param_groups):
                raise InvalidInput(
                    explain(
                        f"The checkpoint has a warm-up of {len(self._scheduled)} parameter groups",
                        f"the optimizer has {len(optimizer.param_groups)}",
                        "Resume with the optimizer that was saved",
                    )
                )
            self._applied = self._rates()
            self.apply()

    def measure(self, problem: Problem) -> CriticalRate:
        """Find ``eta_c`` for the gradients that are in the parameters, and set the rates of the first update.

        Raises:
            InvalidInput: The schedule has a warm-up of its own, or the search cannot be made.
            NonFinite: Loss or gradient is not finite.
        """
        optimizer = self._optimizer
        assert optimizer is not None  # attached before
        rates = self._rates()
        _refuse_other_warmup(optimizer, rates)
        sizes = [sum(p.numel() for p in group["params"]) for group in optimizer.param_groups]
        target = rates[sizes.index(max(sizes))]
        settings: dict[str, Any] = {"target": target, "gradient": "grad", "strict": False} | self.search
        found = critical_learning_rate(everywhere(as_problem(problem)), optimizer, **settings)
        self.found, self.ramp, self.done = found, CriticalRamp(1.0, found.initial / target, self.steps), 0
        self._scheduled, self._applied = rates, rates
        _measured.add(optimizer)
        self.apply()
        return found

    def apply(self) -> None:
        """Set the rates of the next update; at the end of the ramp, let everything go."""
        if self._optimizer is None or self.ramp is None:
            return
        self._take_in()
        self._set([rate * self.ramp(self.done) for rate in self._scheduled])
        if self.done >= self.ramp.length:
            self.detach()

    def detach(self) -> None:
        """Leave optimizer and schedulers as they were, at the rates that they have."""
        for scheduler, kind in self._schedulers:
            scheduler.__class__ = kind
        self._schedulers.clear()
        if self._hook is not None:
            self._hook.remove()
        self._optimizer = self._hook = None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs: numbers of JSON, empty before the measurement."""
        if self.ramp is None:
            return {}
        self._take_in()
        return {
            "start": self.ramp.initial,
            "steps": self.ramp.steps,
            "done": self.done,
            "scheduled": list(self._scheduled),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken, once attached."""
        if state:
            self.ramp = CriticalRamp(1.0, state["start"], state["steps"])
            self.done, self._scheduled = int(state["done"]), [float(rate) for rate in state["scheduled"]]

    def _count(self, *_: Any) -> None:
        self.done += 1

    def _rates(self) -> list[float]:
        return [] if self._optimizer is None else [float(group["lr"]) for group in self._optimizer.param_groups]

    def _take_in(self) -> None:
        """Note the rates that somebody else has set since they were set here: those are the schedule's."""
        for number, rate in enumerate(self._rates()):
            if rate != self._applied[number]:
                self._scheduled[number] = rate

    def _set(self, rates: Sequence[float]) -> None:
        assert self._optimizer is not None  # asked before
        for group, rate in zip(self._optimizer.param_groups, rates):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._applied = self._rates()  # as they are in the dtype of a tensor
        for scheduler, _ in self._schedulers:
            if hasattr(scheduler, "_last_lr"):
                scheduler._last_lr = list(self._applied)

    def _follow(self, scheduler: Any) -> None:
        """Let a scheduler step on its own rates. Its class is exchanged, as its attributes go into checkpoints."""
        kind, warming = type(scheduler), self

        def step(own: Any, *arguments: Any, **settings: Any) -> Any:
            with warming.stepping():
                return kind.step(own, *arguments, **settings)

        facts = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
        scheduler.__class__ = type(kind.__name__, (kind,), facts | {"step": step})
        self._schedulers.append((scheduler, kind))

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Show the schedule's own rates while a scheduler steps."""
        if not self.active:
            yield
            return
        self._take_in()
        self._set(self._scheduled)
        yield
        self.apply()


def bare(wrapped: Any, name: str) -> Any:
    """Return what accelerate or Lightning has wrapped."""
    while type(wrapped).__module__.split(".")[0] in WRAPPERS and hasattr(wrapped, name):
        wrapped = getattr(wrapped, name)
    return wrapped


def _refuse_shards(optimizer: torch.optim.Optimizer) -> None:
    kinds = {type(p).__name__ for group in optimizer.param_groups for p in group["params"]}
    if kinds & {"DTensor", "FlatParameter"}:
        raise InvalidInput(
            explain(
                "Parameters lie in shards on several processes (FSDP)",
                "a step is tried on whole weights",
                "Measure on one process, and use CriticalWarmup(optimizer, initial=..., steps=...) as the scheduler",
            )
        )


def _refuse_other_warmup(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
    for group, rate in zip(optimizer.param_groups, rates):
        top = max(float(group.get("initial_lr", rate)), float(group.get("max_lr", rate)))  # OneCycleLR has a max_lr
        if rate < top * (1 - 1e-9) or not any(rates):
            raise InvalidInput(
                explain(
                    f"The schedule begins at {rate:.3g}, below the learning rate {top:.3g} of the optimizer",
                    "it has a warm-up of its own, and two would be multiplied",
                    "Set its warm-up to 0 steps, or leave this callback out",
                )
            )
