"""Block permutation of two windows: the statistics against loops, the level and power that are stated, the refusals."""

import itertools
import math

import numpy as np
import pytest

from reference import series as naive
from thalweg.errors import InvalidInput
from thalweg.stationarity import refusals
from thalweg.stationarity.two_sample import block_test, holm, slowest
from thalweg.stationarity.two_sample_statistics import DIRECTIONS, STATISTICS, BlockStatistic, dealings


def weights(n, m, block):
    return np.array([[1 / (n * block)] * n + [-1 / (m * block)] * m])


@pytest.mark.parametrize(("n", "m"), [(12, 12), (8, 16)])
def test_statistics_are_those_of_the_loops(n, m, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((n, 3)), 1 + rng.standard_normal((m, 3))
    points, blocks = np.concatenate([a, b]), weights(n // 4, m // 4, 4)
    energy = BlockStatistic(points, 4, "energy", rng)
    assert energy(blocks)[0] == pytest.approx(naive.energy(a, b))
    mmd = BlockStatistic(points, 4, "mmd", rng)
    pairs = [math.dist(p, q) for p, q in itertools.combinations(points, 2)]
    assert mmd.width == pytest.approx(np.median(pairs))
    assert mmd(blocks)[0] == pytest.approx(naive.mmd(a, b, mmd.width))
    assert energy.scale == pytest.approx(np.mean(pairs))
    if n == m:
        directions = np.random.default_rng(5).standard_normal((3, DIRECTIONS))
        directions /= np.linalg.norm(directions, axis=0)
        sliced = BlockStatistic(points, 4, "sliced", np.random.default_rng(5))
        assert sliced(blocks)[0] == pytest.approx(naive.sliced(a, b, directions))
        apart = [np.abs((p - q) @ directions).mean() for p, q in itertools.combinations(points, 2)]
        assert sliced.scale == pytest.approx(np.mean(apart))


def test_strips_and_chunks_change_nothing(monkeypatch, seed):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((120, 4))
    given = np.where(dealings(5, 7, 30, rng), 1 / 50, -1 / 70)
    whole = {kind: BlockStatistic(points, 10, kind, np.random.default_rng(1)) for kind in STATISTICS}
    wanted = {kind: measure(given) for kind, measure in whole.items()}
    monkeypatch.setattr("thalweg.stationarity.two_sample_statistics._NUMBERS", 3700)
    for kind in STATISTICS:
        assert BlockStatistic(points, 10, kind, np.random.default_rng(1))(given) == pytest.approx(wanted[kind])


def test_dealings_are_even():
    found = dealings(4, 6, 4000, np.random.default_rng(0))
    assert (found.sum(1) == 4).all()
    assert found.mean(0) == pytest.approx(np.full(10, 0.4), abs=0.04)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_p_is_the_rank_among_dealings(statistic, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((200, 2)), 0.2 + rng.standard_normal((300, 2))
    found = block_test(a, b, statistic=statistic, permutations=199, seed=3)
    assert found.refused is None
    assert found.p == (1 + (found.permuted >= found.statistic).sum()) / 200
    assert found.block == math.ceil(5 * found.tau - 1e-9)
    assert found.blocks == (200 // found.block, 300 // found.block)
    assert found.snapshots == (found.blocks[0] * found.block, found.blocks[1] * found.block)
    again = block_test(a, b, statistic=statistic, permutations=199, seed=3)
    assert (again.permuted == found.permuted).all()
    assert found.plot().layout.xaxis.title.text == f"{statistic} distance"
    assert f"{statistic} distance" in repr(found)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_units_and_still_coordinates_do_not_matter(statistic, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((100, 2)), rng.standard_normal((100, 2))
    want = block_test(a, b, statistic=statistic, permutations=99)
    still = np.full((100, 1), 7.0)
    scaled = [np.concatenate([x * [1e-20, 1e9] + [0, 5], still], axis=1) for x in (a, b)]
    found = block_test(*scaled, statistic=statistic, permutations=99)
    assert found.p == pytest.approx(want.p)
    assert found.effect == pytest.approx(want.effect, rel=1e-6)


def test_effect_and_yardstick():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 2000, 3))
    alike = block_test(a, b, permutations=99)
    assert alike.effect < 0.004
    assert 0.5 < alike.yardstick / alike.effect < 8, "half as long, and so about twice as far by chance"
    far = [block_test(a[:500], 1000 + b[:500], statistic=s, permutations=99) for s in STATISTICS]
    assert [found.effect for found in far] == pytest.approx([4, 4, 2], rel=0.02)
    assert all(found.p == 0.01 for found in far)
    drifting = a + np.linspace(0, 3, 2000)[:, None]
    moving = block_test(drifting, drifting + 3, permutations=99, block=50, strict=False)
    assert moving.yardstick > 50 * alike.yardstick


def test_block_length_does_not_grow_with_the_shift():
    """A shift between the windows is what is to be found; it must not pass for correlation."""
    a, b = np.random.default_rng(0).standard_normal((2, 400, 2))
    assert slowest(a, b + 10) == pytest.approx(slowest(a, b))


def test_a_flipping_sign_does_not_hide_a_slow_amplitude(seed):
    """The oscillation at the edge of stability: uncorrelated values, and an amplitude that remembers for long."""
    rng = np.random.default_rng(seed)
    amplitude = np.exp(naive.ar1(40.0, 800, rng))
    x = amplitude * (-1.0) ** np.arange(800)
    found = block_test(x[:400], x[400:])
    assert found.tau > 8
    assert found.refused is not None


def test_rejects_what_differs_in_spread_alone(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((300, 2)), 1.6 * rng.standard_normal((300, 2))
    assert {block_test(a, b, statistic=s).p for s in STATISTICS} == {0.002}


def test_heavy_tails_keep_the_level_and_ranks_the_power(seed):
    rng = np.random.default_rng(seed)
    level, plain, ranks = [], [], []
    for i in range(100):
        a, b = naive.ar1(2.0, 400, rng, 2, rng.standard_cauchy).reshape(2, 200, 2)
        level.append(block_test(a, b, permutations=99, seed=i).p)
        moved = b + 1.5
        plain.append(block_test(a, moved, permutations=99, seed=i, block=12, strict=False).p)
        ranks.append(block_test(a, moved, permutations=99, seed=i, block=12, strict=False, scale="ranks").p)
    known = np.array(level)[~np.isnan(level)]
    assert len(known) > 60
    assert np.mean(known <= 0.05) < 0.15
    assert np.mean(np.array(ranks) <= 0.05) > 0.8
    assert np.mean(np.array(ranks) <= 0.05) >= np.mean(np.array(plain) <= 0.05)


A = np.random.default_rng(0).standard_normal((200, 2))


def broken(at):
    x = A.copy()
    x[at, 1] = np.nan
    return x


REFUSED = [
    (A[:10], A[:10], refusals.too_few("the windows", 10)),
    (A, A[:49], refusals.too_few("the windows", 49)),
    (A, broken(5), refusals.not_finite("the windows", 1, 400, 205)),
    (np.ones(200), np.ones(200), refusals.constant("the windows", 1.0)),
    (np.ones(200), np.full(200, 2.0), refusals.constants("the windows", 1.0, 2.0)),
]


@pytest.mark.parametrize(("a", "b", "sentence"), REFUSED)
@pytest.mark.parametrize("strict", [True, False])
def test_refusals_are_the_sentences(a, b, sentence, strict):
    found = block_test(a, b, strict=strict)
    assert found.refused == sentence
    assert math.isnan(found.p)
    assert math.isnan(found.statistic)
    assert found.permuted.size == 0
    assert repr(found) == f"BlockTest refused: {sentence}"
    assert found.plot().layout.title.text == sentence.split(". ")[0]


def test_refuses_too_few_blocks_and_says_what_would_do(seed):
    rng = np.random.default_rng(seed)
    x = naive.ar1(9.0, 400, rng, 8)
    found = block_test(x[:200], x[200:])
    assert found.refused == refusals.too_few_blocks(200, found.tau, found.block, found.blocks[0])
    assert found.blocks[0] < 10
    assert found.needed == 10 * found.block
    assert str(found.needed) in found.refused
    assert math.isnan(found.p)


def test_refuses_short_blocks_unless_told_not_to(seed):
    rng = np.random.default_rng(seed)
    x = naive.ar1(9.0, 400, rng, 8)
    found = block_test(x[:200], x[200:], block=10)
    assert found.refused == refusals.too_short_blocks(found.tau, 10)
    assert math.isnan(found.p)
    anyway = block_test(x[:200], x[200:], block=10, strict=False)
    assert anyway.refused == found.refused
    assert 0 < anyway.p <= 1
    assert "Against the rules" in repr(anyway)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((A, A[:, :1])), r"shapes \(200, 2\) and \(200, 1\)"),
        ((np.zeros((3, 3, 3)), np.zeros((3, 3, 3))), "shapes"),
        ((A[:0], A), "shapes"),
    ],
)
def test_shapes_that_do_not_fit(arguments, words):
    with pytest.raises(InvalidInput, match=words):
        block_test(*arguments)


@pytest.mark.parametrize(
    "settings", [{"statistic": "wasserstein"}, {"scale": "none"}, {"permutations": 50}, {"block": 0}]
)
def test_bad_settings(settings):
    with pytest.raises(InvalidInput):
        block_test(A, A, **settings)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    found = holm([0.02, math.nan, 0.5])
    assert found[[0, 2]].tolist() == pytest.approx([0.04, 0.5])
    assert np.isnan(found[1]), "a refused test is not one of the family"
    assert holm([]).size == 0
    with pytest.raises(InvalidInput, match="between 0 and 1"):
        holm([0.1, 1.5])


def test_holm_keeps_the_familywise_level():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=(4000, 10))
    assert np.mean([(holm(row) < 0.05).any() for row in p]) == pytest.approx(0.05, abs=0.012)


