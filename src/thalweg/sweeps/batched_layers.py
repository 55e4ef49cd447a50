"""Sequences of known layers for R rows at once: batched matrix products, and grouped convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.errors import InvalidInput, explain
from thalweg.problem.forms import OutputLoss, pair
from thalweg.problem.parameters import slots
from thalweg.problem.problem import Problem
from thalweg.problem.zoo.layers import Conv2d, Linear
from thalweg.sweeps.batched_losses import row_loss

POINTWISE = (nn.Tanh, nn.GELU, nn.ReLU, nn.SiLU, nn.ELU, nn.Softplus, nn.Sigmoid, nn.LeakyReLU, nn.Identity)
POOLS = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
NORMS = (nn.BatchNorm2d, nn.GroupNorm)
Lookup = Callable[[str], "Tensor | None"]


@dataclass(frozen=True)
class Signal:
    """What goes from layer to layer.

    Attributes:
        x: ``(B, ...)`` while all rows share it; then features ``(R, B, F)``, or maps with the rows among the channels,
            ``(B, R C, H, W)``, which is what a grouped convolution takes.
        rows: R.
        shared: Whether no layer with parameters, nor a batch of its own, has told the rows apart yet.
    """

    x: Tensor
    rows: int
    shared: bool


class Layers:
    """An ``nn.Sequential`` of linear layers, convolutions, pools, norms and activations, as one program for R rows.

    Args:
        problem: Model and ``loss(output, target)``.
        images: Whether convolutions are expected (``"cnn"``), or none (``"mlp"``).

    Raises:
        InvalidInput: A layer is not among those known, or has hooks; the message names it.
    """

    def __init__(self, problem: Problem, images: bool) -> None:
        self.name = "cnn" if images else "mlp"
        self.problem = problem
        found = flaw(problem, images)
        if found:
            raise InvalidInput(
                explain(f"Here, {found}", "rows cannot be written as batched products", 'Use method="vmap" or "loop"')
            )
        self._loss = row_loss(problem._function.loss)
        self._steps = [(name, module, _step(module)) for name, module in _layers(problem.model)]
        self._slots = {slot: number for number, known in enumerate(problem._names) for slot in known}
        self._frozen = any(slot not in self._slots for slot, _ in slots(problem._function, "_parameters"))

    def losses(self, leaves: Sequence[Tensor], batch: Any, own: bool) -> Tensor:
        """Return the losses of all rows."""
        inputs, target = pair(batch)
        signal = Signal(inputs, len(leaves[0]), not own)
        if own and inputs.ndim == 5:
            signal = Signal(inputs.transpose(0, 1).flatten(1, 2), len(leaves[0]), False)
        elif own:
            signal = Signal(inputs.flatten(2), len(leaves[0]), False)
        constants = self.problem._constants() if self._frozen else {}

        def tensor(name: str, key: str) -> Tensor | None:
            """The parameter ``key`` of module ``name``, a row each."""
            slot = f"model.{name}.{key}" if name else f"model.{key}"
            if slot in self._slots:
                return leaves[self._slots[slot]]
            return constants[slot].expand(signal.rows, *constants[slot].shape) if slot in constants else None

        for name, module, step in self._steps:
            signal = step(module, signal, lambda key, name=name: tensor(name, key))  # type: ignore[misc]
        out = signal.x
        if signal.shared:
            out = out.expand(signal.rows, *out.shape)
        elif out.ndim == 4:
            out = _apart(signal)
        return self._loss(out, target, own)


def flaw(problem: Problem, images: bool) -> str:
    """Say what stands in the way of writing the model as batched products; empty where nothing does."""
    if problem._form is not OutputLoss:
        return "the loss calls the model itself"
    if problem._cast is None and problem._selection.mixed:
        return "the parameters have several dtypes"
    for name, module in problem.model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            return f"{_called(name)} has hooks"
    for name, module in _layers(problem.model):
        if _step(module) is None:
            return f"{_called(name)} is a {type(module).__name__}"
        if isinstance(module, nn.Conv2d) and not images:
            return f"{_called(name)} is a convolution"
    return ""


def _called(name: str) -> str:
    return f"layer {name!r}" if name else "the model"


def _step(module: Any) -> Callable[..., Signal] | None:
    """How to apply ``module`` to a signal; None where it is not known."""
    kind = type(module)
    if kind in (nn.Linear, Linear):
        return _linear
    if kind in (nn.Conv2d, Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
        return _convolve
    if kind is nn.Flatten and module.start_dim == 1 and module.end_dim == -1:
        return _flatten
    if kind in POINTWISE and not getattr(module, "inplace", False):
        return _apply
    if kind in POOLS and not getattr(module, "return_indices", False):
        return _pool
    if kind is nn.Dropout and (not module.training or module.p == 0):
        return _skip
    return _norm if kind in NORMS else None


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers of nested sequences in order, by their first names; a module that is no sequence is a layer."""
    names = {id(module): name for name, module in model.named_modules()}

    def inside(module: nn.Module) -> Iterator[nn.Module]:
        if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
            yield module
            return
        for child in module:  # one that comes twice is applied twice, which named_children would not tell
            yield from inside(child)

    return [(names[id(module)], module) for module in inside(model)]


