"""Loss changes along steps: exact on quadratics, glass on ReLU networks, and none of it on smooth ones."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from reference.glass import integrated
from thalweg import Problem
from thalweg.errors import InvalidInput, NonFinite
from thalweg.glass.change import compare_loss_change, expected_loss_change, measured_loss_change
from thalweg.glass.density import glass_density
from thalweg.glass.estimators import GAUSSIAN
from thalweg.glass.look import look
from thalweg.glass.words import matters
from thalweg.optim.virtual import virtual_update
from thalweg.rules import Adam, GradientDescent


def classifier(act=nn.ReLU, dtype=torch.float64, samples=4096):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 64), act(), nn.Linear(64, 64), act(), nn.Linear(64, 64), act(), nn.Linear(64, 10)
    )
    x, y = torch.randn(samples, 20), torch.randint(0, 10, (samples,))
    return Problem(model, nn.CrossEntropyLoss(), (x, y), dtype=dtype)


def test_a_quadratic_is_predicted_exactly():
    x = torch.randn(60, 4, dtype=torch.float64)
    problem = Problem(nn.Linear(4, 2).double(), nn.MSELoss(), (x, torch.randn(60, 2, dtype=torch.float64)))
    step = torch.randn(10, dtype=torch.float64)
    kept = {"lengths": (0.1, 1.0, 7.0), "batches": 5, "batch_size": 20}
    expected, measured = (f(problem, step, **kept) for f in (expected_loss_change, measured_loss_change))
    found = compare_loss_change(expected, measured)
    np.testing.assert_allclose(expected.linear + expected.hessian, measured.change, rtol=1e-10)
    np.testing.assert_allclose(expected.finite, expected.hessian, rtol=1e-9)
    assert (found.size < 1e-12 * np.abs(measured.change) + 1e-13).all()
    assert expected.total == pytest.approx(measured.change, rel=1e-5)  # glass is rounding


def kinks(rate, samples, seed=0, sign=False):
    """A loss of one weight whose gradient jumps: each batch has its own random places, ``|w - c|`` with signs."""

    class Kinks(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, inputs):
            places, jumps = inputs.unbind(-1)
            return (jumps / 2 * (self.w - places).abs()).sum(dim=-1)

    rng = np.random.default_rng(seed)
    places = rng.uniform(-1, 1, size=(samples, 2 * rate))
    jumps = np.ones(places.shape) if sign else rng.choice([-1.0, 1.0], size=places.shape)
    data = torch.tensor(np.stack([places, jumps], axis=-1))
    return Problem(Kinks(), lambda out, y: (out + 0 * y).mean(), (data, torch.zeros(samples, dtype=torch.float64)))


@pytest.mark.slow
def test_one_weight_with_random_kinks_obeys_the_law():
    """Density lambda E[J^2] = rate, and E|X| = c sqrt(rho) t^1.5, which the Hessian calls zero."""
    rate, count = 400, 300
    problem = kinks(rate, count)
    kept = {"batches": count, "batch_size": 1}
    density = glass_density(problem, sigma=0.05, **kept)
    assert density.layers[0].rho == pytest.approx(rate, abs=4 * density.layers[0].rho_error)
    assert density.layers[0].rho_error == pytest.approx(rate * math.sqrt(2.025 / count), rel=0.3)
    assert density.layers[0].hessian == 0
    step = torch.ones(1, dtype=torch.float64)
    lengths = (0.05, 0.1, 0.2)
    expected = expected_loss_change(problem, step, lengths=lengths, sigma=0.05, density=density, **kept)
    found = compare_loss_change(expected, measured_loss_change(problem, step, lengths=lengths, **kept))
    law = GAUSSIAN * math.sqrt(rate) * np.array(lengths) ** 1.5
    np.testing.assert_allclose(found.size, law, rtol=0.15)
    np.testing.assert_allclose(expected.glass, law, rtol=0.15)
    np.testing.assert_allclose(expected.summed, expected.glass, rtol=1e-3)  # one coordinate: the same estimate
    np.testing.assert_allclose(expected.independent, expected.summed, rtol=1e-9)
    assert (expected.hessian == 0).all()
    assert expected.power == pytest.approx(1, abs=0.25)
    simulated = np.abs(integrated(20_000, rate, 0.2, "signs", np.random.default_rng(0))).mean()
    assert found.size[-1] == pytest.approx(simulated, rel=0.12)


def test_the_mean_effect_of_kinks_joins_the_glass():
    """E|m + X|: with kinks of one sign, which bend the loss, against a simulation and against finite differences."""
    problem = kinks(200, 200, sign=True)
    step = torch.ones(1, dtype=torch.float64)
    kept = {"batches": 200, "batch_size": 1, "lengths": (0.1, 0.2)}
    expected = expected_loss_change(problem, step, sigma=0.1, **kept)
    found = compare_loss_change(expected, measured_loss_change(problem, step, **kept))
    bend = 200 * np.array([0.1, 0.2]) ** 2 / 2  # lambda E[J] t^2 / 2
    np.testing.assert_allclose(expected.finite, bend, rtol=0.03)
    np.testing.assert_allclose(found.mean, bend, rtol=0.06)
    np.testing.assert_allclose(found.ratio_with_mean, 1, atol=0.06)
    assert (found.ratio > 1.5).all()
    rng = np.random.default_rng(0)
    for mean, spread in ((0.0, 1.0), (0.5, 1.0), (-2.0, 1.0), (1.0, 0.0)):
        one = replace(
            expected,
            hessian=np.zeros(1),
            finite=np.array([mean]),
            glass=np.array([spread * math.sqrt(2 / math.pi)]),
        )
        drawn = np.abs(mean + spread * rng.normal(size=400_000)).mean()
        assert float(one.deviation[0]) == pytest.approx(drawn, rel=0.01)


def test_glass_predicts_what_adam_does_to_a_relu_network():
    problem = classifier()
    step = virtual_update(problem, Adam(lr=1e-3)).step(1e-3) - problem.initial
    kept = {"lengths": (0.3, 1.0, 3.0), "batches": 32, "batch_size": 64}
    found = compare_loss_change(
        expected_loss_change(problem, step, **kept), measured_loss_change(problem, step, **kept)
    )
    assert (found.size > 5 * np.abs(found.size_error) / 2).all()  # it is there
    assert (np.abs(found.ratio - 1) < 0.35).all()
    assert (found.size < found.expected.jensen).all()
    assert found.expected.power < 1.8


def test_a_smooth_network_has_no_glass_along_its_step():
    found = look(classifier(nn.Tanh), update=Adam(lr=1e-3), batches=4)
    assert found.change.expected.power == pytest.approx(4, abs=0.05)
    assert "the loss is smooth along it" in found.text
    assert {layer.curvature for layer in found.layers} == {"Hessian"}
    assert all(layer.crossover == 0 for layer in found.layers)


def test_the_answer_names_layers_moves_and_leakage():
    problem = classifier(dtype=torch.float32)
    before = problem.initial.clone()
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-3)
    seen = []
    found = look(problem, update=optimizer, batches=8, batch_size=64, progress=lambda *told: seen.append(told))
    assert [layer.curvature for layer in found.layers] == ["glass", "glass", "glass", "Hessian"]
    assert "glass in layers 0, 2 and 4 and the Hessian in layer 6" in found.text
    assert "adding both counts it twice" in found.text
    assert found.density.sigma == pytest.approx(1e-3, rel=0.1)
    assert seen[-1] == ("loss change", 8)
    assert torch.equal(before, problem.initial)
    assert not optimizer.state  # it has not stepped
    assert "deviates" in repr(found)
    assert len(found.plot().data) == 5
    assert found.layers == matters(found.density, found.exponents, [layer.move for layer in found.layers])


def test_without_an_update_there_is_no_change():
    found = look(classifier(samples=256), batches=2)
    assert found.change is None
    assert found.density.sigma == 1e-3
    assert "Along the update" not in found.text
    assert found.plot().data


def test_an_update_below_rounding_is_said_and_probed_longer():
    found = look(classifier(dtype=torch.float32, samples=256), update=GradientDescent(lr=1e-6), batches=2)
    assert "near the rounding" in found.notes[0]
    assert found.density.sigma > 1e-7


@pytest.mark.parametrize(
    ("step", "lengths", "words"),
    [
        (torch.zeros(10), (1.0,), "zero or not finite"),
        (torch.full((10,), math.nan), (1.0,), "zero or not finite"),
        (torch.ones(3), (1.0,), "shape"),
        (torch.ones(10), (), "positive"),
        (torch.ones(10), (0.0,), "positive"),
    ],
)
def test_bad_steps_are_refused(step, lengths, words):
    x = torch.randn(8, 4)
    problem = Problem(nn.Linear(4, 2), nn.MSELoss(), (x, x[:, :2]))
    for function in (expected_loss_change, measured_loss_change):
        with pytest.raises(InvalidInput, match=words):
            function(problem, step, lengths=lengths)


def test_other_batches_are_not_compared():
    x = torch.randn(8, 4)
    problem = Problem(nn.Linear(4, 2), nn.MSELoss(), (x, x[:, :2]))
    expected = expected_loss_change(problem, torch.ones(10), batches=2)
    with pytest.raises(InvalidInput, match="batch by batch"):
        compare_loss_change(expected, measured_loss_change(problem, torch.ones(10), batches=3))
    with pytest.raises(NonFinite, match="along the step"):
        measured_loss_change(problem, torch.ones(10), lengths=[1e30], batches=2)
    with pytest.raises(InvalidInput, match="does not move"):
        look(problem, update=torch.zeros(10))
