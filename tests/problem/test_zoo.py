"""The zoo: shapes, counts, seeds, parametrisations, and what it refuses."""

import dataclasses
import math
import sys

import pytest
import torch
from torch import nn

from thalweg import Problem, hessian
from thalweg.errors import InvalidInput, MissingExtra
from thalweg.operators.verify import doctor
from thalweg.problem.data import Data, DataConfig, load_data, loss_for
from thalweg.problem.zoo import ModelConfig, build_model
from thalweg.problem.zoo.resnet import resnet_blocks


def images(side=8, channels=1, count=6, classes=10):
    stream = torch.Generator().manual_seed(0)
    pixels = torch.randn(count, channels, side, side, generator=stream)
    return Data("images", pixels, torch.arange(count) % classes, classes, "classification", "made up")


TOKENS = load_data(DataConfig("sorting", samples=5, length=4))

IMAGE_MODELS = [
    ModelConfig("mlp", depth=1),
    ModelConfig("mlp", depth=4, width=16, activation="relu", parametrisation="ntk", bias=False),
    ModelConfig("cnn", depth=5, width=6, activation="gelu"),
    ModelConfig("cnn", depth=7, width=4, parametrisation="ntk", norm="group"),
    ModelConfig("cnn", depth=10, width=4, norm="batch"),
    ModelConfig("resnet", depth=8, width=4),
    ModelConfig("resnet", depth=18, width=2, norm="none", parametrisation="ntk"),
    ModelConfig("resnet", depth=11, width=2, norm="group"),
    ModelConfig("vit", depth=2, width=8, heads=2, activation="gelu"),
    ModelConfig("vit", depth=1, width=8, heads=4, patch=4, norm="rms", parametrisation="ntk"),
]


@pytest.mark.parametrize("config", IMAGE_MODELS, ids=lambda c: f"{c.name}{c.depth}{c.parametrisation}")
@pytest.mark.parametrize(("side", "channels"), [(8, 1), (32, 3)])
def test_images_map_to_logits_with_second_derivatives(config, side, channels):
    data = images(side, channels)
    model = build_model(config, data)
    assert model(data.inputs).shape == (6, 10)
    problem = Problem(model, loss_for("cross_entropy", data), data.pair())
    v = torch.randn(problem.dimension, generator=torch.Generator().manual_seed(1))
    assert torch.isfinite(hessian(problem).matvec(v)).all()


@pytest.mark.parametrize("norm", ["layer", "rms", "decomposed", "none"])
def test_transformer_is_causal(norm):
    model = build_model(ModelConfig("transformer", depth=2, width=8, heads=2, norm=norm), TOKENS)
    tokens = TOKENS.inputs.clone()
    before = model(tokens)
    assert before.shape == (5, TOKENS.outputs, tokens.shape[1])
    tokens[:, 5] = (tokens[:, 5] + 1) % 10
    after = model(tokens)
    torch.testing.assert_close(after[..., :5], before[..., :5])
    assert float((after[..., 5:] - before[..., 5:]).detach().abs().max()) > 1e-4


@pytest.mark.parametrize("depth", [8, 14, 20, 34, 50, 56, 101, 10, 11, 100])
def test_resnets_have_the_depth_of_their_name(depth):
    stages, bottleneck = resnet_blocks(depth)
    assert sum(stages) * (3 if bottleneck else 2) + 2 == depth
    if depth <= 20:
        model = build_model(ModelConfig("resnet", depth=depth, width=1, norm="none"), images())
        layers = [m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "skip" not in name]
        assert len(layers) == depth


