"""The guard at construction: is this a fixed function of the weights?"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from thalweg.errors import EmptyData, InvalidInput, NotDeterministic, ThalwegError, explain
from thalweg.problem.batches import checksum, leading_size
from thalweg.problem.guards import preserved_rng

if TYPE_CHECKING:
    from thalweg.problem.problem import Problem


@dataclass(frozen=True)
class Survey:
    """Weight of each batch, and their sum as a whole number of samples."""

    weights: tuple[float, ...]
    samples: int


@dataclass(frozen=True)
class _Pass:
    weights: list[float]
    sums: list[Tensor]
    values: list[Tensor]
    gradient: Tensor | None


def survey(problem: Problem, *, check: bool) -> Survey:
    """Read the data once for its weights, and with ``check`` a second time to see whether anything differs.

    Raises:
        EmptyData: There is no batch, or one without a sample.
        NotDeterministic: Data, losses or gradients of two passes differ.
        InvalidInput: The model cannot be evaluated on a batch.
    """
    with preserved_rng(problem.device):
        first = _read(problem, evaluate=check)
        second = first
        if check:
            _reseed()  # each evaluation restores the random state, so only another seed shows what draws
            second = _read(problem, evaluate=True)
    if not first.weights or sum(first.weights) <= 0:
        raise EmptyData(
            explain("The data gave no sample", "a mean over nothing is undefined", "Check the loader and its filter")
        )
    if check:
        _compare(problem, first, second)
    return Survey(tuple(first.weights), round(sum(first.weights)))


def refuse_batch_statistics(model: nn.Module, batches: int) -> None:
    """Raise where a BatchNorm normalises by batch statistics over more than one batch.

    The mean loss would then depend on how the data is cut, so it would not be a function of the weights alone.
    """
    names = [
        name or type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
    ]
    if names and batches > 1:
        raise InvalidInput(
            explain(
                f"{len(names)} BatchNorm layers, the first {names[0]!r}, use the statistics of each of {batches} batches",
                "the mean loss then depends on how the data is cut",
                "Call model.eval(), evaluate in one batch (batch_size=None), or pass check=False",
            )
        )


def _read(problem: Problem, *, evaluate: bool) -> _Pass:
    weights: list[float] = []
    sums: list[Tensor] = []
    values: list[Tensor] = []
    gradient: Tensor | None = None
    leaves = [leaf.requires_grad_() for leaf in problem.layout.split(problem.initial)]
    for number, batch in enumerate(problem._batches):
        if leading_size(batch) == 0:
            raise EmptyData(
                explain(
                    f"Batch {number} holds no sample",
                    "its mean loss is 0/0",
                    "Drop empty batches in the loader, or check its filter",
                )
            )
        weight = _guarded(lambda b=batch: problem._weigh(b), number)  # type: ignore[misc]
        if not weight >= 0:
            raise InvalidInput(
                explain(f"Batch {number} has sample count {weight}", "a count is not negative", "Correct the loss")
            )
        weights.append(weight)
        if evaluate and weight:
            if not problem._batches.frozen:
                sums.append(checksum(batch))
            placed = problem._place(batch)
            value, grads = _guarded(lambda b=placed: problem._batch_gradient(leaves, b), number)  # type: ignore[misc]
            flat = torch.cat([g.reshape(-1) for g in grads]) * weight
            gradient = flat if gradient is None else gradient + flat
            values.append(value)
    return _Pass(weights, sums, values, gradient)


def _reseed() -> None:
    random.seed(20)
    np.random.seed(20)  # noqa: NPY002
    torch.manual_seed(20)


def _guarded(evaluate: Any, number: int) -> Any:
    """Name the batch where a model cannot be evaluated; errors of ours pass."""
    try:
        return evaluate()
    except ThalwegError:
        raise
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise InvalidInput(
            explain(
                f"Evaluating batch {number} raised {type(error).__name__}: {error}",
                "the model, the loss and the data do not fit together",
                "Try loss(model(inputs), targets) on this batch by hand; check shapes, dtypes and devices",
            )
        ) from error


def _compare(problem: Problem, first: _Pass, second: _Pass) -> None:
    if len(first.weights) != len(second.weights) or first.weights != second.weights:
        raise NotDeterministic(
            explain(
                f"Two passes over the data gave {len(first.weights)} and {len(second.weights)} batches, or other sizes",
                "the mean loss is then another function at each evaluation",
                "Use a loader of fixed length and order",
            )
        )
    for number, (a, b) in enumerate(zip(first.sums, second.sums)):
        if a.shape != b.shape or not torch.equal(a, b):
            raise NotDeterministic(
                explain(
                    f"Batch {number} differs between two passes over the data",
                    "a shuffled loader or random augmentation makes another function at each evaluation",
                    "Pass shuffle=False and switch augmentation off, or hand over tensors",
                )
            )
    tolerance = 1e4 * torch.finfo(problem.dtype).eps
    pairs = [("loss", a, b) for a, b in zip(first.values, second.values)]
    if first.gradient is not None and second.gradient is not None:
        pairs.append(("gradient", first.gradient, second.gradient))
    for what, a, b in pairs:
        if not torch.isfinite(a).all():
            continue  # a point of divergence is a fact about the weights, not about determinism
        difference = float((a - b).norm()) / max(float(a.norm()), torch.finfo(problem.dtype).tiny)
        if difference > tolerance:
            raise NotDeterministic(
                explain(
                    f"The {what} of the same batch at the same weights differs by {difference:.1e} between two evaluations",
                    _cause(problem.model),
                    "Call model.eval() or remove the randomness; check=False turns this guard off",
                )
            )


def _cause(model: nn.Module) -> str:
    live = [
        name or type(module).__name__
        for name, module in model.named_modules()
        if module.training and isinstance(module, _DropoutNd) and module.p > 0
    ]
    if live:
        return f"dropout is live in {', '.join(live[:4])}{', ...' if len(live) > 4 else ''}"
    return "the model or the loss draws random numbers"
