"""A model from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from thalweg.errors import InvalidInput, explain
from thalweg.problem.data.base import Data
from thalweg.problem.guards import preserved_rng
from thalweg.problem.zoo.images import CNN, MLP, ResNet
from thalweg.problem.zoo.layers import Activation, Norm, Parametrisation, initialise
from thalweg.problem.zoo.transformers import CausalTransformer, ViT, from_transformers


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
    """batch, group or none for images; layer, rms or none for tokens. Default: batch (ResNet), none (CNN), layer."""
    bias: bool = True
    """Whether the layers of an MLP have a bias."""
    heads: int = 4
    """Attention heads."""
    patch: int = 2
    """Side of a ViT's patches."""
    hf_name: str = "gpt2"
    """model_type of transformers for name=hf, such as gpt2, llama, gpt_neox."""

    def __post_init__(self) -> None:
        if self.depth < 1 or self.width < 1 or not self.init_scale >= 0:
            raise InvalidInput(
                explain(
                    f"The model has depth {self.depth}, width {self.width}, init_scale {self.init_scale}",
                    "a network has at least one layer of one unit",
                    "Choose positive sizes",
                )
            )


def build_model(config: ModelConfig, data: Data, seed: int = 0) -> nn.Module:
    """Return the model that ``config`` describes, sized for ``data``, drawn from named streams of ``seed``.

    The same seed gives the same weights, whatever else draws random numbers; the global state is left alone. It
    comes in evaluation mode, so that BatchNorm uses its running statistics and a `Problem` is a function
    of the weights.

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
        last = [name for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
        initialise(model, seed=seed, act=config.activation, scale=config.init_scale, last=last)
    return model.eval()


def _construct(config: ModelConfig, data: Data) -> nn.Module:
    c, outputs = config, data.outputs
    if c.name in ("transformer", "hf"):
        if data.task != "tokens":
            raise _misfit(c.name, data, "text or sorting")
        length = data.input_shape[0]
        if c.name == "hf":
            return from_transformers(c.hf_name, outputs, length, c.depth, c.width, c.heads)
        return CausalTransformer(
            outputs, length, c.depth, c.width, c.heads, c.activation, c.parametrisation, c.norm or "layer"
        )
    if data.task != "classification":
        raise _misfit(c.name, data, "digits")
    if c.name == "mlp":
        entries = 1
        for side in data.input_shape:
            entries *= side
        return MLP(entries, outputs, c.depth, c.width, c.activation, c.parametrisation, c.bias)
    if len(data.input_shape) != 3:
        raise _misfit(c.name, data, "images such as digits")
    shape = (data.input_shape[0], data.input_shape[1], data.input_shape[2])
    if c.name == "cnn":
        return CNN(shape, outputs, c.depth, c.width, c.activation, c.parametrisation, c.norm or "none")
    if c.name == "resnet":
        return ResNet(shape, outputs, c.depth, c.width, c.activation, c.parametrisation, c.norm or "batch")
    return ViT(shape, outputs, c.depth, c.width, c.heads, c.patch, c.activation, c.parametrisation, c.norm or "layer")


def _misfit(model: str, data: Data, remedy: str) -> InvalidInput:
    return InvalidInput(
        explain(
            f"The model {model!r} was asked to learn {data.name!r} ({data.task}, inputs {data.input_shape})",
            "it takes other inputs",
            f"Use data like {remedy}, or another model",
        )
    )
