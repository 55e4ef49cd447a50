"""The table of null values, simulated; the closed forms behind it; the decay null on weights driven by noise."""

import numpy as np
import pytest
from path_cases import points_of_line, points_of_mixing, points_of_walk

from thalweg.errors import InvalidInput
from thalweg.trajectories.averages import mean_similarity
from thalweg.trajectories.complexity import complexity
from thalweg.trajectories.kernels import Kernels
from thalweg.trajectories.nulls import Decay, decay_null, line, mixing, nulls_for, walk

COUNT, SIZE = 150, 20_000


def measured(path):
    found, average = complexity(path, lags=[1]), mean_similarity(path)
    return {
        "omega": average.omega,
        "relative": average.relative,
        "turning": found.turning_summary()["mean"],
        "apex": found.apex(1),
        "pc1": found.spectra["centred"].shares[0],
        "straightness": found.straightness,
    }


def simulated(points):
    return measured(Kernels.from_points(points))


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def check(found, expected):
    for name, (value, tolerance) in expected.items():
        assert found[name] == pytest.approx(value, abs=tolerance), name


def test_a_line_gives_the_values_of_the_table(rng):
    found = simulated(points_of_line(rng, COUNT, SIZE))
    check(
        found,
        {
            "omega": (0.948, 1e-3),
            "relative": (1.0, 1e-9),
            "turning": (0.0, 1e-4),
            "apex": (0.0, 1e-4),
            "pc1": (1.0, 1e-9),
            "straightness": (1.0, 1e-9),
        },
    )
    check(measured(line(range(COUNT))), {name: (value, 2e-3) for name, value in found.items()})


@pytest.mark.parametrize(
    ("spread", "omega", "relative", "straightness"), [(1e3, 2 / 3, 2 / 3, COUNT**-0.5), (1.2, 0.865, 0.669, 0.08)]
)
def test_a_random_walk_gives_the_values_of_the_table(rng, spread, omega, relative, straightness):
    found = simulated(points_of_walk(rng, COUNT, SIZE, spread))
    check(
        found,
        {
            "omega": (omega, 0.01),
            "relative": (relative, 0.01),
            "turning": (90.0, 0.2),
            "apex": (8.6, 0.25),
            "pc1": (6 / np.pi**2, 0.01),
            "straightness": (straightness, 3e-3),
        },
    )
    null = measured(walk(range(COUNT), spread=spread))
    check(null, {name: (value, 0.2 if name in {"turning", "apex"} else 0.01) for name, value in found.items()})


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_a_mixing_process_gives_the_values_of_the_table(rng, rate):
    found = simulated(points_of_mixing(rng, COUNT, SIZE, rate))
    run = rate * COUNT
    # the formula is an integral; the sum over a grid differs by about rate^2 / 12 of the diagonal
    assert found["omega"] == pytest.approx(2 / run * (1 - (1 - np.exp(-run)) / run), abs=0.01)
    check(
        measured(mixing(range(COUNT), rate=rate)),
        {name: (value, 0.4 if name in {"turning", "apex"} else 0.01) for name, value in found.items()},
    )


def test_independent_checkpoints_turn_by_120_degrees_around_an_apex_of_60(rng):
    found = simulated(rng.standard_normal((COUNT, SIZE)))
    check(
        found,
        {
            "relative": (0.5, 0.01),
            "turning": (120.0, 0.3),
            "apex": (60.0, 0.3),
            "pc1": (1 / COUNT, 0.003),
            "straightness": (1 / COUNT, 1e-3),
        },
    )
    null = measured(mixing(range(COUNT)))
    check(null, {"turning": (120.0, 1e-9), "apex": (60.0, 1e-9), "relative": (0.5, 0.01), "pc1": (1 / 149, 1e-9)})


