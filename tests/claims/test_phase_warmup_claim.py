"""The verdict on the warm-up follows from the rows, and steps are counted from the losses."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

CLAIMS = Path(__file__).parent.parent.parent / "claims"


@pytest.fixture(scope="module")
def claim():
    sys.path.insert(0, str(CLAIMS))
    other = sys.modules.pop("_common", None)
    try:
        spec = importlib.util.spec_from_file_location("claims_phase_warmup", CLAIMS / "phase_warmup.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(CLAIMS))
        sys.modules.pop("_common", None)
        if other is not None:
            sys.modules["_common"] = other


def test_the_verdict_can_be_otherwise(claim):
    rows = [{"case": c, "seed": 0, "saved": 30.0, "later": 10.0, "expected": 50.0} for c in claim.CASES]
    assert claim.judge(rows)[0] == "holds"
    one = [rows[0] | {"saved": -1.0}, *rows[1:]]
    assert claim.judge(one)[0] == "holds in kind"
    half = [row | {"saved": -1.0 if i % 2 else 30.0} for i, row in enumerate(rows)]
    assert claim.judge(half)[0] == "not reproduced"
    diverged = [rows[0] | {"saved": math.nan}, *rows[1:]]
    assert "in 1 the ordinary ramp diverged" in claim.judge(diverged)[1]


def test_steps_are_counted(claim):
    losses = np.array([3.0, 2.0, 1.0, math.nan])
    assert claim.reached(losses, 2.0) == 2
    assert claim.reached(losses, 0.5) == 4
    assert math.isnan(claim.reached(losses, math.nan))