TABLE = {
    1: (0.07, 0.06, 0.05, 0.08, 0.03),
    3: (0.80, 0.17, 0.15, 0.05, 0.03),
    9: (1.00, 0.67, 0.27, 0.18, 0.07),
    19: (1.00, 0.94, 0.66, 0.32, 0.08),
    39: (1.00, 1.00, 0.92, 0.61, 0.22),
}
"""Rejection rates at nominal 5 % of blocks of 1, 5, 10, 20, 50: windows of 200, eight AR(1) coordinates."""


def rate(tau, n, rng, repeats, permutations=99, **settings):
    p = []
    for i in range(repeats):
        x = naive.ar1(tau, 2 * n, rng, 8)
        p.append(block_test(x[:n], x[n:], permutations=permutations, seed=i, **settings).p)
    return np.array(p)


@pytest.mark.slow
@pytest.mark.parametrize("tau", TABLE)
def test_simulated_levels(tau, seed):
    """Within three standard errors of both simulations, the stated one of about 100 windows or more."""
    rng = np.random.default_rng(seed)
    for block, stated in zip((1, 5, 10, 20, 50), TABLE[tau]):
        found = np.mean(rate(float(tau), 200, rng, 150, block=block, strict=False) <= 0.05)
        spread = math.sqrt(max(stated * (1 - stated), 0.02) * (1 / 150 + 1 / 100))
        print(f"tau {tau}, blocks of {block}: {found:.3f}, stated {stated}")
        assert abs(found - stated) < 3 * spread


