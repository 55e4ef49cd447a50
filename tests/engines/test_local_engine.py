"""Processes of this machine: results, exceptions, workers that are killed, and nothing left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import CancelledError, as_completed, wait
from pathlib import Path

import psutil
import pytest

from thalweg.engines import LocalEngine, WorkerLost
from thalweg.errors import DistributedError, InvalidInput


class Odd(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def children():
    """Processes below this one, without the tracker that multiprocessing keeps until the end."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:  # it has just ended
            continue
    return found


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind():
    before = {p.pid for p in children()}
    yield
    _, left = psutil.wait_procs([p for p in children() if p.pid not in before], timeout=300)
    assert not left


@pytest.fixture(scope="module")
def engine(nothing_left_behind):
    with LocalEngine(workers=2) as found:
        yield found


def square(x):
    return x * x


def pid_and_threads():
    return os.getpid(), os.environ["OMP_NUM_THREADS"]


def dies_once(mark, value):
    """Kill the worker at the first attempt, and return the process of the one that did it."""
    mark = Path(mark)
    if not mark.exists():
        mark.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return value, os.getpid()


def dies(log):
    with Path(log).open("a") as handle:
        handle.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


def begins(log):
    """Leave one letter more in a file, at once."""
    log = Path(log)
    text = log.read_text() if log.exists() else ""
    new = log.with_suffix(f".{os.getpid()}")
    new.write_text(text + "x")
    new.replace(log)
    return len(text)


def waits(log, go):
    """Take until the file ``go`` is there."""
    begins(log)
    while not Path(go).exists():
        time.sleep(0.01)
    return os.getpid()


def waits_once(log):
    """Take for ever at the first attempt."""
    if begins(log) == 0:
        time.sleep(900)
    return os.getpid()


def divides(x):
    return 1 // x


def odd():
    raise Odd(1, 2)


def unsendable():
    return lambda: 0


def test_results_come_in_order_and_from_other_processes(engine):
    assert list(engine.map(square, range(20))) == [x * x for x in range(20)]
    pids = {engine.submit(pid_and_threads).result() for _ in range(4)}
    assert os.getpid() not in {pid for pid, _ in pids}
    assert {threads for _, threads in pids} == {"1"}


def test_the_environment_is_left_alone(engine, monkeypatch):
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = dict(os.environ)
    with LocalEngine(workers=1, threads=3) as other:
        assert other.submit(os.getenv, "MKL_NUM_THREADS").result() == "3"
    assert dict(os.environ) == before


def test_an_exception_is_the_one_that_was_raised(engine):
    with pytest.raises(ZeroDivisionError) as caught:
        engine.submit(divides, 0).result()
    assert "return 1 // x" in "".join(caught.value.__notes__)
    with pytest.raises(DistributedError, match="Odd: 1 2"):
        engine.submit(odd).result()
    assert engine.submit(square, 3).result() == 9


def test_what_cannot_be_sent_says_so(engine):
    with pytest.raises(InvalidInput, match="cannot be sent to another process"):
        engine.submit(lambda: 0).result()
    with pytest.raises(Exception, match="pickle"):
        engine.submit(unsendable).result()
    assert engine.submit(square, 3).result() == 9


def test_a_killed_worker_costs_only_its_task(engine, tmp_path):
    log = tmp_path / "log"
    other = engine.submit(waits, log, tmp_path / "go")
    while not log.exists():
        time.sleep(0.01)
    value, pid = engine.submit(dies_once, tmp_path / "mark", 7).result()
    assert value == 7
    assert pid != int((tmp_path / "mark").read_text())
    (tmp_path / "go").touch()
    other.result()
    assert log.read_text() == "x", "the other worker's task was done again"


def test_a_worker_killed_from_outside_is_replaced(engine, tmp_path):
    log = tmp_path / "log"
    future = engine.submit(waits_once, log)
    while not log.exists():
        time.sleep(0.01)
    for process in children():
        process.kill()
    assert future.result() not in {None, os.getpid()}
    assert log.read_text() == "xx"


def test_a_task_that_kills_every_worker_fails_alone(tmp_path):
    with LocalEngine(workers=1, retries=1) as engine:
        bad, good = engine.submit(dies, tmp_path / "log"), engine.submit(square, 4)
        with pytest.raises(WorkerLost, match=r"dies was lost 2 times: process \d+ was ended by SIGKILL"):
            bad.result()
        assert good.result() == 16
    assert (tmp_path / "log").read_text() == "xx"


def test_many_tasks_are_taken_while_workers_are_coming_up():
    with LocalEngine(workers=1) as engine:
        futures = [engine.submit(square, x) for x in range(17_000)]
        assert sum(f.result() for f in as_completed(futures)) == sum(x * x for x in range(17_000))


def test_shutting_down_finishes_or_cancels(tmp_path):
    engine = LocalEngine(workers=1)
    first = engine.submit(waits, tmp_path / "log", tmp_path / "go")
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    rest = [engine.submit(square, x) for x in range(3)]
    engine.shutdown(wait=False, cancel_futures=True)
    assert not first.done()
    (tmp_path / "go").touch()
    engine.shutdown()
    assert first.result() != os.getpid()
    assert not wait(rest, timeout=300).not_done
    with pytest.raises(CancelledError):
        rest[0].result()
    with pytest.raises(RuntimeError, match="after shutdown"):
        engine.submit(square, 1)
    LocalEngine(workers=1).shutdown()


def test_leaving_by_ctrl_c_does_not_wait(tmp_path):
    engine = LocalEngine(workers=1)
    future = engine.submit(waits, tmp_path / "log", tmp_path / "never")
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    with pytest.raises(KeyboardInterrupt), engine:
        raise KeyboardInterrupt
    with pytest.raises(WorkerLost, match="stopped"):
        future.result()


@pytest.mark.parametrize("arguments", [{"workers": 0}, {"threads": 0}, {"retries": -1}])
def test_numbers_too_small_are_refused(arguments):
    with pytest.raises(InvalidInput, match=next(iter(arguments))):
        LocalEngine(**arguments)


def script(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    return subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_script_without_a_main_guard_is_told(tmp_path):
    process = script(
        tmp_path,
        """
        from thalweg.engines import LocalEngine
        with LocalEngine(workers=1) as engine:
            print(engine.submit(pow, 2, 3).result())
        """,
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "__main__" in errors.strip().splitlines()[-1]


@pytest.mark.parametrize("ending", ["killed", "interrupted", "left"])
def test_workers_end_with_their_driver(tmp_path, ending):
    process = script(
        tmp_path,
        f"""
        import time
        from thalweg.engines import LocalEngine
        if __name__ == "__main__":
            engine = LocalEngine(workers=1)
            pid = engine.submit(__import__("os").getpid).result()
            engine.submit(time.sleep, 900)
            print(pid, flush=True)
            if {ending == "left"}:
                raise SystemExit
            with engine:
                time.sleep(900)
        """,
    )
    worker = psutil.Process(int(process.stdout.readline()))
    if ending == "killed":
        process.kill()
    elif ending == "interrupted":
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    worker.wait(timeout=300)
