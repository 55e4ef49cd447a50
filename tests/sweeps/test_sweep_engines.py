"""Sweeps on real engines: the same table on each, and what is killed costs one cell."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import sweep_cells

from thalweg.engines import LocalEngine, RayEngine
from thalweg.errors import DistributedError, InvalidInput, RunFolderError
from thalweg.sweeps.plan import plan
from thalweg.sweeps.run_cell import perform
from thalweg.sweeps.run_result import open_sweep
from thalweg.sweeps.sweep import sweep

PLAN = plan(width=[1, 2, 3, 4], seed=[0, 1])

pytestmark = pytest.mark.slow


class Here:
    """No engine at all."""

    def __new__(cls):
        from concurrent.futures import Executor

        class Inline(Executor):
            def submit(self, fn, /, *arguments):
                future = Future()
                future.set_result(fn(*arguments))
                return future

        return Inline()


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """The side file: one for the module, as workers have the environment in which they were started."""
    path, before = tmp_path_factory.mktemp("log") / "log", os.environ.get(sweep_cells.LOG)
    os.environ[sweep_cells.LOG] = str(path)
    yield path
    del os.environ[sweep_cells.LOG]
    assert before is None


@pytest.fixture(autouse=True)
def fresh(log):
    for path in log.parent.iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def local(log):
    with LocalEngine(workers=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def ray(log):
    pytest.importorskip("ray")
    with RayEngine(workers=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def dask(log):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with (
        distributed.LocalCluster(**options, scheduler_kwargs={"dashboard": False}) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def right(log, tmp_path_factory):
    return sweep(sweep_cells.draws, PLAN, tmp_path_factory.mktemp("right"), engine=Here()).table()


def identical(one, other):
    assert one.identical(other), f"{one}\n{other}"
    assert list(one.variables) == list(other.variables)
    return all(one[name].values.tobytes() == other[name].values.tobytes() for name in one.variables)


@pytest.mark.parametrize("name", ["local", "ray"])
def test_an_engine_gives_the_same_though_a_worker_is_killed(name, request, right, tmp_path):
    engine = request.getfixturevalue(name)
    found = sweep(sweep_cells.dies_once, PLAN, tmp_path, engine=engine)
    assert identical(found.table(), right)
    counts = Counter(sweep_cells.counted())
    assert counts == {cell.key: 1 for cell in PLAN}, "a cell was computed twice, or never"
    assert int(Path(os.environ[sweep_cells.LOG]).with_name("mark").read_text()) != os.getpid()
    sweep(sweep_cells.dies_once, PLAN, tmp_path, engine=engine)
    assert Counter(sweep_cells.counted()) == counts


@pytest.mark.parametrize("name", ["local", "ray"])
def test_cells_that_take_their_worker_down_are_failures_of_their_own(name, request, right, tmp_path):
    found = sweep(sweep_cells.dies, plan(width=[1, 3], seed=[0]), tmp_path, engine=request.getfixturevalue(name))
    assert [(record.cell["width"], record.error.split(":")[0]) for record in found.failed] == [(3, "WorkerLost")]
    other = {"width": [1], "seed": [0]}
    assert found.table().sel(other).drop_attrs().identical(right.sel(other).drop_attrs())


def test_an_exit_is_a_failure_and_the_worker_goes_on(local, tmp_path):
    found = sweep(sweep_cells.exits, PLAN, tmp_path, engine=local)
    assert [record.error for record in found.failed] == ["SystemExit: 7"] * 2
    assert found.status().done == 6


def test_a_model_that_cannot_be_built_is_a_recorded_failure(local, tmp_path):
    found = sweep(sweep_cells.network, plan(width=[8, 0, 4]), tmp_path, engine=local)
    assert [(record.cell["width"], record.error) for record in found.failed] == [
        (0, "ValueError: a layer has no units")
    ]
    assert found.status().done == 2
    assert "sweep_cells.py" in found.failed[0].trace


def test_lambdas_travel_by_ray_alone(local, ray, tmp_path):
    offset = 3
    found = sweep(lambda cell: {"x": cell["width"] + offset}, plan(width=[1, 2]), tmp_path / "ray", engine=ray)
    assert found.table().x.values.tolist() == [4, 5]
    with pytest.raises(InvalidInput, match="cannot be sent to a worker"):
        sweep(lambda cell: {}, plan(width=[1, 2]), tmp_path / "local", engine=local)


def test_dask_gives_the_same_though_its_worker_is_killed(dask, right, tmp_path):
    found = sweep(sweep_cells.safe, PLAN, tmp_path / "a", engine=dask)
    names = ["status", "own", "twice"]
    assert identical(found.table(), right[names])
    assert Counter(sweep_cells.counted()) == {cell.key: 1 for cell in PLAN}
    found = sweep(sweep_cells.network, plan(width=[8, 0]), tmp_path / "b", engine=dask.get_executor(pure=False))
    assert found.failed[0].error == "ValueError: a layer has no units"
    with ThreadPoolExecutor(1) as thread:
        again = thread.submit(sweep, _sleeps, plan(width=range(6)), tmp_path / "c", engine=dask)
        while not (tmp_path / "c").exists() or open_sweep_or_none(tmp_path / "c") is None:
            time.sleep(0.05)
        for pid in dask.run(os.getpid).values():
            os.kill(pid, signal.SIGKILL)
        found = again.result(timeout=300)
    assert found.status().done == 6


def _sleeps(cell):
    time.sleep(0.3)
    return {"x": cell["width"]}


def open_sweep_or_none(folder):
    try:
        return open_sweep(folder) if open_sweep(folder).status().done else None
    except RunFolderError:
        return None


def test_a_pool_that_breaks_leaves_a_ledger_that_resumes(log, right, tmp_path):
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool, pytest.raises(DistributedError, match="takes no more"):
        sweep(sweep_cells.dies_once, PLAN, tmp_path, engine=pool, ahead=2)
    found = open_sweep(tmp_path).status()
    assert found.failed == 0
    assert found.done == 4
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert identical(sweep(sweep_cells.dies_once, PLAN, tmp_path, engine=pool).table(), right)
    assert Counter(sweep_cells.counted()) == {cell.key: 1 for cell in PLAN}


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import sweep_cells
from thalweg.sweeps.plan import plan
from thalweg.sweeps.sweep import sweep

if __name__ == "__main__":
    sweep(sweep_cells.blocks, plan(width=[1, 2, 3, 4], seed=[0, 1]), {folder!r}, engine={engine!r}, workers=2)
"""


