"""What every model of the zoo is built from: activations, parametrised layers, norms, initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg import _rng
from thalweg.errors import InvalidInput, explain

Parametrisation = Literal["standard", "ntk"]
Activation = Literal["tanh", "gelu", "relu", "silu", "elu", "softplus", "identity"]
Norm = Literal["batch", "group", "layer", "rms", "none"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}

_GAIN = {"relu": 2.0, "gelu": 2.0, "silu": 2.0, "elu": 2.0}
"""Variance of weights times fan-in that keeps activations of order one; 1 for the rest."""


def activation(name: str) -> nn.Module:
    """Return the activation module called ``name``.

    Raises:
        InvalidInput: The name is unknown.
    """
    if name not in ACTIVATIONS:
        raise InvalidInput(
            explain(
                f"The activation {name!r} is unknown",
                "the zoo knows a few smooth and kinked ones",
                f"{list(ACTIVATIONS)}",
            )
        )
    return ACTIVATIONS[name]()


class ScaledLinear(nn.Linear):
    """A linear layer that multiplies its weight by a constant: the NTK parametrisation."""

    scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x (scale W)' + b``."""
        return F.linear(x, self.weight * self.scale, self.bias)


class ScaledConv2d(nn.Conv2d):
    """A convolution that multiplies its weight by a constant: the NTK parametrisation."""

    scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with ``scale W``."""
        out: Tensor = self._conv_forward(x, self.weight * self.scale, self.bias)
        return out


def linear(fan_in: int, fan_out: int, parametrisation: str, bias: bool = True) -> nn.Linear:
    """Return a linear layer of the parametrisation."""
    kind = ScaledLinear if parametrisation == "ntk" else nn.Linear
    return kind(fan_in, fan_out, bias=bias)


def conv(fan_in: int, fan_out: int, size: int, parametrisation: str, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Return a convolution with padding that keeps the size at stride one."""
    kind = ScaledConv2d if parametrisation == "ntk" else nn.Conv2d
    return kind(fan_in, fan_out, size, stride=stride, padding=size // 2, bias=bias)


def channel_norm(name: str, channels: int) -> nn.Module:
    """Return a norm over channels of images: batch, group (up to 8 groups) or none."""
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "group":
        return nn.GroupNorm(math.gcd(channels, 8), channels)
    if name == "none":
        return nn.Identity()
    raise InvalidInput(
        explain(f"The norm {name!r} does not act on images", "channels are normalised here", "Use batch, group or none")
    )


def token_norm(name: str, width: int) -> nn.Module:
    """Return a norm over the features of tokens: layer, rms or none."""
    if name == "layer":
        return nn.LayerNorm(width)
    if name == "rms":
        return nn.RMSNorm(width)
    if name == "none":
        return nn.Identity()
    raise InvalidInput(
        explain(f"The norm {name!r} does not act on tokens", "features are normalised here", "Use layer, rms or none")
    )


def initialise(model: nn.Module, *, seed: int, act: str, scale: float, last: str) -> None:
    r"""Draw all weights from named streams of ``seed``, ``W \sim N(0, (scale)^2 gain / fan_in)``, biases zero.

    With the NTK parametrisation the weights are of order one and the factor ``\sqrt{gain / fan_in}`` moves into the
    forward pass, so the function at initialisation is the same and its gradient flows differ. The layer called
    ``last`` has gain one.
    """
    for name, module in model.named_modules():
        stream = _rng.generator(seed, "init", name)
        with torch.no_grad():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                fan_in = module.weight[0].numel()
                std = math.sqrt((1.0 if name == last else _GAIN.get(act, 1.0)) / fan_in)
                if isinstance(module, (ScaledLinear, ScaledConv2d)):
                    module.scale, std = std, 1.0
                drawn = torch.randn(module.weight.shape, generator=stream, dtype=torch.float64)
                module.weight.copy_(drawn * std * scale)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                drawn = torch.randn(module.weight.shape, generator=stream, dtype=torch.float64)
                module.weight.copy_(drawn * scale / math.sqrt(module.weight.shape[1]))
