"""Verdicts on regimes and thresholds follow from numbers, and can be otherwise."""

import numpy as np
from test_claim_scripts import load


def test_the_four_regimes_are_judged_by_their_order_and_by_the_control():
    claim = load("phase_four_regimes").CLAIM
    seen = {"seed": 0, "transient": 0.0, "saturation": 20.0, "sharpening": 90.0, "highest": 0.5}
    random = [seen | {"case": c, "edge": 900.0, "four": 1.0, "ratio": 1.0} for c in claim.cases if "random" in c]
    true = [seen | {"case": c, "edge": np.nan, "four": 0.0, "ratio": 0.5} for c in claim.cases if "true" in c]
    rows = random * 2 + true
    assert claim.judge(rows)[0] == "holds"
    missed = random[0] | {"four": 0.0, "saturation": np.nan}
    verdict, why = claim.judge([missed, *rows[1:]])
    assert verdict == "holds in kind"
    assert "3 of 4" in why
    assert "(1 without saturation)" in why
    assert claim.judge([row | {"edge": 900.0} for row in rows])[0] == "holds in kind"
    assert claim.judge([missed, missed, *rows[2:]])[0] == "not reproduced"
    assert claim.judge([row | {"ratio": 0.8} for row in rows])[0] == "not reproduced"


def test_a_run_is_cut_from_what_was_measured_on_it():
    claim = load("phase_four_regimes")
    claim.CASES["random, short"] = (True, 4.0, 60)
    numbers = claim.measure("random, short", 0)
    assert set(claim.CLAIM.units) <= set(numbers)
    assert numbers["transient"] == 0
    assert np.isnan(numbers["edge"])
    assert 0 < numbers["loss"] < 1


def test_thresholds_are_judged_by_every_run():
    claim = load("phase_edge_threshold").CLAIM
    kappa = {case: 38.0 if "Adam" in case else 2.0 for case in claim.cases}
    rows = [
        {"case": c, "seed": s, "kappa": kappa[c], "median": 1.02, "plain": 0.1} for c in claim.cases for s in (0, 1)
    ]
    verdict, why = claim.judge(rows)
    assert verdict == "holds"
    assert "12 of 12" in why
    assert "times 38 / eta for Adam" in why
    assert claim.judge([rows[0] | {"median": 1.15}, *rows[1:]])[0] == "holds in kind"
    assert claim.judge([rows[0] | {"median": 0.6}, *rows[1:]])[0] == "not reproduced"
    assert claim.judge([row | ({"median": 1.2} if row["seed"] else {}) for row in rows])[0] == "not reproduced"