@pytest.mark.parametrize(
    ("engine", "ending"), [("local", signal.SIGKILL), ("local", signal.SIGINT), ("ray", signal.SIGKILL)]
)
def test_a_driver_that_is_killed_goes_on_where_it_was(engine, ending, local, right, tmp_path, log):
    """Killed while both workers are in the middle of a cell, and nothing else is under way."""
    if engine == "ray":
        pytest.importorskip("ray")
    folder = tmp_path / "s"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=os.path.dirname(__file__), folder=str(folder), engine=engine))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    driver = subprocess.Popen([sys.executable, script], text=True, **streams)
    deadline = time.monotonic() + 300
    while len(list(log.parent.glob("begun-*"))) < 2:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = open_sweep(folder)
    assert before.status().running
    assert before.status().done == 4
    below = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(ending)
    _, errors = driver.communicate(timeout=300)
    assert ("KeyboardInterrupt" in errors) == (ending == signal.SIGINT)
    if engine == "ray":  # helpers of Ray's wait for a minute
        for process in below:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    _, alive = psutil.wait_procs(below, timeout=300)
    assert not alive
    after = open_sweep(folder)
    assert not after.status().running
    assert after.records == before.records
    (log.parent / "go").touch()
    found = sweep(sweep_cells.blocks, PLAN, folder, engine=local)
    assert identical(found.table(), right)
    assert Counter(sweep_cells.counted()) == {cell.key: 1 for cell in PLAN}, "a cell was computed twice"


def test_what_travels_is_bytes(log):
    answer = perform(sweep_cells.draws, PLAN.cells[0])
    assert all(isinstance(item.value, bytes) for item in answer.items)
    assert not answer.error
