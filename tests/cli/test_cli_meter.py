import io
import re

import pytest
from rich.console import Console

from thalweg.cli.meter import BarMeter, LineMeter, Pace, duration, make_meter


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def lines(steps, seconds_a_step, values, start=0):
    clock, out = Clock(), io.StringIO()
    meter = LineMeter(Console(file=out, width=40), clock=clock)
    meter.init(steps, start)
    for step in range(start, steps + 1):
        clock.now += seconds_a_step
        meter.step({"step": step} | values(step))
    meter.close()
    return out.getvalue().splitlines()


def test_plain_lines_come_at_every_tenth_and_are_never_broken():
    got = lines(100, 0.1, lambda t: {"loss": 1 / (t + 1), "sharpness": 3.0, "stability_threshold": 2.0})
    assert len(got) == 10
    assert got[0].startswith("step 10/100 (10%), 10 steps/s, 9 s left: loss 0.09091, sharpness 3 (150% of")
    assert got[-1].startswith("step 100/100 (100%)")


def test_a_slow_run_prints_before_its_first_tenth():
    got = lines(1000, 2.0, lambda t: {"loss": 1.0})
    assert got[0] == "step 7/1000 (1%), 0.5 steps/s, 33 min 6 s left: loss 1", "8 rows took 16 s"


def test_a_resumed_run_counts_its_own_pace():
    got = lines(100, 0.1, lambda t: {"loss": 1.0}, start=50)
    assert got[0].startswith("step 60/100 (60%), 10 steps/s, 4 s left")
    assert len(got) == 5


def test_between_measurements_the_last_sharpness_stands():
    def values(t):
        return {"loss": 1.0, "stability_threshold": 2.0} | ({"sharpness": 1.0} if t % 7 == 0 else {})

    assert all("sharpness 1 (50% of the threshold)" in line for line in lines(20, 0.1, values))


def test_a_run_of_no_steps_divides_by_nothing():
    assert lines(0, 0.1, lambda t: {"loss": 1.0}) == []


def test_the_pace_forgets_the_distant_past():
    clock = Clock()
    pace = Pace(1000, 0, clock)
    for step in range(1, 11):
        clock.now += 10.0
        pace.mark(step)
    for step in range(11, 411):
        clock.now += 0.1
        pace.mark(step)
    assert pace.rate == pytest.approx(10.0, rel=0.01)
    assert str(pace) == "10 steps/s, 59 s left"


def test_the_bar_shows_steps_loss_and_sharpness_and_ends_cleanly():
    out = io.StringIO()
    meter = make_meter(Console(file=out, force_terminal=True, width=80))
    assert isinstance(meter, BarMeter)
    meter.init(3)
    for step in range(4):
        meter.step({"step": step, "loss": 0.25, "sharpness": 1.0, "stability_threshold": 4.0})
    meter.close()
    assert re.search(r"━{20,}.*3/3", out.getvalue()), "there is room for the bar"
    assert "loss 0.25, sharpness 1 (25% of the threshold)" in out.getvalue()
    assert out.getvalue().endswith("\x1b[?25h"), "the cursor is shown again"


def test_a_pipe_gets_lines():
    assert isinstance(make_meter(Console(file=io.StringIO())), LineMeter)


def test_the_callback_comes_once_and_after_the_first_step():
    calls = []
    meter = LineMeter(Console(file=io.StringIO()), at_work=lambda: calls.append(1))
    meter.init(5)
    assert not calls
    for step in range(3):
        meter.step({"step": step, "loss": 1.0})
    assert calls == [1]


@pytest.mark.parametrize(("seconds", "text"), [(59.4, "59 s"), (59.6, "1 min 0 s"), (3599.7, "1 h 0 min")])
def test_durations_round_without_gaps(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("terminal", [True, False])
def test_closing_before_anything_began_is_fine(terminal):
    out = io.StringIO()
    make_meter(Console(file=out, force_terminal=terminal)).close()
    assert out.getvalue() == ""
