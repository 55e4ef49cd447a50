"""Sweeps in this process: results, failures, resume, order, progress, and executors that misbehave."""

import signal
import sqlite3
import sys
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
import pytest
import sweep_cells
import torch

from thalweg.errors import DistributedError, InvalidInput, RunFolderError, StorageError
from thalweg.sweeps.cells import Cell
from thalweg.sweeps.plan import plan
from thalweg.sweeps.run_result import open_sweep
from thalweg.sweeps.sweep import sweep

PLAN = plan(width=[1, 2, 3, 4], seed=[0, 1])


@pytest.fixture(autouse=True)
def side_file(tmp_path, monkeypatch):
    monkeypatch.setenv(sweep_cells.LOG, str(tmp_path / "log"))


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as found:
        yield found


class Inline(Executor):
    """Does everything at once, in the thread of the driver; notes how many futures are out."""

    def __init__(self, spoil=None):
        self.order, self.spoil = [], spoil

    def submit(self, fn, /, function, cell):
        self.order.append(cell)
        future = Future()
        if self.spoil is not None and self.spoil(self, cell, future):
            return future
        future.set_running_or_notify_cancel()
        future.set_result(fn(function, cell))
        return future


class Meter:
    def __init__(self):
        self.calls = []

    def init(self, steps, start=0):
        self.calls.append((steps, start))

    def step(self, values):
        self.calls.append(dict(values))

    def close(self):
        self.calls.append("closed")


def identical(one, other):
    assert one.identical(other), f"{one}\n{other}"
    assert list(one.data_vars) == list(other.data_vars)
    return all(one[name].values.tobytes() == other[name].values.tobytes() for name in one.variables)


def test_a_table_is_labelled(tmp_path):
    found = sweep(sweep_cells.draws, PLAN, tmp_path / "s", engine=Inline())
    table = found.table()
    assert dict(table.sizes) == {"width": 4, "seed": 2, "own_0": 3, "torch_0": 2}
    assert table.own.dims == ("width", "seed", "own_0")
    cell = Cell({"width": 3, "seed": 1}, PLAN.version)
    assert np.array_equal(table.own.sel(width=3, seed=1), torch.randn(3, generator=cell.generator("w")))
    assert table.width.dtype == np.int64
    assert (table.status == "done").all()
    assert found.status().done == 8
    assert not found.failed
    assert not found.pending
    assert "8 of 8 cells done" in repr(found)
    assert found.table(timings=True).attempts.values.tolist() == [[1, 1]] * 4
    long = found.table(long=True)
    assert long.own.dims == ("cell", "own_0")
    assert long.width.values.tolist() == [1, 1, 2, 2, 3, 3, 4, 4]


def test_results_do_not_depend_on_order_or_executor(tmp_path, pool):
    right = sweep(sweep_cells.safe, PLAN, tmp_path / "a", engine=Inline()).table()
    other = sweep(sweep_cells.safe, PLAN, tmp_path / "b", engine=pool, cost=lambda cell: cell["width"]).table()
    assert identical(right, other)
    backwards = plan([dict(cell.values) for cell in PLAN.cells[::-1]])
    turned = sweep(sweep_cells.draws, backwards, tmp_path / "c", engine=Inline()).table()
    straight = sweep(sweep_cells.draws, PLAN, tmp_path / "d", engine=Inline()).table()
    assert identical(turned.sortby(["width", "seed"]), straight)


def test_global_streams_are_put_back(tmp_path):
    torch.manual_seed(1)
    right = torch.randn(2)
    torch.manual_seed(1)
    sweep(sweep_cells.draws, PLAN, tmp_path / "s", engine=Inline())
    assert torch.equal(torch.randn(2), right)