def test_a_walk_that_is_not_centred_has_larger_shares():
    path = walk(range(700), spread=1e4)
    spectra = complexity(path, lags=[1]).spectra
    assert spectra["kernel"].shares[0] == pytest.approx(8 / np.pi**2, abs=2e-3)  # 0.81
    assert spectra["relative"].shares[0] == pytest.approx(0.69, abs=5e-3)
    assert spectra["centred"].shares[0] == pytest.approx(6 / np.pi**2, abs=2e-3)


def test_the_radius_of_a_walk_grows_as_the_root_and_of_a_line_in_proportion():
    steps = [0, 1, 2, 4, 8, 16, 1000, 2000, 3000]
    assert complexity(walk(steps)).radius_slope == pytest.approx(0.5, abs=1e-12)
    assert complexity(line(steps)).radius_slope == pytest.approx(1.0, abs=1e-12)


def test_nulls_for_a_path_have_its_steps_start_and_update_sizes(rng):
    path = Kernels.from_points(points_of_walk(rng, 20, 500, 2.0), steps=np.arange(20) * 7)
    for name, null in nulls_for(path).items():
        assert np.array_equal(null.steps, path.steps)
        if name != "mixing":
            np.testing.assert_allclose(null.lengths, path.lengths, rtol=1e-12)
            assert null.norms[0] == pytest.approx(path.norms[0], rel=1e-12)
    mixed = nulls_for(path)["mixing"]
    assert (mixed.lengths**2).mean() == pytest.approx((path.lengths**2).mean(), rel=1e-9)
    assert (mixed.norms**2).mean() == pytest.approx((path.norms**2).mean(), rel=1e-9)


@pytest.mark.parametrize(("momentum", "coupled"), [(0.0, True), (0.9, True), (0.9, False)])
def test_noise_driven_weights_follow_the_decay_null(rng, momentum, coupled):
    rate, size, every, count = 0.1, 8000, 40, 31
    decay = 0.002 / rate * (1 - momentum if coupled else 1)  # the weights forget within 500 steps
    w, buffer, kept = rng.standard_normal(size), np.zeros(size), []
    for step in range(every * (count - 1) + 1):
        if step % every == 0:
            kept.append(w.copy())
        gradient = 0.3 * (1 - momentum) * rng.standard_normal(size)
        buffer = momentum * buffer + gradient + (decay * w if coupled else 0.0)
        w = w - rate * (buffer + (0.0 if coupled else decay * w))
    path = Kernels.from_points(np.stack(kept), steps=np.arange(count) * every)
    exposure = Decay(decay, momentum, coupled, learning_rate=rate).exposure(path.steps)
    null = decay_null(path.norms, exposure)
    total = rate * decay * every * (count - 1) / (1 - momentum if coupled else 1)
    assert exposure[-1] == pytest.approx(total, rel=1e-12)
    # cosines of unrelated vectors scatter by 1 / sqrt(size) = 0.011, and the buffer's 10 steps of 500 add 0.02
    assert np.abs(path.similarity - null).max() < 0.05
    assert path.similarity.mean() == pytest.approx(null.mean(), abs=0.015)
    assert null.mean() < 0.9, "decay must matter here"


def test_exposure_takes_rates_by_step_by_checkpoint_or_as_a_function():
    steps = np.array([10, 11, 15, 30])
    rate = lambda k: 0.1 + 0.01 * k  # noqa: E731
    each = Decay(0.5, learning_rate=rate(np.arange(10, 30.0))).exposure(steps)
    assert each[-1] == pytest.approx(0.5 * sum(rate(k) for k in range(10, 30)))
    np.testing.assert_allclose(Decay(0.5, learning_rate=rate).exposure(steps), each, rtol=1e-12)
    np.testing.assert_allclose(Decay(0.5, learning_rate=rate(steps)).exposure(steps), each, rtol=1e-12)
    np.testing.assert_allclose(Decay(0.5).exposure(steps, rate(steps)), each, rtol=1e-12)
    with pytest.raises(InvalidInput, match="rate"):
        Decay(0.5).exposure(steps)
    with pytest.raises(InvalidInput, match="4 checkpoints"):
        Decay(0.5, learning_rate=np.ones(7)).exposure(steps)
