"""Finished work stays, whatever stops the rest; results can be kept and opened again."""

import os

import numpy as np
import pytest

from reference.trajectories import Memory, walk
from thalweg.errors import RunFolderError, StorageError
from thalweg.trajectories import gram_store, grams, open_grams, run_task, tasks
from thalweg.trajectories.gram_store import GramStore

SHAPES = {"embed": (300, 64), "qkv": (96, 32), "norm": (32,), "head": (32, 300)}


class Stops(Memory):
    """Fails when a tensor is read, as if a file had vanished."""

    def read(self, index, name, start, stop):
        if name == "head":
            raise StorageError("gone")
        return super().read(index, name, start, stop)


@pytest.fixture
def points():
    return walk(SHAPES, 5)


@pytest.fixture
def stopped(tmp_path, points):
    with pytest.raises(StorageError, match="gone"):
        grams(Stops(points), directory=tmp_path / "kept")
    return tmp_path / "kept"


def halves(tensor):
    return {"a": [(0, 16)], "b": [(16, 32)]} if tensor.name == "norm" else None


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("G", "c", "m", "unchanged"))


def test_a_restart_reads_only_what_is_missing(points, stopped):
    source = Memory(points)
    found = grams(source, directory=stopped)
    assert {name for _, name, _, _ in source.reads} == {"head"}
    assert found.reused == 3
    assert same(found, grams(Memory(points)))
    again = Memory(points)
    grams(again, directory=stopped)
    assert not again.reads


@pytest.mark.parametrize("change", ["step", "file", "setting", "parts", "another length"])
def test_results_of_anything_else_are_not_used(points, stopped, change):
    options = {"exact": change == "setting"}
    if change == "parts":
        options["parts"] = halves
    source = Memory(points[:4] if change == "another length" else points, range(1, 6) if change == "step" else None)
    if change == "file":
        source.prints[1] = "another"
    found = grams(source, directory=stopped, **options)
    assert found.reused == (2 if change == "parts" else 0)
    assert same(found, grams(Memory(source.points), **options))


@pytest.mark.parametrize(("damage", "left"), [("cut", 0), ("flip", 2), ("empty", 0), ("another", 0)])
def test_damaged_files_are_computed_again(points, stopped, damage, left):
    (path,) = stopped.iterdir()
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[-5] ^= 1
    else:
        data = b"" if damage == "empty" else b"not a file of ours" * 9
    path.write_bytes(data)
    found = grams(Memory(points), directory=stopped)
    assert found.reused == left
    assert same(found, grams(Memory(points)))
    assert grams(Memory(points), directory=stopped).reused == 4


@pytest.mark.parametrize("damage", ["cut", "flip", "other tensor"])
def test_damaged_files_of_one_tensor_are_computed_again(tmp_path, points, damage):
    store = GramStore(tmp_path)
    for task in tasks(Memory(points)):
        store.save(run_task(task), task.key)
    path = store.path("qkv")
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[-5] ^= 1
    else:
        data = store.path("embed").read_bytes()
    path.write_bytes(data)
    found = grams(Memory(points), directory=tmp_path)
    assert found.reused == 3
    assert same(found, grams(Memory(points)))


def test_small_tensors_share_a_file_and_old_files_do_not_pile_up(tmp_path, points):
    grams(Memory(points), directory=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["grams-0.safetensors"]
    changed = Memory(points)
    changed.prints[2] = "another"
    assert grams(changed, directory=tmp_path).reused == 0
    assert len(list(tmp_path.iterdir())) == 1
    again = grams(changed, directory=tmp_path)
    assert (again.reused, again.flops) == (4, 0)


def test_what_is_finished_is_written_within_a_second_of_work(tmp_path, points, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(gram_store.time, "monotonic", lambda: now[0])

    store, work = GramStore(tmp_path), tasks(Memory(points))
    for at, task in zip((0.5, 0.9, 1.1, 1.5), work):
        now[0] = at
        store.add(run_task(task), task.key)
        kept = [task for task in work if GramStore(tmp_path).load(task.layout.name, task.key)]
        assert kept == (work[:3] if at > 1 else [])
    store.flush()
    assert grams(Memory(points), directory=tmp_path).reused == 4


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/dev/full"), reason="needs a full device")
def test_a_directory_that_cannot_be_made_is_an_error(points):
    with pytest.raises(StorageError):
        grams(Memory(points), directory="/dev/full/kept")


def test_an_interrupt_keeps_what_is_finished(tmp_path, points):
    class Interrupted(Memory):
        def read(self, index, name, start, stop):
            if name == "norm":
                raise KeyboardInterrupt
            return super().read(index, name, start, stop)

    with pytest.raises(KeyboardInterrupt):
        grams(Interrupted(points), directory=tmp_path)
    assert grams(Memory(points), directory=tmp_path).reused == 2


def test_saved_results_open_as_they_were(tmp_path, points):
    points[1]["head"][0, 0] = float("nan")
    source = Memory(points, steps=range(0, 50, 10), schedule={"learning_rate": np.linspace(1, 0, 5)})
    found = grams(source, on_bad="skip", parts=halves)
    opened = open_grams(found.save(tmp_path / "gram.nc"))
    assert same(found, opened)
    for name in ("steps", "sizes", "quantum"):
        assert np.array_equal(getattr(found, name), getattr(opened, name))
        assert getattr(found, name).dtype == getattr(opened, name).dtype
    for name in ("names", "tensors", "parts", "shapes", "dtypes", "bad", "fingerprints", "flops", "bytes_read", "stop"):
        assert getattr(found, name) == getattr(opened, name)
    assert np.array_equal(opened.schedule["learning_rate"], found.schedule["learning_rate"])
    assert repr(opened) == repr(found)
    (tmp_path / "gram.nc").write_bytes(b"CDF")
    with pytest.raises(RunFolderError):
        open_grams(tmp_path / "gram.nc")
