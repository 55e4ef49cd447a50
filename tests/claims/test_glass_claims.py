"""Verdicts on glass follow from the rules that stand in the scripts."""

import importlib.util
import sys
from pathlib import Path

import pytest

CLAIMS = Path(__file__).parent.parent.parent / "claims"


@pytest.fixture
def load(monkeypatch):
    """Scripts import ``_common`` and ``_glass`` beside them; benchmarks have a ``_common``, too."""
    monkeypatch.syspath_prepend(str(CLAIMS))
    held = {name: sys.modules.pop(name, None) for name in ("_common", "_glass")}

    def script(name):
        spec = importlib.util.spec_from_file_location(f"claims_{name}", CLAIMS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield script
    for name, module in held.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def rows(script, mean, power=4.0, spread=0.1, at=None):
    """Every run deviates by ``mean`` times the glass term, at length ``at`` by another multiple of it."""
    found = []
    for case in script.CLAIM.cases:
        for seed in range(3):
            row = {"case": case, "seed": seed, "power": power, "finite": 0.1}
            for t in script.LENGTHS:
                m = (at or {}).get(t, mean) + 0.01 * seed
                row |= {f"mean_{t:g}": m, f"error_{t:g}": spread, f"gain_{t:g}": abs(m) - abs(m - 1)}
            found.append(row)
    return found


def test_the_loss_change_is_judged_by_its_written_rule(load):
    script = load("glass_loss_change")

    def verdict(*told, **more):
        return script.CLAIM.judge(rows(script, *told, **more))[0]

    assert verdict(1.0) == "holds"
    assert verdict(5.0) == "holds in kind"  # nearer, with most of the error left
    assert verdict(0.6) == "holds in kind"
    assert verdict(0.003) == "not reproduced"  # zero-mean jumps
    assert verdict(-1.0) == "not reproduced"
    assert verdict(1.0, at={0.1: 0.003}) == "not reproduced"  # made worse at one length
    assert verdict(1.0, at={0.1: 0.49}) == "holds in kind"  # undecided at one
    assert verdict(1.0, spread=1.0) == "not reproduced"  # nothing is misjudged
    assert verdict(1.0, power=3.0) == "not reproduced"  # the control has kinks
    assert "repaired" in script.CLAIM.judge(rows(script, 1.0))[1]


def test_the_rule_is_for_seeds_of_its_own(load):
    script = load("glass_loss_change")
    assert script.FIRST_SEED == 1000
    assert any("transformer" in case for case in script.CLAIM.cases)
    assert "written down before" in script.__doc__


def test_terms_are_told_by_network_and_remainders_are_left_out(load):
    claim = load("glass_terms").CLAIM
    assert {"ReLU transformer", "GELU transformer"} <= {case.split(",")[0] for case in claim.cases}
    found = [
        {"case": case, "glass": 0.9 if case[0] == "R" else 0.0, "hessian": 0.1, "along": 0.3, "power": 1.0}
        for case in claim.cases
    ]
    assert claim.judge(found)[0] == "holds"
    found[0] |= {"glass": 0.2, "along": 40.0, "power": 3.9}  # smooth along the update: 40 is no glass
    verdict, why = claim.judge(found)
    assert verdict == "holds in kind"
    assert "0.3 to 0.3 of the Hessian's in the 7 of 8 runs" in why
    assert "ReLU transformer 90%, 10%" in why
    assert claim.judge([row | {"glass": 0.1} for row in found])[0] == "not reproduced"
