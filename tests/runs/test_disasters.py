"""Whatever happens: an error of ours that says what, why and what to do, and a folder that can still be read."""

import errno
import json
import os
import signal
import sqlite3
import subprocess
from contextlib import closing

import killable
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import thalweg as tw
from thalweg.errors import NonFinite, RunFolderError, SchemaError, StorageError
from thalweg.runs import Measure, files, open_run, train


def go(folder, steps=12, *, problem=None, lr=0.3, **options):
    settings = {"checkpoint_every": 2, "save_every": 6} | options
    rule = tw.rules.GradientDescent(lr=lr)
    return train(problem or killable.make_problem(), rule, steps, folder=folder, **settings)


def readable(folder, state):
    """Check that everything recorded can be read, and return the number of steps."""
    run = open_run(folder)
    assert run.state == state
    data = run.data
    assert data.step.values.tolist() == list(range(data.sizes["step"]))
    for step in run.checkpoints:
        assert run.checkpoint(step)["0.weight"].shape == (6, 3)
    return data.sizes["step"] - 1


def says(error, *parts):
    """Check that the message has its three parts."""
    for part in parts:
        assert part in str(error.value), str(error.value)
    assert str(error.value).count(". ") >= 2


class At:
    """A meter that does something when a step is recorded."""

    def __init__(self, step, action):
        self.at, self.action, self.closed, self.seen = step, action, 0, []

    def init(self, steps, start=0):
        self.range = start, steps

    def step(self, values):
        self.seen.append(values)
        if values["step"] == self.at:
            self.action()

    def close(self):
        self.closed += 1


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


# --- the disk -----------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, 400 kB large, that can really fill up and really become read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk; the simulated tests cover it")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def remount(place, option):
    subprocess.run(["mount", "-o", f"remount,{option}", place], check=True)


@pytest.mark.parametrize(
    "options",
    [{"checkpoint_every": 10**6, "save_every": 10**6}, {"checkpoint_every": 1, "save_every": 40}],
    ids=["database", "checkpoint"],
)
def test_a_disk_that_really_fills_up(small_disk, options):
    """Once in the database, once in a checkpoint; after making room the run goes on."""
    with pytest.raises(StorageError) as error:
        go(small_disk / "run", 10**5, **options)
    says(error, "Writing", "exhausted", "Free some space", "resume=True")
    done = readable(small_disk / "run", open_run(small_disk / "run").state)
    assert done > 10
    assert open_run(small_disk / "run").state in ("failed", "interrupted")
    remount(small_disk, "size=40m")
    assert go(small_disk / "run", done + 5, resume=True, **options).state == "finished"
    assert readable(small_disk / "run", "finished") == done + 5


def test_a_disk_that_really_is_read_only(small_disk):
    go(small_disk / "run")
    remount(small_disk, "ro")
    for attempt in (lambda: go(small_disk / "run", 20, resume=True), lambda: go(small_disk / "other")):
        with pytest.raises(StorageError) as error:
            attempt()
        says(error, "Read-only", "read-only, or this user may not write", "another folder")
    assert readable(small_disk / "run", "finished") == 12


def test_a_run_killed_before_its_disk_became_read_only_can_be_read(small_disk):
    """SQLite cannot recover such a file in place."""
    folder = small_disk / "run"
    process = killable.start(folder, die_after=9)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    (folder / "metrics.sqlite-shm").unlink()
    remount(small_disk, "ro")
    assert readable(folder, "interrupted") == 9


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("place", ["replace", "fsync"])
def test_a_disk_that_fails_while_files_are_written(number, place, tmp_path, monkeypatch):
    real, calls = getattr(os, place), []

    def failing(*args):
        calls.append(args)
        if len(calls) > 12:
            raise OSError(number, os.strerror(number), "some file")
        return real(*args)

    monkeypatch.setattr(files.os, place, failing)
    with pytest.raises(StorageError) as error:
        go(tmp_path / "run", 40)
    monkeypatch.undo()
    says(
        error,
        os.strerror(number),
        {errno.ENOSPC: "Free some space", errno.EROFS: "another folder"}.get(number, "still there"),
    )
    assert readable(tmp_path / "run", "interrupted") > 3, "the manifest could not be written either"
    assert not list(tmp_path.rglob(".tmp-*")), "what was half written is gone"
    assert go(tmp_path / "run", 40, resume=True).state == "finished"


