"""Small tensors are read together, each byte once; the bytes that the buffer takes are known before."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from reference.trajectories import Memory, walk
from thalweg.errors import InvalidInput, RunFolderError
from thalweg.runs.sources import stored, trajectory
from thalweg.trajectories import grams
from thalweg.trajectories.prefetch import extent, prefetch
from thalweg.trajectories.tiles import layout, tiles

SHAPES = {f"layers.{i}.weight": (1 + i % 7, 5) for i in range(40)} | {"wide.weight": (300, 100), "odd.weight": (3,)}


@pytest.fixture
def points():
    return walk(SHAPES, 4)


@pytest.fixture
def folder(tmp_path, points):
    for step, point in enumerate(points):
        save_file(point, tmp_path / f"step{step}.safetensors")
    return tmp_path


def read(source, capacity, read_bytes):
    wanted = [tile for one in source.tensors for tile in tiles(layout(one), len(source), read_bytes)]
    return [(tile.layout.name, tile.start, rows.clone()) for tile, rows in prefetch(source, wanted, capacity)]


@pytest.mark.parametrize("capacity", [1, 10_000, 2**20])
@pytest.mark.parametrize("read_bytes", [10, 1000, 10**6])
def test_rows_are_those_of_the_files(folder, points, capacity, read_bytes):
    path = trajectory(folder)
    for name, start, rows in read(path, capacity, read_bytes):
        for row, point in zip(rows, points):
            assert torch.equal(row, point[name].flatten()[start : start + len(row)])
    assert path.bytes_read == 4 * path.nbytes


def test_small_tensors_of_a_file_take_one_call(folder, monkeypatch):
    calls = []
    whole = os.preadv
    monkeypatch.setattr(stored.os, "preadv", lambda *args: calls.append(len(args[1])) or whole(*args))
    path = trajectory(folder)
    found = grams(path)
    assert len(calls) <= 4 * 3
    assert found.bytes_read == path.bytes_read == 4 * path.nbytes


def test_without_the_call_for_several_buffers(folder, monkeypatch):
    right = grams(trajectory(folder))
    monkeypatch.delattr(stored.os, "preadv")
    assert (grams(trajectory(folder)).G == right.G).all()


def test_from_memory_and_from_files_alike(folder, points):
    one, other = grams(trajectory(folder)), grams(Memory(points))
    for name in one.names:
        assert (one.G[one.names.index(name)] == other.G[other.names.index(name)]).all()


def test_a_file_cut_short_is_named_with_the_tensor(folder):
    path = trajectory(folder)
    last = folder / "step3.safetensors"
    mark = last.stat()
    os.truncate(last, mark.st_size - 2)
    with pytest.raises(RunFolderError, match=r"step 3.*changed"):
        grams(path)


def test_a_file_that_ends_while_it_is_read(folder, monkeypatch):
    path = trajectory(folder)
    whole = os.preadv
    monkeypatch.setattr(stored.os, "preadv", lambda fd, parts, at: whole(fd, parts[:1], at) if at < 2000 else 0)
    with pytest.raises(RunFolderError, match=r"ends after \d+ bytes"):
        grams(path)


def test_memory_of_another_size_is_refused(folder):
    path = trajectory(folder)
    with pytest.raises(InvalidInput, match="10 bytes"):
        path.read_into(0, [("odd.weight", 0, 3, memoryview(bytearray(10)))])
    with pytest.raises(InvalidInput, match="not in"):
        path.read_into(0, [("odd.weight", 0, 4, memoryview(bytearray(8)))])


@given(st.lists(st.integers(0, 400), min_size=1, max_size=30), st.integers(1, 3000))
@settings(max_examples=25, deadline=None)
def test_the_buffer_is_written_to_as_foretold(sizes, capacity):
    points = [{f"w{i}": torch.full((n,), 3, dtype=torch.uint8) for i, n in enumerate(sizes)} for _ in range(2)]
    source, ends = Filling(points), [0]
    wanted = [tile for one in source.tensors for tile in tiles(layout(one), 2, 100)]
    for _, rows in prefetch(source, wanted, capacity):
        base = rows.untyped_storage().data_ptr()
        ends.append(rows.data_ptr() - base + rows.numel())
    assert max(ends) <= extent(wanted, capacity) < max(ends) + 64 + 1 or not any(sizes)


class Filling(Memory):
    """Writes where it is told."""

    def read_into(self, index, wanted):
        for name, start, stop, out in wanted:
            out[:] = self.read(index, name, start, stop).numpy().tobytes()
