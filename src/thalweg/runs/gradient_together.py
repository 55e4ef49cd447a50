"""Gradients of many mini-batches in one go, where passes are so short that calling the model is what takes time."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from thalweg.problem import Problem
from thalweg.problem.batches import TensorBatches, map_tensors
from thalweg.problem.forms import OutputLoss, pair
from thalweg.problem.guards import math_attention, no_autocast, preserved_rng
from thalweg.runs.gradient_draws import Draws, switched
from thalweg.runs.gradient_streams import streams_in

SMALL = 2 << 20
"""Bytes that a pass may keep for its backward: with more, arithmetic takes the time and nothing is gained."""
TOGETHER = 64 << 20
"""Bytes that the passes of one go may keep."""
_FEWEST = 4
_NOTE = "gradients together"


def together(draws: Draws, w: Tensor, numbers: Sequence[int], rows: Tensor) -> Tensor | None:
    """Write the gradients of mini-batches into their rows, by one vectorised pass for many of them.

    They are those of single passes, up to rounding: the first one is compared. It is not tried where the model or the
    loss could behave otherwise (hooks, generators of their own) or nothing is gained (convolutions, whose weight
    gradients would be taken group by group; passes that keep much), and given up where it does behave otherwise: where
    anything is drawn at random, for one draw would serve many mini-batches, or where control flow looks at values.

    Args:
        draws: The mini-batches.
        w: The point, shape ``(P,)``.
        numbers: Which of them.
        rows: Shape ``(n, P)``; the rows ``numbers`` are written.

    Returns:
        Losses, shape ``(len(numbers),)``; None where single passes have to be taken.
    """
    problem = draws.problem
    key = f"{_NOTE}, {draws.mode}, {draws.batch_size}"
    if len(numbers) < _FEWEST or problem.notes.get(key) == 0 or not _suits(draws):
        return None
    known = problem.notes.get(key)
    first = None
    if known is None:
        problem.notes[key] = 0  # unless all goes well
        first, known = _measured(draws, w, numbers[0])
    each = 3 * known + problem.dimension * rows.element_size()
    many = min(len(numbers), TOGETHER // max(1, each))
    if known > SMALL or many < _FEWEST:
        return None
    losses = []
    with switched(problem.model, draws.mode), preserved_rng(problem.device), _as_it_was(problem._function):
        before = _global_streams()
        try:
            for start in range(0, len(numbers), many):
                chosen = list(numbers[start : start + many])
                values, grads = _vectorised(draws, w, chosen)
                losses.append(values)
                at = slice(chosen[0], chosen[-1] + 1)
                if chosen == list(range(at.start, at.stop)) and grads[0].dtype == rows.dtype:
                    torch.cat(grads, dim=1, out=rows[at])
                else:
                    rows[chosen] = torch.cat(grads, dim=1).to(rows.dtype)
                del grads
        except Exception:  # whatever it is, single passes say it better, or do without
            problem.notes[key] = 0
            return None
        if _global_streams() != before:
            problem.notes[key] = 0
            return None
    if first is not None and not _same(rows[numbers[0]], first):
        return None
    problem.notes[key] = known
    return torch.cat(losses)


def _suits(draws: Draws) -> bool:
    problem = draws.problem
    if not isinstance(draws.source, TensorBatches) or problem._batches is not draws.source:
        return False
    if (type(problem)._call, type(problem)._evaluate) != (Problem._call, Problem._evaluate):
        return False
    modules = list(problem._function.modules())
    unsuited = any(
        isinstance(module, (_ConvNd, torch.jit.ScriptModule, nn.parallel.DistributedDataParallel))
        or type(module).__name__ == "OptimizedModule"
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in modules
    )
    return not unsuited and not streams_in(*modules, problem._function.loss)


def _measured(draws: Draws, w: Tensor, i: int) -> tuple[Tensor, int]:
    """Return the gradient of a single pass, and the bytes that it kept."""
    kept: dict[int, int] = {}

    def count(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    def job(gradient: Any) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            return torch.cat([g.reshape(-1) for g in gradient(i)[1]])

    return draws.at(w, job), sum(kept.values())


def _vectorised(draws: Draws, w: Tensor, numbers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Return losses ``(c,)`` of some mini-batches, and gradients, each ``(c, entries of a tensor)``."""
    problem = draws.problem
    at = torch.stack([draws.indices(i) for i in numbers])
    batch = problem._place(map_tensors(lambda t: t[at.to(t.device)], draws.source.data))  # type: ignore[attr-defined]
    constants = {f"function.{name}": tensor for name, tensor in problem._constants().items()}
    statistics = {name: constants.pop(name) for name in _statistics(problem._function) if name in constants}
    statistics = {name: t.expand(len(numbers), *t.shape).clone() for name, t in statistics.items()}
    selection = problem._selection
    mixed = problem._cast is None and selection.mixed
    value = _Value(problem._function)

    def loss(leaves: tuple[Tensor, ...], own: dict[str, Tensor], batch: Any) -> Tensor:
        tensors = {**constants, **own}
        for names, leaf, dtype in zip(problem._names, leaves, selection.dtypes):
            placed = leaf.to(dtype) if mixed else leaf
            tensors.update({f"function.{name}": placed for name in names})
        found = functional_call(value, tensors, (batch,), tie_weights=False)
        return found.reshape(())  # type: ignore[no-any-return]

    leaves = tuple(problem.layout.split(problem._own(w).detach()))
    with no_autocast(problem.device), math_attention(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        grads, values = vmap(grad_and_value(loss), in_dims=(None, 0, 0), randomness="error")(leaves, statistics, batch)
    if not bool(torch.isfinite(values).all()):
        raise ValueError("a single pass says which mini-batch it is")
    return values.detach(), [g.detach().reshape(len(numbers), -1) for g in grads]


class _Value(nn.Module):
    """The loss of a batch without its weight, which is a number and looks at values."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, batch: Any) -> Tensor:
        if isinstance(self.function, OutputLoss):
            inputs, target = pair(batch)
            return self.function.loss(self.function.model(inputs), target)  # type: ignore[no-any-return]
        value, count = self.function.loss(self.function.model, batch)
        if not float(count):
            raise ValueError("a single pass says which mini-batch it is")
        return value  # type: ignore[no-any-return]


def _statistics(function: nn.Module) -> list[str]:
    """Names of buffers that each mini-batch writes for itself."""
    return [
        f"function.{prefix}.{key}"
        for prefix, module in function.named_modules()
        if isinstance(module, _NormBase)
        for key in ("running_mean", "running_var", "num_batches_tracked")
    ]


def _same(one: Tensor, other: Tensor) -> bool:
    allowed = 1e4 * torch.finfo(other.dtype).eps
    return float((one.double() - other.double()).norm()) <= allowed * float(other.double().norm())


def _global_streams() -> tuple[Any, ...]:
    _, key, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), np.asarray(key).tobytes(), rest, torch.get_rng_state().numpy().tobytes()


@contextmanager
def _as_it_was(function: nn.Module) -> Iterator[None]:
    """Put attributes of modules back when closed: what a forward notes there would be of no use outside."""
    kept = [(vars(module), dict(vars(module))) for module in function.modules()]
    values = [value for _, before in kept for value in before.values()]
    lists = [(value, list(value)) for value in values if type(value) is list]
    mappings = [(value, dict(value)) for value in values if type(value) is dict]
    try:
        yield
    finally:
        for now, before in kept:
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)
        for entries, old in lists:
            entries[:] = old
        for named, same in mappings:
            named.clear()
            named.update(same)