def test_a_failed_cell_is_recorded_and_the_others_go_on(tmp_path):
    found = sweep(sweep_cells.network, plan(width=[4, 0, 2], seed=[0, 1]), tmp_path / "s", engine=Inline())
    assert [record.cell["width"] for record in found.failed] == [0, 0]
    record = found.failed[0]
    assert record.error == "ValueError: a layer has no units"
    assert 'raise ValueError("a layer has no units")' in record.trace
    assert record.attempts == 1
    table = found.table()
    assert table.status.sel(width=0).values.tolist() == ["failed"] * 2
    assert np.isnan(table.loss.sel(width=0)).all()
    assert np.isfinite(table.loss.sel(width=[4, 2])).all()
    assert "failed: width=0, seed=0: ValueError" in repr(found)


def test_failed_cells_are_tried_again_only_if_asked(tmp_path):
    state = {"broken": True}

    def sometimes(cell):
        sweep_cells.log(cell)
        if state["broken"] and cell["width"] == 2:
            raise RuntimeError("not yet")
        return {"x": cell["width"]}

    def run(**options):
        return sweep(sometimes, plan(width=[1, 2, 3]), tmp_path / "s", engine=Inline(), **options)

    assert len(run().failed) == 1
    state["broken"] = False
    assert len(run().failed) == 1
    assert len(sweep_cells.counted()) == 3
    found = run(retry_failed=True)
    assert not found.failed
    assert len(sweep_cells.counted()) == 4
    assert found.records[1].attempts == 2
    assert found.records[1].error == ""
    assert found.table().x.values.tolist() == [1, 2, 3]


def test_strict_ends_at_the_first_failure_and_keeps_it(tmp_path):
    with pytest.raises(DistributedError, match="width=0 failed: ValueError: a layer has no units") as caught:
        sweep(sweep_cells.network, plan(width=[2, 0, 3, 4]), tmp_path / "s", engine=Inline(), strict=True, ahead=1)
    assert "raise ValueError" in "".join(caught.value.__notes__)
    found = open_sweep(tmp_path / "s")
    assert [record.status for record in found.records] == ["done", "failed", "pending", "pending"]


