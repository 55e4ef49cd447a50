"""Excursions of the loss on curves made by hand: what opens, ends, merges, and what each is called."""

import numpy as np
import pytest

from thalweg.errors import InvalidInput
from thalweg.phases.catapults import find_catapults, step_noise


def judged(loss, sharpness=None, ratio=None, **settings):
    found = find_catapults(loss, sharpness=sharpness, ratio=ratio, **settings).events
    return [(e.label, e.opened, e.peak, e.closed) for e in found]


def test_a_falling_loss_has_no_event():
    assert judged(np.exp(-np.arange(50) / 10)) == []
    assert judged(np.exp(-np.arange(50) / 10) * (1 + 0.02 * (np.arange(50) % 2))) == []


LOSS = [1.0, 1.5, 2.0, 1.2, 0.9, 0.8, 0.7]


def test_sharpness_says_what_a_rise_is():
    falls, rises, stays = [9, 9, 5, 4, 3, 3, 3], [9, 9, 12, 4, 3, 3, 3], [9] * 7
    over, under = [1.2] * 7, [0.2] * 7
    assert judged(LOSS, falls, over) == [("catapult", 1, 2, 4)]
    assert judged(LOSS, rises, over) == [("loss-sharpness catapult", 1, 2, 4)]
    assert judged(LOSS, stays, over) == [("spike", 1, 2, 4)]
    assert judged(LOSS, falls, under) == [("spike", 1, 2, 4)]
    assert judged(LOSS, falls, under, momentum=True) == [("momentum wiggle", 1, 2, 4)]
    assert judged(LOSS, falls, over, momentum=True) == [("catapult", 1, 2, 4)]
    assert judged(LOSS) == [("spike", 1, 2, 4)]


def test_evidence_is_kept():
    (event,) = find_catapults(LOSS, sharpness=[9, 9, 12, 4, 3, 3, 3], ratio=[0.9, 0.9, 1.2, 0.4, 0.3, 0.3, 0.3]).events
    assert (event.before, event.inside, event.after, event.ratio, event.height) == (9, 12, 3, 1.2, 2.0)


def test_sparse_sharpness_is_taken_from_before_and_after():
    found = find_catapults(LOSS, sharpness=[9.0, 3.0], sharpness_steps=[0, 6], ratio=[1.1, 0.4]).events
    assert (found[0].label, found[0].before, found[0].after) == ("catapult", 9.0, 3.0)


@pytest.mark.parametrize("last", [np.nan, np.inf, 1e9])
def test_a_loss_that_leaves_has_diverged(last):
    assert judged([1.0, 0.5, 2.0, 30.0, last]) == [("diverged", 2, 4, None)]


def test_divergence_at_the_last_step_and_at_the_first():
    assert judged([1.0, 0.9, 0.8, np.inf])[0][0] == "diverged"
    assert judged([1.0, np.nan]) == [("diverged", 1, 1, None)]


def test_unresolved_is_not_diverged_below_the_cutoff():
    assert judged([1.0, 0.5, 0.9, 0.8]) == [("spike", 2, 2, None)]
    assert judged([1.0, 0.5, 0.9, 0.8], cutoff=0.7) == [("diverged", 2, 2, None)]


def test_close_events_are_one():
    gap = lambda n: [1.0, 1.2, 0.9, *np.linspace(0.89, 0.8, n), 1.5, 0.7]  # noqa: E731
    assert len(judged(gap(1))) == 1
    assert judged(gap(1))[0] == ("spike", 1, 4, 5)
    assert len(judged(gap(8))) == 2


def test_the_first_step_may_throw():
    assert judged([1.0, 5.0, 0.1], [20, 15, 2], [3.0, 2.0, 0.3]) == [("catapult", 1, 1, 2)]


def test_scaling_the_loss_changes_nothing():
    rng = np.random.default_rng(0)
    loss = np.exp(-np.arange(300) / 100 + 0.1 * rng.normal(size=300))
    assert judged(loss) == judged(1e-6 * loss)
    assert judged(loss, full_batch=False) == judged(64 * loss, full_batch=False)


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_is_no_event(seed):
    rng = np.random.default_rng(seed)
    t = np.arange(3000)
    loss = np.exp(-t / 1500 + 0.3 * rng.normal(size=len(t)))
    found = find_catapults(loss, full_batch=False)
    assert found.events == ()
    assert found.delta > 0.5
    assert find_catapults(loss).events  # the plain rule takes noise for an event
    loss[1500:1530] *= 30
    assert [1490 <= e.opened <= 1505 for e in find_catapults(loss, full_batch=False).events] == [True]


def test_noise_is_that_of_single_steps():
    rng = np.random.default_rng(1)
    loss = np.exp(0.1 * rng.normal(size=20_000))
    # The difference of two draws has a deviation of 0.1 sqrt 2, and a median absolute one of 0.6745 of that.
    assert step_noise(loss) == pytest.approx(np.expm1(0.6745 * 0.1 * np.sqrt(2)), rel=0.03)


@pytest.mark.parametrize(
    ("loss", "settings"),
    [([np.nan, 1.0], {}), ([], {}), ([1.0, 2.0], {"steps": [1, 0]}), ([1.0, 2.0], {"steps": [0]})],
)
def test_bad_input_is_explained(loss, settings):
    with pytest.raises(InvalidInput):
        find_catapults(loss, **settings)
