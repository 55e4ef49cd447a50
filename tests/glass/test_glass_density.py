"""Glass density of networks: against loops, against the law of one hidden layer, and leaving nothing behind."""

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from reference.glass import density_by_hand, predicted_density
from thalweg import Problem, _rng
from thalweg.errors import InvalidInput, NonFinite
from thalweg.glass.density import glass_density
from thalweg.glass.probing import mini_batches, shared_state, signs


def classifier(act=nn.ReLU, dtype=torch.float64, width=64, samples=2048, batch_norm=False, dropout=0.0):
    """Three hidden layers on random data; the setting in which exponents were first looked at."""
    torch.manual_seed(0)
    layers = []
    for a, b in ((20, width), (width, width), (width, width)):
        layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if batch_norm else []), act()]
        layers += [nn.Dropout(dropout)] if dropout else []
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    x, y = torch.randn(samples, 20), torch.randint(0, 10, (samples,))
    return Problem(model, nn.CrossEntropyLoss(), (x, y), dtype=dtype, check=not (batch_norm or dropout))


def test_it_is_the_mean_over_batches_of_the_printed_formula():
    problem = classifier(width=12, samples=200)
    w = problem.initial
    found = glass_density(problem, sigma=3e-3, batches=4, batch_size=30, seed=5)
    parts = mini_batches(problem, 4, 30, 5)
    rho, square = density_by_hand(problem, w, 3e-3, parts, [signs(problem, 5, n) for n in range(4)])
    np.testing.assert_allclose(found.rho, rho, rtol=1e-7, atol=1e-16)
    np.testing.assert_allclose(found.square, square, rtol=1e-9)
    sizes = list(problem.layout.sizes)
    for row, part in zip(found.tensors, np.split(rho, np.cumsum(sizes)[:-1])):
        assert row.rho == pytest.approx(part.mean(), rel=1e-9)
    weight, bias = rho[: 20 * 12], rho[20 * 12 : 21 * 12]
    assert found.layers["0"].rho == pytest.approx(np.concatenate([weight, bias]).mean(), rel=1e-9)
    assert found.layers["0"].leakage == pytest.approx(
        found.layers["0"].rho / (2 * 3e-3 * found.layers["0"].square), rel=1e-12
    )
    assert found.gradients == 4 * 3 + 1
    assert found.products == 4


def test_standard_errors_are_those_of_the_batches():
    problem = classifier(width=16, samples=4096)
    values = [glass_density(problem, batches=8, batch_size=64, seed=s, hessian=False).layers["0"] for s in range(40)]
    rho = np.array([v.rho for v in values])
    claimed = np.sqrt(np.mean([v.rho_error**2 for v in values]))
    assert 0.6 < claimed / rho.std(ddof=1) < 1.5  # 40 values give a spread to 11 %
    assert math.isnan(glass_density(problem, batches=1, hessian=False).layers["0"].rho_error)


def test_glass_is_in_the_hidden_layers_of_relu_and_nowhere_in_tanh():
    relu, tanh = (glass_density(classifier(act), batches=8, batch_size=64).layers for act in (nn.ReLU, nn.Tanh))
    assert all(abs(relu[name].leakage - 1) < 0.2 for name in "024")
    assert relu["6"].leakage < 0.05
    assert all(row.leakage < 1e-3 for row in tanh)
    # without glass the finite difference is the Hessian
    for row in tanh:
        assert row.square == pytest.approx(row.hessian, rel=1e-3)
    # with it, the finite difference is both
    for name in "024":
        row = relu[name]
        assert row.square > 5 * row.hessian
    assert relu["0"].crossover > 1e-2 > 1e-4 > relu["6"].crossover


@pytest.mark.slow
def test_density_falls_like_the_inverse_batch_size():
    problem = classifier(samples=16384)
    found = {
        size: glass_density(problem, batches=n, batch_size=size, hessian=False).layers
        for size, n in ((64, 64), (256, 32), (1024, 16))
    }
    for name in "024":
        scaled = [size * table[name].rho for size, table in found.items()]
        errors = [size * table[name].rho_error / (size * table[name].rho) for size, table in found.items()]
        assert max(scaled) / min(scaled) < 1.25 + 3 * max(errors)
    ratio = found[64]["0"].rho / found[1024]["0"].rho
    assert 12 < ratio < 21  # 16


@pytest.mark.slow
def test_one_hidden_layer_obeys_the_law_of_boundaries():
    """Formula (2), 16 units x (8 inputs and a bias) = 144 coordinates, 400 batches."""
    torch.manual_seed(3)
    hidden, out = nn.Linear(8, 16), nn.Linear(16, 1, bias=False)
    model = nn.Sequential(hidden, nn.ReLU(), out).double()
    x = torch.randn(200_000, 8, dtype=torch.float64)
    y = torch.sin(x[:, :1] * 2) + x[:, 1:2] * x[:, 2:3]
    problem = Problem(model, lambda f, target: 0.5 * (f - target).square().mean(), (x, y))
    found = glass_density(problem, sigma=4e-3, batches=400, batch_size=2048, hessian=False)
    with torch.no_grad():
        parts = [t.numpy() for t in (x, hidden.weight, hidden.bias, out.weight[0], y[:, 0])]
    predicted = predicted_density(*parts, width=0.02) / 2048
    weight, bias = found.rho[:128].reshape(16, 8).numpy(), found.rho[128:144].numpy()
    measured = np.column_stack([weight, bias])
    assert np.corrcoef(measured.ravel(), predicted.ravel())[0, 1] > 0.99
    assert measured.sum() / predicted.sum() == pytest.approx(1, abs=0.05)
    assert np.median(measured / predicted) == pytest.approx(1, abs=0.1)
    assert float(found.rho[144:].max()) < 0.05 * measured.mean()  # the gradient of the output layer is continuous


