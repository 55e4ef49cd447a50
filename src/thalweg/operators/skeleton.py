"""A copy of a sharded model's structure that calls none of the sharding's hooks and gathers what it reads."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.operators.gathering import Book, LazyParameters

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def skeleton(model: nn.Module, numbers: dict[int, int], book: Book) -> nn.Module:
    """Return a module of the same structure whose parameters are read from ``book``.

    Modules, and parameters that several of them share, are shared in the copy in the same way; buffers, and
    everything else that a module holds, are held by the copy, too. Hooks of the user stay; hooks of
    ``torch.distributed``, which gather and free parameters or place inputs, are left out, and classes that
    ``fully_shard`` derived are traced back to the user's own. The model is not changed.

    Args:
        model: The module to copy.
        numbers: For the ``id`` of each parameter, its number in ``book``.
        book: Where the copy reads its parameters.
    """
    stored: dict[int, nn.Parameter] = {}
    modules: dict[int, nn.Module] = {}

    def shape_only(p: nn.Parameter) -> nn.Parameter:
        if id(p) not in stored:
            nothing = torch.full((), float("nan") if p.is_floating_point() else 0, dtype=p.dtype, device=p.device)
            stored[id(p)] = nn.Parameter(nothing.expand(p.shape), requires_grad=p.requires_grad)
        return stored[id(p)]

    def copied(module: nn.Module) -> nn.Module:
        if id(module) in modules:
            return modules[id(module)]
        cls: Any = _own_class(type(module))
        new: nn.Module = cls.__new__(cls)
        modules[id(module)] = new
        held = {key: value for key, value in module.__dict__.items() if not _of_torch_distributed(value)}
        for name in _HOOKS:
            hooks = module.__dict__[name].items()
            held[name] = OrderedDict((key, hook) for key, hook in hooks if not _of_torch_distributed(hook))
        own = module._parameters
        held["_parameters"] = LazyParameters(
            {name: None if p is None else shape_only(p) for name, p in own.items()},
            {name: numbers[id(p)] for name, p in own.items() if p is not None},
            book,
        )
        held["_buffers"] = dict(module._buffers)
        new.__dict__.update(held)
        new.__dict__["_modules"] = {n: None if m is None else copied(m) for n, m in module._modules.items()}
        if isinstance(new, nn.RNNBase):  # it keeps a list of its weights beside the attributes
            new.register_forward_pre_hook(_read_flat_weights)
        return new

    return copied(model)


def fresh_buffers(module: nn.Module, own: nn.Module) -> None:
    """Give every part of the copy ``module`` clones of the buffers of ``own``: a forward pass may write to them."""
    clones: dict[int, Tensor] = {}
    for new, old in zip(module.modules(), own.modules()):
        for name, buffer in old._buffers.items():
            if buffer is not None:
                new._buffers[name] = clones.setdefault(id(buffer), buffer.detach().clone())


def is_fully_sharded(module: nn.Module) -> bool:
    """Whether ``fully_shard`` was applied to ``module`` or to a part of it."""
    return any(is_fully_sharded_itself(m) for m in module.modules())


def is_fully_sharded_itself(module: nn.Module) -> bool:
    """Whether ``fully_shard`` was applied to this very module."""
    return _own_class(type(module)) is not type(module)


def _read_flat_weights(module: nn.Module, _: Any) -> None:
    module.__dict__["_flat_weights"] = [getattr(module, name) for name in module._flat_weights_names]  # type: ignore[union-attr]


def _own_class(cls: Any) -> Any:
    """Return the class that the user gave, where ``fully_shard`` put its own in front of it."""
    if any(base.__name__ == "FSDPModule" and _of_torch_distributed(base) for base in cls.__mro__):
        return next(b for b in cls.__mro__[1:] if b.__name__ != "FSDPModule" and not _of_torch_distributed(b))
    return cls


def _of_torch_distributed(thing: Any) -> bool:
    """Whether a class, function or bound method comes from ``torch.distributed``."""
    if not callable(thing) or isinstance(thing, nn.Module):
        return False
    while isinstance(thing, functools.partial):
        thing = thing.func
    owner = getattr(thing, "__self__", None)
    places = (getattr(thing, "__module__", None), type(owner).__module__ if owner is not None else None)
    return any(str(place).startswith("torch.distributed") for place in places)
