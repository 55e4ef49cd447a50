"""Normalisation layers written out in primitives, for derivatives of third order.

PyTorch's fused LayerNorm and training-mode BatchNorm have right first and second derivatives, and silently wrong third
ones: the saved mean and deviation have no history inside their double backward. Written out, every order is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def layer_norm(x: Tensor, dims: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    r"""Return ``(x - mean) / \sqrt{var + eps} * weight + bias`` over the last ``dims`` dimensions."""
    axes = tuple(range(-dims, 0))
    centred = x - x.mean(axes, keepdim=True)
    out = centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def _layer(module: nn.LayerNorm, x: Tensor) -> Tensor:
    return layer_norm(x, len(module.normalized_shape), module.weight, module.bias, module.eps)


def _group(module: nn.GroupNorm, x: Tensor) -> Tensor:
    grouped = x.reshape(x.shape[0], module.num_groups, -1)
    flat = layer_norm(grouped, 1, None, None, module.eps).reshape(x.shape)
    return _affine(flat, module.weight, module.bias)


def _batch(module: _BatchNorm, x: Tensor) -> Tensor:
    axes = (0, *range(2, x.ndim))
    if module.training or module.running_mean is None or module.running_var is None:
        mean = x.mean(axes)
        variance = (x - _channels(mean, x)).square().mean(axes)
        if module.training and module.track_running_stats and module.running_mean is not None:
            _track(module, mean.detach(), variance.detach(), x.numel() // x.shape[1])
    else:
        mean, variance = module.running_mean, module.running_var
    out = (x - _channels(mean, x)) * _channels((variance + module.eps).rsqrt(), x)
    return _affine(out, module.weight, module.bias)


def _track(module: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    """Update running statistics as torch does, with the unbiased variance."""
    assert module.running_mean is not None
    assert module.running_var is not None
    with torch.no_grad():
        factor = module.momentum or 0.0
        if module.num_batches_tracked is not None:
            module.num_batches_tracked.add_(1)
            if module.momentum is None:
                factor = 1.0 / float(module.num_batches_tracked)
        module.running_mean.mul_(1 - factor).add_(mean, alpha=factor)
        module.running_var.mul_(1 - factor).add_(variance, alpha=factor * count / max(count - 1, 1))


def _channels(per_channel: Tensor, x: Tensor) -> Tensor:
    return per_channel.reshape(1, -1, *(1 for _ in range(x.ndim - 2)))


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * _channels(weight, x)
    return x if bias is None else x + _channels(bias, x)


def _written_out(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    if isinstance(module, nn.LayerNorm):
        return lambda x: _layer(module, x)
    if isinstance(module, nn.GroupNorm):
        return lambda x: _group(module, x)
    if isinstance(module, _BatchNorm):
        return lambda x: _batch(module, x)
    return None


@contextmanager
def decomposed_norms(model: nn.Module) -> Iterator[int]:
    """Compute LayerNorm, BatchNorm and GroupNorm from primitives while open; yield how many there are.

    Only the forward of each instance is replaced, and given back on exit, also after an exception. Running statistics
    are updated exactly as the layer itself would.

    Args:
        model: Any module.

    Example:
        >>> norm, x = nn.LayerNorm(4), torch.randn(3, 4)
        >>> expected = norm(x)
        >>> with decomposed_norms(norm) as count:
        ...     close = torch.allclose(norm(x), expected, atol=1e-6)
        >>> count, close, "forward" in vars(norm)
        (1, True, False)
    """
    replaced: list[nn.Module] = []
    try:
        for module in model.modules():
            forward = _written_out(module)
            if forward is not None and "forward" not in vars(module):
                module.forward = forward
                replaced.append(module)
        yield len(replaced)
    finally:
        for module in replaced:
            del module.forward
