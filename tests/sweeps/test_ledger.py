"""What is stored comes back, bit for bit; what is damaged or hostile is refused; ledgers merge."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from thalweg.errors import InvalidInput, RunFolderError, SchemaError
from thalweg.sweeps.cells import Cell
from thalweg.sweeps.ledger import Ledger
from thalweg.sweeps.merge import merge
from thalweg.sweeps.plan import plan
from thalweg.sweeps.run_cell import Answer, Item, decode, encode, perform
from thalweg.sweeps.run_function import called
from thalweg.sweeps.run_result import open_sweep
from thalweg.sweeps.sweep import sweep

CELL = Cell({"width": 4})
KINDS = st.sampled_from(["<f8", "<f4", "<i8", "<u1", "?", "<c16", "<U3", ">f8"])


@given(arrays.arrays(KINDS, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
def test_arrays_come_back_bit_for_bit(array):
    (item,) = encode({"x": array}, CELL)
    found = np.asarray(decode(item.kind, item.value))
    assert found.shape == array.shape
    assert found.tobytes() == np.ascontiguousarray(array).tobytes()
    assert found.dtype == array.dtype


@given(st.one_of(st.floats(), st.integers(), st.booleans(), st.text(), st.none()))
def test_scalars_come_back(value):
    (item,) = encode({"x": value}, CELL)
    found = decode(item.kind, item.value)
    assert repr(found) == repr(value)


def test_tensors_lists_and_named_dimensions():
    weights = torch.arange(6.0, requires_grad=True).reshape(2, 3)
    items = encode({"w": (("step", "part"), weights), "l": [1, 2], "n": np.float64(0.1), "t": ("step", [1.5])}, CELL)
    assert [item.dims for item in items] == ['["step", "part"]', "", "", '["step"]']
    assert np.array_equal(decode("npy", items[0].value), weights.detach())
    assert decode("json", items[2].value) == 0.1


@pytest.mark.parametrize(
    "found",
    [
        3,
        None,
        {"x": object()},
        {"x": [object()]},
        {"x": {"y": 1}},
        {"width": 3},
        {"status": 3},
        {"": 3},
        {3: 3},
        {"x": (("a", "a"), np.zeros((2, 2)))},
        {"x": (("a",), np.zeros((2, 2)))},
        {"x": (("width",), np.zeros(2))},
        {"x": np.array([object()])},
        {"x": np.zeros(2, dtype="f8,i4")},
    ],
)
def test_what_cannot_be_stored_is_a_failure_of_the_cell(found):
    with pytest.raises(InvalidInput):
        encode(found, CELL)
    assert perform(lambda cell: found, CELL).error.startswith("InvalidInput: ")


def test_nothing_is_unpickled():
    import io

    held = io.BytesIO()
    np.save(held, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        decode("npy", held.getvalue())
    with pytest.raises(ValueError, match="of the kind"):
        decode("pickle", b"")


def made(folder, function=None, cells=None, **options):
    def ratio(cell):
        return {"x": np.full(2, 1 / cell["width"]), "n": cell["width"]}

    with ThreadPoolExecutor(1) as pool:
        return sweep(function or ratio, cells or plan(width=[0, 1, 2, 3]), folder, engine=pool, **options)


def test_tables_hold_what_is_ragged_missing_or_mixed(tmp_path):
    def odd(cell):
        width = cell["width"]
        if width == 3:
            raise ValueError("not this one")
        return {
            "curve": ("step", np.arange(float(width))),
            "count": width,
            "flag": width > 1,
            "word": "w" * width,
            "mixed": "x" if width == 1 else 2.5,
            "some": None if width == 1 else 7,
            "z": np.complex64(1j),
        }

    table = made(tmp_path / "s", odd, plan([{"width": 1}, {"width": 2, "rule": "adam"}, {"width": 3}])).table()
    assert dict(table.sizes) == {"width": 3, "rule": 2, "step": 2}
    assert table.rule.isnull().values.tolist() == [True, False]
    assert table.status.values.tolist() == [["done", "absent"], ["absent", "done"], ["failed", "absent"]]
    assert np.array_equal(table.curve[0, 0], [0, np.nan], equal_nan=True)
    assert np.array_equal(table.curve[1, 1], [0, 1])
    assert np.isnan(table.curve[2]).all()
    assert table["count"].values[0, 0] == 1
    assert table.flag.values[1, 1] == 1
    assert np.isnan(table.flag.values[2, 0])
    assert table.word.values.tolist() == [["w", ""], ["", "ww"], ["", ""]]
    assert table.mixed.values.tolist() == [["x", None], [None, 2.5], [None, None]]
    assert np.array_equal(table.some.values, [[np.nan] * 2, [np.nan, 7], [np.nan] * 2], equal_nan=True)
    assert table.z.dtype == np.complex64
    assert made(tmp_path / "t", cells=plan(width=[1, 2])).table()["n"].dtype == np.int64


def test_tables_refuse_what_has_no_shape(tmp_path):
    found = made(tmp_path / "s", lambda cell: {"x": np.zeros((1,) * cell["width"])}, plan(width=[1, 2]))
    with pytest.raises(InvalidInput, match="The result 'x' has dims 2 in one cell, 1 in another"):
        found.table()
    scattered = [{f"a{i}": i + j for i in range(8)} for j in range(0, 300, 30)]
    found = made(tmp_path / "t", lambda cell: {"x": 1.0}, plan(scattered))
    with pytest.raises(InvalidInput, match=r"table\(long=True\)"):
        found.table()
    assert found.table(long=True).x.dims == ("cell",)


def test_a_damaged_ledger_is_refused(tmp_path):
    made(tmp_path / "s")
    path = tmp_path / "s" / "ledger.sqlite"
    whole = path.read_bytes()

    def spoiled(statement):
        path.write_bytes(whole)
        with sqlite3.connect(path) as file:
            file.execute(statement)
        file.close()

    path.write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(RunFolderError, match="is damaged"):
        open_sweep(tmp_path / "s")
    spoiled("DROP TABLE cells")
    with pytest.raises(RunFolderError, match="no such table"):
        open_sweep(tmp_path / "s")
    spoiled("""UPDATE cells SET "values" = '{"width": 9}' WHERE position = 1""")
    with pytest.raises(RunFolderError, match="does not fit its key"):
        open_sweep(tmp_path / "s")
    spoiled("""UPDATE cells SET "values" = '[]' WHERE position = 1""")
    with pytest.raises(RunFolderError, match="a cell is"):
        open_sweep(tmp_path / "s")
    spoiled("UPDATE results SET value = substr(value, 1, 60) WHERE kind = 'npy'")
    with pytest.raises(RunFolderError, match="'x' cannot be read"):
        open_sweep(tmp_path / "s").table()
    spoiled("DELETE FROM meta WHERE key = 'schema'")
    with pytest.raises(RunFolderError, match="no schema"):
        open_sweep(tmp_path / "s")
    spoiled("UPDATE meta SET value = '99' WHERE key = 'schema'")
    with pytest.raises(SchemaError, match="schema 99"):
        open_sweep(tmp_path / "s")


def test_a_result_lands_once(tmp_path):
    cells = plan(width=[1, 2])
    with Ledger(tmp_path / "ledger.sqlite", create=True, write=True) as ledger:
        ledger.begin(cells, "f")
        first = Answer((Item("x", "json", "", b"1"),), 2.0)
        ledger.write([(cells.cells[0], first, 1)])
        ledger.write([(cells.cells[0], Answer((Item("x", "json", "", b"5"),), 3.0), 1)])
        ledger.write([(cells.cells[0], Answer(error="late"), 1)])
        assert ledger.items(cells.cells[0].key) == first.items
        record = ledger.records()[0]
        assert (record.status, record.attempts, record.seconds) == ("done", 1, 2.0)


def test_shares_merge_to_what_one_folder_gives(tmp_path):
    cells = plan(width=[3, 0, 1, 2], seed=[0, 1])
    right = made(tmp_path / "right", cells=cells)
    for i in range(3):
        made(tmp_path / f"{i}", cells=cells, share=(i, 3))
    made(tmp_path / "again", cells=cells, share=(1, 3))
    found = merge([tmp_path / "2", tmp_path / "0", tmp_path / "1", tmp_path / "again"], tmp_path / "all")
    assert found.table().identical(right.table())
    assert [(r.status, r.error) for r in found.records] == [(r.status, r.error) for r in right.records]
    assert {record.attempts for record in found.records} == {1, 2}
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["ledger.sqlite"]
    part = merge([tmp_path / "0", tmp_path / "2"], tmp_path / "part")
    assert part.status().pending == 3
    assert made(tmp_path / "part", cells=cells).table().identical(right.table()), "a merged ledger goes on"


def test_conflicts_are_named(tmp_path):
    def one(cell):
        return {"x": 1.0, "y": np.nan}

    def other(cell):
        return {"x": 1.0 if cell["width"] < 2 else 2.0, "y": np.nan}

    other.__qualname__ = one.__qualname__
    made(tmp_path / "a", one)
    made(tmp_path / "b", other)
    with pytest.raises(InvalidInput, match=r"2 results differ: x of width=2 in .*a and .*b; x of width=3"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert not (tmp_path / "c").exists()
    for function, cells, match in (
        (lambda cell: {}, None, "The function is"),
        (one, plan(width=[0, 1, 2, 4]), "1 of its cells are not in the first, and 1 of it are missing"),
        (one, plan(width=[0, 1, 2, 3]).versioned("2"), "The version is '2'"),
    ):
        shutil.rmtree(tmp_path / "b")
        made(tmp_path / "b", function, cells)
        with pytest.raises(InvalidInput, match=match):
            merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    with pytest.raises(InvalidInput, match="nothing to merge"):
        merge([], tmp_path / "c")
    with pytest.raises(RunFolderError, match="no ledger"):
        merge([tmp_path / "a", tmp_path], tmp_path / "c")


def test_names_of_functions():
    import functools

    class Measure:
        def __call__(self, cell):
            return {}

    assert called(functools.partial(made, 1, cells=[2])) == "made(1, cells=[2])"
    assert called(Measure()).endswith("Measure")
    assert len(called(functools.partial(made, "x" * 1000))) <= 200
    assert called(functools.partial(made, "x" * 1000)) != called(functools.partial(made, "x" * 1001))
    assert called(functools.partial(made, object())) == called(functools.partial(made, object()))


KILLED = """
import sys, numpy as np
from pathlib import Path
from thalweg.sweeps.ledger import Ledger
from thalweg.sweeps.plan import plan
from thalweg.sweeps.run_cell import Answer, encode
cells = plan(width=range(2000))
with Ledger(Path(sys.argv[1]), create=True, write=True) as ledger:
    ledger.begin(cells, "f")
    for cell in cells:
        if cell["width"] == 1999:
            sys.stdin.read()  # until it is killed
        values = {"a": np.full(20_000, cell["width"]), "b": cell["width"]}
        ledger.write([(cell, Answer(encode(values, cell), 1.0), 1)])
        print("written", flush=True)
"""


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_whole_cells(tmp_path):
    for i in range(3):
        path = tmp_path / f"{i}.sqlite"
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            for _ in range(20 + 17 * i):
                assert process.stdout.readline() == "written\n"
            os.kill(process.pid, signal.SIGKILL)
        with Ledger(path) as ledger:
            records = ledger.records()
            done = [record for record in records if record.status == "done"]
            assert 0 < len(done) < 2000
            for record in done[-3:]:
                a, b = ledger.items(record.cell.key)
                assert np.array_equal(decode(a.kind, a.value), np.full(20_000, record.cell["width"]))
                assert json.loads(b.value) == record.cell["width"]
            rest = [record.cell.key for record in records if record.status == "pending"]
            assert not any(ledger.items(key) for key in rest[:3])
