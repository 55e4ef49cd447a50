"""The mean loss of each of R rows of outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.problem.losses import OneHotSquares

RowLoss = Callable[[Tensor, Any, bool], Tensor]


def row_loss(loss: Callable[..., Any]) -> RowLoss:
    """Return ``(outputs (R, B, ...), target, own) -> (R,)`` for a ``loss(output, target)`` that is a mean over a batch.

    Squared errors and plain cross-entropy are written out, which saves most of a small network's time; anything else
    goes through ``vmap``. With ``own``, the target has a leading dimension R.

    Example:
        >>> outputs, target = torch.zeros(2, 4, 3), torch.tensor([0, 1, 2, 0])
        >>> row_loss(OneHotSquares(3, 2))(outputs, target, False)
        tensor([0.5000, 0.5000])
    """
    if type(loss) is OneHotSquares:
        return _one_hot_squares(loss)
    if loss is F.mse_loss or (type(loss) is nn.MSELoss and loss.reduction == "mean"):
        return _squares(loss)
    if loss is F.cross_entropy or (type(loss) is nn.CrossEntropyLoss and _plain(loss)):
        return _cross_entropy(loss)
    return _vectorised(loss)


def _vectorised(loss: Callable[..., Any]) -> RowLoss:
    def losses(outputs: Tensor, target: Any, own: bool) -> Tensor:
        found: Tensor = torch.func.vmap(loss, in_dims=(0, 0 if own else None))(outputs, target)
        return found

    return losses


def _one_hot_squares(loss: OneHotSquares) -> RowLoss:
    def losses(outputs: Tensor, target: Any, own: bool) -> Tensor:
        wanted = F.one_hot(target, loss.classes).to(outputs.dtype)
        error = (outputs - wanted).flatten(1)
        return error.square().sum(dim=1) / (loss.divisor * outputs.shape[1])

    return losses


def _squares(loss: Callable[..., Any]) -> RowLoss:
    spelled_out = _vectorised(loss)

    def losses(outputs: Tensor, target: Any, own: bool) -> Tensor:
        if target.shape != (outputs.shape if own else outputs.shape[1:]):
            return spelled_out(outputs, target, own)  # broadcasts, or refuses, as the user's loss does
        means: Tensor = (outputs - target).square().flatten(1).mean(dim=1)
        return means

    return losses


def _cross_entropy(loss: Callable[..., Any]) -> RowLoss:
    spelled_out = _vectorised(loss)

    def losses(outputs: Tensor, target: Any, own: bool) -> Tensor:
        classes = not target.is_floating_point() and target.ndim == 1 + own and outputs.ndim == 3
        if not classes or bool((target < 0).any()):  # probabilities, sequences, or samples to ignore
            return spelled_out(outputs, target, own)
        chosen = target if own else target.expand(len(outputs), -1)
        picked: Tensor = F.log_softmax(outputs, dim=2).gather(2, chosen.unsqueeze(2))
        return -picked.flatten(1).mean(dim=1)

    return losses


def _plain(loss: nn.CrossEntropyLoss) -> bool:
    return loss.weight is None and loss.label_smoothing == 0 and loss.ignore_index == -100 and loss.reduction == "mean"
