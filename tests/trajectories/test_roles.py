"""Roles and layers of the models that are shipped, and of those whose names only transformers knows."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch

from thalweg.errors import InvalidInput
from thalweg.problem.zoo import CNN, MLP, CausalTransformer, ResNet, ViT
from thalweg.runs.sources import TensorInfo
from thalweg.trajectories.roles import Part, Role, heads_of, layer_of, parts_of, role_of, roles_of


def infos(model: torch.nn.Module) -> list[TensorInfo]:
    return [TensorInfo(name, tuple(p.shape), p.dtype) for name, p in model.named_parameters()]


def table(model: torch.nn.Module) -> dict[str, set[str]]:
    """Per role the names without numbers."""
    found: dict[str, set[str]] = {}
    for name, role in roles_of(infos(model)).items():
        found.setdefault(role, set()).add(re.sub(r"\.\d+\.", ".N.", name))
    return found


def tiny(kind: str, **more) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0} | more
    config = {"Llama": "LlamaConfig", "GPTNeoX": "GPTNeoXConfig", "Olmo2": "Olmo2Config"}[kind]
    return getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, config)(**sizes))


LANGUAGE = {Role.EMBEDDING, Role.UNEMBEDDING, Role.ATTENTION_OUT, Role.MLP_IN, Role.MLP_OUT, Role.NORM_SCALE}


def test_gpt_neox():
    found = table(tiny("GPTNeoX"))
    assert set(found) == LANGUAGE | {Role.QKV, Role.NORM_SHIFT, Role.BIAS}
    assert found[Role.ATTENTION_OUT] == {"gpt_neox.layers.N.attention.dense.weight"}
    assert found[Role.UNEMBEDDING] == {"lm_head.weight"}
    assert found[Role.EMBEDDING] == {"gpt_neox.embed_in.weight"}
    assert len(found[Role.NORM_SHIFT]) == 3
    assert len(found[Role.BIAS]) == 4


@pytest.mark.parametrize("kind", ["Llama", "Olmo2"])
def test_llama_and_olmo(kind):
    found = table(tiny(kind))
    assert set(found) == LANGUAGE | {Role.QUERY, Role.KEY, Role.VALUE}
    assert found[Role.KEY] == {"model.layers.N.self_attn.k_proj.weight"}
    assert found[Role.MLP_IN] == {f"model.layers.N.mlp.{name}_proj.weight" for name in ("gate", "up")}


def test_gpt_2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, bos_token_id=0, eos_token_id=0)
    found = table(transformers.GPT2LMHeadModel(config))
    assert set(found) == LANGUAGE - {Role.UNEMBEDDING} | {Role.QKV, Role.POSITION, Role.NORM_SHIFT, Role.BIAS}
    assert found[Role.MLP_OUT] == {"transformer.h.N.mlp.c_proj.weight"}
    assert found[Role.ATTENTION_OUT] == {"transformer.h.N.attn.c_proj.weight"}


def test_vision_models_of_transformers():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vit = table(transformers.ViTForImageClassification(transformers.ViTConfig(image_size=8, patch_size=4, **sizes)))
    assert {Role.QUERY, Role.KEY, Role.VALUE, Role.POSITION} < set(vit)
    assert set(vit) == LANGUAGE | {Role.QUERY, Role.KEY, Role.VALUE, Role.POSITION, Role.NORM_SHIFT, Role.BIAS}
    assert vit[Role.EMBEDDING] == {"vit.embeddings.cls_token", "vit.embeddings.patch_embeddings.projection.weight"}
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    resnet = table(transformers.ResNetForImageClassification(config))
    assert set(resnet) == {Role.CONVOLUTION, Role.NORM_SCALE, Role.NORM_SHIFT, Role.UNEMBEDDING, Role.BIAS}


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("blocks.0.attn.qkv.weight", (24, 8), Role.QKV),
        ("blocks.0.attn.proj.weight", (8, 8), Role.ATTENTION_OUT),
        ("blocks.0.mlp.fc1.weight", (32, 8), Role.MLP_IN),
        ("blocks.0.norm1.bias", (8,), Role.NORM_SHIFT),
        ("patch_embed.proj.weight", (8, 3, 4, 4), Role.EMBEDDING),
        ("pos_embed", (1, 5, 8), Role.POSITION),
        ("vit.encoder.layer.0.attention.attention.query.weight", (8, 8), Role.QUERY),
        ("vit.encoder.layer.0.attention.output.dense.weight", (8, 8), Role.ATTENTION_OUT),
        ("vit.encoder.layer.0.output.dense.weight", (8, 32), Role.MLP_OUT),
        ("layer1.0.conv1.weight", (4, 4, 3, 3), Role.CONVOLUTION),
        ("layer1.0.bn1.weight", (4,), Role.NORM_SCALE),
        ("layer1.0.downsample.1.weight", (4,), Role.NORM_SCALE),
        ("layer1.0.downsample.0.weight", (4, 4, 1, 1), Role.CONVOLUTION),
        ("fc.weight", (10, 8), Role.UNEMBEDDING),
        ("encoder.fc.weight", (10, 8), Role.LINEAR),
        ("model.transformer.blocks.0.ff_out.weight", (8, 32), Role.MLP_OUT),
        ("model.transformer.ff_out.weight", (11, 8), Role.UNEMBEDDING),
        ("gamma", (8,), Role.OTHER),
    ],
)
def test_names_of_other_packages(name, shape, role):
    assert role_of(name, shape) == role


def test_own_models():
    causal = table(CausalTransformer(11, 4, depth=2, width=8, heads=2))
    assert set(causal) == LANGUAGE | {Role.QKV, Role.POSITION, Role.BIAS} | set(causal) & {Role.NORM_SHIFT}
    assert causal[Role.QKV] == {"layers.N.qkv.weight"}
    assert causal[Role.ATTENTION_OUT] == {"layers.N.out.weight"}
    vit = table(ViT((3, 8, 8), 10, patch=4, depth=1, width=8, heads=2))
    assert {"embed.weight"} == vit[Role.EMBEDDING]
    assert {"head.weight"} == vit[Role.UNEMBEDDING]
    resnet = table(ResNet((3, 8, 8), 10, depth=8, width=4))
    assert not {Role.OTHER, Role.LINEAR} & set(resnet)
    assert Role.NORM_SHIFT in resnet, "the bias beside a one-dimensional weight of a Sequential"
    assert set(table(MLP(4, 3, depth=3, width=5))) == {Role.LINEAR, Role.BIAS}
    assert Role.CONVOLUTION in table(CNN((3, 8, 8), 10, depth=3, width=4))


def test_patterns_come_first():
    patterns = {"expert": "*.experts.*", Role.UNEMBEDDING: re.compile("^decode")}
    assert role_of("layers.0.experts.3.w1.weight", (4, 4), patterns) == "expert"
    assert role_of("decode.weight", (4, 4), patterns) == "unembedding"
    assert role_of("layers.0.mlp.w1.weight", (4, 4), patterns) == "MLP in"


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("gpt_neox.layers.11.mlp.dense_h_to_4h.bias", "layers.11"),
        ("gpt_neox.final_layer_norm.weight", "final_layer_norm"),
        ("transformer.h.3.ln_1.weight", "h.3"),
        ("transformer.wte.weight", "wte"),
        ("lm_head.weight", "lm_head"),
        ("model.encoder.layers.2.fc1.weight", "encoder.layers.2"),
        ("model.decoder.layers.2.fc1.weight", "decoder.layers.2"),
        ("model.transformer.blocks.4.att_proj.weight", "blocks.4"),
        ("vit.encoder.layer.0.output.dense.weight", "encoder.layer.0"),
        ("encoder.layers.encoder_layer_7.mlp.0.weight", "encoder.layers.encoder_layer_7"),
        ("blocks.2.branch.1.weight", "blocks.2"),
        ("layer4.1.bn2.weight", "layer4.1"),
        ("conv1.weight", "conv1"),
        ("3.weight", "3"),
    ],
)
def test_layers(name, layer):
    assert layer_of(name) == layer


def test_fused_gpt_neox_is_interleaved_by_head():
    """Against the model itself: the rows that transformers' own code makes Q, K and V of."""
    heads, dim, width = 3, 4, 12
    weight = torch.arange(3 * width * width, dtype=torch.float32).reshape(3 * width, width)
    info = TensorInfo("gpt_neox.layers.0.attention.query_key_value.weight", (3 * width, width), torch.float32)
    parts = parts_of(info, heads)
    x = torch.randn(5, width)
    q, k, v = (x @ weight.T).view(5, heads, 3 * dim).transpose(0, 1).chunk(3, dim=-1)  # as GPT-NeoX computes them
    for part, wanted in zip(parts, (q, k, v)):
        own = part.of(weight)[:, 0]  # (heads, head_dim, width)
        torch.testing.assert_close(torch.einsum("tw,hdw->htd", x, own), wanted)
    assert [part.role for part in parts] == ["Q", "K", "V"]
    thirds = weight.reshape(3, width, width)
    assert not torch.equal(parts[0].of(weight).reshape(width, width), thirds[0])


