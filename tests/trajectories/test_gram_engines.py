"""A Gram on other processes: the same numbers, whoever computes them, whoever is killed, and wherever it stopped."""

import os
import pickle
import shutil
import signal
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from reference.trajectories import Memory, walk
from thalweg.engines import LocalEngine
from thalweg.errors import InvalidInput, NonFinite, RunFolderError
from thalweg.runs.sources import Trajectory, trajectory
from thalweg.trajectories import grams
from thalweg.trajectories.distributed import grams_on

SHAPES = {"embed": (300, 64), "qkv": (96, 64), "norm": (32,), "head": (32, 300)}
SPLIT = 4096
TASKS = 5 + 2 + 1 + 3


class Deadly(Memory):
    """Kills the first process that reads the second part of a tensor."""

    def __init__(self, points, mark):
        super().__init__(points)
        self.mark = Path(mark)

    def read(self, index, name, start, stop):
        if (name, start, index) == ("embed", SPLIT, 3) and not self.mark.exists():
            self.mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index, name, start, stop)


class Counts:
    """An executor that counts, and can stop in the middle."""

    def __init__(self, stop=None):
        self.names, self.stop = [], stop

    def submit(self, fn, task, *args):
        future = Future()
        self.names.append((task.layout.name, task.start))
        if self.stop == len(self.names):
            future.set_exception(OSError("stopped"))
        else:
            future.set_result(fn(pickle.loads(pickle.dumps(task)), *args))
        return future


class Meter:
    def __init__(self):
        self.calls = []

    def init(self, steps, start=0):
        self.calls.append(("init", steps, start))

    def step(self, values):
        self.calls.append(("step", values["step"], values["bytes"]))

    def close(self):
        self.calls.append(("close",))


@pytest.fixture(scope="module")
def points():
    return walk(SHAPES, 5)


@pytest.fixture(scope="module")
def right(points):
    return grams(Memory(points))


@pytest.fixture
def files(tmp_path, points, monkeypatch):
    """Opened by a relative path, which must mean the same in every process."""
    (tmp_path / "run").mkdir()
    for step, point in enumerate(points):
        save_file(point, tmp_path / "run" / f"step{step}.safetensors")
    monkeypatch.chdir(tmp_path)
    return trajectory("run")


def agree(found, right):
    """Equal to 1e-12 of the products of the lengths."""
    length = np.sqrt(np.einsum("gaa->ga", right.G))
    order = [found.names.index(name) for name in right.names]
    assert np.all(np.abs(found.G[order] - right.G) <= 1e-12 * length[:, :, None] * length[:, None, :])
    assert np.all(np.abs(found.c[order] - right.c) <= 1e-12 * length * np.sqrt(right.m)[:, None])
    assert np.allclose(found.m[order], right.m, rtol=1e-12, atol=0)
    assert np.array_equal(found.unchanged[order], right.unchanged)
    return True


def identical(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("G", "c", "m", "unchanged"))


def test_any_executor_gives_the_same(points, right):
    with ThreadPoolExecutor(3) as executor:
        found = grams_on(executor, Memory(points), split=SPLIT)
        assert agree(found, right)
        assert found.bytes_read == right.bytes_read
        assert identical(found, grams_on(executor, Memory(points), split=SPLIT)), "the order of arrival matters"
        assert identical(grams_on(executor, Memory(points)), right), "no tensor is split, so no bit may differ"


def test_processes_read_the_files_and_one_may_be_killed(tmp_path, points, right, files):
    source = Deadly(points, tmp_path / "killed")
    with LocalEngine(workers=2) as engine:
        assert agree(grams_on(engine, source, split=SPLIT), right)
        assert source.mark.exists()
        assert int(source.mark.read_text()) != os.getpid()
        found = grams_on(engine, files, split=SPLIT)
        assert agree(found, right)
        assert found.bytes_read == right.bytes_read
        assert files.bytes_read == 0, "the driver read"
        shutil.move("run/step3.safetensors", "away.safetensors")
        with pytest.raises(RunFolderError, match=r"On the host .*step3\.safetensors: it does not exist"):
            grams_on(engine, files)


