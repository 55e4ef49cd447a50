"""Models of patches and tokens: a ViT-like encoder and a causal transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.errors import InvalidInput, MissingExtra, explain
from thalweg.problem.zoo.layers import activation, linear, token_norm


class _Layer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int, act: str, parametrisation: str, norm: str, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm_attention, self.norm_mlp = token_norm(norm, width), token_norm(norm, width)
        self.qkv = linear(width, 3 * width, parametrisation)
        self.out = linear(width, width, parametrisation)
        self.mlp = nn.Sequential(
            linear(width, 4 * width, parametrisation), activation(act), linear(4 * width, width, parametrisation)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, T, width)`` to itself."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        out: Tensor = x + self.mlp(self.norm_mlp(x))
        return out


def _check_heads(width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise InvalidInput(
            explain(
                f"A width of {width} cannot be split over {heads} heads",
                "each head takes an equal share",
                "Choose a width that is a multiple of the heads",
            )
        )


class ViT(nn.Module):
    """Patches, a learnt position, ``depth`` encoder layers, a mean over patches, a linear head."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        outputs: int,
        depth: int,
        width: int,
        heads: int,
        patch: int,
        act: str,
        parametrisation: str,
        norm: str,
    ) -> None:
        super().__init__()
        _check_heads(width, heads)
        channels, high, wide = shape
        if high % patch or wide % patch:
            raise InvalidInput(
                explain(
                    f"Images of {high} x {wide} cannot be cut into patches of {patch}",
                    "patches tile the image",
                    "Choose a patch that divides both sides",
                )
            )
        self.patch = patch
        self.embed = linear(channels * patch * patch, width, parametrisation)
        self.position = nn.Parameter(torch.zeros(1, (high // patch) * (wide // patch), width))
        layers = [_Layer(width, heads, act, parametrisation, norm, causal=False) for _ in range(depth)]
        self.layers = nn.Sequential(*layers)
        self.norm = token_norm(norm, width)
        self.head = linear(width, outputs, parametrisation)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to outputs ``(B, outputs)``."""
        batch, channels, high, wide = x.shape
        p = self.patch
        patches = x.reshape(batch, channels, high // p, p, wide // p, p).permute(0, 2, 4, 1, 3, 5)
        tokens = self.embed(patches.reshape(batch, -1, channels * p * p)) + self.position
        out: Tensor = self.head(self.norm(self.layers(tokens)).mean(dim=1))
        return out


class CausalTransformer(nn.Module):
    """A decoder-only language model; logits come as ``(B, vocabulary, T)``, as torch's cross-entropy takes them."""

    def __init__(
        self,
        vocabulary: int,
        length: int,
        depth: int,
        width: int,
        heads: int,
        act: str,
        parametrisation: str,
        norm: str,
    ) -> None:
        super().__init__()
        _check_heads(width, heads)
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.zeros(1, length, width))
        layers = [_Layer(width, heads, act, parametrisation, norm, causal=True) for _ in range(depth)]
        self.layers = nn.Sequential(*layers)
        self.norm = token_norm(norm, width)
        self.head = linear(width, vocabulary, parametrisation, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(B, T)`` to logits ``(B, vocabulary, T)``."""
        x = self.embed(tokens) + self.position[:, : tokens.shape[1]]
        out: Tensor = self.head(self.norm(self.layers(x))).transpose(1, 2)
        return out


class _Logits(nn.Module):
    """A Hugging Face language model as tokens -> ``(B, vocabulary, T)``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.network(input_ids=tokens, use_cache=False).logits.transpose(1, 2)
        return out


def from_transformers(name: str, vocabulary: int, length: int, depth: int, width: int, heads: int) -> nn.Module:
    """Return a randomly initialised transformers model of the configuration class ``name``, at the given size.

    Args:
        name: A ``model_type`` of transformers with a causal head, such as ``"gpt2"``, ``"llama"``, ``"gpt_neox"``.
        vocabulary: Tokens.
        length: Longest sequence.
        depth: Layers.
        width: Hidden size; the MLP is four times as wide.
        heads: Attention heads.

    Raises:
        MissingExtra: transformers is not installed.
        InvalidInput: transformers knows no such causal model.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise MissingExtra(
            explain(
                "The package transformers is not installed",
                f"the model {name!r} comes from it",
                "pip install 'thalweg[hf]'",
            )
        ) from error
    _check_heads(width, heads)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": length,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    dropout = dict.fromkeys(
        ("attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout", "attention_dropout", "dropout"), 0.0
    )
    try:
        config = AutoConfig.for_model(name, **sizes, **dropout)
        build: Any = AutoModelForCausalLM.from_config
        network = build(config, attn_implementation="eager")
    except (ValueError, KeyError) as error:
        raise InvalidInput(
            explain(
                f"transformers has no causal model {name!r}: {error}",
                "the name is a model_type of transformers",
                "Try gpt2, llama or gpt_neox",
            )
        ) from error
    return _Logits(network)