def test_fused_neox_without_heads_stays_whole():
    (part,) = parts_of(TensorInfo("a.query_key_value.weight", (12, 4), torch.float16))
    assert part.role == Role.QKV
    assert part.whole
    with pytest.raises(InvalidInput, match="5 heads"):
        parts_of(TensorInfo("a.query_key_value.weight", (12, 4), torch.float16), 5)


def test_gpt_2_columns():
    weight = torch.arange(48.0).reshape(4, 12)
    parts = parts_of(TensorInfo("h.0.attn.c_attn.weight", (4, 12), torch.float32), 2)
    for part, wanted in zip(parts, weight.split(4, dim=1)):
        assert torch.equal(part.of(weight).reshape(4, 4), wanted)


def test_grouped_queries():
    weight = torch.arange(32.0).reshape(8, 4)  # four heads of Q, two of K and V, of one row each
    parts = parts_of(TensorInfo("l.0.qkv_proj.weight", (8, 4), torch.float32), 4, key_value_heads=2)
    for part, wanted in zip(parts, weight.split([4, 2, 2])):
        assert torch.equal(part.of(weight), wanted)


@pytest.mark.parametrize(
    ("name", "shape", "heads"),
    [
        ("x.query_key_value.weight", (12, 4), 2),
        ("h.attn.c_attn.weight", (4, 12), 2),
        ("layers.0.qkv.weight", (12, 4), 2),
        ("layers.0.mlp.fc1.weight", (5, 7), None),
        ("layers.0.attention.query_key_value.bias", (12,), 2),
        ("scale", (), None),
    ],
)
def test_masks_cover_each_element_once_in_any_tile(name, shape, heads):
    info = TensorInfo(name, shape, torch.float32)
    parts = parts_of(info, heads)
    assert sum(part.numel for part in parts) == info.numel
    values = torch.randn(info.numel)
    for edges in ([0, info.numel], sorted({0, info.numel // 3, info.numel // 2, info.numel})):
        kept = {id(part): [] for part in parts}
        for a, b in pairwise(edges):
            masks = torch.stack([part.mask(a, b) for part in parts])
            assert torch.equal(masks.sum(0), torch.ones(b - a, dtype=torch.int64))
            for part, mask in zip(parts, masks):
                kept[id(part)].append(values[a:b][mask])
        for part in parts:
            inside = torch.cat(kept[id(part)])
            assert torch.equal(inside, part.of(values.reshape(shape)).flatten())
    total = sum(float(part.of(values.reshape(shape)).double().square().sum()) for part in parts)
    np.testing.assert_allclose(total, float(values.double().square().sum()), rtol=1e-14)


def test_patterns_keep_a_fused_tensor_whole():
    (part,) = parts_of(TensorInfo("l.qkv.weight", (12, 4), torch.float32), patterns={"mine": "*qkv*"})
    assert (part.role, part.whole) == ("mine", True)


def test_heads_of_configurations():
    assert heads_of({"num_attention_heads": True}) == (None, None)
    assert isinstance(Part("Q", (2, 2), 0, slice(0, 1)).mask(0, 4), torch.Tensor)