def test_the_largest_go_first_and_few_are_out(tmp_path):
    executor = Inline()
    sweep(sweep_cells.safe, PLAN, tmp_path / "s", engine=executor, cost=lambda cell: cell["width"])
    assert [cell["width"] for cell in executor.order] == [4, 4, 3, 3, 2, 2, 1, 1]
    out, most = [0], [0]

    class Counting(ThreadPoolExecutor):
        def submit(self, *arguments):
            out[0] += 1
            most[0] = max(most[0], out[0])
            future = super().submit(*arguments)
            future.add_done_callback(lambda _: out.__setitem__(0, out[0] - 1))
            return future

    with Counting(1) as executor:
        sweep(sweep_cells.safe, plan(width=range(20)), tmp_path / "t", engine=executor, ahead=3)
    assert 1 <= most[0] <= 3
    for wrong in (lambda cell: -1, lambda cell: float("nan"), lambda cell: 1 // 0):
        with pytest.raises(InvalidInput, match=r"cost\(\)"):
            sweep(sweep_cells.safe, PLAN, tmp_path / "u", engine=Inline(), cost=wrong)


def test_progress_counts_cells_and_time(tmp_path):
    meter = Meter()
    sweep(sweep_cells.network, plan(width=[1, 2, 0, 3]), tmp_path / "s", engine=Inline(), meter=meter, ahead=1)
    assert meter.calls[0] == (4, 0)
    assert [call["step"] for call in meter.calls[1:-1]] == [1, 2, 3, 4]
    assert [call["failed"] for call in meter.calls[1:-1]] == [0, 0, 1, 1]
    left = [call["seconds_left"] for call in meter.calls[1:-1]]
    assert left[0] > 0
    assert left[-1] == 0
    assert meter.calls[-1] == "closed"
    again = Meter()
    sweep(sweep_cells.network, plan(width=[1, 2, 0, 3]), tmp_path / "s", engine=Inline(), meter=again)
    assert not again.calls, "there was nothing to do"


def test_remaining_time_is_weighted_with_the_cost(tmp_path, monkeypatch):
    from thalweg.sweeps import run_driver

    now = [0.0]
    monkeypatch.setattr(run_driver.time, "monotonic", lambda: now[0])
    meter = Meter()
    cells = plan(width=[1, 2, 7]).cells
    pace = run_driver.Pace({c.key: float(c["width"]) for c in cells}, cells, cells, meter)
    now[0] = 14.0
    pace.step(cells[2], run_driver.Answer())
    assert meter.calls[-1]["seconds_left"] == pytest.approx(14 * 3 / 7)


def test_shares_are_disjoint_and_together_the_plan(tmp_path):
    cost = {"cost": lambda cell: cell["width"]}
    keys = []
    for i in range(3):
        executor = Inline()
        found = sweep(sweep_cells.safe, PLAN, tmp_path / f"{i}", engine=executor, share=(i, 3), **cost)
        keys += [cell.key for cell in executor.order]
        assert len(found.records) == len(PLAN)
        assert found.status().done == len(executor.order)
    assert sorted(keys) == sorted(cell.key for cell in PLAN)


def test_a_ledger_of_something_else_is_refused(tmp_path):
    sweep(sweep_cells.safe, PLAN, tmp_path / "s", engine=Inline())
    executor = Inline()
    with pytest.raises(InvalidInput, match=r"another plan: 2 of the 10 cells .* 0 of its 8"):
        sweep(sweep_cells.safe, plan(width=[1, 2, 3, 4, 5], seed=[0, 1]), tmp_path / "s", engine=executor)
    with pytest.raises(InvalidInput, match="of the version"):
        sweep(sweep_cells.safe, PLAN.versioned("2"), tmp_path / "s", engine=executor)
    with pytest.raises(InvalidInput, match="of the function 'safe', not 'draws'"):
        sweep(sweep_cells.draws, PLAN, tmp_path / "s", engine=executor)
    assert not executor.order
    wider = plan(width=[5, 1], seed=[0, 1], depth=[None, 2])
    found = sweep(sweep_cells.safe, wider, tmp_path / "s", engine=executor, extend=True)
    assert len(executor.order) == 6, "what was finished under the old plan counts"
    assert found.plan.axes == {"width": (1, 2, 3, 4, 5), "seed": (0, 1), "depth": (None, 2)}
    table = found.table()
    assert table.status.sel(width=2, seed=0, depth=2).item() == "absent"
    assert table.depth.isnull().values.tolist() == [True, False]


def test_one_driver_at_a_time(tmp_path):
    from thalweg.runs.folder import Lock

    sweep(sweep_cells.safe, PLAN, tmp_path / "s", engine=Inline())
    with Lock(tmp_path / "s" / "lock"):
        assert open_sweep(tmp_path / "s").status().running
        with pytest.raises(RunFolderError, match="Another driver is at work"):
            sweep(sweep_cells.safe, PLAN, tmp_path / "s", engine=Inline())
    assert not open_sweep(tmp_path / "s").status().running


def test_cells_that_an_executor_loses_are_handed_out_again(tmp_path):
    def cancelled(executor, cell, future):
        return executor.order.count(cell) == 1 and future.cancel()

    executor = Inline(cancelled)
    found = sweep(sweep_cells.safe, PLAN, tmp_path / "s", engine=executor)
    assert found.status().done == 8
    assert {record.attempts for record in found.records} == {2}

    def never(executor, cell, future):
        if cell["width"] == 2:
            future.set_exception(ConnectionError("the node went away"))
        return cell["width"] == 2

    executor = Inline(never)
    found = sweep(sweep_cells.safe, PLAN, tmp_path / "t", engine=executor, retries=1)
    assert [record.error for record in found.failed] == ["ConnectionError: the node went away"] * 2
    assert found.status().done == 6
    assert found.failed[0].attempts == 2

    def hung(executor, cell, future):
        return cell["width"] == 3 and executor.order.count(cell) == 1

    found = sweep(sweep_cells.safe, PLAN, tmp_path / "u", engine=Inline(hung), timeout=0.2)
    assert found.status().done == 8
    hopeless = Inline(lambda executor, cell, future: cell["width"] == 3)
    found = sweep(sweep_cells.safe, PLAN, tmp_path / "v", engine=hopeless, timeout=0.1, retries=0)
    assert [record.error for record in found.failed] == ["TimeoutError: the executor gave no answer in 0.1 seconds"] * 2


def test_ctrl_c_says_that_nothing_is_lost(tmp_path):
    def stops(executor, cell, future):
        if len(executor.order) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stop:
        sweep(sweep_cells.safe, PLAN, tmp_path / "s", engine=Inline(stops), ahead=2)
    (note,) = stop.value.__notes__
    assert "of 8 cells are in" in note
    assert "Call sweep() again" in note


def test_an_engine_that_breaks_leaves_a_ledger_that_resumes(tmp_path):
    def breaks(executor, cell, future):
        if len(executor.order) == 4:
            raise RuntimeError("cannot schedule new futures after shutdown")

    with pytest.raises(DistributedError, match="takes no more cells: RuntimeError: cannot schedule"):
        sweep(sweep_cells.safe, PLAN, tmp_path / "s", engine=Inline(breaks), ahead=2)
    assert open_sweep(tmp_path / "s").status().done == 3, "what had come was lost"
    sweep(sweep_cells.safe, PLAN, tmp_path / "s", engine=Inline())
    counted = sweep_cells.counted()
    assert len(counted) == len(set(counted)) == 8


def test_a_function_that_cannot_be_sent(tmp_path):
    with pytest.raises(InvalidInput, match="cannot be sent to a worker"):
        sweep(lambda cell: {}, PLAN, tmp_path / "s")
    assert not (tmp_path / "s").exists()

    def unloadable(executor, cell, future):
        future.set_exception(AttributeError("Can't get attribute 'f' on <module '__main__'>"))
        return True

    with pytest.raises(InvalidInput, match="The engine cannot run the function: AttributeError"):
        sweep(sweep_cells.safe, PLAN, tmp_path / "t", engine=Inline(unloadable))
    assert open_sweep(tmp_path / "t").status().pending == 8, "no cell is to blame"


def test_a_function_of_a_notebook(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "shown", sweep_cells.safe, raising=False)
    monkeypatch.setattr(sweep_cells.safe, "__module__", "__main__")
    monkeypatch.setattr(sweep_cells.safe, "__qualname__", "shown")
    monkeypatch.delattr(sys.modules["__main__"], "__file__")
    with pytest.raises(InvalidInput, match="defined in an interactive session"):
        sweep(sweep_cells.safe, PLAN, tmp_path / "s")


def test_an_executor_whose_futures_are_its_own(tmp_path):
    class Odd(Inline):
        def submit(self, fn, /, *arguments):
            return object()

    with pytest.raises(InvalidInput, match="gave a object"):
        sweep(sweep_cells.safe, PLAN, tmp_path / "s", engine=Odd())

    class Wrong(Inline):
        def submit(self, fn, /, *arguments):
            future = Future()
            future.set_result(7)
            return future

    found = sweep(sweep_cells.safe, PLAN, tmp_path / "t", engine=Wrong(), retries=0)
    assert len(found.failed) == 8
    assert "answered 7" in found.failed[0].error


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"retries": -1}, "retries"),
        ({"share": (2, 2)}, "Share"),
        ({"share": (0,)}, "Share"),
        ({"ahead": 0}, "ahead"),
        ({"timeout": 0.0}, "timeout"),
        ({"timeout": float("nan"), "engine": "local"}, "timeout"),
        ({"engine": "cloud"}, "cloud"),
        ({"workers": 2}, "has its own"),
    ],
)
def test_wrong_arguments(tmp_path, options, match):
    with pytest.raises(InvalidInput, match=match):
        sweep(sweep_cells.safe, PLAN, tmp_path / "s", **{"engine": Inline(), **options})


