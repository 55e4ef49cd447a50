"""Digits with squared error: sharpness reduction opens with depth and 1/width, and closes where the output is zero."""

import numpy as np
import pytest

from thalweg.phases.critical import critical_constants
from thalweg.phases.early_network import network_runs

SEEDS = (0, 1, 2, 3, 4)
pytestmark = pytest.mark.slow


def constants(depth, width, seeds=SEEDS, mode="bisect", eps_sharp=0.0, **settings):
    runs = network_runs(depth, width, seeds, **settings)
    return critical_constants(runs, mode=mode, barrier=False, eps_sharp=eps_sharp)


def spread(found, low, high):
    return bool(np.all((found.low >= low) & (found.high <= high)))


def test_the_phase_opens_with_depth():
    """Seeds differ by factors: at depth 8 five draws reach from 6 to 34, so means are compared."""
    shallow, deep = constants(4, 64, samples=600), constants(8, 64, samples=600)
    four, eight = shallow["c_loss"], deep["c_loss"]
    for found in (shallow, deep):
        assert found["c_loss"].found.all()
        assert np.all(found["c_loss"].low > 3)  # far above 2
        assert np.all(found["c_max"].high >= found["c_loss"].high)
    assert 4 < np.median(four.value) < 11
    assert 4 <= np.mean(four.value) <= 11
    assert spread(four, 3.5, 16)
    assert eight.value.max() > 25
    assert spread(eight, 5, 60)
    assert np.mean(eight.value) > 2 * np.mean(four.value)
    gap = [np.log2(found["c_max"].value / found["c_loss"].value).mean() for found in (shallow, deep)]
    assert gap[1] < gap[0]  # and the catapult phases close
    assert np.log2(four.high / four.low) == pytest.approx(0.1)


def test_the_phase_opens_with_inverse_width():
    narrow, middle, wide = (constants(4, width, SEEDS[:n], samples=300)["c_loss"] for width, n in
                            ((32, 5), (64, 5), (128, 5)))  # fmt: skip
    means = [one.value.mean() for one in (narrow, middle, wide)]
    assert means[0] > 1.5 * means[1] > 1.5 * 1.3 * means[2]
    assert means[2] > 2.2


@pytest.mark.parametrize("depth", [4, 8])
def test_a_zero_output_closes_it(depth):
    found = constants(depth, 64, samples=500, init="zero_output", eps_sharp=0.05)["c_loss"]
    assert spread(found, 1.7, 2.6)


@pytest.mark.parametrize(("depth", "seeds"), [(4, (0, 1)), (8, (0,))])
def test_both_modes_agree_to_one_step_of_the_grid(depth, seeds):
    quick, whole = (constants(depth, 64, seeds, mode, samples=200) for mode in ("bisect", "grid"))
    for name in ("c_loss", "c_sharp", "c_max"):
        assert np.abs(np.log2(quick[name].high / whole[name].high)).max() < 0.1 + 1e-9, name
    assert whole.cost.products > 10 * quick.cost.products
    for row, phase in zip(quick.curves.rows, quick.phases):
        known = dict(zip(whole.curves.rows, whole.phases))
        if phase is not None and row in known and row[1] < whole["c_max"].low[row[0]]:
            assert known[row] is phase
