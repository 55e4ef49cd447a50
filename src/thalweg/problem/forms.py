"""The two ways to write a loss, as modules that hold the model: its parameters can be swapped in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from thalweg.errors import InvalidInput, explain
from thalweg.problem import losses


class OutputLoss(nn.Module):
    """``loss(model(inputs), target)`` with the weight of the batch."""

    def __init__(self, model: nn.Module, loss: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> tuple[Tensor, float]:
        """Return the mean loss and the weight of a batch."""
        inputs, target = pair(batch)
        return self.loss(self.model(inputs), target), losses.batch_weight(self.loss, inputs, target)


class ModelLoss(nn.Module):
    """``loss(model, batch)``, which says its own sample count."""

    def __init__(self, model: nn.Module, loss: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> tuple[Tensor, float]:
        """Return the mean loss and the weight of a batch."""
        result = self.loss(self.model, batch)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise InvalidInput(
                explain(
                    f"loss(model, batch) returned a {type(result).__name__}",
                    "thalweg weights every batch by its sample count",
                    "Return (mean loss, sample count)",
                )
            )
        return result[0], float(result[1])


def pair(batch: Any) -> tuple[Any, Any]:
    """Take a batch apart into inputs and targets."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise InvalidInput(
        explain(
            f"A batch is a {type(batch).__name__}, not a pair",
            "a loss of (output, target) needs (inputs, targets)",
            "Yield pairs, or pass a loss(model, batch) that returns (mean loss, sample count)",
        )
    )
