"""What a user's loss means: its calling convention, its batch weight, its reduction."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.errors import EmptyData, InvalidInput, explain

BatchLoss = Callable[[nn.Module, Any], tuple[Tensor, int]]


def batch_loss(function: BatchLoss) -> BatchLoss:
    """Mark ``function(model, batch) -> (mean loss, sample count)`` as a loss that calls the model itself.

    Args:
        function: Takes the module and one batch as the data yields it; returns the mean loss over the batch, a 0-dim
            tensor, and the number of samples (or tokens) that it is a mean over.

    Returns:
        The same function, marked.

    Needed only where the first parameter is not called ``model``, which is how `Problem` tells this form from
    ``loss(output, target)``.

    Example:
        >>> @batch_loss
        ... def language_loss(net, batch):
        ...     return net(**batch).loss, len(batch["input_ids"])
    """
    function.__thalweg_batch_loss__ = True  # type: ignore[attr-defined]
    return function


class OneHotSquares(nn.Module):
    r"""``\frac{1}{B d} \sum_i \sum_c (f_{ic} - y_{ic})^2`` with one-hot ``y``, from class indices.

    Args:
        classes: Number of classes, the length of each ``f_i``.
        divisor: ``d``.

    Example:
        >>> OneHotSquares(3, 2)(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])).item()
        0.5
    """

    def __init__(self, classes: int, divisor: float) -> None:
        super().__init__()
        self.classes, self.divisor = classes, divisor

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each sample, shape ``(B,)``."""
        wanted = F.one_hot(target, self.classes).to(output.dtype)
        return torch.sum((output - wanted) ** 2, dim=1) / self.divisor

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return their mean."""
        return self.terms(output, target).mean()


def calls_the_model(loss: Callable[..., Any]) -> bool:
    """Whether ``loss`` takes ``(model, batch)`` rather than ``(output, target)``."""
    if getattr(loss, "__thalweg_batch_loss__", False):
        return True
    if isinstance(loss, nn.Module):
        return False
    try:
        parameters = list(inspect.signature(loss).parameters)
    except (TypeError, ValueError):
        return False
    return bool(parameters) and parameters[0] == "model"


def leading_size(tree: Any) -> int | None:
    """Length of the first dimension of the first tensor in a nested batch; None where there is no tensor."""
    if isinstance(tree, Tensor):
        return tree.shape[0] if tree.ndim else None
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (tuple, list)) else ()
    for child in children:
        size = leading_size(child)
        if size is not None:
            return size
    return None


def batch_weight(loss: Callable[..., Any], inputs: Any, target: Any) -> float:
    """Return the number that a mean over this batch must be weighted by to give the mean over all data.

    That is the sample count, except for cross-entropy and NLL on class indices: torch divides these by the sum of
    class weights over targets that are not ignored, so that sum is the weight.

    Raises:
        EmptyData: The batch holds no tensor to count.
    """
    options = _cross_entropy_options(loss)
    if options is not None and isinstance(target, Tensor) and not target.is_floating_point():
        ignore, weight = options
        kept = target[target != ignore]
        return float(kept.numel() if weight is None else weight.to(kept.device)[kept].sum())
    count = leading_size(target)
    if count is None:
        count = leading_size(inputs)
    if count is None:
        raise EmptyData(
            explain(
                f"A batch of type {type(target).__name__} has no tensor to count",
                "averages over data are weighted by the number of samples",
                "Yield (inputs, targets) tensors, or use a loss(model, batch) that returns (mean, count)",
            )
        )
    return float(count)


def check_reduction(loss: Callable[..., Any]) -> None:
    """Raise InvalidInput for a torch loss that does not reduce by the mean."""
    bound = _flatten_partial(loss)
    reduction = bound[1].get("reduction", getattr(bound[0], "reduction", "mean"))
    if reduction not in ("mean", "batchmean"):
        raise InvalidInput(
            explain(
                f"The loss has reduction={reduction!r}",
                "a Problem averages over samples, so it needs the mean over each batch",
                'Use reduction="mean", or a loss(model, batch) that returns (mean, count)',
            )
        )


def _flatten_partial(loss: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    keywords: dict[str, Any] = {}
    while isinstance(loss, functools.partial):
        keywords = {**loss.keywords, **keywords}
        loss = loss.func
    return loss, keywords


def _cross_entropy_options(loss: Callable[..., Any]) -> tuple[int, Tensor | None] | None:
    """``(ignore_index, class weights)`` where ``loss`` is torch's cross-entropy or NLL, else None."""
    function, keywords = _flatten_partial(loss)
    if isinstance(function, (nn.CrossEntropyLoss, nn.NLLLoss)):
        return function.ignore_index, function.weight
    if function in (F.cross_entropy, F.nll_loss, torch.nn.functional.nll_loss):
        return keywords.get("ignore_index", -100), keywords.get("weight")
    return None