def test_more_evaluations_agree_and_are_steadier():
    problem = classifier(width=32)
    three = glass_density(problem, batches=40, batch_size=64, hessian=False)
    nine = glass_density(problem, batches=40, batch_size=64, evaluations=9, hessian=False, sigma=4e-3)
    row, other = three.layers["0"], nine.layers["0"]
    assert abs(row.rho - other.rho) < 4 * math.hypot(row.rho_error, other.rho_error)
    assert float((nine.rho_error / nine.rho)[:640].median()) < 0.8 * float((three.rho_error / three.rho)[:640].median())


def test_nothing_of_the_users_is_changed():
    problem = classifier(batch_norm=True, dropout=0.3, width=8, samples=64)
    model = problem.model.train()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = copy.deepcopy(model.state_dict())
    grads = [p.grad.clone() for p in model.parameters()]
    torch.manual_seed(7)
    random.seed(7)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    glass_density(problem, batches=3, batch_size=16, hessian=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(g, p.grad) for g, p in zip(grads, model.parameters()))
    assert model.training
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_dropout_masks_are_shared_by_the_evaluations_of_a_batch():
    problem = classifier(dropout=0.5, width=16, samples=128)
    model = problem.model.train()
    found = glass_density(problem, sigma=1e-3, batches=2, batch_size=32, hessian=False, seed=1)
    twin = copy.deepcopy(model).double()
    totals = torch.zeros(problem.dimension, dtype=torch.float64)
    for number, part in enumerate(mini_batches(problem, 2, 32, 1)):
        z, (batch, _) = signs(problem, 1, number), next(part.batches())
        gradients = []
        for s in (-1, 0, 1):
            torch.nn.utils.vector_to_parameters(problem.initial + s * 1e-3 * z, twin.parameters())
            twin.zero_grad()
            with torch.random.fork_rng():
                torch.manual_seed(_rng.derive_seed(1, "glass masks", number))  # the mask is fixed by hand
                nn.functional.cross_entropy(twin(batch[0]), batch[1]).backward()
            gradients.append(torch.cat([p.grad.reshape(-1) for p in twin.parameters()]))
        totals += 2 / 1e-3 * ((gradients[0] + gradients[2]) / 2 - gradients[1]).square() / 2
    np.testing.assert_allclose(found.rho, totals, rtol=1e-6, atol=1e-15)
    # and batches draw masks of their own
    with shared_state(problem, 1, 0):
        first = torch.rand(3)
    with shared_state(problem, 1, 1):
        second = torch.rand(3)
    assert not torch.equal(first, second)


def test_float32_agrees_with_float64_and_knows_its_floor():
    single, double = (classifier(dtype=d) for d in (torch.float32, torch.float64))
    found = glass_density(single, double.initial.float(), batches=4, batch_size=64, hessian=False)
    exact = glass_density(double, double.initial, batches=4, batch_size=64, hessian=False)
    for row, other in zip(found.layers, exact.layers):
        assert row.rho == pytest.approx(other.rho, rel=0.03)
        assert row.resolved
    # a loss without third derivatives has no density: what float32 finds is rounding, and the floor says how much
    torch.manual_seed(1)
    x = torch.randn(400, 20)
    linear = Problem(nn.Linear(20, 5), nn.MSELoss(), (x, torch.randn(400, 5)))
    row = glass_density(linear, batches=16, batch_size=64).layers[0]
    assert 0.1 < row.rho / row.floor < 3
    assert not row.resolved
    assert "(rounding)" in repr(glass_density(linear, batches=2))


def test_a_probe_below_rounding_is_refused():
    problem = classifier(dtype=torch.float32, width=8, samples=64)
    with pytest.raises(InvalidInput, match="lost in the rounding"):
        glass_density(problem, sigma=1e-8)
    glass_density(problem.in_dtype(torch.float64), sigma=1e-8, batches=2)


def test_a_loaders_own_batches_are_taken():
    x, y = torch.randn(40, 20), torch.randint(0, 10, (40,))
    model = classifier(width=8, samples=8).model
    problem = Problem(model, nn.CrossEntropyLoss(), [(x[:16], y[:16]), (x[16:32], y[16:32]), (x[32:], y[32:])])
    found = glass_density(problem, batches=16)
    assert (found.batches, found.batch_size) == (3, 0)
    with pytest.raises(InvalidInput, match="cut its batches itself"):
        glass_density(problem, batch_size=4)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"sigma": 0.0}, "length of a probe"),
        ({"sigma": math.nan}, "length of a probe"),
        ({"batches": 0}, "At least one"),
        ({"batch_size": 0}, "between 1 and that"),
        ({"batch_size": 65}, "64 samples"),
        ({"evaluations": 2}, "three gradients"),
    ],
)
def test_bad_arguments_are_refused(wrong, words):
    with pytest.raises(InvalidInput, match=words):
        glass_density(classifier(width=4, samples=64), **wrong)


def test_a_gradient_that_is_not_finite_is_named():
    problem = classifier(width=4, samples=64)
    with pytest.raises(NonFinite, match="NaN or infinite"):
        glass_density(problem, torch.full_like(problem.initial, math.inf))


def test_it_reads_and_draws():
    found = glass_density(classifier(width=8, samples=64), batches=2)
    assert "sigma=0.001, 2 batches of 16" in repr(found)
    assert list(found.plot().data[0].x) == ["0", "2", "4", "6"]
    with pytest.raises(InvalidInput, match="no row"):
        found.layers["7"]
    assert len(found.layers) == 4
    assert found.layers[0].members == ("0.weight", "0.bias")
