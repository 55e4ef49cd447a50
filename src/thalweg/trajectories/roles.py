"""What each parameter is for, and in which layer, from its name and shape.

Roles are read from the names that GPT-NeoX, GPT-2, Llama, OLMo, vision transformers, ResNets and this package's own
models use; patterns of the user's come first. A tensor that holds Q, K and V at once is taken apart by `parts_of`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Any

import torch
from torch import Tensor

from thalweg._vectors import Pattern, matcher
from thalweg.errors import InvalidInput, explain
from thalweg.runs.sources import TensorInfo


class Role(StrEnum):
    """What a parameter is for."""

    EMBEDDING = "embedding"
    POSITION = "position"
    UNEMBEDDING = "unembedding"
    QUERY = "Q"
    KEY = "K"
    VALUE = "V"
    QKV = "QKV"
    ATTENTION_OUT = "attention output"
    MLP_IN = "MLP in"
    MLP_OUT = "MLP out"
    NORM_SCALE = "norm scale"
    NORM_SHIFT = "norm shift"
    BIAS = "bias"
    CONVOLUTION = "convolution"
    LINEAR = "linear"
    OTHER = "other"


def _last(*names: str) -> re.Pattern[str]:
    """A module of one of these names that owns the weight, or a parameter of this name itself."""
    return re.compile(rf"(^|\.)({'|'.join(names)})(\.weight)?$")


_ATTENTION = r"(\w*attention|\w*attn)\.(\w+\.)*"
_NORM = re.compile(r"(^|\.)(\w*norm\w*|ln(_\w+|\d*)|bn\d*)\.(weight|bias|gamma|beta|scale)$", re.IGNORECASE)

RULES: tuple[tuple[Role, re.Pattern[str]], ...] = (
    (Role.QKV, _last("query_key_value", "c_attn", "qkv", "Wqkv", "qkv_proj", "in_proj_weight", "in_proj", "att_proj")),
    (Role.QUERY, _last("q_proj", "query", "q_lin", "wq", "q_proj_weight", "to_q")),
    (Role.KEY, _last("k_proj", "key", "k_lin", "wk", "k_proj_weight", "to_k")),
    (Role.VALUE, _last("v_proj", "value", "v_lin", "wv", "v_proj_weight", "to_v")),
    (Role.ATTENTION_OUT, _last("o_proj", "out_proj", "wo", "attn_out", "out_lin")),
    (Role.ATTENTION_OUT, _last(_ATTENTION + r"(dense|c_proj|proj)", r"layers\.\d+\.out")),
    (Role.MLP_IN, _last("dense_h_to_4h", "c_fc", "fc1", "gate_proj", "up_proj", "gate_up_proj", "w1", "w3", "ff_proj")),
    (Role.MLP_IN, _last("intermediate\\.dense", r"mlp\.0", r"mlp\.linear_1", "linear1", "up_gate_proj")),
    (Role.MLP_OUT, _last("dense_4h_to_h", r"mlp\.c_proj", "fc2", "down_proj", "w2", r"blocks\.\d+\.ff_out")),
    (Role.MLP_OUT, _last(r"output\.dense", r"mlp\.[23]", r"mlp\.linear_2", "linear2")),
    (Role.POSITION, _last("wpe", "position_embeddings?", "pos_embed(ding)?", "position", "embed_positions")),
    (Role.EMBEDDING, _last("wte", "embed_in", "embed_tokens", "word_embeddings", "tok_embeddings", "embed(ding)?")),
    (Role.EMBEDDING, _last(r"patch_embed(dings)?\.proj(ection)?", r"conv_proj", "(cls|dist|mask|reg)_token")),
    (Role.UNEMBEDDING, _last("lm_head", "embed_out", "output_projection", "head", "classifier", "score")),
    (Role.UNEMBEDDING, _last(r"classifier\.[16]", r"(?<!.)(fc|linear|output|model\.output)", r"transformer\.ff_out")),
)
"""Tried in this order, after biases and norms."""

_BASES = re.compile(
    r"^((model|gpt_neox|transformer|network|backbone|base_model|language_model|vit|deit|resnet|bert|roberta)\.)+"
)
_LAYER = re.compile(
    r"^(?:.*?(?:^|\.))??(?:(?:encoder|decoder)\.)?(?:(?:layers?|h|blocks?|stages|layer\d+)\.\d+|layers\.\w+_layer_\d+)"
    r"(?:\.(?:layers|blocks)\.\d+)?(?=\.)"
)


def role_of(name: str, shape: Sequence[int], patterns: Mapping[str, Pattern] | None = None) -> str:
    """Return what a parameter is for, from its name and shape alone.

    Args:
        name: Its name.
        shape: Its shape.
        patterns: Roles of your own, or another reading of these: the first whose pattern takes the name wins.

    Returns:
        A `Role`, or the key of the pattern.

    Example:
        >>> print(role_of("gpt_neox.layers.3.attention.dense.weight", (512, 512)))
        attention output
        >>> role_of("blocks.0.router.weight", (8, 512), {"router": "*.router.*"})
        'router'
    """
    for role, pattern in (patterns or {}).items():
        if matcher(pattern)(name):
            return role
    tail = name.rsplit(".", 1)[-1]
    if _NORM.search(name):
        return Role.NORM_SHIFT if tail in ("bias", "beta") else Role.NORM_SCALE
    if tail == "bias" or tail.endswith("_bias"):
        return Role.BIAS
    found = next((role for role, pattern in RULES if pattern.search(name)), None)
    if found is not None:
        return found
    sizes = [n for n in shape if n != 1] if len(shape) < 3 else list(shape)
    if tail == "weight":
        return {1: Role.NORM_SCALE, 2: Role.LINEAR}.get(len(sizes), Role.CONVOLUTION if len(shape) > 2 else Role.OTHER)
    return Role.OTHER


def roles_of(tensors: Sequence[TensorInfo], patterns: Mapping[str, Pattern] | None = None) -> dict[str, str]:
    """Return the role of each tensor of a model by its name.

    Beyond `role_of` it sees neighbours: a bias beside a one-dimensional weight is the shift of a norm.

    Args:
        tensors: All tensors, as ``Trajectory.tensors``.
        patterns: As for `role_of`.

    Example:
        >>> infos = [TensorInfo("1.weight", (8,), torch.float32), TensorInfo("1.bias", (8,), torch.float32)]
        >>> print(*roles_of(infos).values(), sep=", ")
        norm scale, norm shift
    """
    shapes = {info.name: info.shape for info in tensors}
    roles = {}
    for info in tensors:
        role = role_of(info.name, info.shape, patterns)
        beside = shapes.get(info.name.removesuffix("bias") + "weight")
        if role is Role.BIAS and beside is not None and len(beside) == 1:
            role = Role.NORM_SHIFT
        roles[info.name] = role
    return roles


def layer_of(name: str) -> str:
    """Return the layer of a parameter: the path of its numbered block, or its outermost module.

    Prefixes that all parameters share (``model.``, ``gpt_neox.``) are dropped. Parameters of one layer have one answer.

    Example:
        >>> layer_of("gpt_neox.layers.3.attention.dense.weight"), layer_of("model.embed_tokens.weight")
        ('layers.3', 'embed_tokens')
        >>> layer_of("layer1.0.conv1.weight"), layer_of("resnet.encoder.stages.0.layers.1.shortcut.convolution.weight")
        ('layer1.0', 'encoder.stages.0.layers.1')
    """
    inner = _BASES.sub("", name)
    match = _LAYER.match(inner)
    return match[0] if match else inner.split(".", 1)[0]


@dataclass(frozen=True)
class Part:
    """A share of a tensor: all entries at some places along one axis of a view of it.

    Attributes:
        role: What it is for.
        view: Shape to view the tensor in; its elements stay in order.
        axis: The axis along which parts differ.
        index: The places along that axis.
    """

    role: str
    view: tuple[int, ...]
    axis: int
    index: slice

    @property
    def numel(self) -> int:
        """Its elements."""
        first, last, step = self.index.indices(self.view[self.axis])
        return len(range(first, last, step)) * prod(self.view) // self.view[self.axis]

    @property
    def whole(self) -> bool:
        """Whether it is the whole tensor."""
        return self.numel == prod(self.view)

    def of(self, tensor: Tensor) -> Tensor:
        """Return this part of a tensor, a view of the dimensions of ``view``."""
        return tensor.reshape(self.view)[(slice(None),) * self.axis + (self.index,)]

    def mask(self, start: int, stop: int) -> Tensor:
        """Return which of the elements ``[start, stop)`` of the flattened tensor belong to it, bool, 1-D.

        Element ``e`` does where ``(e // inner) % n`` is one of the places, ``n`` the length of the axis and ``inner``
        the product of the lengths after it: tiles need not end where rows do.

        Example:
            >>> Part("K", (2, 3, 2), 1, slice(1, 2)).mask(1, 9).int().tolist()
            [0, 1, 1, 0, 0, 0, 0, 1]
        """
        inner = prod(self.view[self.axis + 1 :])
        chosen = torch.zeros(self.view[self.axis], dtype=torch.bool)
        chosen[self.index] = True
        return chosen[torch.arange(start, stop).div_(inner, rounding_mode="floor").remainder_(len(chosen))]


def parts_of(
    info: TensorInfo,
    heads: int | None = None,
    *,
    key_value_heads: int | None = None,
    patterns: Mapping[str, Pattern] | None = None,
) -> tuple[Part, ...]:
    """Take a tensor apart that holds Q, K and V; any other tensor is one part, itself.

    A GPT-NeoX (or BLOOM) ``query_key_value`` of shape ``(3 d, d)`` is ``(heads, 3, head_dim, d)``: Q, K and V of each
    head lie together, and its thirds are not Q, K and V. GPT-2's ``c_attn`` has inputs first, ``(d, 3 d)``, that is
    ``(d, 3, d)``. All others are stacked along the first axis, Q first; K and V may have fewer heads than Q. Biases
    are not taken apart: their role is bias.

    Args:
        info: The tensor.
        heads: Attention heads; needed for ``query_key_value``, which without it stays one part of the role QKV, and
            where K and V have fewer heads.
        key_value_heads: Heads of K and V, where there are fewer.
        patterns: As for `role_of`; a tensor that they name is not taken apart.

    Raises:
        InvalidInput: The shape does not divide into these heads.

    Example:
        >>> info = TensorInfo("h.0.attn.c_attn.weight", (4, 12), torch.float32)
        >>> [(str(part.role), part.view, part.axis, part.index.start) for part in parts_of(info)]
        [('Q', (4, 3, 4), 1, 0), ('K', (4, 3, 4), 1, 1), ('V', (4, 3, 4), 1, 2)]
    """
    role = role_of(info.name, info.shape, patterns)
    shape = info.shape
    whole = (Part(role, shape or (1,), 0, slice(0, shape[0] if shape else 1)),)
    if role is not Role.QKV or len(shape) != 2:
        return whole
    names = (Role.QUERY, Role.KEY, Role.VALUE)
    if "c_attn" in info.name and shape[1] == 3 * shape[0]:
        return tuple(Part(name, (shape[0], 3, shape[0]), 1, slice(i, i + 1)) for i, name in enumerate(names))
    grouped = heads is not None and key_value_heads is not None and key_value_heads != heads
    count = 3 * heads if heads and not grouped else (heads or 0) + 2 * (key_value_heads or 0) if grouped else 3
    interleaved = "query_key_value" in info.name
    if interleaved and (heads is None or grouped):
        return whole
    if shape[0] % count:
        raise InvalidInput(
            explain(
                f"{info.name!r} has the shape {shape}",
                f"its rows do not divide into Q, K and V of {heads} heads" if heads else "its rows are no three thirds",
                "Pass the model's numbers of heads, as in its config.json",
            )
        )
    if interleaved and heads:
        view = (heads, 3, shape[0] // count, shape[1])
        return tuple(Part(name, view, 1, slice(i, i + 1)) for i, name in enumerate(names))
    if grouped and heads and key_value_heads:
        size = shape[0] // count
        ends = (heads * size, (heads + key_value_heads) * size, shape[0])
        return tuple(Part(n, shape, 0, slice(a, b)) for n, a, b in zip(names, (0, *ends), ends))
    thirds = (3, shape[0] // 3, shape[1])
    return tuple(Part(name, thirds, 0, slice(i, i + 1)) for i, name in enumerate(names))


def heads_of(config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return the numbers of heads of Q, and of K and V, that a ``config.json`` names, or None for each.

    Example:
        >>> heads_of({"num_attention_heads": 8, "num_key_value_heads": 2}), heads_of({"n_head": 12}), heads_of({})
        ((8, 2), (12, None), (None, None))
    """

    def first(*keys: str) -> int | None:
        found = (config.get(key) for key in keys)
        return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 0), None)

    return first("num_attention_heads", "n_head", "n_heads", "num_heads"), first("num_key_value_heads", "n_kv_heads")
