"""Powers of the gradient's variation with distance: one at jumps, three at corners, four where all is smooth."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from thalweg import Problem
from thalweg.errors import InvalidInput
from thalweg.glass.exponents import label_of, variation_exponents


def classifier(act, dtype=torch.float64, samples=2048):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 64), act(), nn.Linear(64, 64), act(), nn.Linear(64, 64), act(), nn.Linear(64, 10)
    )
    x, y = torch.randn(samples, 20), torch.randint(0, 10, (samples,))
    return Problem(model, nn.CrossEntropyLoss(), (x, y), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU])
def test_relu(act, dtype):
    found = variation_exponents(classifier(act, dtype), batches=4, batch_size=512)
    for name in "024":
        assert found[name].second == pytest.approx(1, abs=0.15)
        assert found[name].first == pytest.approx(1, abs=0.15)
        assert found[name].label == "glass"
    assert found["6"].second == pytest.approx(3, abs=0.4)  # continuous, with corners
    assert found["6"].first == pytest.approx(2, abs=0.05)
    assert found["6"].label == "kink"


@pytest.mark.parametrize("act", [nn.Tanh, nn.GELU])
def test_smooth(act):
    found = variation_exponents(classifier(act), batches=4, batch_size=128)
    for layer in found.layers:
        assert layer.second == pytest.approx(4, abs=0.05)
        assert layer.first == pytest.approx(2, abs=0.02)
        assert layer.label == "smooth"


def test_float32_leaves_out_distances_that_rounding_spoils():
    distances = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
    double = variation_exponents(classifier(nn.Tanh), batches=2, batch_size=128, distances=distances)
    single = variation_exponents(classifier(nn.Tanh, torch.float32), batches=2, batch_size=128, distances=distances)
    for layer in single.layers:
        assert not any(layer.used[:2])
        assert math.isnan(layer.second) or layer.second == pytest.approx(4, abs=0.2)
    # where rounding is, it is predicted: what float32 finds beyond float64 is near the floor
    beyond = single.second[:, 0] / (1.5 * single.noise + double.first[:, 0] / 1e-12 * (3e-9) ** 2 / 2)
    assert (beyond > 0.1).all()
    assert (beyond < 10).all()


def test_without_variation_there_is_no_power():
    x = torch.randn(200, 5)
    problem = Problem(nn.Linear(5, 2), nn.MSELoss(), (x, torch.randn(200, 2)))
    found = variation_exponents(problem, batches=3)
    assert found.layers[0].label == "rounding"
    assert found.layers[0].first == pytest.approx(2, abs=0.05)
    assert math.isnan(found.layers[0].second)
    assert " - " in repr(found)


def test_the_fit_is_numpys_and_its_error_a_jackknife():
    found = variation_exponents(classifier(nn.ReLU, samples=512), batches=6, batch_size=64)
    slope = np.polyfit(np.log(found.distances), np.log(found.second[0]), 1)[0]
    assert found.layers[0].second == pytest.approx(slope, rel=1e-9)
    assert 0 < found.layers[0].second_error < 0.3
    assert found.gradients == 6 * 9 + 1
    alone = variation_exponents(classifier(nn.ReLU, samples=512), batches=1)
    assert math.isnan(alone.layers[0].second_error)


def test_labels_admit_doubt():
    assert label_of(1.4, 0.2) == "unsure"
    assert label_of(2.0, 0.01) == "mixed"
    assert label_of(0.2, 0.01) == "unsure"
    assert label_of(math.nan, 0.0) == "rounding"
    assert label_of(1.0, math.nan) == "glass"


@pytest.mark.parametrize("distances", [[1e-3, 1e-2], [1e-3, 1e-3, 1e-2], [0.0, 1e-3, 1e-2], [1e-2, 1e-3, 1e-4]])
def test_bad_distances_are_refused(distances):
    with pytest.raises(InvalidInput, match="three increasing"):
        variation_exponents(classifier(nn.ReLU, samples=64), distances=distances)


def test_it_draws_and_names():
    found = variation_exponents(classifier(nn.ReLU, samples=256), batches=2)
    figure = found.plot()
    assert len(figure.data) == 4
    assert figure.data[0].name.startswith("0: ")
    assert "first" in repr(found)
    with pytest.raises(InvalidInput, match="no layer"):
        found["9"]
