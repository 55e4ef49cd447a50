"""Cells and plans: what makes two cells the same, and what a seed depends on."""

import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.errors import InvalidInput
from thalweg.sweeps.cells import Cell, canonical
from thalweg.sweeps.plan import plan

scalars = st.one_of(
    st.text(max_size=8), st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
)
rows = st.dictionaries(st.text(min_size=1, max_size=5).filter(str.strip), scalars, min_size=1, max_size=4)


@given(rows)
def test_a_cell_is_what_its_values_are(values):
    cell = Cell(values)
    assert cell == Cell(dict(reversed(values.items())))
    assert cell.key == Cell({**values, "more": None}).key
    again = pickle.loads(pickle.dumps(cell))
    assert (again.key, again.seed, dict(again.values)) == (cell.key, cell.seed, dict(cell.values))
    stored = Cell(json.loads(json.dumps(dict(cell.values))))
    assert stored == cell
    assert 0 <= cell.seed < 2**63


@given(rows, rows)
def test_other_values_are_another_cell(one, other):
    def exact(row):  # 1 == 1.0 here and there; True == 1 in Python only
        return {(name, isinstance(value, bool), value) for name, value in row.items()}

    same = exact(one) == exact(other)
    assert (Cell(one) == Cell(other)) == same
    assert (Cell(one).seed == Cell(other).seed) == same


def test_keys_and_seeds_are_the_same_in_every_process():
    code = "from thalweg.sweeps.cells import Cell; c = Cell({'b': 0.1, 'a': 'x'}, '1'); print(c.key, c.seed)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    cell = Cell({"a": "x", "b": 0.1}, "1")
    assert found == [cell.key, str(cell.seed)]


def test_the_key_is_the_hash_of_the_canonical_text():
    import hashlib

    text = '"v"\n{"a":1,"b":0.1,"c":true,"d":"x"}'
    cell = Cell({"d": "x", "b": 0.1, "a": 1.0, "c": True, "e": None}, "v")
    assert canonical(cell.values) == text.split("\n")[1]
    assert cell.key == hashlib.sha256(text.encode()).hexdigest()


def test_a_version_changes_the_key_and_not_the_seed():
    one, other = plan(a=[1, 2]), plan(a=[1, 2]).versioned("mine-2")
    assert one.key != other.key
    assert all(x.key != y.key and x.seed == y.seed for x, y in zip(one, other))


@pytest.mark.parametrize("value", [math.nan, math.inf, [1], {"a": 1}, object(), np.array([1, 2]), 1j])
def test_values_that_are_no_scalars_are_refused(value):
    with pytest.raises(InvalidInput, match="The axis width has the value"):
        plan(width=[value])


def test_numpys_scalars_are_pythons():
    found = plan(width=np.array([1, 2]), lr=np.linspace(0.5, 1, 2), on=[np.bool_(True)])
    assert found == plan(width=[1, 2], lr=[0.5, 1.0], on=[True])
    assert [type(value) for value in found.cells[0].values.values()] == [int, float, bool]


def test_an_axis_of_numbers_has_one_type():
    found = plan(lr=[0.5, 1, 2], width=[64, 128], mixed=[1, "x"], batch=[None, 1.5])
    assert found.axes == {"lr": (0.5, 1.0, 2.0), "width": (64, 128), "mixed": (1, "x"), "batch": (None, 1.5)}
    assert {type(cell["lr"]) for cell in found} == {float}
    assert {type(cell["width"]) for cell in found} == {int}


def test_explicit_cells_and_conditions():
    rules = [{"rule": "sgd", "momentum": 0.9}, {"rule": "sgd", "momentum": 0.0}, {"rule": "adam"}]
    found = plan(rules, lr=[0.1, 0.2])
    assert len(found) == 6
    assert found.axes == {"rule": ("sgd", "adam"), "momentum": (0.9, 0.0, None), "lr": (0.1, 0.2)}
    assert found.where(lambda cell: cell["rule"] == "adam").axes["momentum"] == (None,)
    assert found.cells[-1] == Cell({"rule": "adam", "lr": 0.2}, found.version)
    assert dict(**found.cells[0]) == {"rule": "sgd", "momentum": 0.9, "lr": 0.1}
    assert "6 not in the plan" in repr(found)
    assert len(plan(iter(rules), lr=(x for x in (0.1, 0.2)))) == 6
    flags = plan(a=[True, 1, False, 0])
    assert flags.axes["a"] == (True, 1, False, 0)


def test_plans_add_and_know_their_cells_whatever_the_order():
    both = plan(width=[1, 2]) + plan(width=[2, 3])
    assert both.axes == {"width": (1, 2, 3)}
    assert both.key == plan(width=[3, 1, 2]).key
    wider = both + plan(width=[1], depth=[2])
    assert wider.axes == {"width": (1, 2, 3), "depth": (None, 2)}
    assert {cell.key for cell in both} < {cell.key for cell in wider}
    with pytest.raises(InvalidInput, match="to one of 'x'"):
        both + plan(width=[9]).versioned("x")


@pytest.mark.parametrize(
    ("arguments", "axes", "match"),
    [
        ((), {}, "no cell"),
        ((), {"width": []}, "no cell"),
        (([],), {"width": [1]}, "no cell"),
        (([{}],), {}, "no cell"),
        ((), {"width": [1, 1.0]}, "twice"),
        ((), {"width": 64}, r"Pass width=\[...\]"),
        ((), {"width": "wide"}, "a sequence of values"),
        ((), {"status": [1]}, "called status"),
        (([1],), {}, "A cell is 1"),
        (([{"a": 1}],), {"a": [2]}, "given twice"),
        (([{"": 1}],), {}, "called ''"),
    ],
)
def test_what_is_no_plan_says_so(arguments, axes, match):
    with pytest.raises(InvalidInput, match=match):
        plan(*arguments, **axes)


def test_a_condition_that_nothing_meets():
    with pytest.raises(InvalidInput, match="no cell"):
        plan(a=[1]).where(lambda cell: False)
    with pytest.raises(InvalidInput, match="Axes are a"):
        plan(a=[1]).cells[0].seed_of("b")