@pytest.mark.parametrize(
    ("depth", "side", "sides"),
    [
        (5, 32, [32, 32, 16, 8]),
        (7, 32, [32, 32, 16, 16, 8, 8]),
        (10, 32, [32, 32, 32, 16, 16, 16, 8, 8, 8]),
        (7, 28, [28, 28, 14, 14, 7, 7]),
        (5, 8, [8, 8, 4, 2]),
        (2, 8, [8]),
    ],
)
def test_cnns_pool_where_the_published_one_does(depth, side, sides):
    data = images(side)
    model = build_model(ModelConfig("cnn", depth=depth, width=3, activation="relu"), data)
    seen, x = [], data.inputs
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            seen.append(x.shape[-1])
        if isinstance(layer, nn.AdaptiveAvgPool2d) and side in (28, 32):
            assert x.shape[-2:] == (1, 1), "pools of two alone reach one pixel, as published"
        x = layer(x)
    assert seen == sides
    assert all(layer.bias is None for layer in model if isinstance(layer, nn.Conv2d | nn.Linear))


def test_batch_norm_normalises():
    data = images(count=32)
    model = build_model(ModelConfig("resnet", depth=8, width=4), data)
    assert model.training
    normalised = model.stem[1](model.stem[0](7 * data.inputs + 3)).detach()
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised.std((0, 2, 3), correction=0), torch.ones(4), atol=1e-3, rtol=0)
    assert Problem(model, loss_for("cross_entropy", data), data.pair()).samples == 32
    with pytest.raises(InvalidInput, match="BatchNorm"):
        Problem(model, loss_for("cross_entropy", data), data.pair(), batch_size=8)
    assert not build_model(ModelConfig("resnet", depth=8, width=4, norm="group"), data).training