@pytest.mark.slow
@pytest.mark.parametrize("tau", [1.0, 3.0, 9.0])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_level_of_blocks_five_times_as_long_as_the_correlation(tau, statistic, seed, monkeypatch):
    """About 0.07, which 400 pairs of windows tell from 0.10."""
    monkeypatch.setattr("thalweg.stationarity.two_sample_statistics.DIRECTIONS", 16)
    rng, block = np.random.default_rng(seed), int(5 * tau)
    repeats = 600 if statistic == "energy" else 400
    p = rate(tau, 12 * block, rng, repeats, statistic=statistic, block=block, strict=False)
    print(f"{statistic}, tau {tau}: level {np.mean(p <= 0.05):.3f}")
    assert np.mean(p <= 0.05) < 0.10


@pytest.mark.slow
def test_level_where_the_correlation_is_estimated(seed):
    """What a user gets: some windows refused, and of the others fewer than one in ten rejected."""
    p = rate(3.0, 300, np.random.default_rng(seed), 1000)
    known = p[~np.isnan(p)]
    print(f"refused {1 - len(known) / 1000:.3f}, level {np.mean(known <= 0.05):.3f}")
    assert len(known) > 800
    assert np.mean(known <= 0.05) < 0.10
    assert np.isnan(rate(3.0, 100, np.random.default_rng(seed), 50)).mean() > 0.95, "33 tau are too few"


@pytest.mark.slow
def test_power_as_stated(seed):
    """tau 9, blocks of 20, windows of 200: a shift of 0.5 and 1 sd in one of eight coordinates, spread times 1.4."""
    rng = np.random.default_rng(seed)

    def power(change):
        p = []
        for i in range(150):
            x = naive.ar1(9.0, 400, rng, 8)
            p.append(block_test(x[:200], change(x[200:]), block=20, strict=False, permutations=99, seed=i).p)
        return np.mean(np.array(p) <= 0.05)

    one = np.eye(8)[0]
    found = [power(lambda x: x + 0.5 * one), power(lambda x: x + one), power(lambda x: 1.4 * x)]
    print(found)
    assert found == pytest.approx([0.33, 0.65, 0.57], abs=3 * math.sqrt(0.25 * (1 / 150 + 1 / 100)))
