"""Warm-up by one catapult after another. Experimental."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.optim.search import CriticalRate


class PersistentCatapult:
    r"""Warm-up by one catapult after another: a new learning rate whenever the loss is back. Experimental.

    At a reference point ``w*`` the critical learning rate is measured and used, so that the loss rises a little and
    the sharpness falls; once the loss is below ``L(w*)`` the point is the new reference, until the target is reached.
    The learning rate is never lowered. Where the loss does not come back in ``patience`` steps, the region is flat, or
    the jump was too large: ``delta`` is multiplied by ``shrink`` and the point becomes the reference.

    Args:
        optimizer: Its present learning rates are the targets; they are set to the first critical ones at once.
        measure: ``measure(delta)`` returns the `CriticalRate` (or ``eta_c``) at the present weights, such as
            ``lambda delta: critical_learning_rate((model, loss, batch), optimizer, delta=delta, target=...)``.
        evaluate: Returns the loss at the present weights, on the data that ``measure`` uses.
        delta: Relative rise of the loss at the first catapult.
        shrink: Factor on ``delta``, between 0 and 1.
        patience: Steps to wait for the loss to come back.

    Attributes:
        measured: ``(step, learning rate, delta)`` of every measurement.
        finished: Whether the target is reached.

    Raises:
        InvalidInput: An argument is out of range.

    Example:
        >>> from thalweg.optim.search import critical_learning_rate
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> batch, loss = (x, 0 * x), torch.nn.MSELoss()  # eta_c is 0.2
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> warmup = PersistentCatapult(sgd, lambda delta: critical_learning_rate((model, loss, batch), sgd),
        ...     lambda: float(loss(model(x), 0 * x)))
        >>> warmup.finished, sgd.param_groups[0]["lr"]  # the target is below: nothing to warm up
        (True, 0.1)

    Source: arXiv 2406.09405 (persistent catapult warm-up); patience and shrinking are ours.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        measure: Callable[[float], CriticalRate | float],
        evaluate: Callable[[], float],
        *,
        delta: float = 0.1,
        shrink: float = 0.5,
        patience: int = 20,
    ) -> None:
        if not (delta > 0 and 0 < shrink < 1 and patience >= 1):
            raise InvalidInput(
                explain(
                    f"PersistentCatapult got delta {delta}, shrink {shrink}, patience {patience}",
                    "delta is positive, shrink lies between 0 and 1, and one step is the least to wait",
                    "Correct the argument that breaks this",
                )
            )
        self._optimizer, self._measure, self._evaluate = optimizer, measure, evaluate
        self.delta, self.shrink, self.patience = delta, shrink, patience
        self._targets = [float(group["lr"]) for group in optimizer.param_groups]
        sizes = [sum(p.numel() for p in group["params"]) for group in optimizer.param_groups]
        self._main = sizes.index(max(sizes))
        self.steps, self._share, self._since, self._reference = 0, 0.0, 0, math.inf
        self.measured: list[tuple[int, float, float]] = []
        self._refer()

    @property
    def finished(self) -> bool:
        """Whether the target is reached."""
        return self._share >= 1

    def step(self) -> float:
        """Call after each ``optimizer.step()``; returns the learning rate of the next one."""
        self.steps += 1
        self._since += 1
        if not self.finished:
            if self._evaluate() < self._reference:
                self._refer()
            elif self._since >= self.patience:
                self.delta *= self.shrink
                self._refer()
        return self._share * self._targets[self._main]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs: plain numbers."""
        return {
            key: value for key, value in self.__dict__.items() if key not in ("_optimizer", "_measure", "_evaluate")
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken; the optimizer's learning rates come with it."""
        self.__dict__.update(state)
        self._apply()

    def _refer(self) -> None:
        """Take the present point as the reference, and the critical learning rate there, if it is higher."""
        target = self._targets[self._main]
        found = self._measure(self.delta)
        rate = float(found)
        if rate < target:
            self._reference = self._evaluate()
        self._share = min(1.0, max(self._share, rate / target))
        self._since = 0
        self.measured.append((self.steps, rate, self.delta))
        self._apply()

    def _apply(self) -> None:
        for group, target in zip(self._optimizer.param_groups, self._targets):
            rate = self._share * target
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
