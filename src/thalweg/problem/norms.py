"""Normalisation written out in primitives, for derivatives of third order.

PyTorch's fused LayerNorm, InstanceNorm and training-mode BatchNorm have right first and second derivatives, and
silently wrong third ones: the saved mean and deviation have no history inside their double backward. Written out,
every order is right. GroupNorm, RMSNorm and BatchNorm in evaluation mode are right as they are, and stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode


def normalise(x: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    r"""Return ``(x - mean) / \sqrt{var + eps}`` with the mean and the biased variance over ``axes``.

    Half precision is computed in float32, as the fused kernels do.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 3.0]])
        >>> bool(torch.allclose(normalise(x, (-1,), 0.0).square().mean(), torch.tensor(1.0)))
        True
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    centred = x - x.mean(tuple(axes), keepdim=True)
    return centred * (centred.square().mean(tuple(axes), keepdim=True) + eps).rsqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    x = x if weight is None else x * weight.reshape(tuple(shape))
    return x if bias is None else x + bias.reshape(tuple(shape))


def _fused(function: Callable[..., Any], *arguments: Any) -> torch.dtype:
    """Call torch's own kernel without a graph, and return the dtype of its output.

    It checks the arguments and updates running statistics, so errors and buffers are what they are without us.
    """
    detached = (a.detach() if isinstance(a, Tensor) else a for a in arguments)
    with torch.no_grad():
        output: Tensor = function(*detached)
    return output.dtype


def _layer(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    dtype = _fused(F.layer_norm, input, normalized_shape, weight, bias, eps)
    out = normalise(input, range(-len(normalized_shape), 0), eps)
    return _affine(out, weight, bias, normalized_shape).to(dtype)


def _batch(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    dtype = _fused(F.batch_norm, input, running_mean, running_var, weight, bias, training, momentum, eps)
    out = normalise(input, (0, *range(2, input.ndim)), eps)
    return _affine(out, weight, bias, (1, -1, *(1 for _ in range(input.ndim - 2)))).to(dtype)


def _instance(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    dtype = _fused(F.instance_norm, input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    out = normalise(input, range(2, input.ndim), eps)
    return _affine(out, weight, bias, (1, -1, *(1 for _ in range(input.ndim - 2)))).to(dtype)


def _reordered(written_out: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Take arguments in the order of ``torch.batch_norm``, where the affine pair precedes the statistics."""

    def call(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool = True,
    ) -> Tensor:
        return written_out(input, running_mean, running_var, weight, bias, training, momentum, eps)

    return call


_WRITTEN_OUT: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.layer_norm: _layer,
    torch.layer_norm: _layer,
    F.batch_norm: _batch,
    torch.batch_norm: _reordered(_batch),
    F.instance_norm: _instance,
    torch.instance_norm: _reordered(_instance),
}


class _WrittenOut(TorchFunctionMode):
    """Answers calls of fused norms; layers, subclasses and functional use all end in one of these."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _WRITTEN_OUT.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def decomposed_norms(model: nn.Module) -> Iterator[int]:
    """Compute LayerNorm, InstanceNorm and BatchNorm from primitives while open; yield how many layers that concerns.

    Calls are answered, not layers changed: no class, instance, parameter or hook is touched, functional use and
    subclasses with their own ``forward`` are covered, and everything is as before on exit, also after an exception.
    Running statistics are updated exactly where, and as, the layer itself would. Only the current thread is concerned;
    what torch compiled or scripted beforehand stays fused.

    Args:
        model: The module whose layers are counted.

    Example:
        >>> norm, x = nn.LayerNorm(4), torch.randn(3, 4)
        >>> expected = norm(x)
        >>> with decomposed_norms(norm) as count:
        ...     close = torch.allclose(norm(x), expected, atol=1e-6)
        >>> count, close
        (1, True)
    """
    # _NormBase: BatchNorm and InstanceNorm of every dimension.
    count = sum(isinstance(module, (nn.LayerNorm, _NormBase)) for module in model.modules())
    with _WrittenOut():
        yield count
