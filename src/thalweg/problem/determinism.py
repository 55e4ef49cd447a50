"""The guard at construction: is this a fixed function of the weights?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from thalweg.errors import EmptyData, InvalidInput, NotDeterministic, ThalwegError, explain
from thalweg.problem.batches import Batches, checksum, tensors_in
from thalweg.problem.guards import preserved_rng
from thalweg.problem.losses import leading_size

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


def survey(problem: Problem, source: Batches, *, check: bool) -> Survey:
    """Read the data once for its weights, and with ``check`` a second time to see whether anything differs.

    Every evaluation restores the random state, so two of them agree whatever they draw; only another seed shows
    what draws. Where the second pass differs, a third from the first state tells random draws from kernels
    that round differently each time.

    Args:
        problem: Evaluated at its initial point, on its (possibly kept) batches in the first pass.
        source: Where these batches come from, read again in the second pass.
        check: Whether to evaluate and compare.

    Raises:
        EmptyData: There is no batch, or one without a sample.
        NotDeterministic: Data, losses or gradients of two passes differ.
        InvalidInput: The model cannot be evaluated on a batch, or writes to its weights or inputs.
    """
    with preserved_rng(problem.device):
        first = _read(problem, problem._batches, evaluate=check, compare=check and not source.frozen)
    if not first.weights or sum(first.weights) <= 0:
        raise EmptyData(
            explain("The data gave no sample", "a mean over nothing is undefined", "Check the loader and its filter")
        )
    if check:
        with preserved_rng(problem.device, *source.generators):
            _reseed(source)
            second = _read(problem, source, evaluate=True, compare=not source.frozen)
        _compare_data(first, second)
        differs = _difference(first, second)
        if differs[1] > 0:
            with preserved_rng(problem.device):
                _compare(problem, differs, _difference(first, _read(problem, problem._batches, evaluate=True)))
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
                f"{len(names)} BatchNorm layers (first: {names[0]!r}) use the statistics of each of {batches} batches",
                "the mean loss then depends on how the data is cut",
                "Evaluate all samples in one batch (batch_size=None; leave --chunk out), call model.eval(), or pass "
                "check=False",
            )
        )


def _read(problem: Problem, batches: Batches, *, evaluate: bool, compare: bool = False) -> _Pass:
    weights: list[float] = []
    sums: list[Tensor] = []
    values: list[Tensor] = []
    gradient: Tensor | None = None
    leaves = [leaf.requires_grad_() for leaf in problem.layout.split(problem.initial)]
    for number, batch in enumerate(batches):
        if leading_size(batch) == 0:
            raise EmptyData(
                explain(
                    f"Batch {number} holds no sample",
                    "its mean loss is 0/0",
                    "Drop empty batches in the loader, or check its filter",
                )
            )
        if evaluate:
            if compare:
                sums.append(checksum(batch))
            value, grads, weight = _guarded(lambda b=batch: _evaluate(problem, leaves, b), number)
        else:
            weight = _guarded(lambda b=batch: problem._weigh(b), number)
        if not 0 <= weight < float("inf"):
            raise InvalidInput(
                explain(
                    f"Batch {number} has sample count {weight}",
                    "a count is a finite number and not negative",
                    "Correct the loss",
                )
            )
        weights.append(weight)
        if evaluate and weight:
            flat = torch.cat([g.reshape(-1) for g in grads]) * weight
            gradient = flat if gradient is None else gradient + flat
            values.append(value)
    return _Pass(weights, sums, values, gradient)


def _evaluate(problem: Problem, leaves: list[Tensor], batch: Any) -> tuple[Tensor, Sequence[Tensor], float]:
    """Value, gradient and weight of one batch, with a look at whether the forward pass writes where it must not."""
    placed = problem._place(batch)
    inputs = tensors_in(placed)
    before = [t._version for t in (*leaves, *inputs)]
    own = [problem.model.get_parameter(name) for name in problem.layout.names]
    result = problem._batch_gradient(leaves, placed, watched=own)
    written = [i for i, t in enumerate((*leaves, *inputs)) if t._version != before[i]]
    if written:
        weights = written[0] < len(leaves)
        raise InvalidInput(
            explain(
                f"Evaluating writes to {problem.layout.names[written[0]] if weights else 'its batch'} in place",
                "the next evaluation then starts from other numbers",
                "Move the write out of forward()" if weights else "Use inplace=False, or work on a clone of the input",
            )
        )
    return result


def _reseed(source: Batches) -> None:
    random.seed(20)
    np.random.seed(20)  # noqa: NPY002
    torch.manual_seed(20)
    for generator in source.generators:
        generator.manual_seed(20)


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


def _compare_data(first: _Pass, second: _Pass) -> None:
    if first.weights != second.weights:
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


def _difference(first: _Pass, second: _Pass) -> tuple[str, float]:
    """Which of loss and gradient differs most between two passes, and by how much relative to its size."""
    pairs = [("loss", a, b) for a, b in zip(first.values, second.values)]
    if first.gradient is not None and second.gradient is not None:
        pairs.append(("gradient", first.gradient, second.gradient))
    found = [("loss", 0.0)]
    for what, a, b in pairs:
        if torch.isfinite(a).all():  # divergence is a fact about the weights, not about determinism
            a, b = a.double(), b.double()
            found.append((what, float((a - b).norm()) / max(float(a.norm()), torch.finfo(a.dtype).tiny)))
    return max(found, key=lambda pair: pair[1])


def _compare(problem: Problem, other_seed: tuple[str, float], same_seed: tuple[str, float]) -> None:
    """Refuse a difference that a repetition from the same seed does not show, or that is no rounding."""
    what, difference = other_seed
    rounding = min(1e4 * torch.finfo(problem.dtype).eps, 1e-2)
    if difference <= 10 * same_seed[1] and same_seed[1] <= rounding:
        return
    random_draws = difference > 10 * same_seed[1]
    raise NotDeterministic(
        explain(
            f"The {what} of the same batch at the same weights differs by {difference:.1e} between two evaluations",
            _cause(problem.model)
            if random_draws
            else "it differs from the same random state too, by more than rounding",
            "Call model.eval() or remove the randomness; check=False turns this guard off"
            if random_draws
            else "Look for state that forward() keeps between calls, or set torch.use_deterministic_algorithms(True)",
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
