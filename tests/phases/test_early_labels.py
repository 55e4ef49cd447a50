"""Phases of hand-made curves: every label, both windows, NaN, infinity, divergence at the last step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.errors import InvalidInput
from thalweg.phases.labels import (
    Phase,
    cutoff_for,
    diverges,
    loss_rises,
    phase_of,
    sharpness_rises,
    sharpness_steps,
)

FALLS, RISES = [1.0, 0.9, 0.8, 0.7], [1.0, 2.0, 0.9, 0.5]
FLAT, SHARPER = [5.0, 5.0, 4.0, 3.0], [5.0, 5.1, 4.0, 3.0]


@pytest.mark.parametrize(
    ("loss", "sharpness", "phase"),
    [
        (FALLS, FLAT, Phase.REDUCTION),
        (RISES, FLAT, Phase.LOSS_CATAPULT),
        (RISES, SHARPER, Phase.CATAPULT),
        (FALLS, SHARPER, Phase.INCREASE),
        ([1, 2, 3, 2e5], FLAT, Phase.DIVERGENCE),
        ([1, 0.9, 0.8, np.nan], FLAT, Phase.DIVERGENCE),
        ([1, 0.9, np.inf, 0.5], FLAT, Phase.DIVERGENCE),
        ([1, 2, np.inf, np.inf], [5, np.nan, np.nan, np.nan], Phase.DIVERGENCE),
    ],
)
def test_each_phase(loss, sharpness, phase):
    assert phase_of(loss, sharpness) is phase


def test_divergence_at_the_last_step_counts_and_the_start_does_not():
    assert diverges([1, 1, 1, 1.0001e5])
    assert not diverges([1, 1, 1, 1e5])
    assert not diverges([2e5, 1, 1, 1])
    assert diverges([1, 3, 1], cutoff=2)
    assert (cutoff_for(64), cutoff_for(4096)) == (1e5, 2e5)


def test_equal_is_no_rise_and_eps_is_relative():
    assert not loss_rises([1.0, 1.0, 1.0])
    assert sharpness_rises([1, 1, 1], [2.0, 2.0, 2.0]) is False
    assert sharpness_rises([1, 1, 1], [2.0, 2.09, 2.0]) is True
    assert sharpness_rises([1, 1, 1], [2.0, 2.09, 2.0], eps_sharp=0.05) is False


def test_the_window_of_a_catapult_ends_after_the_peak():
    late = [10.0] * 3 + [11.0] * 8  # progressive sharpening, from step 3 on
    falls = np.linspace(1, 0.1, 11)
    assert phase_of(falls, late) is Phase.INCREASE
    assert phase_of(falls, [*late[:2], 10, 10, *late[4:]], window="catapult") is Phase.REDUCTION
    peak = np.array([1, 2, 3, 2, 0.9, 0.8, 5, 0.5, 0.4, 0.3, 0.2])
    assert sharpness_steps(peak, "catapult") == 3  # one after the peak of the first excursion
    assert sharpness_steps(peak) == 10
    growing = np.array([1, 0.9, 1.1, 1.2, 1.5, 1.4, 0.9, 1, 1, 1, 1])
    assert sharpness_steps(growing, "catapult") == 5  # the peak may lie beyond step 3
    assert sharpness_steps([1, 2], "catapult") == 1
    assert not loss_rises([1, 0.9, 0.9, 0.9, 2], "catapult")


def test_sharpness_that_was_not_measured_is_unknown_until_it_rises():
    nan = np.nan
    assert sharpness_rises(FALLS, [5, 4, nan, 3]) is None
    assert sharpness_rises(FALLS, [5, 6, nan, nan]) is True
    with pytest.raises(InvalidInput, match="NaN at a step"):
        phase_of(FALLS, [5, 4, nan, 3])
    with pytest.raises(InvalidInput, match="at initialisation is nan"):
        sharpness_rises(FALLS, [nan, 4, 3, 3])


def test_bad_curves_are_refused():
    with pytest.raises(InvalidInput, match="shape"):
        diverges([1.0])
    with pytest.raises(InvalidInput, match="window"):
        loss_rises(FALLS, "late")
    with pytest.raises(InvalidInput, match="same steps"):
        phase_of(FALLS, FLAT[:3])


curves = st.lists(st.floats(1e-3, 1e6), min_size=3, max_size=11)


@given(curves, curves, st.floats(-9, 9), st.floats(-9, 9))
def test_a_phase_does_not_depend_on_units(loss, sharpness, a, b):
    size = min(len(loss), len(sharpness))
    loss, sharpness = np.array(loss[:size]), np.array(sharpness[:size])
    one, two = 2.0 ** np.round(a), 2.0 ** np.round(b)  # exact scales
    for window in ("paper", "catapult"):
        plain = phase_of(loss, sharpness, window=window)
        assert phase_of(loss * one, sharpness * two, cutoff=1e5 * one, window=window) is plain


@given(curves, curves)
def test_the_label_is_what_the_indicators_say(loss, sharpness):
    size = min(len(loss), len(sharpness))
    loss, sharpness = loss[:size], sharpness[:size]
    names = {
        (False, False): Phase.REDUCTION,
        (True, False): Phase.LOSS_CATAPULT,
        (True, True): Phase.CATAPULT,
        (False, True): Phase.INCREASE,
    }
    own = names[max(loss[1:]) > loss[0], max(sharpness[1:]) > sharpness[0]]
    assert phase_of(loss, sharpness) is (Phase.DIVERGENCE if max(loss[1:]) > 1e5 else own)
