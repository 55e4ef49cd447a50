"""Where saturated sharpness bends: the solvable model, written levels, refusals."""

import numpy as np
import pytest

from thalweg.errors import InvalidInput
from thalweg.phases.early import Cost
from thalweg.phases.saturation import derivative_rows, saturation
from thalweg.phases.uv import UVModel
from thalweg.phases.uv_runs import UVRuns


class Levels:
    """Sharpness at the end given by a function of (place of the seed, c)."""

    def __init__(self, level, seeds):
        self.level, self.seeds, self.steps, self.cutoff = level, tuple(range(seeds)), 10, 1e5
        self.loss0, self.sharpness0, self.cost, self.asked = np.ones(seeds), np.full(seeds, 7.0), Cost(), []

    def sharpness_at(self, rows, steps):
        self.asked += list(zip(rows, steps))
        return np.array([7.0 * self.level(i, c) for i, c in rows])


@pytest.mark.parametrize("width", [4, 64, 1024])
def test_the_solvable_model_bends_at_two(width):
    found = saturation(UVRuns(UVModel(width), seeds=tuple(range(300))), stop=2.2)
    assert found.c_crit == 2.0  # on the grid of 0.1 in log2 c
    assert found.interval[0] <= 2 <= found.interval[1]


def bent(at, width=0.4):
    return lambda i, c: 1 - np.logaddexp(0, (c - at(i)) / width) * width / 6


@pytest.mark.parametrize("at", [1.5, 2.5, 4.0])
def test_a_bend_is_found_where_it_is(at):
    found = saturation(Levels(bent(lambda i: at), 3), stop=3.0)
    assert abs(np.log2(found.c_crit / at)) < 0.2
    assert found.interval == (found.c_crit, found.c_crit)
    middle = np.isfinite(found.slope)
    exact = 1 / (1 + np.exp(-(found.c[middle] - at) / 0.4)) / 6
    assert np.abs(found.slope[middle] - exact).max() < 0.02


def test_runs_are_compared_at_equal_flow_time():
    runs = Levels(bent(lambda i: 2.0), 2)
    found = saturation(runs, product=150, stop=2.0)
    assert np.allclose(found.c * found.steps, 150, rtol=0.02)
    assert all(step == max(1, round(150 / c)) for (_, c), step in runs.asked)
    assert found.ratio.shape == (2, len(found.c))
    assert np.allclose(found.level, found.ratio.mean(axis=0))


def test_seeds_that_disagree_are_refused():
    found = saturation(Levels(bent(lambda i: (1.0, 6.5)[i % 2], 0.15), 6), stop=3.4)
    assert np.isnan(found.c_crit)
    assert found.interval[1] > 2 * found.interval[0]
    assert "spread" in found.refusal
    assert "refused" in repr(found)
    assert "refused" not in repr(saturation(Levels(bent(lambda i: 2.0), 4), stop=3.0))


def test_one_seed_is_refused():
    found = saturation(Levels(bent(lambda i: 2.0), 1), stop=3.0)
    assert np.isnan(found.c_crit)
    assert 1.8 < found.estimate < 2.2
    assert "one seed" in found.refusal
    assert len(found.plot().data) == 2


def test_the_grid_ends_before_a_seed_diverges():
    level = bent(lambda i: 2.0)
    found = saturation(Levels(lambda i, c: np.nan if i == 1 and c > 5 else level(i, c), 3), stop=4)
    assert found.c[-1] <= 5
    assert np.isfinite(found.ratio).all()
    with pytest.raises(InvalidInput, match="grid points"):
        saturation(Levels(lambda i, c: np.nan if c > 0.6 else 1.0, 3))


def test_derivatives_are_with_respect_to_c_on_the_uneven_grid():
    c = 2.0 ** np.arange(-1, 3, 0.1)
    first, second = derivative_rows(c, 7, 3)
    inside = slice(3, -3)
    assert np.allclose((first @ c**3)[inside], 3 * c[inside] ** 2)
    assert np.allclose((second @ c**3)[inside], 6 * c[inside])
    assert np.isnan(second[[0, 1, 2, -3, -2, -1]]).all()


def test_bad_settings_are_refused():
    runs = Levels(bent(lambda i: 2.0), 2)
    for wrong in ({"window": 6}, {"order": 1}, {"order": 7}, {"product": 0}, {"stop": -2}, {"bootstrap": 0},
                  {"largest_span": 1}, {"grid_step": 0}):  # fmt: skip
        with pytest.raises(InvalidInput):
            saturation(runs, **wrong)
