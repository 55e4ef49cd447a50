"""A training loop that can be stopped, frozen in part and gone on with: what the freezing test runs on."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from thalweg._rng import derive_seed, generator

Score: TypeAlias = Callable[[Tensor, Tensor], float]
Schedule: TypeAlias = torch.optim.lr_scheduler.LRScheduler
Masks: TypeAlias = Mapping[str, Tensor | None]
"""Which weights are kept: by name a mask, or None for the whole tensor; what is absent is frozen."""


@dataclass(frozen=True)
class Cost:
    """What a training step takes.

    Attributes:
        flops: Of matrix products and convolutions, forward and backward, as counted by torch.
        seconds: Least wall-clock time of a step, the optimizer's part included; what else the machine does only adds.
    """

    flops: int
    seconds: float


@dataclass(frozen=True)
class Training:
    """What all runs share: the start, data, and how to make an optimizer and a schedule.

    Attributes:
        model: The start, which is not changed.
        data: Training inputs and targets.
        held_out: Test inputs and targets; None: the training data.
        optimizer: Makes an optimizer of parameters.
        scheduler: Makes a schedule of an optimizer.
        batch_size: Samples of a step.
        loss: ``(outputs, targets) -> mean``.
        score: ``(outputs, targets) -> float``.
    """

    model: nn.Module
    data: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor] | None
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    scheduler: Callable[[torch.optim.Optimizer], Schedule] | None
    batch_size: int
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Score | None

    @property
    def parameters(self) -> int:
        """Trainable weights."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def begin(self, state: dict[str, Any] | None = None) -> TrainingRun:
        """Begin a run, at the start or from the state of another."""
        return TrainingRun(self, state)


class TrainingRun:
    """One run: a model, its optimizer and schedule.

    Args:
        job: What it trains.
        state: What `state` of another run returned.
    """

    def __init__(self, job: Training, state: dict[str, Any] | None = None) -> None:
        self.job = job
        self.model = copy.deepcopy(job.model)
        self._named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self._optimizer = job.optimizer(list(self._named.values()))
        self._schedule = None if job.scheduler is None else job.scheduler(self._optimizer)
        if state is not None:
            self.model.load_state_dict(state["model"])
            if self._schedule is not None:
                self._schedule.load_state_dict(state["schedule"])
            self._optimizer.load_state_dict(state["optimizer"])  # last: a new schedule sets the rate of its start
        self._fixed: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        self._seconds: list[float] = []
        self.trainable = job.parameters

    @property
    def rate(self) -> float:
        """The learning rate of the next step, of the optimizer's first group."""
        return float(self._optimizer.param_groups[0]["lr"])

    def state(self) -> dict[str, Any]:
        """Return copies of weights, buffers, optimizer and schedule."""
        schedule = None if self._schedule is None else self._schedule.state_dict()
        parts = {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict(), "schedule": schedule}
        return copy.deepcopy(parts)

    def freeze(self, masks: Masks) -> None:
        """Fix everything that ``masks`` do not keep: it leaves the optimizer, with its state."""
        gone = [p for name, p in self._named.items() if name not in masks]
        known = {id(p) for p in gone}
        for p in gone:
            p.requires_grad_(False)
            p.grad = None
            self._optimizer.state.pop(p, None)
        for group in self._optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in known]
        self.trainable = 0
        for name, mask in masks.items():
            p = self._named[name]
            self.trainable += p.numel() if mask is None else int(mask.sum())
            if mask is not None:
                mask = mask.to(p.device)
                self._fixed.append((p, mask, p.detach().clone()))

    def epoch(self, seed: int, number: int) -> None:
        """Train for an epoch; its batches and random draws depend on seed and number only."""
        inputs, targets = self.job.data
        order = torch.randperm(len(inputs), generator=generator(seed, "freezing", "batches", number))
        torch.manual_seed(derive_seed(seed, "freezing", "draws", number))
        self.model.train()
        size = self.job.batch_size
        for first in range(0, len(order) - size + 1, size):
            at = order[first : first + size].to(inputs.device)
            begin = time.perf_counter()
            self._optimizer.zero_grad()
            torch.autograd.backward(self.job.loss(self.model(inputs[at]), targets[at]))
            self._optimizer.step()
            with torch.no_grad():
                for p, mask, values in self._fixed:
                    p.copy_(torch.where(mask, p, values))
            self._seconds.append(time.perf_counter() - begin)
        if self._schedule is not None:
            self._schedule.step()

    def test(self) -> tuple[float, float]:
        """Return loss and score on the test data, in evaluation mode; the score is NaN without one."""
        return self._evaluate(*(self.job.held_out or self.job.data))

    def training_loss(self) -> float:
        """Return the loss on the training data, in evaluation mode."""
        return self._evaluate(*self.job.data)[0]

    def cost(self) -> Cost:
        """Count the operations of a step on a copy, and take the least time of those done."""
        twin = copy.deepcopy(self.model).train()
        inputs, targets = (tensor[: self.job.batch_size] for tensor in self.job.data)
        with FlopCounterMode(display=False) as counter:
            value = self.job.loss(twin(inputs), targets)
            if value.requires_grad:
                torch.autograd.backward(value)
        return Cost(counter.get_total_flops(), min(self._seconds) if self._seconds else float("nan"))

    def _evaluate(self, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
        self.model.eval()
        losses, scores = 0.0, 0.0 if self.job.score is not None else float("nan")
        with torch.no_grad():
            for x, y in zip(torch.split(inputs, 1024), torch.split(targets, 1024)):
                out = self.model(x)
                losses += float(self.job.loss(out, y)) * len(x)
                if self.job.score is not None:
                    scores += self.job.score(out, y) * len(x)
        return losses / len(inputs), scores / len(inputs)
