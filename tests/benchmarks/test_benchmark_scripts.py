"""The benchmark scripts run, find our results right, and the page shows the committed numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


def script(name, *options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / name), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=550)


def load(name):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_the_page_shows_the_committed_tables():
    done = script("page.py", "--check")
    assert done.returncode == 0, "run `python benchmarks/page.py`"


def test_the_page_check_notices_a_changed_number(tmp_path):
    page = load("page")
    (tmp_path / "some.md").write_text("| 1.0 |\n")
    text = "before\n<!-- some -->\n| 2.0 |\n<!-- end some -->\nafter"
    assert page.fill(text, tmp_path) == "before\n<!-- some -->\n| 1.0 |\n<!-- end some -->\nafter"


def test_jobs_are_interleaved_and_paired_by_round():
    common = load("_common")
    calls = []
    times = common.interleave({name: lambda n=name: calls.append(n) for name in "abc"}, rounds=4, at_least=0.0)
    assert [len(times[name]) for name in "abc"] == [4, 4, 4]
    rounds = [calls[6 + 3 * r : 9 + 3 * r] for r in range(4)]  # two warm-up calls each come first
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len({tuple(order) for order in rounds}) > 1


def test_quartiles_of_known_numbers():
    spread = load("_common").Spread.of([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (spread.low, spread.median, spread.high) == (2.0, 3.0, 4.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["overhead", "hvp", "gauss_newton", "flows"])
def test_quick_runs_find_our_results_right(name, tmp_path):
    done = script(f"{name}.py", "--quick", "--save", "--out", tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["quick"] is True
    if name == "hvp":
        rows = [one["rows"]["thalweg"] for one in record["eigenpairs"]]
        assert len(rows) == 6
        assert all(row["right"] for row in rows)


@pytest.mark.slow
def test_a_wrong_result_of_ours_fails_the_run():
    hvp = load("hvp")
    row = {"right": False, "residual": 1.0, "error": 0.5}
    record = {"products": [], "eigenpairs": [{"case": "c", "k": 1, "rows": {"thalweg": row}}]}
    assert len(hvp.wrong(record)) == 1
    assert not hvp.wrong({"products": [], "eigenpairs": [{"case": "c", "k": 1, "rows": {"thalweg": {"right": True}}}]})
