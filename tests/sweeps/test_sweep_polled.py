"""Jobs that have to be asked, with the interface of submitit's, as an engine of a sweep."""

import pickle
import threading
import time

import pytest
import sweep_cells

from thalweg.errors import InvalidInput
from thalweg.sweeps.plan import plan
from thalweg.sweeps.run_polled import Polled
from thalweg.sweeps.sweep import sweep

PLAN = plan(width=[1, 2, 3, 4])


class Job:
    """Is done when it was asked twice, and knows no callbacks."""

    def __init__(self, call):
        self.call, self.asked, self.cancelled = call, 0, False

    def done(self):
        self.asked += 1
        return self.asked > 1

    def result(self):
        function, arguments = pickle.loads(self.call)
        return function(*arguments)

    def cancel(self):
        self.cancelled = True


class Lost(Job):
    def result(self):
        raise OSError("job 17 was preempted")


class Never(Job):
    def done(self):
        return False


class Queue:
    def __init__(self, *kinds):
        self.kinds, self.jobs = list(kinds), []

    def submit(self, function, *arguments):
        kind = self.kinds.pop(0) if self.kinds else Job
        self.jobs.append(kind(pickle.dumps((function, arguments))))
        return self.jobs[-1]


@pytest.fixture(autouse=True)
def side_file(tmp_path, monkeypatch):
    monkeypatch.setenv(sweep_cells.LOG, str(tmp_path / "log"))


def test_jobs_are_asked_until_they_are_done(tmp_path):
    queue = Queue(Lost, Job, Lost)
    with Polled(queue, every=0.01) as engine:
        found = sweep(sweep_cells.safe, PLAN, tmp_path / "s", engine=engine)
    assert found.status().done == 4
    assert sum(record.attempts for record in found.records) == 6
    assert all(job.asked > 1 for job in queue.jobs)


def test_a_job_that_is_forgotten_is_cancelled(tmp_path):
    queue = Queue(Never)
    with Polled(queue, every=0.01) as engine:
        found = sweep(sweep_cells.safe, PLAN, tmp_path / "s", engine=engine, timeout=0.3, retries=1000)
    assert found.status().done == 4
    assert queue.jobs[0].cancelled


def test_an_error_leaves_no_job_and_no_thread_behind():
    queue = Queue(Never, Never)
    futures = []

    def interrupted(engine):
        with engine:
            futures.extend(engine.submit(divmod, 7, 3) for _ in range(2))
            raise KeyboardInterrupt

    engine = Polled(queue, every=0.01)
    with pytest.raises(KeyboardInterrupt):
        interrupted(engine)
    assert all(job.cancelled for job in queue.jobs)
    assert all(future.cancelled() for future in futures)
    assert not [thread for thread in threading.enumerate() if thread.name == "thalweg-polled"]
    with pytest.raises(RuntimeError, match="after shutdown"):
        engine.submit(divmod, 7, 3)


def test_waiting_for_the_end_does_not_spin():
    class Slow(Job):
        def done(self):
            self.asked += 1
            return time.monotonic() > end

    end = time.monotonic() + 0.3
    queue = Queue(Slow)
    with Polled(queue, every=0.05) as engine:
        future = engine.submit(divmod, 7, 3)
    assert future.result() == (2, 1)
    assert queue.jobs[0].asked <= 10


@pytest.mark.parametrize("arguments", [(object(), 1.0), (Queue(), 0.0), (Queue(), float("nan"))])
def test_what_is_no_queue(arguments):
    with pytest.raises(InvalidInput, match="It must have submit"):
        Polled(*arguments)
