"""The page of claims is what the scripts saved, and verdicts follow from numbers."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

CLAIMS = Path(__file__).parent.parent.parent / "claims"
SCRIPTS = sorted(path.stem for path in CLAIMS.glob("*.py") if path.stem != "page" and path.stem[0] != "_")


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


def test_verdicts_on_trajectories_can_be_otherwise():
    claim = load("trajectory_momentum_decay").CLAIM
    values = {"neither": 0.99, "decay": 0.985, "momentum": 0.97, "both": 0.95, "rate x 10": 0.97}
    rows = [{"case": c, "seed": 0, "omega_off": values.get(c, 0.95), "null": values.get(c, 0.95)} for c in claim.cases]
    assert claim.judge(rows)[0] == "holds"
    assert "1.0 to 1.0 times" in claim.judge(rows)[1]
    no_more = [row | ({"omega_off": 0.966} if row["case"] == "both" else {}) for row in rows]
    assert claim.judge(no_more)[0] == "holds in kind"
    higher = [row | ({"omega_off": 0.98} if row["case"] == "both" else {}) for row in rows]
    assert claim.judge(higher)[0] == "not reproduced"

    judge = load("trajectory_saturation").CLAIM.judge
    row = {"settled": 0.2, "settled_walk": 0.5, "alike": 0.1, "alike_walk": 0.0}
    assert judge([row] * 3)[0] == "holds"
    assert judge([row, row, row | {"settled": 0.4}])[0] == "holds in kind"
    assert judge([row, row | {"settled_walk": 0.2}])[0] == "not reproduced"

    claim = load("trajectory_learning_rate").CLAIM
    falling = [{"case": c, "seed": 0, "omega_off": 0.9 - 0.1 * i, "relative": 0.8} for i, c in enumerate(claim.cases)]
    assert claim.judge(falling)[0] == "holds"
    bent = [row | ({"omega_off": 0.95} if i == 1 else {}) for i, row in enumerate(falling)]
    assert claim.judge(bent)[0] == "holds in kind"
    assert claim.judge([row | {"omega_off": -row["omega_off"]} for row in falling])[0] == "not reproduced"

    claim = load("trajectory_batch_size").CLAIM
    falling = [{"case": c, "seed": 0, "omega_off": 0.9 - 0.01 * i} for i, c in enumerate(claim.cases)]
    assert claim.judge(falling)[0] == "holds"
    steps = [row | ({"omega_off": 0.9} if "equal steps" in row["case"] else {}) for row in falling]
    assert claim.judge(steps)[0] == "holds in kind"

    claim = load("trajectory_freezing").CLAIM
    row = {"share": 0.995, "kept": 0.0, "random": 0.1, "stopped": 0.1, "flops": 0.7, "seconds": 0.8, "seed": 0}
    rows = [row | {"case": c, "kept": 0.3 if c.endswith("epoch 0") else 0.0} for c in claim.cases]
    assert claim.judge(rows)[0] == "holds"
    one = next(i for i, name in enumerate(claim.cases) if name.endswith("epoch 30"))
    assert claim.judge([r | ({"kept": 0.1} if i == one else {}) for i, r in enumerate(rows)])[0] == "holds in kind"
    assert claim.judge([r | {"kept": 0.3} for r in rows])[0] == "not reproduced"

    claim = load("trajectory_scale").CLAIM
    row = {"seed": 0, "exposure": 1.0, "null": 0.5}
    rows = [row | {"case": c, "omega_off": i / 99, "persistence": -i / 99} for i, c in enumerate(claim.cases)]
    assert claim.judge(rows)[0] == "holds"
    flat = [r | ({"omega_off": 0.5} if r["case"].startswith("one rate") else {}) for r in rows]
    assert claim.judge(flat)[0] == "holds in kind"
    raw = [r | ({} if r["case"].startswith("own rate, width") else {"omega_off": 0.5}) for r in rows]
    assert claim.judge(raw)[0] == "not reproduced"