def test_wrong_function_or_plan(tmp_path):
    with pytest.raises(InvalidInput, match="The function is 3"):
        sweep(3, PLAN, tmp_path / "s", engine=Inline())
    with pytest.raises(InvalidInput, match="The plan is dict"):
        sweep(sweep_cells.safe, {"width": [1]}, tmp_path / "s", engine=Inline())


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("here")
    executor = Inline()
    for place in (tmp_path / "file", tmp_path / "file" / "below", "/proc/thalweg"):
        with pytest.raises(StorageError, match="cannot be used"):
            sweep(sweep_cells.safe, PLAN, place, engine=executor)
    (tmp_path / "s" / "ledger.sqlite").mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot be used"):
        sweep(sweep_cells.safe, PLAN, tmp_path / "s", engine=executor)
    assert not executor.order, "cells were computed that could not be entered"


def test_a_disk_that_fills_up_loses_nothing_of_before(tmp_path, monkeypatch):
    from thalweg.sweeps.ledger import Ledger

    write, calls = Ledger.write, []

    def full(ledger, answers):
        calls.append(1)
        if len(calls) >= 3:
            pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
            ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
        write(ledger, answers)

    def large(cell):
        sweep_cells.log(cell)
        return {"x": np.full(10_000, float(cell["width"]))}

    monkeypatch.setattr(Ledger, "write", full)
    with pytest.raises(StorageError, match=r"disk is full\. Free some"):
        sweep(large, PLAN, tmp_path / "s", engine=Inline(), ahead=1)
    monkeypatch.undo()
    monkeypatch.setenv(sweep_cells.LOG, str(tmp_path / "log"))
    assert open_sweep(tmp_path / "s").status().done == 2
    table = sweep(large, PLAN, tmp_path / "s", engine=Inline()).table()
    assert (table.x.isel(x_0=-1) == table.width).all()