def test_a_database_that_reaches_its_limit(tmp_path, monkeypatch):
    """SQLite reports its own limit in the words it has for a full disk."""
    from thalweg.runs.metrics import MetricsWriter

    prepare = MetricsWriter._prepare

    def limited(self):
        prepare(self)
        self._connection.execute("PRAGMA max_page_count = 14")

    monkeypatch.setattr(MetricsWriter, "_prepare", limited)
    with pytest.raises(StorageError) as error:
        go(tmp_path / "run", 5000)
    says(error, "metrics.sqlite", "database or disk is full", "Free some space")
    monkeypatch.undo()
    assert "full" in open_run(tmp_path / "run").manifest.error
    done = readable(tmp_path / "run", "failed")
    assert done > 10
    assert go(tmp_path / "run", done + 3, resume=True).steps == done + 3


# --- damaged and foreign files ------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 4, 40, -8])
def test_a_truncated_checkpoint(keep, tmp_path):
    go(tmp_path / "run")
    (path,) = (tmp_path / "run" / "checkpoints").iterdir()
    path.write_bytes(path.read_bytes()[:keep])
    run = open_run(tmp_path / "run")
    with pytest.raises(RunFolderError) as error:
        run.checkpoint(2)
    says(error, str(path), "truncated", "Restore it from a copy")
    assert run.data.sizes["step"] == 13


@pytest.mark.parametrize("keep", [0, 100, -8])
def test_a_truncated_state(keep, tmp_path):
    go(tmp_path / "run")
    path = tmp_path / "run" / "state" / "latest.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunFolderError) as error:
        go(tmp_path / "run", 20, resume=True)
    says(error, str(path), "truncated", "Restore it")
    assert readable(tmp_path / "run", "failed") == 12


def test_a_state_of_other_contents(tmp_path):
    go(tmp_path / "run")
    path = tmp_path / "run" / "state" / "latest.safetensors"
    tensors = load_file(path)
    for note, kind in (("[]", RunFolderError), ("{", RunFolderError), (json.dumps({"schema": 99}), SchemaError)):
        save_file(tensors, path, metadata={"note": note})
        with pytest.raises(kind):
            go(tmp_path / "run", 20, resume=True)
    assert readable(tmp_path / "run", "failed") == 12


def test_a_manifest_of_a_newer_schema(tmp_path):
    go(tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"schema": 2, "new": 1}))
    for attempt in (open_run, lambda folder: go(folder, 20, resume=True), lambda folder: go(folder, replace=True)):
        with pytest.raises(SchemaError) as error:
            attempt(tmp_path / "run")
        says(error, "has schema 2", "up to 1", "Upgrade thalweg")
    path.write_text(json.dumps(raw))
    assert readable(tmp_path / "run", "finished") == 12


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        "{}",
        '{"schema": "1"}',
        '{"schema": 0}',
        '{"schema": true}',
        '{"schema": 1}',
        "[" * 10**5,
        "\x00",
    ],
)
def test_a_damaged_manifest(text, tmp_path):
    go(tmp_path / "run")
    (tmp_path / "run" / "manifest.json").write_text(text)
    with pytest.raises(RunFolderError) as error:
        open_run(tmp_path / "run")
    says(error, "manifest.json is damaged", "Restore it from a copy")


