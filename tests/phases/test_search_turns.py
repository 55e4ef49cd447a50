"""Searches for the first true point of a grid: answers, savings, contradictions."""

from hypothesis import given
from hypothesis import strategies as st

from thalweg.phases.search import first_true


def counted(truths):
    asked = []

    def ask(points):
        asked.extend(points)
        assert len(set(points)) == len(points)
        return [truths[seed](k) for seed, k in points]

    return ask, asked


@given(st.lists(st.integers(0, 81), min_size=1, max_size=4), st.integers(0, 80), st.integers(1, 10), st.integers(0, 3))
def test_one_turn_is_found_wherever_one_starts(turns, start, stride, probes):
    ask, asked = counted([lambda k, turn=turn: k >= turn for turn in turns])
    found = first_true(ask, [start] * len(turns), lowest=0, highest=80, stride=stride, probes=probes)
    for seed, (turn, one) in enumerate(zip(turns, found)):
        assert one.high == (None if turn > 80 else turn)
        assert one.low == (None if turn == 0 else turn - 1)
        assert not one.fallback
        assert one.asked == sum(i == seed for i, _ in asked)
    assert len(asked) == len(set(asked))
    assert len(asked) <= len(turns) * (16 + 2 * probes)


@given(st.sets(st.integers(0, 40)), st.integers(0, 40), st.integers(0, 3))
def test_whatever_the_indicator_a_seen_contradiction_gives_the_first_true_point(yes, start, probes):
    ask, asked = counted([lambda k: k in yes])
    (found,) = first_true(ask, [start], lowest=0, highest=40, probes=probes)
    if found.fallback:
        assert found.high == min(yes)
        assert {k for _, k in asked} >= set(range(min(yes) + 1))
    elif found.high is not None:
        assert found.high in yes  # a bracket of some turn
        assert found.low is None or found.low not in yes
    seen = [(k, k in yes) for _, k in asked]
    highest_false = max((k for k, true in seen if not true), default=-1)
    lowest_true = min((k for k, true in seen if true), default=41)
    assert found.fallback or highest_false < lowest_true


def test_an_island_near_the_turn_is_found_by_a_probe():
    ask, _ = counted([lambda k: k >= 30 or k == 28])
    (found,) = first_true(ask, [10], lowest=0, highest=60, probes=1)
    assert (found.low, found.high, found.fallback) == (27, 28, True)
    (missed,) = first_true(ask, [10], lowest=0, highest=60, probes=0)
    assert missed.high in (28, 30)


def test_the_neighbourhood_is_asked_at_once_and_an_island_in_it_found():
    rounds = []

    def ask(points):
        rounds.append(points)
        return [k >= 30 or k == 22 for _, k in points]

    (found,) = first_true(ask, [28], lowest=0, highest=60, probes=0, near=8)
    assert (found.low, found.high, found.fallback) == (21, 22, True)
    assert any(len(points) > 4 for points in rounds)
    (missed,) = first_true(ask, [28], lowest=0, highest=60, probes=0, near=7)
    assert (missed.high, missed.fallback) == (30, False)


def test_equal_strides_pass_no_island_that_is_wider():
    ask, _ = counted([lambda k: 33 <= k < 39])
    (found,) = first_true(ask, [10], lowest=0, highest=100, stride=5, growth=1, probes=0)
    assert found.high == 33
    (missed,) = first_true(ask, [10], lowest=0, highest=100, stride=5, growth=2, probes=0)
    assert missed.high is None


def test_what_is_known_is_not_asked_and_can_contradict():
    ask, asked = counted([lambda k: k >= 20])
    (found,) = first_true(ask, [19], lowest=0, highest=60, known=[{20: True}], probes=0)
    assert (found.high, asked) == (20, [(0, 19)])
    (found,) = first_true(ask, [19], lowest=0, highest=60, known=[{25: False, 20: True}], probes=0)
    assert found.fallback
    assert found.high == 20


def test_seeds_have_their_own_grids():
    ask, asked = counted([lambda k: k >= 3, lambda k: k >= 9])
    low, high = first_true(ask, [0, 0], lowest=[0, 5], highest=[2, 60])
    assert low.high is None
    assert low.low == 2
    assert high.high == 9
    assert all(k <= 2 for i, k in asked if i == 0)
    assert all(k >= 5 for i, k in asked if i == 1)
