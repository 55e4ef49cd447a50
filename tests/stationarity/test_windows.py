"""Constant stretches of a schedule."""

import numpy as np
import pytest

from thalweg.errors import InvalidInput
from thalweg.stationarity.windows import Window, change_inside, filled, segments


def test_every_setting_cuts():
    steps = np.arange(100)
    rate = np.where(steps < 40, 0.1, 0.01)
    batch = np.where(steps < 70, 32.0, 64.0)
    found = segments(steps, {"learning_rate": rate, "batch_size": batch, "weight_decay": np.full(100, np.nan)})
    assert [(w.start, w.stop) for w in found] == [(0, 39), (40, 69), (70, 99)]
    assert found[2].settings == {"learning_rate": 0.01, "batch_size": 64.0}


def test_gaps_are_the_value_before():
    rate = np.full(50, np.nan)
    rate[[0, 30]] = 0.1, 0.2
    assert [(w.start, w.stop) for w in segments(np.arange(50), {"learning_rate": rate})] == [(0, 29), (30, 49)]
    assert filled(np.array([np.nan, np.nan])).shape == (2,)


def test_rounding_is_no_change_but_a_slow_schedule_is():
    rounded = np.float64(np.float32(0.1)) * (1 + 1e-9 * np.arange(100))
    assert len(segments(np.arange(100), {"learning_rate": rounded})) == 1
    cosine = 0.1 * np.cos(np.linspace(0, 1.5, 1000))
    found = segments(np.arange(1000), {"learning_rate": cosine})
    assert len(found) > 900  # drift within the tolerance does not add up
    assert sum(w.steps + 1 for w in found) == 1000


def test_a_change_inside_a_window_is_named():
    found = segments(np.arange(100), {"learning_rate": np.where(np.arange(100) < 40, 0.1, 0.01)})
    assert change_inside(Window(50, 90), found) is None
    assert "learning rate goes from 0.1 to 0.01 at step 40" in str(change_inside(Window(30, 90), found))


def test_bad_schedules():
    for steps, settings in (([], {}), ([1, 0], {}), ([0, 1], {"learning_rate": [0.1]})):
        with pytest.raises(InvalidInput, match="one value of each setting"):
            segments(steps, settings)
