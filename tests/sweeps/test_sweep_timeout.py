"""Cells that take too long: recorded with their reason, their workers ended, the others unharmed.

Nothing here depends on how fast the machine is: time is told by the test, or all cells that have a limit wait for ever.
"""

from collections import Counter
from concurrent.futures import Executor, Future

import pytest
import sweep_cells

from thalweg.engines import LocalEngine, RayEngine, local
from thalweg.errors import ThalwegWarning
from thalweg.sweeps.plan import plan
from thalweg.sweeps.run_cell import Answer
from thalweg.sweeps.run_driver import Driver
from thalweg.sweeps.sweep import sweep

PLAN = plan(width=[1, 3, 4], seed=[0])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The side files of the cells. An hour passes whenever a cell begins to hang, and no time otherwise."""
    monkeypatch.setenv(sweep_cells.LOG, str(tmp_path / "log"))
    monkeypatch.setattr(local, "monotonic", lambda: 3600.0 * len(list(tmp_path.glob("begun-*"))))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("lent", [False, True])
def test_a_hanging_cell_is_a_failure_of_its_own(folder, lent):
    if lent:
        with LocalEngine(workers=1, retries=1) as engine:
            found = sweep(sweep_cells.hangs, PLAN, folder / "s", engine=engine, timeout=0.1)
    else:
        found = sweep(sweep_cells.hangs, PLAN, folder / "s", workers=1, timeout=0.1)
    attempts = 2 if lent else 3
    (failed,) = found.failed
    assert failed.cell["width"] == 3
    assert failed.error.startswith("TimedOut: ")
    assert "took longer than 0.1 seconds" in failed.error
    assert f"tried {attempts} times" in failed.error
    assert len(list(folder.glob("begun-*"))) == attempts, "each attempt has a process of its own"
    assert found.status().done == 2
    assert set(Counter(sweep_cells.counted()).values()) == {1}

    if lent:
        (folder / "go").touch()
        found = sweep(sweep_cells.hangs, PLAN, folder / "s", workers=1, timeout=3600, retry_failed=True)
        assert found.status().done == 3
        assert set(Counter(sweep_cells.counted()).values()) == {1}, "a cell was computed twice"


@pytest.mark.slow
def test_ray_ends_the_worker_of_a_hanging_cell(folder):
    pytest.importorskip("ray")
    with RayEngine(workers=1) as engine:
        assert engine.slots == 1
        found = sweep(sweep_cells.hangs, plan(width=[3]), folder / "s", engine=engine, timeout=0.5, retries=1)
        assert [record.error for record in found.failed] == ["TimeoutError: the executor gave no answer in 0.5 seconds"]
        assert found.failed[0].attempts == 2
        other = plan(width=[1, 2])
        assert sweep(sweep_cells.safe, other, folder / "t", engine=engine).status().done == 2, "the core is still held"


class Stuck(Executor):
    """Whose cells have begun, and never end."""

    workers, slots = 16, 2

    def submit(self, fn, /, *arguments):
        future = Future()
        future.set_running_or_notify_cancel()
        return future


def test_an_executor_that_cannot_end_a_cell_is_warned_of_once(folder):
    with pytest.warns(ThalwegWarning, match="the executor Stuck cannot end what has begun") as told:
        found = sweep(sweep_cells.safe, PLAN, folder / "s", engine=Stuck(), timeout=0.01, retries=1)
    assert len(told) == 1
    assert [record.error for record in found.failed] == [
        "TimeoutError: the executor gave no answer in 0.01 seconds"
    ] * 3


def test_dask_cancels_a_future_and_lets_the_cell_go_on(folder):
    class ClientExecutor(Executor):
        __module__ = "distributed.cfexecutor"

        def submit(self, fn, /, *arguments):
            return Future()

    with pytest.warns(ThalwegWarning, match="the executor ClientExecutor cannot end"):
        sweep(sweep_cells.safe, PLAN, folder / "s", engine=ClientExecutor(), timeout=0.01, retries=0)


def test_no_cell_that_has_a_limit_waits_for_a_core():
    def ahead(**options):
        settings = {"retries": 0, "ahead": None, "timeout": None, "strict": False} | options
        return Driver(Stuck(), sweep_cells.safe, None, None, **settings)._ahead

    assert ahead() == 32
    assert ahead(timeout=5.0) == 2
    assert ahead(timeout=5.0, ahead=7) == 7


def test_an_answer_in_time_is_taken(folder):
    class Prompt(Executor):
        def submit(self, fn, /, *arguments):
            future = Future()
            future.set_result(Answer())
            return future

    assert sweep(sweep_cells.safe, PLAN, folder / "s", engine=Prompt(), timeout=1e-9).status().done == 3
