"""The page of claims is what the scripts saved, and verdicts follow from numbers."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

CLAIMS = Path(__file__).parent.parent.parent / "claims"
SCRIPTS = sorted(path.stem for path in CLAIMS.glob("*.py") if path.stem not in ("_common", "page"))


def load(name):
    sys.path.insert(0, str(CLAIMS))
    other = sys.modules.pop("_common", None)  # benchmarks have one, too
    try:
        spec = importlib.util.spec_from_file_location(f"claims_{name}", CLAIMS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(CLAIMS))
        sys.modules.pop("_common", None)
        if other is not None:
            sys.modules["_common"] = other


def test_the_page_is_made_of_what_was_saved():
    done = subprocess.run([sys.executable, CLAIMS / "page.py", "--check"], check=False)
    assert done.returncode == 0, "run python claims/page.py"


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_has_saved_its_result_and_would_judge_it_so_again(name):
    claim = load(name).CLAIM
    record = json.loads((CLAIMS / "results" / f"{name}.json").read_text())
    assert claim.name == name
    assert record["statement"] == claim.statement
    assert {row["case"] for row in record["rows"]} == set(claim.cases)
    assert len({row["seed"] for row in record["rows"]}) >= 2
    assert claim.judge(record["rows"]) == (record["verdict"], record["why"])


def test_a_verdict_can_be_otherwise():
    judge = load("flow_progress_at_the_edge").CLAIM.judge
    row = {"run_rises": 0.2, "flow_rises": 0.0, "gained": 0.3}
    assert judge([row])[0] == "holds"
    assert judge([row, row | {"flow_rises": 0.02}])[0] == "holds in kind"
    assert judge([row | {"flow_rises": 0.2}])[0] == "not reproduced"
    judge = load("flow_time_averages").CLAIM.judge
    row = {"error": 0.02, "without": 0.01, "variance": 1.0}
    assert judge([row])[0] == "not reproduced"
