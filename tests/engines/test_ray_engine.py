"""A real Ray with two workers: results, exceptions, a worker that is killed, and what it leaves behind: nothing."""

import builtins
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import CancelledError, as_completed, wait
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from reference.trajectories import Memory, walk
from thalweg.engines import RayEngine, WorkerLost, as_engine
from thalweg.errors import InvalidInput, MissingExtra
from thalweg.trajectories import grams
from thalweg.trajectories.distributed import grams_on


def listening():
    """Addresses on which this process and those below it can be reached."""
    found = set()
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            found |= {c.laddr.ip.removeprefix("::ffff:") for c in process.net_connections() if c.status == "LISTEN"}
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def rays():
    """Processes of Ray below this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ray" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """One Ray for the module; starting it takes seconds. A long folder for temporary files must not hinder it."""
    pytest.importorskip("ray")
    before, handler, printing = dict(os.environ), signal.getsignal(signal.SIGTERM), builtins.print
    with RayEngine(workers=2) as found:
        changed = {k for k in {*before, *os.environ} if before.get(k) != os.environ.get(k)}
        assert changed <= {"RAY_CLIENT_MODE", "RAY_AUTH_MODE"}
        folder = Path(found._session.folder)
        assert folder.exists()
        yield found
        from ray.experimental import tqdm_ray

        tqdm_ray.instance()  # what a worker's message may bring about: it replaces print
    assert builtins.print is printing
    psutil.wait_procs(rays(), timeout=240)
    assert not rays()
    assert not folder.exists()
    assert signal.getsignal(signal.SIGTERM) == handler


def square(x):
    return x * x


def divides(x):
    return 1 // x


def dies_once(mark, value):
    mark = Path(mark)
    if not mark.exists():
        mark.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return value, os.getpid()


def dies(log):
    with Path(log).open("a") as handle:
        handle.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


def waits(log):
    Path(log).write_text(str(os.getpid()))
    time.sleep(900)


class Deadly(Memory):
    """Kills the first process that reads the second part of a tensor."""

    def __init__(self, points, mark):
        super().__init__(points)
        self.mark = Path(mark)

    def read(self, index, name, start, stop):
        if (name, start, index) == ("embed", 4096, 3) and not self.mark.exists():
            self.mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index, name, start, stop)


@pytest.mark.slow
def test_results_come_from_other_processes(engine):
    assert list(engine.map(square, range(20))) == [x * x for x in range(20)]
    offset = 5
    assert engine.submit(lambda x: x + offset, 1).result() == 6
    assert os.getpid() not in {f.result() for f in as_completed([engine.submit(os.getpid) for _ in range(4)])}
    assert engine.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"
    assert engine.submit(os.getenv, "RAY_USAGE_STATS_ENABLED").result() == "0"
    assert engine.workers == 2


@pytest.mark.slow
def test_nobody_else_can_reach_it(engine):
    assert engine.submit(square, 2).result() == 4
    assert listening() == {"127.0.0.1"}


@pytest.mark.slow
def test_an_exception_is_the_one_that_was_raised(engine):
    with pytest.raises(ZeroDivisionError) as caught:
        engine.submit(divides, 0).result()
    assert type(caught.value) is ZeroDivisionError
    assert "return 1 // x" in "".join(caught.value.__notes__)


@pytest.mark.slow
def test_a_killed_worker_costs_a_retry(engine, tmp_path):
    value, pid = engine.submit(dies_once, tmp_path / "mark", 7).result()
    assert value == 7
    assert pid != int((tmp_path / "mark").read_text())


@pytest.mark.slow
def test_a_task_that_kills_every_worker_fails_alone(engine, tmp_path):
    bad, good = engine.submit(dies, tmp_path / "log"), engine.submit(square, 4)
    with pytest.raises(WorkerLost, match="dies was lost 3 times"):
        bad.result()
    assert good.result() == 16
    assert (tmp_path / "log").read_text() == "xxx"


@pytest.mark.slow
@pytest.mark.filterwarnings("error::UserWarning")
def test_a_gram_is_the_same_though_a_worker_is_killed(engine, tmp_path):
    points = walk({"embed": (300, 64), "qkv": (96, 64), "norm": (32,)}, 5)
    source, right = Deadly(points, tmp_path / "killed"), grams(Memory(points))
    found = grams_on(engine, source, split=4096, directory=tmp_path / "kept")
    assert int(source.mark.read_text()) != os.getpid()
    length = np.sqrt(np.einsum("gaa->ga", right.G))
    assert np.all(np.abs(found.G - right.G) <= 1e-12 * length[:, :, None] * length[:, None, :])
    assert np.all(np.abs(found.c - right.c) <= 1e-12 * length * np.sqrt(right.m)[:, None])
    assert found.bytes_read == right.bytes_read
    assert np.array_equal(found.G, grams_on(engine, source, split=4096).G)
    again = grams_on(engine, source, split=4096, directory=tmp_path / "kept")
    assert again.bytes_read == 0
    assert np.array_equal(again.G, found.G)


@pytest.mark.slow
def test_cancelling_ends_what_had_begun(engine, tmp_path):
    futures = [engine.submit(waits, tmp_path / "log"), *(engine.submit(waits, tmp_path / f"{i}") for i in range(3))]
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    for future in futures:
        assert future.cancel()
    assert not wait(futures, timeout=120).not_done
    with pytest.raises(CancelledError):
        futures[0].result()
    assert engine.submit(square, 3).result(timeout=240) == 9, "the workers are still held"


@pytest.mark.slow
def test_a_ray_that_runs_is_used_and_left(engine):
    import ray

    with as_engine("ray") as other:
        assert other.submit(square, 5).result() == 25
    with pytest.raises(RuntimeError, match="after shutdown"):
        other.submit(square, 1)
    assert ray.is_initialized()
    assert engine.submit(square, 6).result() == 36
    with pytest.raises(InvalidInput, match=r"not to 10\.0\.0\.1:6379"):
        RayEngine("10.0.0.1:6379")


def test_what_does_not_fit_is_refused():
    for arguments in ({"workers": 0}, {"cpus": -1}, {"retries": -1}, {"workers": 2, "address": "auto"}):
        with pytest.raises(InvalidInput):
            RayEngine(**arguments)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install thalweg\[ray\]"):
        RayEngine()


def run(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    return subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_users_own_ray_and_a_cluster_joined_by_address_go_on(tmp_path):
    pytest.importorskip("ray")
    process = run(
        tmp_path,
        """
        import os, signal, subprocess, sys
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        import ray
        ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=2**27,
                 _node_ip_address="127.0.0.1", log_to_driver=False)
        handler = signal.getsignal(signal.SIGTERM)
        from thalweg.engines import RayEngine
        def square(x):
            return x * x
        with RayEngine() as engine:
            assert engine.submit(pow, 2, 5).result() == 32
        assert ray.is_initialized() and ray.get(ray.remote(square).remote(3)) == 9
        assert signal.getsignal(signal.SIGTERM) == handler
        address = ray.get_runtime_context().gcs_address
        code = f'''
        from thalweg.engines import as_engine
        import ray
        with as_engine("ray", address="{address}") as engine:
            print("joined", engine.submit(pow, 3, 2).result(), engine.workers)
        assert not ray.is_initialized()
        '''
        import textwrap
        print(subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True))
        assert ray.get(ray.remote(square).remote(4)) == 16
        print("left alone")
        """,
    )
    out, errors = process.communicate(timeout=300)
    assert "joined 9 1" in out, out + errors
    assert "left alone" in out, out + errors


def named(process):
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return "gone"


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["killed", "interrupted"])
def test_ray_ends_with_its_driver(tmp_path, ending):
    pytest.importorskip("ray")
    process = run(
        tmp_path,
        """
        import time
        from thalweg.engines import RayEngine
        with RayEngine(workers=1) as engine:
            engine.submit(time.sleep, 900)
            print(engine._session.folder, flush=True)
            time.sleep(900)
        """,
    )
    folder = Path(process.stdout.readline().strip())
    assert folder.name.startswith("tw-"), process.communicate(timeout=240)
    below = psutil.Process(process.pid).children(recursive=True)
    if ending == "killed":
        process.kill()
    else:
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=240)
    helpers = {p for p in below if ending == "killed" and named(p) in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")}
    _, alive = psutil.wait_procs(set(below) - helpers, timeout=240)
    assert not alive
    if ending == "killed":
        for process in helpers:  # they first try for a minute to tell the head that they end
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(helpers, timeout=240)
        shutil.rmtree(folder)
    assert not folder.exists()


def test_an_address_where_nothing_is(tmp_path):
    pytest.importorskip("ray")
    process = run(
        tmp_path,
        """
        from thalweg.engines import RayEngine
        RayEngine("127.0.0.1:1")
        """,
    )
    _, errors = process.communicate(timeout=240)
    assert "DistributedError: Ray cannot be joined at 127.0.0.1:1: Connection refused." in errors
