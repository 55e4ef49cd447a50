"""Which steps are recorded: the rules against a brute-force list, and the counts that a prediction needs."""

import pytest

from thalweg.errors import InvalidInput
from thalweg.runs.retention import Retention

CASES = [
    Retention(),
    Retention(every=1),
    Retention(every=7, keep=3),
    Retention(every=10, keep="sketches"),
    Retention(every=100, schedule="log"),
    Retention(every=12, schedule="log", keep=2, bursts=(3, 10)),
    Retention(schedule=(5, 9, 30), keep=2),
    Retention(every=50, bursts=(8, 8)),
]


@pytest.mark.parametrize("retention", CASES, ids=repr)
@pytest.mark.parametrize("steps", [0, 1, 9, 10, 60, 131])
def test_counts_are_what_is_kept(retention, steps):
    due = [step for step in range(steps + 1) if retention.due(step)]
    assert [retention.order(step) for step in due] == list(range(len(due)))
    kept = {step for step in range(steps + 1) if retention.weights(step)} | {steps}
    sketches = sum(map(retention.sketch, range(steps + 1)))
    assert retention.counts(steps)[0] == len(kept)
    if retention.keep == "all" and retention.bursts is not None and retention.bursts[0] < retention.bursts[1]:
        assert retention.counts(steps)[1] == sketches
    else:  # a due step of a burst is counted twice
        assert sketches <= retention.counts(steps)[1] <= sketches + (0 if retention.bursts is None else len(due))
    assert kept - {steps} <= set(due)
    assert 0 in kept


def test_pythia_published_these_steps():
    retention = Retention(every=1000, schedule="log")
    due = [step for step in range(143_001) if retention.due(step)]
    assert due == [0, *(2**i for i in range(10)), *range(1000, 143_001, 1000)]
    assert len(due) == 154


def test_a_burst_needs_the_point_before_it():
    retention = Retention(every=1000, bursts=(64, 1000))
    assert [s for s in range(1200) if retention.burst(s)] == [*range(65), *range(1000, 1065)]
    assert [s for s in range(1200) if retention.looks(s)] == [*range(65), *range(1000, 1065)]
    assert retention.counts(1199) == (3, 130)


@pytest.mark.parametrize(
    "settings",
    [
        {"every": 0},
        {"every": 1.5},
        {"schedule": "cubic"},
        {"schedule": (1, -2)},
        {"keep": "some"},
        {"keep": 0},
        {"bursts": (10, 5)},
        {"bursts": 64},
        {"bursts": (0, 5)},
    ],
    ids=repr,
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InvalidInput, match="says which steps are recorded"):
        Retention(**settings)
