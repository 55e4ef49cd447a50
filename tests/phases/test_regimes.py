"""Segmentation of stored runs of known kinds, of curves made by hand, and of input that must be refused or noted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from regime_cases import case, maker, stored
from regime_expectations import EDGE, EXPECTED, SEEDS, arrived, called, holds, in_order, touches

from thalweg import rules
from thalweg.errors import InvalidInput
from thalweg.phases.regimes import segment
from thalweg.phases.regimes_labels import STATES, Piece, best_order, misfits
from thalweg.phases.regimes_segmenter import noise

COMES = ("random_c4", "random_c8", "nesterov", "sgd", "drop", "adam")
"""Kinds that are expected at the edge where they come to the threshold."""


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", EXPECTED)
def test_a_run_is_called_what_it_is(name, seed):
    good, found = holds(name, seed)
    assert good, (found, *found.segments, *found.catapults[:3])


def test_all_but_one_come_to_the_threshold():
    """The expectation of runs that do not arrive is no way out for the others."""
    short = [(n, s) for n in COMES for s in SEEDS if not arrived(case(n, s), 6000 if n == "drop" else np.inf)]
    assert short == [("drop", 1)]
    assert not any(touches(case(n, s)) for n in ("true", "catapult") for s in SEEDS)
    given = case("drop", 1)
    late = (given["sharpness_steps"] > 1000) & (given["sharpness_steps"] < 6000)
    ratio = given["sharpness"][late] * given["learning_rate"][0] / 2
    assert (np.diff(ratio) > 0).all()  # it rises all the way, and the rate drops before it is there
    assert 0.85 < ratio[-1] < 0.9


def test_the_stored_file_is_small_and_plain():
    from regime_cases import HERE

    assert (HERE / "regime_runs.npz").stat().st_size < 300_000
    assert set(stored()) == set(maker().KINDS)
    assert all(len(curves["loss"]) >= 4 for curves in stored().values())


@pytest.mark.slow
def test_a_run_made_afresh_is_the_stored_one():
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fresh = maker().make(maker().KINDS["catapult"], [1], steps=150)
    finally:
        torch.set_num_threads(threads)
    kept = stored()["catapult"]
    many = len(fresh["steps"])
    np.testing.assert_array_equal(fresh["steps"], kept["steps"][:many])
    np.testing.assert_allclose(fresh["loss"][0], kept["loss"][1, :151], rtol=2e-3)
    np.testing.assert_allclose(fresh["sharpness"][0], kept["sharpness"][1, :many], rtol=1e-3)


def curve(knots, values, end, points=90):
    """Return steps and a sharpness that is straight between knots on logarithmic axes."""
    t = np.unique(np.round(np.expm1(np.linspace(0, np.log1p(end), points))).astype(int))
    return t, np.exp(np.interp(np.log1p(t), np.log1p(knots), np.log(values)))


def noisy(end, seed=0, size=0.01):
    return np.exp(-np.arange(end + 1) / end + size * np.random.default_rng(seed).normal(size=end + 1))


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-5, 1e5), st.sampled_from(["random_c8", "cross_entropy", "heavy_ball", "drop", "sgd"]))
def test_sharpness_and_inverse_rate_may_be_scaled_together(scale, name):
    plain = case(name, 1)
    scaled = plain | {"sharpness": plain["sharpness"] * scale, "learning_rate": plain["learning_rate"] / scale}
    if "batch_sharpness" in plain:
        scaled["batch_sharpness"] = plain["batch_sharpness"] * scale
    one, other = segment(**plain), segment(**scaled)
    assert [(s.label, s.start, s.end) for s in one.segments] == [(s.label, s.start, s.end) for s in other.segments]
    np.testing.assert_allclose([s.confidence for s in one.segments], [s.confidence for s in other.segments])
    assert [(e.label, e.opened, e.closed) for e in one.catapults] == [
        (e.label, e.opened, e.closed) for e in other.catapults
    ]


def test_scaling_the_loss_changes_nothing():
    plain = case("random_c8", 2)
    assert segment(**plain).order == segment(**(plain | {"loss": 1e-4 * plain["loss"]})).order


@pytest.mark.parametrize("axis", ["steps", "sharpness_steps"])
def test_a_shuffled_axis_is_rejected(axis):
    given = case("random_c4", 2)
    given["steps"] = np.arange(len(given["loss"]))
    given[axis] = np.random.default_rng(0).permutation(given[axis])
    with pytest.raises(InvalidInput, match=r"(?i)steps goes back"):
        segment(**given)


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_values_are_not_interpreted(seed):
    given = case("random_c4", 2)
    given["sharpness"] = np.random.default_rng(seed).permutation(given["sharpness"])
    found = segment(**given)
    assert found.order == ("undetermined",)
    assert "no order in time" in found.flags


def test_a_repeated_step_is_rejected():
    with pytest.raises(InvalidInput, match="repeats"):
        segment([3, 2, 1], steps=[0, 1, 1])


def test_without_sharpness_little_is_said():
    given = case("random_c8", 2)
    found = segment(given["loss"], learning_rate=given["learning_rate"])
    assert set(found.order) == {"undetermined"}
    assert "no sharpness" in found.flags
    assert "not measured" in found.text


def test_without_a_rate_there_is_no_edge():
    given = case("random_c8", 2)
    del given["learning_rate"]
    found = segment(**given)
    assert EDGE not in found.order
    assert "sharpening" in found.order
    assert "learning rate is not known" in found.text


def test_missing_values_are_left_out_and_counted():
    given = case("random_c8", 2)
    whole = segment(**given)
    given["sharpness"] = given["sharpness"].copy()
    given["sharpness"][10:20] = np.nan
    given["sharpness"][30] = -1.0
    found = segment(**given)
    assert found.order == whole.order
    assert any(note.startswith("10 of") for note in found.notes)
    assert any("not positive" in note for note in found.notes)
    given["sharpness"] = np.full(len(given["sharpness"]), np.nan)
    assert "no sharpness" in segment(**given).flags


def test_sharpness_may_stand_beside_the_loss_with_gaps():
    given = case("random_c8", 2)
    beside = np.full(len(given["loss"]), np.nan)
    beside[given["sharpness_steps"]] = given["sharpness"]
    aligned = segment(**(given | {"sharpness": beside, "sharpness_steps": None}))
    assert aligned.segments == segment(**given).segments
    assert aligned.notes == ()


def test_small_batches_never_meet_the_edge_by_the_ratio_alone():
    """The same curve is the edge for full batches; for small ones the loss or the batch sharpness must say so."""
    t, lam = curve([0, 20, 200, 2000, 8000], [9, 2, 2, 20, 20], 8000)
    loss = noisy(8000)
    given = {"learning_rate": 0.1, "sharpness_steps": t, "rule": "gd", "samples": 300}
    assert segment(loss, lam, **given).order[-1] == EDGE
    small = segment(loss, lam, **given, batch_size=30)
    assert EDGE not in small.order
    assert "mini-batch" in small.flags
    assert any("Batch sharpness can" in note for note in small.notes)
    assert segment(loss, lam, **given, batch_size=30, batch_sharpness=lam).order[-1] == EDGE
    assert EDGE not in segment(loss, lam, **given, batch_size=30, batch_sharpness=0.3 * lam).order
    assert segment(loss, lam, **given, batch_size=300).order[-1] == EDGE
    thrown = loss.copy()
    for start in range(3000, 8000, 500):
        thrown[start : start + 40] *= 3
    seen = segment(thrown, lam, **given, batch_size=30)
    assert seen.order[-1] == EDGE
    assert EDGE not in segment(thrown, lam, **given, batch_size=30, batch_sharpness=0.3 * lam).order
    assert any("not from its ratio" in note for note in seen.notes)


def test_a_loss_that_never_rises_is_not_at_the_edge_below_it():
    t, lam = curve([0, 20, 200, 2000, 8000], [9, 2, 2, 18, 18], 8000)
    loss = np.exp(-np.arange(8001) / 4000)
    assert segment(loss, lam, 0.1, sharpness_steps=t, rule="gd").order[-1] == "saturation"
    assert segment(noisy(8000), lam, 0.1, sharpness_steps=t, rule="gd").order[-1] == EDGE


def test_the_threshold_of_the_rule_decides():
    t, lam = curve([0, 20, 200, 2000, 8000], [9, 2, 2, 20, 20], 8000)
    loss = noisy(8000)
    for rule, met in [("gd", True), ("heavy_ball", False), (rules.Nesterov(lr=0.1), False), ("adam", False)]:
        assert (segment(loss, lam, 0.1, sharpness_steps=t, rule=rule).order[-1] == EDGE) is met
    assert segment(loss, lam, 0.1, sharpness_steps=t, kappa=3.8).order[-1] != EDGE
    assert segment(loss, lam, sharpness_steps=t, threshold=20.0).order[-1] == EDGE


def test_a_slow_warm_up_is_counted_by_its_flow():
    """With the rate rising from zero, time by flow stretches the start less than plain steps would."""
    steps = np.arange(4001)
    rate = np.minimum(steps / 1000, 1.0) * 0.1
    flow = np.concatenate([[0], np.cumsum(rate[:-1])]) / 0.1
    lam = np.exp(np.interp(np.log1p(flow), np.log1p([0, 15, 150, 1500, 3500]), np.log([9, 2, 2, 20, 20])))
    at = np.unique(np.round(np.expm1(np.linspace(0, np.log1p(4000), 150))).astype(int))
    found = segment(noisy(4000), lam[at], rate, sharpness_steps=at, rule="gd")
    assert found.order == ("transient", "saturation", "sharpening", EDGE)
    assert found.segments[0].end > 100  # 15 units of flow, not of steps
    assert found.flags == ()


def test_a_jump_of_the_rate_begins_anew():
    found = segment(**case("drop", 2))
    assert "rate changed at 6000" in found.flags
    assert any(s.start == 6000 for s in found.segments)
    assert all(s.end < 6000 or s.start >= 6000 for s in found.segments)


def test_confidence_is_a_share_of_nine():
    found = segment(**case("random_c8", 2))
    np.testing.assert_allclose(found.agreement * 9, np.round(found.agreement * 9), atol=1e-12)
    assert found.agreement.min() >= 1 / 9  # the result itself is one of them
    assert len(found.labels) == len(found.curves.at)


def test_what_is_said_and_tabled():
    found = segment(**case("random_c8", 2))
    assert len(found.table()) == len(found.segments)
    assert found.at(found.segments[1].start) is found.segments[1]
    assert "edge of stability" in found.text
    assert "of the threshold" in found.text
    assert repr(found).startswith("Regimes(transient 0-")
    assert {"sharpness over threshold", "the threshold", "loss"} <= {trace.name for trace in found.plot().data}
    assert len(found.plot().layout.shapes) == 2 * len(found.segments)


def test_the_order_is_the_cheapest_of_all():
    """Viterbi against trying every sequence."""
    import itertools

    from thalweg.phases.regimes_labels import MOVES, NEVER, POINTS

    rng = np.random.default_rng(0)
    for _ in range(5):
        ends = np.sort(rng.uniform(1, 1e4, 5))
        pieces = [
            Piece(float(a), float(b), *rng.normal(size=2).tolist(), float(rng.uniform(0.1, 1.2)),
                  int(rng.integers(4, 40)), opens=bool(rng.integers(2)))
            for a, b in zip([0, *ends], ends)
        ]  # fmt: skip

        def price(sequence, pieces=pieces):
            cost = sum(max(1, p.points / POINTS) * misfits(p, 10)[s] for p, s in zip(pieces, sequence))
            for a, b, p in zip(sequence, sequence[1:], pieces[1:]):
                move = 0.0 if a == b else MOVES[a].get(b, NEVER)
                cost += (NEVER if move >= NEVER else 0.0) if p.opens else move
            return cost

        best = min(itertools.product(STATES, repeat=5), key=price)
        assert price(best_order(pieces, 10)) == pytest.approx(price(best))


def test_nothing_goes_back_into_the_transient():
    for name in stored():
        for seed in SEEDS:
            order = called(name, seed).order
            assert "transient" not in order[1:]


def test_noise_is_found():
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 4, 4000))
    assert noise(x, np.sin(x) + 0.02 * rng.normal(size=4000)) == pytest.approx(0.02, rel=0.06)


def test_divergence_after_a_normal_run():
    t, lam = curve([0, 20, 200, 2000], [9, 2, 2, 10], 2000)
    loss = noisy(2000)
    loss[1900:] = np.nan
    found = segment(loss, lam, 0.1, sharpness_steps=t, rule="gd")
    assert in_order(found.order, ("transient", "saturation", "sharpening", "diverged"))
    assert (found.segments[-1].start, found.segments[-1].end) == (1900, 2000)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": []}, "first loss"),
        ({"loss": [np.nan, 1]}, "first loss"),
        ({"loss": [[1.0]]}, "one curve"),
        ({"loss": ["a"]}, "no number"),
        ({"loss": [2, 1], "sharpness": [1, 2, 3]}, "3 values of sharpness"),
        ({"loss": [2, 1], "learning_rate": [0.1]}, "learning_rate"),
        ({"loss": [2, 1], "learning_rate": -0.1}, "negative"),
        ({"loss": [2, 1], "steps": [0, 0.5]}, "no step"),
        ({"loss": [2, 1], "steps": [0, 1, 2]}, "3 entries"),
        ({"loss": [2, 1], "batch_sharpness": [1, 1]}, "without sharpness"),
        ({"loss": [2, 1], "sharpness": [1, 1], "batch_sharpness": [1]}, "1 values of batch"),
        ({"loss": [2, 1], "sharpness": [1, 1], "threshold": -1.0}, "not positive"),
        ({"loss": [2, 1], "rule": "sam"}, "no rule"),
    ],
)
def test_bad_input_is_explained(settings, words):
    with pytest.raises(InvalidInput, match=words):
        segment(**settings)


def test_the_table_of_the_documentation_is_this_one():
    from regime_cases import HERE
    from regime_expectations import table

    assert table() in (HERE.parent.parent / "docs" / "regimes.md").read_text()