class Weighs:
    """An executor that does nothing but weigh what it is sent."""

    def __init__(self):
        self.sizes = []

    def submit(self, fn, *args):
        self.sizes.append(len(pickle.dumps((fn, args))))
        future = Future()
        future.set_exception(OSError("not done"))
        return future


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_what_travels_does_not_grow_with_the_model(tmp_path, kind):
    sizes = {}
    for count in (1, 50):
        folder = tmp_path / f"{count}"
        folder.mkdir()
        for step in range(3):
            point = {f"layer{i}.weight": torch.full((4, 4), float(step + i)) for i in range(count)}
            path = folder / f"step{step}.{kind}"
            save_file(point, path) if kind == "safetensors" else torch.save(point, path)
        scales = Weighs()
        with pytest.raises(OSError, match="not done"):
            grams_on(scales, trajectory(folder))
        assert len(scales.sizes) == count
        sizes[count] = max(scales.sizes)
    assert sizes[50] < 1.05 * sizes[1]


def test_a_restart_does_only_what_is_missing(tmp_path, points, right):
    kept = tmp_path / "kept"
    with pytest.raises(OSError, match="stopped"):
        grams_on(Counts(stop=TASKS), Memory(points), split=SPLIT, directory=kept)
    again, meter = Counts(), Meter()
    found = grams_on(again, Memory(points), split=SPLIT, directory=kept, meter=meter)
    assert again.names == [("head", 2 * SPLIT)], "what was done is done again"
    assert found.reused == TASKS - 1
    assert meter.calls[0] == ("init", TASKS, found.reused)
    assert identical(found, grams_on(Counts(), Memory(points), split=SPLIT))
    assert agree(found, right)
    last = Counts()
    assert identical(grams_on(last, Memory(points), split=SPLIT, directory=kept), found)
    assert not last.names
    other = Counts()
    assert agree(grams_on(other, Memory(points), split=2 * SPLIT, directory=kept), right)
    assert ("embed", 0) in other.names, "a range of another length was taken for it"


def test_progress_counts_tasks_and_bytes(points, right):
    meter = Meter()
    grams_on(Counts(), Memory(points), split=SPLIT, meter=meter)
    assert meter.calls[0] == ("init", TASKS, 0)
    assert [call[1] for call in meter.calls[1:-1]] == list(range(1, TASKS + 1))
    assert meter.calls[-2][2] == right.bytes_read
    assert meter.calls[-1] == ("close",)


def test_a_fault_names_its_place_and_stops_the_rest(points):
    spoiled = [{name: tensor.clone() for name, tensor in point.items()} for point in points]
    spoiled[3]["head"].view(-1)[5000] = float("nan")
    meter = Meter()
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(NonFinite, match=r"3.*head|head.*3"):
            grams_on(executor, Memory(spoiled), split=SPLIT, meter=meter)
        assert meter.calls[-1] == ("close",)
        found = grams_on(executor, Memory(spoiled), split=SPLIT, on_bad="skip")
        assert identical(found, grams_on(Counts(), Memory(spoiled), split=SPLIT, on_bad="skip"))
        assert agree(found, grams(Memory(spoiled), on_bad="skip"))
        assert [(one.step, one.tensor, one.elements) for one in found.bad] == [(3, "head", 1)]


def test_wrong_arguments_are_refused_before_anything_runs(points):
    sent = Counts()
    for arguments in ({"split": 0}, {"on_bad": "ask"}, {"budget": 1}):
        with pytest.raises(InvalidInput):
            grams_on(sent, Memory(points), **arguments)
    with pytest.raises(InvalidInput, match="two checkpoints"):
        grams_on(sent, Memory(points[:1]))
    assert not sent.names


@pytest.mark.slow
def test_parts_need_not_travel(points):
    def halves(tensor):
        return {"a": [(0, 2048)], "b": [(2048, 6144)]} if tensor.name == "qkv" else None

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        found = grams_on(executor, Trajectory.from_arrays(points), parts=halves, split=SPLIT)
    assert agree(found, grams(Trajectory.from_arrays(points), parts=halves))
    assert "qkv[a]" in found.names
