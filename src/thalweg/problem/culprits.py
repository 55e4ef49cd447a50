"""Which modules cannot be differentiated twice: each is tried alone, on the inputs that it had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from thalweg.problem.guards import evaluation

if TYPE_CHECKING:
    from thalweg.problem.problem import Problem


def once_only(problem: Problem, leaves: Sequence[Tensor], batch: Any) -> list[str]:
    """Return names and types of the innermost modules whose gradient cannot be differentiated.

    A module is blamed where it fails and none inside it does, so that an operation between the modules of a block
    is found in the block. Empty where none fails alone: then it is the loss, or code outside all modules.
    """
    calls: dict[str, tuple[nn.Module, Any, Any]] = {}
    hooks = []
    for name, module in problem.model.named_modules():
        if name:

            def keep(m: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                calls.setdefault(name, (m, args, kwargs))

            hooks.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        with torch.no_grad():
            problem.loss([leaf.detach() for leaf in leaves], batch)
    finally:
        for hook in hooks:
            hook.remove()
    guilty: list[str] = []
    with evaluation(problem.device):
        for name in reversed(calls):  # children are registered after their parents
            inside = any(other.startswith(f"{name}.") for other in guilty)
            if not inside and not _twice(*calls[name]):
                guilty.append(name)
    return [f"{name} ({type(calls[name][0]).__name__})" for name in reversed(guilty)]


def _twice(module: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether the outputs of ``module`` can be differentiated twice with regard to inputs and parameters."""

    def fresh(x: Any) -> Any:
        return x.detach().clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x

    args, kwargs = pytree.tree_map(fresh, (args, kwargs))
    inputs = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.requires_grad]
    at = [*inputs, *(p for p in module.parameters() if p.requires_grad)]
    with torch.enable_grad():
        outputs = [z for z in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(z, Tensor) and z.requires_grad]
        if not outputs or not at:
            return True
        try:
            # A curved function of the outputs: so that linear modules have a second derivative to fail at, too.
            total = torch.stack([z.square().sum() for z in outputs]).sum()
            first = torch.autograd.grad(total, at, create_graph=True, allow_unused=True)
            second = [g.square().sum() for g in first if g is not None and g.requires_grad]
            if dead_end([g for g in first if g is not None]):
                return False
            if second:
                torch.autograd.grad(torch.stack(second).sum(), at, allow_unused=True)
        except (RuntimeError, NotImplementedError):
            return False
    return True


def dead_end(grads: Sequence[Tensor]) -> bool:
    """Whether the gradient's graph has a node of an operation that is marked as differentiable only once.

    Such a node raises when it is run, but it leads to no leaf, so a product never runs it and loses its terms
    without a word.
    """
    waiting: list[Any] = [g.grad_fn for g in grads if g.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node.name() == "torch::autograd::Error":
            return True
        fresh = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= fresh
        waiting += fresh
    return False