@pytest.mark.parametrize(
    "changes", [{"steps": "many"}, {"state": "fine"}, {"config": 3}, {"resumed": {}}, {"name": None}]
)
def test_a_manifest_with_wrong_types(changes, tmp_path):
    go(tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(RunFolderError, match=next(iter(changes))):
        open_run(tmp_path / "run")


def test_a_folder_that_is_not_a_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for path, found in ((tmp_path, "is not a run folder"), (tmp_path / "none", "does not exist")):
        with pytest.raises(RunFolderError) as error:
            open_run(path)
        says(error, found, "manifest.json", "Pass the folder")
    for options in ({}, {"resume": True}, {"replace": True}):
        with pytest.raises(RunFolderError, match=r"is not empty: it holds 'notes\.txt'.*another folder"):
            go(tmp_path, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"], "nothing was left behind or deleted"


@pytest.mark.parametrize("damage", ["nothing", "text", "half", "tables", "schema", "missing"])
def test_damaged_metrics(damage, tmp_path):
    go(tmp_path / "run", 200, save_every=100, checkpoint_every=100)
    path = tmp_path / "run" / "metrics.sqlite"
    if damage in ("nothing", "text"):
        path.write_bytes(b"" if damage == "nothing" else b"no database at all" * 100)
    elif damage == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "missing":
        path.unlink()
    else:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("DROP TABLE vectors" if damage == "tables" else "UPDATE meta SET value = '7'")
    run = open_run(tmp_path / "run")
    with pytest.raises(SchemaError if damage == "schema" else RunFolderError) as error:
        run.data  # noqa: B018
    says(error, "metrics.sqlite")
    assert run.checkpoint(0)["0.bias"].shape == (6,)
    with pytest.raises(RunFolderError):
        go(tmp_path / "run", 220, resume=True)


# --- hostile files ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["metrics.sqlite", "checkpoints", "state", "manifest.json"])
def test_links_out_of_the_folder_are_refused(name, tmp_path):
    go(tmp_path / "run")
    (tmp_path / "run" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    for attempt in (open_run, lambda folder: go(folder, 20, resume=True)):
        with pytest.raises(RunFolderError) as error:
            attempt(tmp_path / "run")
        says(error, "leads out of the run folder", "Replace the link")


def test_a_linked_checkpoint_file_is_refused(tmp_path):
    go(tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "from-000000000.safetensors"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFolderError, match="leads out"):
        open_run(tmp_path / "run").checkpoint(0)


def test_replacing_a_run_deletes_only_its_own_files(tmp_path):
    folder, outside = tmp_path / "run", tmp_path / "outside"
    go(folder)
    outside.mkdir()
    (outside / "precious").write_text("mine")
    (folder / "analyses").symlink_to(outside)
    (folder / "notes.txt").write_text("mine, too")
    assert go(folder, 3, replace=True).steps == 3
    assert (outside / "precious").exists()
    assert (folder / "notes.txt").exists()
    assert not (folder / "analyses").exists()


def test_pickles_are_not_read(tmp_path):
    """A pickle under a checkpoint's name is damage, and is not run."""

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    go(tmp_path / "run")
    for path in (tmp_path / "run").rglob("*.safetensors"):
        torch.save(Bomb(), path)
    with pytest.raises(RunFolderError):
        open_run(tmp_path / "run").checkpoint(0)
    with pytest.raises(RunFolderError):
        go(tmp_path / "run", 20, resume=True)
    assert not (tmp_path / "exploded").exists()


# --- numbers that are none, and Ctrl-C ----------------------------------------------------------


def test_a_loss_that_becomes_nan(tmp_path):
    with pytest.raises(NonFinite) as error:
        go(tmp_path / "run", 4000, lr=60.0)
    says(error, "At step", "learning rate 60", "Lower the learning rate")
    last = readable(tmp_path / "run", "failed")
    run = open_run(tmp_path / "run")
    assert f"At step {last} " in str(error.value)
    assert run.manifest.error.startswith("NonFinite: At step")
    kinds = [event.kind for event in run.events]
    assert kinds == ["diverged", "non_finite"]
    assert run.events[1].step == last
    data = run.data
    assert not np.isfinite(data["loss"].values[-1]) or not np.isfinite(data["gradient_norm"].values[-1])
    assert np.isfinite(data["loss"].values[:-1]).all()
    before = data["loss"].values[run.events[0].step - 1 : run.events[0].step + 1] / data["loss"].values[0]
    assert before[0] <= 1e6 < before[1]
    with pytest.raises(NonFinite, match=f"At step {last} "):
        go(tmp_path / "run", 4000, lr=60.0, resume=True)


@pytest.mark.parametrize("chosen", ["raise", "return"])
def test_ctrl_c_finishes_the_step(chosen, tmp_path):
    meter = At(7, press_ctrl_c)
    if chosen == "raise":
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "run", 40, meter=meter)
    else:
        assert go(tmp_path / "run", 40, meter=meter, on_interrupt="return").state == "interrupted"
    assert readable(tmp_path / "run", "interrupted") == 7
    assert meter.closed == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "the handler is put back"
    meter = At(-1, press_ctrl_c)
    resumed = go(tmp_path / "run", 40, resume=True, meter=meter)
    assert meter.range == (8, 40), "no step is done twice"
    whole = go(tmp_path / "whole", 40)
    assert resumed.data["loss"].equals(whole.data["loss"])


def test_ctrl_c_twice_stops_in_the_middle_of_a_step(tmp_path):
    def impatient(context):
        if context.step == 7:
            press_ctrl_c()
            press_ctrl_c()
        return 0.0

    slow = Measure.from_function("slow", impatient)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run", 40, measures=[slow])
    assert readable(tmp_path / "run", "interrupted") == 6


def test_a_handler_of_the_users_own_is_left_alone(tmp_path):
    pressed = []
    old = signal.signal(signal.SIGINT, lambda *_: pressed.append(1))
    try:
        assert go(tmp_path / "run", 12, meter=At(7, press_ctrl_c)).state == "finished"
    finally:
        signal.signal(signal.SIGINT, old)
    assert pressed == [1]


def test_a_measure_that_raises(tmp_path):
    def broken(context):
        if context.step == 5:
            raise ZeroDivisionError("of the user's")
        return 1.0

    with pytest.raises(ZeroDivisionError, match="of the user's"):
        go(tmp_path / "run", measures=[Measure.from_function("broken", broken)])
    assert readable(tmp_path / "run", "failed") == 4
    assert open_run(tmp_path / "run").manifest.error == "ZeroDivisionError: of the user's"
