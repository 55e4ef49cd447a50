"""A model from its configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from thalweg.errors import InvalidInput, explain
from thalweg.problem.data.base import Data
from thalweg.problem.guards import preserved_rng
from thalweg.problem.zoo.cnn import CNN
from thalweg.problem.zoo.huggingface import from_transformers
from thalweg.problem.zoo.layers import Activation, Norm, Parametrisation, initialise
from thalweg.problem.zoo.mlp import MLP
from thalweg.problem.zoo.resnet import ResNet
from thalweg.problem.zoo.transformer import CausalTransformer, ViT


@dataclass(frozen=True)
class ModelConfig:
    """Which model, how deep, how wide."""

    name: Literal["mlp", "cnn", "resnet", "vit", "transformer", "hf"] = "mlp"
    """Architecture; hf takes a transformers configuration named by hf_name."""
    depth: int = 3
    """Weight layers of an MLP, CNN or ResNet (8 to 101); blocks of a transformer."""
    width: int = 64
    """Hidden units, channels of the first stage, or features per token."""
    activation: Activation = "tanh"
    """Nonlinearity."""
    parametrisation: Parametrisation = "standard"
    """Standard, or NTK: weights of order one, the fan-in in the forward pass."""
    init_scale: float = 1.0
    """Factor on every initial weight."""
    norm: Norm | None = None
    """batch, group or none for images; layer, rms, decomposed or none for tokens. Default: batch (ResNet), none (CNN),
    layer; decomposed is a layer norm whose third derivatives are right everywhere."""
    bias: bool | None = None
    """Whether layers have a bias: all of an MLP, CNN or transformer, the last of a ResNet. Default: not in a CNN."""
    output_scale: float = 1.0
    """Factor on the output; small values make features learn more."""
    heads: int = 4
    """Attention heads."""
    patch: int = 2
    """Side of a ViT's patches."""
    hf_name: str = "gpt2"
    """model_type of transformers for name=hf, such as gpt2, llama, gpt_neox."""

    def __post_init__(self) -> None:
        scales = (self.init_scale, self.output_scale)
        if min(self.depth, self.width, self.patch) < 1 or not all(0 <= scale < math.inf for scale in scales):
            raise InvalidInput(
                explain(
                    f"The model has depth {self.depth}, width {self.width}, patch {self.patch}, init_scale "
                    f"{self.init_scale}, output_scale {self.output_scale}",
                    "a network has at least one layer of one unit, and scales are finite and not negative",
                    "Choose positive sizes",
                )
            )


def build_model(config: ModelConfig, data: Data, seed: int = 0) -> nn.Module:
    """Return the model that ``config`` describes, sized for ``data``, drawn from named streams of ``seed``.

    The same seed gives the same weights, whatever else draws random numbers; the global state is left alone. A model
    with BatchNorm comes in training mode and normalises by the statistics of its batch: the running ones of a new
    model are zero and one, which normalise nothing. A `Problem` then evaluates all its samples in one batch. Every
    other model comes in evaluation mode; there is no dropout.

    Args:
        config: Architecture and sizes.
        data: Gives input shape and number of outputs.
        seed: Seed of the initialisation.

    Raises:
        InvalidInput: The architecture does not fit the data.
        MissingExtra: ``hf`` without transformers.

    Example:
        >>> from thalweg.problem.data import DataConfig, load_data
        >>> model = build_model(ModelConfig(width=8), load_data(DataConfig(samples=10)))
        >>> sum(p.numel() for p in model.parameters())
        682
    """
    with preserved_rng(torch.device("cpu")):
        torch.manual_seed(seed)  # only transformers initialises itself; ours is redrawn below
        model = _construct(config, data)
    if config.name != "hf":
        initialise(model, seed=seed, act=config.activation, scale=config.init_scale)
    return model.train(any(isinstance(module, nn.BatchNorm2d) for module in model.modules()))


def _construct(c: ModelConfig, data: Data) -> nn.Module:
    tokens = c.name in ("transformer", "hf")
    if tokens != (data.task == "tokens"):
        raise _misfit(c.name, data, "text or sorting" if tokens else "digits")
    bias = c.name != "cnn" if c.bias is None else c.bias
    if c.name == "hf":
        return from_transformers(c.hf_name, data.outputs, data.input_shape[0], c.depth, c.width, c.heads)
    if c.name == "mlp":
        entries = math.prod(data.input_shape)
        return MLP(entries, data.outputs, c.depth, c.width, c.activation, c.parametrisation, bias, c.output_scale)
    if c.name == "transformer":
        length = data.input_shape[0]
        attend = (c.depth, c.width, c.heads)
        return CausalTransformer(
            data.outputs, length, *attend, c.activation, c.parametrisation, c.norm or "layer", bias, c.output_scale
        )
    if len(data.input_shape) != 3:
        raise _misfit(c.name, data, "images such as digits")
    channels, high, wide = data.input_shape
    sizes = ((channels, high, wide), data.outputs, c.depth, c.width)
    if c.name == "cnn":
        return CNN(*sizes, c.activation, c.parametrisation, c.norm or "none", bias, c.output_scale)
    if c.name == "resnet":
        return ResNet(*sizes, c.activation, c.parametrisation, c.norm or "batch", bias, c.output_scale)
    return ViT(*sizes, c.heads, c.patch, c.activation, c.parametrisation, c.norm or "layer", bias, c.output_scale)


def _misfit(model: str, data: Data, remedy: str) -> InvalidInput:
    return InvalidInput(
        explain(
            f"The model {model!r} was asked to learn {data.name!r} ({data.task}, inputs {data.input_shape})",
            "it takes other inputs",
            f"Use data like {remedy}, or another model",
        )
    )