@pytest.mark.parametrize("act", ["relu", "gelu", "tanh"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_deep_resnets_start_of_order_one(act, norm):
    data = images(count=16)
    for depth in (8, 56):
        model = build_model(ModelConfig("resnet", depth=depth, width=8, norm=norm, activation=act), data)
        assert 0.02 < float(model(data.inputs).detach().std()) < 5, depth


MODELS = ["mlp", "cnn", "resnet", "vit", "transformer"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("parametrisation", ["standard", "ntk"])
def test_output_scale_multiplies_the_output(name, parametrisation):
    data = TOKENS if name == "transformer" else images()
    config = ModelConfig(name, depth=8, width=8, heads=2, parametrisation=parametrisation)
    plain, scaled = build_model(config, data), build_model(dataclasses.replace(config, output_scale=0.25), data)
    torch.testing.assert_close(scaled(data.inputs), plain(data.inputs) / 4)
    with torch.no_grad():  # also that of a bias, which is zero at the start
        for model in (plain, scaled):
            for parameter in model.parameters():
                parameter.add_(0.1)
    torch.testing.assert_close(scaled(data.inputs), plain(data.inputs) / 4, rtol=1e-4, atol=1e-5)
    zero = build_model(dataclasses.replace(config, output_scale=0.0), data)
    assert float(zero(data.inputs).detach().abs().max()) == 0


@pytest.mark.parametrize("name", MODELS)
def test_bias_flag(name):
    data = TOKENS if name == "transformer" else images()
    config = ModelConfig(name, depth=8, width=8, heads=2, norm="none")

    def biases(flag):
        model = build_model(dataclasses.replace(config, bias=flag), data)
        return sum(m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))

    assert biases(False) == 0
    assert biases(True) == {"mlp": 8, "cnn": 8, "resnet": 1, "vit": 4 * 8 + 2, "transformer": 4 * 8}[name]
    assert biases(None) == biases(name != "cnn")


def test_the_decomposed_norm_is_a_layer_norm_with_right_third_derivatives():
    configs = [ModelConfig("transformer", depth=1, width=8, heads=2, norm=norm) for norm in ("layer", "decomposed")]
    fused, written_out = (build_model(config, TOKENS).double() for config in configs)
    assert list(fused.state_dict()) == list(written_out.state_dict())
    torch.testing.assert_close(fused(TOKENS.inputs), written_out(TOKENS.inputs), rtol=1e-12, atol=1e-12)
    loss = loss_for("cross_entropy", TOKENS)
    statuses = [doctor(Problem(m, loss, TOKENS.pair()))["third derivative"].status for m in (fused, written_out)]
    assert statuses == ["warn", "ok"]


@pytest.mark.parametrize("depth", [7, 9, 13, 102])
def test_resnets_that_do_not_exist_are_refused(depth):
    with pytest.raises(InvalidInput, match=f"ResNet-{depth}"):
        resnet_blocks(depth)


def test_a_seed_is_a_model_whatever_else_draws():
    data = images()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a = build_model(ModelConfig("vit", depth=1, width=8), data, seed=3)
    assert torch.equal(state, torch.get_rng_state()), "the global random state is left alone"
    torch.randn(10)
    b = build_model(ModelConfig("vit", depth=1, width=8), data, seed=3)
    c = build_model(ModelConfig("vit", depth=1, width=8), data, seed=4)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.embed.weight, c.embed.weight)


def test_weights_have_the_stated_variance():
    data = images(side=16)
    for name, gain in (("relu", 2.0), ("tanh", 1.0)):
        model = build_model(ModelConfig(width=400, activation=name, init_scale=1.5), data)
        hidden, last = model[3].weight, model[5].weight
        assert float(hidden.detach().std()) == pytest.approx(1.5 * math.sqrt(gain / 400), rel=0.02)
        assert float(last.detach().std()) == pytest.approx(1.5 * math.sqrt(1 / 400), rel=0.05)
        assert float(model[1].bias.detach().abs().max()) == 0


def test_ntk_is_the_same_function_with_weights_of_order_one():
    data = images()
    standard = build_model(ModelConfig(width=64, activation="relu"), data)
    ntk = build_model(ModelConfig(width=64, activation="relu", parametrisation="ntk"), data)
    torch.testing.assert_close(standard(data.inputs), ntk(data.inputs), rtol=1e-4, atol=1e-5)
    assert float(ntk[3].weight.detach().std()) == pytest.approx(1, rel=0.05)


def test_misfits_are_refused():
    with pytest.raises(InvalidInput, match="transformer"):
        build_model(ModelConfig("transformer"), images())
    with pytest.raises(InvalidInput, match="mlp"):
        build_model(ModelConfig("mlp"), TOKENS)
    with pytest.raises(InvalidInput, match="heads"):
        build_model(ModelConfig("vit", width=10, heads=3), images())
    with pytest.raises(InvalidInput, match="patches of 3"):
        build_model(ModelConfig("vit", width=8, heads=2, patch=3), images())
    with pytest.raises(InvalidInput, match="layer"):
        build_model(ModelConfig("cnn", norm="layer"), images())
    for wrong in ({"depth": 0}, {"width": 0}, {"patch": 0}, {"init_scale": -1.0}, {"output_scale": math.nan}):
        with pytest.raises(InvalidInput, match=next(iter(wrong))):
            ModelConfig(**wrong)
    with pytest.raises(InvalidInput, match="mse"):
        loss_for("mse", TOKENS)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_transformers_configurations_have_hessian_products(name):
    pytest.importorskip("transformers")
    model = build_model(ModelConfig("hf", depth=1, width=8, heads=2, hf_name=name), TOKENS, seed=1)
    again = build_model(ModelConfig("hf", depth=1, width=8, heads=2, hf_name=name), TOKENS, seed=1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters()))
    problem = Problem(model, loss_for("cross_entropy", TOKENS), TOKENS.pair())
    v = torch.ones(problem.dimension)
    assert torch.isfinite(hessian(problem).matvec(v)).all()


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"thalweg\[hf\]"):
        build_model(ModelConfig("hf", width=8), TOKENS)


def test_unknown_transformers_configuration_is_refused():
    pytest.importorskip("transformers")
    with pytest.raises(InvalidInput, match="no_such_model"):
        build_model(ModelConfig("hf", width=8, hf_name="no_such_model"), TOKENS)


def test_squared_error_by_hand():
    data = images(count=2, classes=3)
    output = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    # Targets 0 and 1: residuals (0, 0, 2) and (0, -1, 0), half the mean over two samples of 4 and 1.
    assert loss_for("mse", data)(output, data.targets).item() == pytest.approx((4 + 1) / 4)
