import os
import signal
import sqlite3
import time
from contextlib import closing

import killable
import numpy as np
import pytest
import torch
from killable import start

import thalweg as tw
from thalweg.errors import InvalidInput, NumericalWarning, RunFolderError
from thalweg.runs import open_run, train


def contents(folder):
    """Every byte that two equal runs share: all rows but timings, and the checkpoints."""
    with closing(sqlite3.connect(folder / "metrics.sqlite")) as connection:
        rows = {
            table: connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
            for table in ("variables", "scalars", "vectors", "events")
        }
    weights = {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
    return rows, weights


def finish(folder, **options):
    process = start(folder, resume=True, **options)
    process.join(300)
    assert process.exitcode == 0
    assert open_run(folder).state == "finished"


def wait_for(folder, step, process):
    limit = time.monotonic() + 300
    while time.monotonic() < limit and process.is_alive():
        if (folder / "manifest.json").exists() and open_run(folder).steps >= step:
            return
        time.sleep(0.002)
    raise AssertionError(f"step {step} never came; exit code {process.exitcode}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Contents of uninterrupted runs, made once for each kind."""
    known = {}

    def get(**options):
        key = tuple(sorted(options.items()))
        if key not in known:
            folder = tmp_path_factory.mktemp("whole") / "run"
            process = start(folder, **options)
            process.join(300)
            assert process.exitcode == 0
            known[key] = contents(folder)
        return known[key]

    return get


KINDS = [
    {"dtype": "float64", "rule": "gd"},
    {"dtype": "float32", "rule": "heavy", "batch_size": 5},
    pytest.param({"dtype": "float32", "rule": "adam"}, marks=pytest.mark.slow),
    pytest.param({"dtype": "float64", "rule": "adam", "batch_size": 7}, marks=pytest.mark.slow),
    pytest.param({"dtype": "float32", "rule": "gd"}, marks=pytest.mark.slow),
    pytest.param({"dtype": "float64", "rule": "heavy"}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_killed_again_and_again_while_read(kind, tmp_path, whole):
    """SIGKILL at four moments, the third soon after a resume, while a reader is inside a transaction.

    Each may be any between the step that is awaited and the fence: the last step before the next saved position.
    """
    folder = tmp_path / "run"
    readers = []
    for number, (step, fence) in enumerate(((3, 6), (11, 13), (13, 13), (29, 34))):
        process = start(folder, resume=number > 0, slowly=0.01, fence=fence, **kind)
        wait_for(folder, step, process)
        readers.append(sqlite3.connect(f"{folder.as_uri()}/metrics.sqlite?mode=ro", uri=True, isolation_level=None))
        readers[-1].execute("BEGIN")
        seen = readers[-1].execute("SELECT max(step) FROM scalars").fetchone()[0]
        os.kill(process.pid, signal.SIGKILL)
        process.join(300)
        assert process.exitcode == -signal.SIGKILL
        run = open_run(folder)
        assert run.state == "interrupted", "a dead writer is seen as one"
        assert run.steps >= seen, "a row that was read is there to stay"
        loss = run.data["loss"]
        assert loss.step.values.tolist() == list(range(run.steps + 1)), "rows have no gap"
        assert np.isfinite(loss).all()
    finish(folder, **kind)
    assert contents(folder) == whole(**kind)
    assert [entry["step"] for entry in open_run(folder).manifest.resumed] == [0, 7, 7, 28]
    for reader in readers:
        reader.close()


MOMENTS = [*range(30), *range(60, 75), 90, 91, 92, 110]


@pytest.mark.parametrize("die_at", [pytest.param(n, marks=[] if n % 18 == 0 else pytest.mark.slow) for n in MOMENTS])
def test_killed_between_any_two_writes(die_at, tmp_path, whole):
    """The process dies at the n-th fsync, rename, mkdir, begin or commit: nothing half-done may show."""
    kind = {"dtype": "float64", "rule": "gd"}
    folder = tmp_path / "run"
    process = start(folder, die_at=die_at, **kind)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL, "the moment lies within the run"
    if (folder / "manifest.json").exists():
        run = open_run(folder)
        assert run.state == "interrupted"
        recorded = run.steps
        for step in run.checkpoints:
            assert run.checkpoint(step).keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
        assert recorded == 0 or run.data.sizes["step"] == recorded + 1
    finish(folder, **kind)
    assert contents(folder) == whole(**kind)


def test_a_longer_run_is_the_same_run(tmp_path, whole):
    """Asked for more steps, a finished run goes on as if it had been asked for them at once."""
    killable.work(tmp_path / "run", dtype="float64", rule="gd", steps=17)
    run = open_run(tmp_path / "run")
    assert (run.state, run.steps) == ("finished", 17)
    assert np.isnan(run.data["update_norm"].values[-1])
    finish(tmp_path / "run", dtype="float64", rule="gd")
    assert contents(tmp_path / "run") == whole(dtype="float64", rule="gd")


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    killable.work(tmp_path / "run", steps=5)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    run = killable.work(tmp_path / "run", steps=5, resume=True)
    assert run.state == "finished"
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def small(folder, *, problem=None, rule=None, steps=6, **options):
    problem = problem or killable.make_problem()
    return train(problem, rule or killable.RULES["gd"](), steps, folder=folder, save_every=2, **options)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"rule": tw.rules.GradientDescent(lr=0.2)}, r"rule\.lr is 0\.3 in the folder and 0\.2 now"),
        ({"problem": killable.make_problem(seed=1)}, "fingerprint of the model is '"),
        (
            {"problem": killable.make_problem(torch.float32)},
            r"dtype is 'torch\.float64'.* 'torch\.float32' now",
        ),
        ({"seed": 8}, r"seeds\.run is 0 in the folder and 8 now"),
        ({"batch_size": 4}, "batch_size is None in the folder and 4 now"),
        ({"checkpoint_every": 2}, "checkpoint_every is None in the folder and 2 now"),
        ({"config": {"data": {"name": "b"}}}, r"data\.name is 'a' in the folder and 'b' now"),
        ({"measures": [tw.runs.FullLoss()]}, "measures is"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_settings_are_refused_and_named(changed, named, tmp_path):
    kept = {"config": {"data": {"name": "a"}, "steps": 6}}
    small(tmp_path / "run", **kept)
    with pytest.raises(RunFolderError, match=named):
        small(tmp_path / "run", resume=True, steps=9, **(kept | changed))
    assert open_run(tmp_path / "run").data.sizes["step"] == 7


def test_other_data_are_refused_by_fingerprint(tmp_path):
    problem = killable.make_problem()
    small(tmp_path / "run", problem=problem)
    problem._batches.data[0][5, 1] += 1e-9
    with pytest.raises(RunFolderError, match="fingerprint of the data"):
        small(tmp_path / "run", problem=problem, resume=True, steps=9)


def test_steps_may_grow_in_the_configuration_but_not_shrink(tmp_path):
    small(tmp_path / "run", config={"steps": 6})
    assert small(tmp_path / "run", resume=True, steps=9, config={"steps": 9}).steps == 9
    with pytest.raises(InvalidInput, match="has done 9 steps and is to end at 4"):
        small(tmp_path / "run", resume=True, steps=4, config={"steps": 4})


def test_another_number_of_threads_is_warned_about(tmp_path):
    small(tmp_path / "run")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(NumericalWarning, match="threads is"):
            small(tmp_path / "run", resume=True, steps=7)
    finally:
        torch.set_num_threads(threads)


def test_rows_lost_behind_the_saved_position_are_noticed(tmp_path):
    small(tmp_path / "run")
    with closing(sqlite3.connect(tmp_path / "run" / "metrics.sqlite")) as connection, connection:
        connection.execute("DELETE FROM scalars WHERE step >= 4")
    with pytest.raises(RunFolderError, match=r"end at step 3.*saved position is step 6"):
        small(tmp_path / "run", resume=True, steps=9)


def test_resume_begins_where_nothing_was_begun(tmp_path):
    assert small(tmp_path / "new", resume=True).state == "finished"


def test_two_writers_are_refused(tmp_path):
    folder = tmp_path / "run"
    process = start(folder, fence=2)
    wait_for(folder, 1, process)
    try:
        for options in ({"resume": True}, {"replace": True}):
            with pytest.raises(RunFolderError, match="Another process is writing"):
                killable.work(folder, **options) if "resume" in options else small(folder, **options)
        assert open_run(folder).state == "running"
    finally:
        process.kill()
        process.join(300)