def _apart(signal: Signal) -> Tensor:
    """Maps as ``(R, B, C, H, W)``."""
    x = signal.x
    return x.view(len(x), signal.rows, -1, *x.shape[2:]).transpose(0, 1)


def _linear(module: Any, signal: Signal, tensor: Lookup) -> Signal:
    """``x W'``: one product for all rows where they share x, else one a row."""
    W, bias = tensor("weight"), tensor("bias")
    assert W is not None
    scale = getattr(module, "weight_scale", 1.0)
    W = W if scale == 1 else W * scale
    x = signal.x
    if x.ndim != 3 - signal.shared:
        raise InvalidInput(
            explain(
                f"A linear layer got an input of {x.ndim - 1 + signal.shared} dimensions",
                "a row of features is expected",
                "Flatten it",
            )
        )
    if signal.rows == 1:  # a batch of one is slower than a plain product
        out = F.linear(x if signal.shared else x[0], W[0], None if bias is None else bias[0]).unsqueeze(0)
    else:
        x = x.expand(signal.rows, *x.shape) if signal.shared else x
        out = torch.bmm(x, W.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, W.mT)
    outer = getattr(module, "output_scale", 1.0)
    return Signal(out if outer == 1 else out * outer, signal.rows, False)


def _convolve(module: Any, signal: Signal, tensor: Lookup) -> Signal:
    """A convolution with as many groups as rows; with all rows' filters at once where they share x."""
    W, bias = tensor("weight"), tensor("bias")
    assert W is not None
    scale = getattr(module, "weight_scale", 1.0)
    filters = (W if scale == 1 else W * scale).flatten(0, 1)
    groups = 1 if signal.shared else signal.rows
    offset = None if bias is None else bias.flatten()
    out = F.conv2d(signal.x, filters, offset, module.stride, module.padding, module.dilation, groups)
    return Signal(out, signal.rows, False)


def _flatten(module: Any, signal: Signal, tensor: Lookup) -> Signal:
    """To features, one row after the other."""
    x = signal.x
    if signal.shared:
        return Signal(x.flatten(1), signal.rows, True)
    if x.ndim == 4:
        return Signal(_apart(signal).flatten(2), signal.rows, False)
    return Signal(x.flatten(2), signal.rows, False)


def _norm(module: Any, signal: Signal, tensor: Lookup) -> Signal:
    """Statistics are those of a channel or of a group, so rows among the channels do not mix."""
    if signal.shared or signal.x.ndim != 4:
        raise InvalidInput(explain("A norm comes before any convolution", "rows are not apart there", 'Use "vmap"'))
    weight, bias = tensor("weight"), tensor("bias")
    scale = None if weight is None else weight.flatten()
    shift = None if bias is None else bias.flatten()
    if isinstance(module, nn.GroupNorm):
        out = F.group_norm(signal.x, module.num_groups * signal.rows, scale, shift, module.eps)
    elif module.training or module.running_mean is None or module.running_var is None:
        out = F.batch_norm(signal.x, None, None, scale, shift, True, 0.0, module.eps)
    else:
        mean, var = (t.to(signal.x).repeat(signal.rows) for t in (module.running_mean, module.running_var))
        out = F.batch_norm(signal.x, mean, var, scale, shift, False, 0.0, module.eps)
    return Signal(out, signal.rows, False)


def _apply(module: Any, signal: Signal, tensor: Lookup) -> Signal:
    return Signal(module(signal.x), signal.rows, signal.shared)


def _pool(module: Any, signal: Signal, tensor: Lookup) -> Signal:
    if signal.x.ndim != 4:
        raise InvalidInput(explain("A pool got features", "it acts on images", "Pool before flattening"))
    return _apply(module, signal, tensor)


def _skip(module: Any, signal: Signal, tensor: Lookup) -> Signal:
    return signal
