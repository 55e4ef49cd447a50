"""Models of patches and tokens: a ViT-like encoder and a causal transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.errors import InvalidInput, explain
from thalweg.problem.zoo.layers import Activation, Norm, Parametrisation, activation, head, linear, token_norm


class _Layer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(
        self,
        width: int,
        heads: int,
        act: Activation,
        parametrisation: Parametrisation,
        norm: Norm,
        bias: bool,
        causal: bool,
    ) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm_attention, self.norm_mlp = token_norm(norm, width), token_norm(norm, width)
        self.qkv = linear(width, 3 * width, parametrisation, bias)
        self.out = linear(width, width, parametrisation, bias)
        self.mlp = nn.Sequential(
            linear(width, 4 * width, parametrisation, bias),
            activation(act),
            linear(4 * width, width, parametrisation, bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, T, width)`` to itself."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        out: Tensor = x + self.mlp(self.norm_mlp(x))
        return out


def check_heads(width: int, heads: int) -> None:
    """Raise InvalidInput where ``width`` cannot be split over ``heads``."""
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
        act: Activation = "gelu",
        parametrisation: Parametrisation = "standard",
        norm: Norm = "layer",
        bias: bool = True,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_heads(width, heads)
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
        self.embed = linear(channels * patch * patch, width, parametrisation, bias)
        self.position = nn.Parameter(torch.zeros(1, (high // patch) * (wide // patch), width))
        layers = [_Layer(width, heads, act, parametrisation, norm, bias, causal=False) for _ in range(depth)]
        self.layers = nn.Sequential(*layers)
        self.norm = token_norm(norm, width)
        self.head = head(width, outputs, parametrisation, bias, output_scale)

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
        act: Activation = "gelu",
        parametrisation: Parametrisation = "standard",
        norm: Norm = "layer",
        bias: bool = True,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.zeros(1, length, width))
        layers = [_Layer(width, heads, act, parametrisation, norm, bias, causal=True) for _ in range(depth)]
        self.layers = nn.Sequential(*layers)
        self.norm = token_norm(norm, width)
        self.head = head(width, vocabulary, parametrisation, False, output_scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(B, T)`` to logits ``(B, vocabulary, T)``."""
        x = self.embed(tokens) + self.position[:, : tokens.shape[1]]
        out: Tensor = self.head(self.norm(self.layers(x))).transpose(1, 2)
        return out
