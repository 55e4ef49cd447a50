"""Tasks with a time limit: what takes longer loses its worker, and nothing else is touched."""

import os
import threading
import time
from pathlib import Path

import pytest

from thalweg.engines import LocalEngine, TimedOut, WorkerLost, local
from thalweg.errors import InvalidInput

pytestmark = pytest.mark.slow


def square(x):
    return x * x


def hangs():
    threading.Event().wait()


def hangs_once(mark):
    if not Path(mark).exists():
        Path(mark).write_text(str(os.getpid()))
        threading.Event().wait()
    return os.getpid()


def waits_for(path, log):
    with Path(log).open("a") as handle:
        handle.write("x")
    while not Path(path).exists():
        time.sleep(0.01)
    return os.getpid()


def test_only_the_late_one_is_ended(tmp_path):
    with LocalEngine(workers=2) as engine:
        other = engine.submit(waits_for, tmp_path / "go", tmp_path / "log")
        late = engine.limited(0.1).submit(hangs)
        with pytest.raises(TimedOut, match=r"hangs took longer than 0\.1 seconds.*tried 3 times"):
            late.result()
        assert issubclass(TimedOut, WorkerLost)
        assert engine.submit(square, 3).result() == 9
        (tmp_path / "go").touch()
        assert other.result() != os.getpid()
        assert (tmp_path / "log").read_text() == "x", "the other task was done again"


def test_it_is_tried_again_as_after_a_crash(tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    monkeypatch.setattr(local, "monotonic", lambda: 3600.0 * mark.exists())  # an hour passes when it hangs
    with LocalEngine(workers=1) as engine:
        limited = engine.limited(0.1)
        assert (limited.workers, repr(limited)) == (1, f"{engine!r}.limited(0.1)")
        with limited:
            future = limited.submit(hangs_once, mark)
        assert future.result() != int(mark.read_text())
        assert engine.submit(square, 4).result() == 16, "leaving it leaves the engine"


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_a_limit_is_positive(seconds):
    with LocalEngine(workers=1) as engine, pytest.raises(InvalidInput, match="seconds"):
        engine.limited(seconds)
