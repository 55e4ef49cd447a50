"""What the answer says, on networks as people have them: each activation by its theory, and no more than was seen."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from thalweg import Problem
from thalweg.errors import NonFinite
from thalweg.glass.exponents import LayerExponent, _layer, variation_exponents
from thalweg.glass.look import look
from thalweg.glass.table import GlassTable
from thalweg.glass.words import _list, matters


def mlp(act, dtype=torch.float64, scale=1.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), act(), nn.Linear(32, 32), act(), nn.Linear(32, 10))
    x, y = scale * torch.randn(2048, 20), torch.randint(0, 10, (2048,))
    return Problem(model.to(dtype), nn.CrossEntropyLoss(), (x.to(dtype), y))


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.n, self.m = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.m(self.b(torch.relu(self.n(self.a(x))))))


class Transformer(nn.Module):
    def __init__(self, act, dropout):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(12, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout, act, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 12)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.layers(self.embed(x), mask=mask)).transpose(1, 2)


def tokens(act, dropout=0.2):
    model = Transformer(act, dropout).train()
    x, y = torch.randint(0, 12, (96, 8)), torch.randint(0, 12, (96, 8))
    return Problem(model, nn.CrossEntropyLoss(), (x, y), check=False)


def images(model, channels_last=False):
    torch.manual_seed(1)
    x, y = torch.randn(128, 3, 8, 8), torch.randint(0, 10, (128,))
    if channels_last:
        x, model = (thing.to(memory_format=torch.channels_last) for thing in (x, model))
    return Problem(model, nn.CrossEntropyLoss(), (x, y))


def pooled():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(32, 10))


@pytest.mark.parametrize(
    ("act", "hidden", "output"),
    [
        (nn.PReLU, "glass", "kink"),
        (nn.SELU, "glass", "kink"),  # its slope jumps at zero, from 1.76 to 1.05
        (nn.ELU, "kink", "smooth"),  # its slope bends at zero
        (nn.Softsign, "kink", "smooth"),
        (nn.SiLU, "smooth", "smooth"),
        (nn.Mish, "smooth", "smooth"),
    ],
)
def test_every_activation_has_the_power_of_its_theory(act, hidden, output):
    short = (1e-5, 3e-5, 1e-4, 3e-4)  # further away smooth curvature is larger than what corners give
    distances = short if hidden == "kink" else (1e-4, 3e-4, 1e-3, 3e-3)
    found = variation_exponents(mlp(act), batches=8, batch_size=256, distances=distances)
    power = {"glass": 1, "kink": 3, "smooth": 4}
    weights = [layer for layer in found.layers if layer.name not in "13"]  # PReLU has weights of its own
    for layer in weights[:-1]:
        assert layer.second == pytest.approx(power[hidden], abs=0.35)
    assert weights[-1].second == pytest.approx(power[output], abs=0.35)


def test_kinks_away_from_zero_are_seen_where_they_are_met():
    """Hardswish bends at -3 and 3, which preactivations of an order below one do not reach."""
    near, far = (variation_exponents(mlp(nn.Hardswish, scale=s), batches=4, batch_size=256) for s in (1.0, 8.0))
    assert near["0"].label == "smooth"
    assert far["0"].label == "glass"


def test_the_greatest_of_smooth_features_has_kinks():
    found = look(images(pooled()), batches=8, batch_size=64)
    assert [layer.curvature for layer in found.layers] == ["glass", "Hessian"]


@pytest.mark.parametrize(("act", "labels"), [("gelu", {"smooth"}), ("relu", {"glass", "kink"})])
def test_live_dropout_is_no_glass(act, labels):
    """With masks of their own two gradients would differ at any distance: a power of zero."""
    found = variation_exponents(tokens(act), batches=6, batch_size=48)
    assert {layer.label for layer in found.layers} - {"unsure", "mixed"} <= labels
    assert found["layers.layers.0.linear1"].second == pytest.approx(4 if act == "gelu" else 1, abs=0.2)


def test_a_batch_is_counted_in_sequences():
    found = look(tokens("gelu"), batches=2, batch_size=16)
    assert found.density.batch_size == 16
    assert "the Hessian in all 14 layers" in found.text


@pytest.mark.parametrize("training", [True, False])
def test_many_layers_are_told_by_those_left_out(training):
    torch.manual_seed(0)
    body = [
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Residual(8),
        nn.AdaptiveAvgPool2d(2),
    ]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(32, 10)).train(training)
    before = copy.deepcopy(model.state_dict())
    found = look(images(model), batches=4, batch_size=64)
    assert found.exponents["0"].second == pytest.approx(1, abs=0.2)
    assert found.exponents["6"].continuous
    assert "the Hessian in layer 6" in found.text
    assert {layer.curvature for layer in found.layers[:-1]} <= {"glass", "both", "unsure"}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_names_are_few():
    every = [f"l{i}" for i in range(12)]
    assert _list(every[:1], every) == "layer l0"
    assert _list(every[:3], every) == "layers l0, l1 and l2"
    assert _list(every, every) == "all 12 layers"
    assert _list(every[:9], every) == "9 of 12 layers, all but l9, l10 and l11"
    long = [f"l{i}" for i in range(20)]
    assert _list(long[:8], long) == "8 of 20 layers (l0, l1, l2, l3, l4 and 3 more)"


def test_of_many_layers_the_most_are_named_by_the_others():
    found = look(tokens("gelu"), batches=2, batch_size=16)
    kinds = ["glass"] * 2 + ["both"] + ["Hessian"] * 11
    layers = tuple(dataclasses.replace(x, curvature=k, crossover=0.0) for x, k in zip(found.layers, kinds))
    names = [layer.name for layer in layers]
    text = dataclasses.replace(found, layers=layers).text
    assert f"is glass in layers {names[0]} and {names[1]}, both alike in layer {names[2]}" in text
    assert "and the Hessian in the other 11 layers." in text
    kinds = ["glass"] * 7 + ["Hessian"] * 7
    layers = tuple(dataclasses.replace(x, curvature=k) for x, k in zip(layers, kinds))
    assert "the Hessian in 7 of 14 layers (" in dataclasses.replace(found, layers=layers).text


def test_smooth_curvature_can_hide_glass_along_the_update():
    """A long step along which the loss is smooth, in a network whose layers have glass."""
    problem = mlp(nn.ReLU)
    found = look(problem, update=torch.optim.Adam(problem.model.parameters(), lr=1e-3), batches=4)
    e = dataclasses.replace(found.change.expected, power=3.6, power_error=0.1)
    hidden = dataclasses.replace(found, change=dataclasses.replace(found.change, expected=e))
    assert not hidden.glassy
    assert "by smooth curvature beyond the Hessian's, beside which glass does not show." in hidden.text


def test_channels_last_is_the_same_network():
    plain, last = (look(images(pooled(), channels_last=c), batches=2, batch_size=32) for c in (False, True))
    np.testing.assert_allclose(
        [row.rho for row in last.density.layers], [row.rho for row in plain.density.layers], rtol=1e-2
    )
    assert plain.layers[0].curvature == last.layers[0].curvature


def test_weights_of_16_bits_are_probed_in_float32():
    """In bfloat16 the shortest probe that survives is longer than a linear piece: a network of ReLU looked smooth."""
    single = mlp(nn.ReLU, torch.bfloat16)
    update = torch.optim.Adam(single.model.parameters(), lr=1e-3)
    found = look(single, update=update, batches=8, batch_size=64)
    assert [layer.curvature for layer in found.layers] == ["glass", "glass", "Hessian"]
    assert "probed in float32" in found.notes[0]
    assert found.notes[0] in repr(found)
    assert found.density.sigma == pytest.approx(1e-3, rel=0.2)
    assert next(single.model.parameters()).dtype == torch.bfloat16


def test_an_update_that_is_not_finite_is_named():
    problem = mlp(nn.ReLU)
    with pytest.raises(NonFinite, match="update has entries"):
        look(problem, update=torch.full((problem.dimension,), math.nan), batches=2)


def test_corners_are_not_called_glass():
    """Softsign's gradients bend and do not jump: its path's power has an error that reaches the border of glass."""
    problem = mlp(nn.Softsign)
    found = look(problem, update=torch.optim.Adam(problem.model.parameters(), lr=1e-3), batches=8)
    assert not found.glassy
    assert "glass has no part in that" in found.text
    assert "kinks" not in found.text
    assert repr(found).count("none") >= len(found.layers) + 2 * len(found.change.expected.lengths)
    between = LayerExponent("0", "unsure", 2.0, 0.0, 3.6, 0.2, (True,) * 4)
    assert between.continuous  # kink or smooth, which of them is not known
    assert not LayerExponent("0", "unsure", 2.0, 0.0, 2.6, 0.2, (True,) * 4).continuous


def test_what_was_met_too_seldom_is_not_clear():
    """Where one batch has all the kinks there is no standard error: without it nothing is left."""
    ladder = [1e-4, 1e-3, 1e-2]
    rows = np.zeros((8, 3, 2))
    rows[2] = np.array(ladder)[:, None]
    mean = rows.mean(axis=0)
    lone = _layer("0", ladder, rows, mean, np.zeros((3, 2)))
    assert (lone.label, lone.second) == ("unsure", pytest.approx(1))
    assert not lone.continuous
    assert _layer("0", ladder, rows[2:3], rows[2], np.zeros((3, 2))).label == "glass"  # of one batch none is expected
    found = look(mlp(nn.ReLU), batches=2)
    layers = (lone, *found.exponents.layers[1:])
    seldom = dataclasses.replace(found, exponents=dataclasses.replace(found.exponents, layers=layers))
    seldom = dataclasses.replace(seldom, layers=matters(found.density, seldom.exponents, [1e-3] * 3))
    assert seldom.layers[0].curvature == "unsure"
    assert "not clear in layer 0. Where it is not clear too few kinks were met" in seldom.text
    # and a density that is not above twice its own error is none that one could build on
    rows = (
        dataclasses.replace(found.density.layers[0], rho_error=found.density.layers[0].rho),
        *found.density.layers[1:],
    )
    vague = dataclasses.replace(found.density, layers=GlassTable(rows))
    assert matters(vague, found.exponents, [1e-3] * 3)[0].curvature == "unsure"


def test_without_a_second_derivative_the_rest_is_measured():
    problem = mlp(nn.Hardsigmoid)  # torch has no derivative of its derivative
    found = look(problem, update=torch.optim.Adam(problem.model.parameters(), lr=1e-3), batches=4)
    assert found.change is None
    assert not found.glassy
    assert found.notes[0].startswith("There is no Hessian")
    assert {layer.curvature for layer in found.layers} == {"Hessian"}


def test_glass_is_no_more_than_all_and_no_further_than_followed():
    problem = mlp(nn.ReLU)
    update = torch.optim.Adam(problem.model.parameters(), lr=1e-3)
    short, long = (
        look(problem, update=update, batches=8, batch_size=64, lengths=lengths) for lengths in ((1e-3,), (100.0, 300.0))
    )
    assert "glass outweighs the Hessian at all lengths up to 0.001 updates" in short.text
    assert "the Hessian outweighs glass from 100 updates on" in long.text
    assert max(row.leakage for row in short.density.layers) > 0.9
    shares = [word for word in short.text.split() if word.endswith("%")]
    assert all(float(word[:-1]) <= 100 for word in shares)
