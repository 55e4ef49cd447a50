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
from thalweg.problem.norms import normalise

Parametrisation = Literal["standard", "ntk"]
Activation = Literal["tanh", "gelu", "relu", "silu", "elu", "softplus", "identity"]
Norm = Literal["batch", "group", "layer", "rms", "decomposed", "none"]

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


def gain_of(act: str) -> float:
    """Return the variance of weights times fan-in that suits the activation ``act``."""
    return _GAIN.get(act, 1.0)


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


class Linear(nn.Linear):
    r"""A linear layer that knows its parametrisation: ``s_{out} (x (s_W W)' + b)`` with constants ``s``.

    Attributes:
        ntk: Whether `initialise` moves the fan-in from the weights into ``weight_scale``.
        gain: Variance of the weights times fan-in; None for that of the activation.
        weight_scale: ``s_W``.
        output_scale: ``s_{out}``.
    """

    ntk = False
    gain: float | None = None
    weight_scale = 1.0
    output_scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., fan_in)`` to ``(..., fan_out)``."""
        out = F.linear(x, self.weight if self.weight_scale == 1 else self.weight * self.weight_scale, self.bias)
        return out if self.output_scale == 1 else out * self.output_scale


class Conv2d(nn.Conv2d):
    """A convolution that knows its parametrisation, as `Linear` does."""

    ntk = False
    gain: float | None = None
    weight_scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with ``s_W W``."""
        weight = self.weight if self.weight_scale == 1 else self.weight * self.weight_scale
        out: Tensor = self._conv_forward(x, weight, self.bias)
        return out


def linear(fan_in: int, fan_out: int, parametrisation: Parametrisation, bias: bool = True) -> Linear:
    """Return a linear layer of the parametrisation."""
    layer = Linear(fan_in, fan_out, bias=bias)
    layer.ntk = parametrisation == "ntk"
    return layer


def head(fan_in: int, fan_out: int, parametrisation: Parametrisation, bias: bool, output_scale: float) -> Linear:
    """Return the last layer: gain one, since no activation follows, and its output times ``output_scale``."""
    layer = linear(fan_in, fan_out, parametrisation, bias)
    layer.gain, layer.output_scale = 1.0, output_scale
    return layer


def conv(
    fan_in: int, fan_out: int, size: int, parametrisation: Parametrisation, stride: int = 1, bias: bool = False
) -> Conv2d:
    """Return a convolution with padding that keeps the size at stride one."""
    layer = Conv2d(fan_in, fan_out, size, stride=stride, padding=size // 2, bias=bias)
    layer.ntk = parametrisation == "ntk"
    return layer


class DecomposedLayerNorm(nn.LayerNorm):
    """Layer norm from primitives at all times, so that derivatives of every order are right."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimensions of ``x``."""
        return normalise(x, range(-len(self.normalized_shape), 0), self.eps) * self.weight + self.bias


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
    """Return a norm over the features of tokens: layer, rms, decomposed (a layer norm from primitives) or none."""
    if name == "decomposed":
        return DecomposedLayerNorm(width)
    if name == "layer":
        return nn.LayerNorm(width)
    if name == "rms":
        return nn.RMSNorm(width)
    if name == "none":
        return nn.Identity()
    raise InvalidInput(
        explain(
            f"The norm {name!r} does not act on tokens",
            "features are normalised here",
            "Use layer, rms, decomposed or none",
        )
    )


def initialise(model: nn.Module, *, seed: int, act: str, scale: float) -> None:
    r"""Draw all weights from named streams of ``seed``, ``W \sim N(0, scale^2 gain / fan_in)``, biases zero.

    With the NTK parametrisation the weights are ``N(0, scale^2)`` and ``\sqrt{gain / fan_in}`` moves into the forward
    pass: the function at initialisation is the same, gradient descent on it is not.

    Args:
        model: Made of the layers of this module; its weights are written.
        seed: Root of the streams.
        act: Activation, which sets the gain where a layer has none of its own.
        scale: Factor on every weight.
    """
    for name, module in model.named_modules():
        stream = _rng.generator(seed, "init", name)
        with torch.no_grad():
            if isinstance(module, (Linear, Conv2d)):
                gain = gain_of(act) if module.gain is None else module.gain
                std = math.sqrt(gain / module.weight[0].numel())
                if module.ntk:
                    module.weight_scale, std = std, 1.0
                drawn = torch.randn(module.weight.shape, generator=stream, dtype=torch.float64)
                module.weight.copy_(drawn * std * scale)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                drawn = torch.randn(module.weight.shape, generator=stream, dtype=torch.float64)
                module.weight.copy_(drawn * scale / math.sqrt(module.weight.shape[1]))
