"""Many forward-backward passes at one point, with the guards of an evaluation set up once for all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from thalweg.problem import Problem
from thalweg.problem.guards import no_autocast

Evaluated = tuple[Tensor, Sequence[Tensor], float]
T = TypeVar("T")


def passes(problem: Problem, w: Tensor, job: Callable[[Callable[[Any], Evaluated]], T]) -> T:
    """Call ``job(evaluate)``, where ``evaluate(batch)`` is loss, gradient and weight of a batch at ``w``.

    The weights are put into the model's places once, not once for each batch, and so are copies of its buffers, which
    each pass finds as the model has them. After the job, or an exception in it, the model's own are back.

    Unlike other evaluations of a `Problem` these use the attention kernels that training uses: no second derivative is
    taken, and the passes need no more memory than the steps do.

    Args:
        problem: Model and loss.
        w: The point, shape ``(P,)``.
        job: Calls ``evaluate`` on batches that are on the device.
    """
    leaves = [leaf.requires_grad_() for leaf in problem.layout.split(problem._own(w).detach().clone())]
    if (type(problem)._call, type(problem)._evaluate) != (Problem._call, Problem._evaluate):
        return job(lambda batch: problem._batch_gradient(leaves, batch))
    inside = copy.copy(problem)
    vars(inside)["_call"] = lambda function, leaves, batch: function(batch)
    with torch.enable_grad(), no_autocast(problem.device):
        placed = [leaf.to(dtype) for leaf, dtype in zip(leaves, _dtypes(problem))]
        tensors = problem._constants()
        for known, leaf in zip(problem._names, placed):
            tensors.update(dict.fromkeys(known, leaf))
        holder = _Holder(problem._function)
        named = {f"function.{name}": tensor for name, tensor in tensors.items()}

        def run() -> T:
            slots = _Slots(problem._function)

            def evaluate(batch: Any) -> Evaluated:
                slots.restore()
                return inside._batch_gradient(leaves, batch)

            return job(evaluate)

        return functional_call(holder, named, (run,), tie_weights=False)  # type: ignore[no-any-return]


def _dtypes(problem: Problem) -> Sequence[torch.dtype]:
    """Return what a pass holds each parameter in: its own dtype where these are mixed, else that of ``w``."""
    selection = problem._selection
    return selection.dtypes if problem._cast is None and selection.mixed else [problem.dtype] * len(selection.dtypes)


class _Holder(nn.Module):
    """A module to call while another has tensors of ours in its places."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, job: Callable[[], T]) -> T:
        return job()


class _Slots:
    """What the places of a module hold, and the values of its buffers, to be put back before each pass."""

    def __init__(self, function: nn.Module) -> None:
        places: list[dict[str, Any]] = []
        for module in function.modules():
            places += [module._parameters, module._buffers]
        self.places = [(place, key, tensor) for place in places for key, tensor in place.items() if tensor is not None]
        buffers = {id(t): t for module in function.modules() for t in module._buffers.values() if t is not None}
        self.buffers = list(buffers.values())
        self.values = [t.detach().clone() for t in self.buffers]

    def restore(self) -> None:
        for place, key, tensor in self.places:
            if place.get(key) is not tensor:  # a forward may assign as well as write
                place[key] = tensor
        if self.buffers:
            with torch.no_grad():
                torch._foreach_copy_(self.buffers, self.values)