def test_ctrl_c_keeps_what_has_come(tmp_path, pool):
    begun, over = threading.Event(), threading.Event()

    def waits(cell):
        if cell["width"] == 5:
            begun.set()
            over.wait(300)
        return sweep_cells.safe(cell)

    cells = plan(width=[1, 2, 5, 6, 7])

    class Presses(Meter):
        def step(self, values):
            if values["step"] == 2:
                begun.wait(300)
                signal.raise_signal(signal.SIGINT)

    with ThreadPoolExecutor(1) as one:
        with pytest.raises(KeyboardInterrupt):
            sweep(waits, cells, tmp_path / "s", engine=one, meter=Presses())
        over.set()
    found = open_sweep(tmp_path / "s")
    assert found.status().done == 2
    assert found.status().pending == 3
    assert sweep(waits, cells, tmp_path / "s", engine=pool).status().done == 5


def test_the_figure_draws_itself(tmp_path):
    found = sweep(sweep_cells.network, plan(width=[4, 0, 2], seed=[0, 1], depth=[1]), tmp_path / "s", engine=Inline())
    figure = found.plot()
    assert figure.data[0].type == "heatmap"
    assert figure.data[0].z.shape == (2, 3)
    assert np.isnan(np.asarray(figure.data[0].z)[:, 1]).all()
    assert found.plot("seconds").layout.xaxis.title.text == "width"
    with pytest.raises(InvalidInput, match="There are loss"):
        found.plot("sharpness")
    line = sweep(sweep_cells.network, plan(width=[4, 2]), tmp_path / "t", engine=Inline()).plot()
    assert len(line.data[0].y) == 2


def test_the_ledger_is_plain_sqlite(tmp_path):
    sweep(sweep_cells.safe, PLAN, tmp_path / "s", engine=Inline())
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["ledger.sqlite", "lock"]
    with sqlite3.connect(tmp_path / "s" / "ledger.sqlite") as file:
        assert file.execute("SELECT count(*) FROM cells WHERE status = 'done'").fetchone() == (8,)
        assert file.execute("SELECT min(value) FROM results WHERE name = 'twice'").fetchone() == (b"2",)
