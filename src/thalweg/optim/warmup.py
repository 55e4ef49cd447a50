"""Warm-up of the learning rate that begins where it first matters: at the critical learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from thalweg.errors import InvalidInput, explain
from thalweg.optim.search import CriticalRate, critical_learning_rate
from thalweg.problem.problem import Problem


@dataclass(frozen=True)
class CriticalRamp:
    r"""``\eta(t) = min(\eta_target, \eta_c + \eta_target t / T)``: the ordinary ramp, entered at ``\eta_c``.

    A schedule for the rules of `thalweg.rules`. The target is reached after `length` steps instead of ``T``.

    Attributes:
        target: ``eta_target``.
        initial: ``eta_c``; at or above the target there is no ramp.
        steps: ``T``, the steps of the ordinary ramp from zero.

    Example:
        >>> eta = CriticalRamp(target=0.4, initial=0.2, steps=4)
        >>> [round(eta(t), 3) for t in range(4)], eta.length, eta.saved
        ([0.2, 0.3, 0.4, 0.4], 2, 2.0)
    """

    target: float
    initial: float
    steps: int

    def __post_init__(self) -> None:
        numbers = (self.target, self.initial, self.steps)
        if not (all(n > 0 for n in numbers) and math.isfinite(self.target) and not math.isnan(self.initial)):
            raise InvalidInput(
                explain(
                    f"A warm-up got target {self.target}, initial {self.initial}, {self.steps} steps",
                    "a ramp has a positive length, from a positive learning rate to a positive one",
                    "Correct the argument; CriticalRate.initial is always a place to start",
                )
            )

    def __call__(self, step: int) -> float:
        """Return the rate of update number ``step``."""
        return min(self.target, self.initial + self.target * step / self.steps)

    @property
    def length(self) -> int:
        """Steps until the target is reached: ``T (1 - eta_c / eta_target)``, rounded up."""
        left = self.steps * (1 - self.initial / self.target)
        return max(0, math.ceil(left - 1e-9 * self.steps))

    @property
    def saved(self) -> float:
        """Steps by which the target is reached earlier, ``T eta_c / eta_target``, at most ``T``."""
        return self.steps * min(1.0, self.initial / self.target)


class CriticalWarmup(LRScheduler):
    r"""``\eta_t = min(\eta_target, \eta_c + \eta_target t / T)`` for each parameter group.

    The targets are the learning rates that the optimizer has when this is made. It multiplies the learning rate by the
    ratio of two values of its ramp, as torch's ``LinearLR`` does, so that it chains with other schedulers
    (``ChainedScheduler``, ``SequentialLR``). Call ``step()`` after each ``optimizer.step()``.

    Args:
        optimizer: With its target learning rates.
        initial: ``eta_c`` of the group with most parameters, the others scaled alike; or one for each group.
        steps: ``T``, the steps of the ordinary ramp from zero.
        last_epoch: As for any scheduler of torch.

    Attributes:
        ramps: The `CriticalRamp` of each group as a share of its target.

    Raises:
        InvalidInput: A learning rate is not positive, or the numbers of groups differ.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.4)
        >>> warmup, seen = CriticalWarmup(optimizer, initial=0.2, steps=4), []
        >>> for _ in range(4):
        ...     seen.append(round(optimizer.param_groups[0]["lr"], 3))
        ...     optimizer.step()
        ...     warmup.step()
        >>> seen
        [0.2, 0.3, 0.4, 0.4]

    Source: arXiv 2406.09405.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        initial: float | Sequence[float] | CriticalRate,
        steps: int,
        last_epoch: int = -1,
    ) -> None:
        groups = optimizer.param_groups
        targets = [float(group.get("initial_lr", group["lr"])) for group in groups]
        if isinstance(initial, CriticalRate):
            initial = initial.initial
        if isinstance(initial, Sequence):
            rates = [float(rate) for rate in initial]
        else:
            sizes = [sum(p.numel() for p in group["params"]) for group in groups]
            reference = targets[sizes.index(max(sizes))]
            rates = [float(initial) * target / reference if reference > 0 else math.nan for target in targets]
        if len(rates) != len(targets):
            raise InvalidInput(
                explain(
                    f"There are {len(rates)} initial learning rates",
                    f"the optimizer has {len(targets)} groups",
                    "Give one number for each, or one for all",
                )
            )
        for rate, target in zip(rates, targets):
            CriticalRamp(target, rate, steps)  # checks them
        self._starts = [rate / target for rate, target in zip(rates, targets)]
        self._steps = steps
        super().__init__(optimizer, last_epoch)

    @classmethod
    def found(
        cls,
        where: Problem | tuple[nn.Module, Callable[..., Any], Any],
        optimizer: torch.optim.Optimizer,
        steps: int,
        **search: Any,
    ) -> CriticalWarmup:
        """Measure ``eta_c`` for the optimizer's next step, and begin there.

        Args:
            where: A Problem on a mini-batch, or ``(model, loss, batch)``.
            optimizer: With its target learning rates.
            steps: ``T``.
            search: Further arguments of `critical_learning_rate`.

        Returns:
            The scheduler, with the `CriticalRate` as its attribute ``evidence``.
        """
        sizes = [sum(p.numel() for p in group["params"]) for group in optimizer.param_groups]
        target = float(optimizer.param_groups[sizes.index(max(sizes))]["lr"])
        found = critical_learning_rate(where, optimizer, **({"target": target} | search))
        made = cls(optimizer, found, steps)
        made.__dict__["evidence"] = found
        return made

    @property
    def ramps(self) -> list[CriticalRamp]:
        """The ramp of each group, as a share of its target."""
        return [CriticalRamp(1.0, start, self._steps) for start in self._starts]

    @property
    def length(self) -> int:
        """Steps until every group is at its target."""
        return max(ramp.length for ramp in self.ramps)

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rates of the next step, from those of the last one."""
        groups, now = self.optimizer.param_groups, self.last_epoch
        if now == 0:
            return [group["lr"] * ramp(0) for group, ramp in zip(groups, self.ramps)]
        if getattr(self, "_is_initial", False):  # resumed at last_epoch: rates are there already
            return [group["lr"] for group in groups]
        return [group["lr"] * (ramp(now) / ramp(now - 1)) for group, ramp in zip(groups, self.ramps)]

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        return [base * ramp(self.last_epoch) for base, ramp in zip(self.base_lrs, self.ramps)]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs: plain numbers."""
        return {key: value for key, value in super().state_dict().items() if key != "evidence"}
