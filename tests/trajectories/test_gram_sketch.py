"""Estimates from projections: unbiased, as uncertain as they say, and made from each checkpoint once."""

import numpy as np
import pytest
import torch

from reference.trajectories import Memory, exact, relative_error, walk
from thalweg.errors import InvalidInput, NonFinite, RunFolderError
from thalweg.trajectories import Sketcher, grams
from thalweg.trajectories.sketch import TILE, project

SHAPES = {"embed": (300, 64), "norm": (32,), "head": (32, 300)}


def normalised(found, right, error):
    return np.abs(found - right) / error


@pytest.mark.parametrize("k", [64, 1024])
def test_within_four_standard_errors(k):
    points = walk(SHAPES, 12)
    found, right = grams(Memory(points), sketch=k), exact(points)
    assert normalised(found.increments(), right[0], found.standard_error).max() < 4
    c_error = np.sqrt((right[1] ** 2 + right[2] * np.diag(right[0])) / k)
    assert normalised(found.c.sum(0), right[1], c_error).max() < 4
    assert found.m.sum() == pytest.approx(right[2], rel=1e-12)


def test_unbiased_and_with_the_standard_error_it_claims():
    """Over many seeds: the mean is right, and the spread is what the formula says."""
    stream = np.random.default_rng(0)
    x = stream.standard_normal(2000)
    y = 0.5 * x + stream.standard_normal(2000)
    k, seeds = 32, 600
    found = np.array([project(x, k, s, "w", 0) @ project(y, k, s, "w", 0) for s in range(seeds)])
    claimed = np.sqrt(((x @ y) ** 2 + (x @ x) * (y @ y)) / k)
    assert abs(found.mean() - x @ y) < 4 * claimed / np.sqrt(seeds)
    # The standard deviation of 600 numbers is known to 3 %; elements of one chunk never meet, which takes 1.6 % away.
    assert 0.85 < found.std() / claimed < 1.1


@pytest.mark.parametrize("k", [64, 1500])
def test_a_heavy_column_is_spread(k):
    """Energy in every k-th element, as in one column of a matrix, would stay in one number without the rotations."""
    x = np.zeros(400 * k)
    x[::k] = np.random.default_rng(1).standard_normal(400)
    y = np.zeros_like(x)
    y[::k] = np.random.default_rng(2).standard_normal(400)
    error = np.sqrt(((x @ y) ** 2 + (x @ x) * (y @ y)) / k)
    found = np.array([project(x, k, s, "w", 0) @ project(y, k, s, "w", 0) for s in range(40)])
    assert np.sqrt(np.mean((found - x @ y) ** 2)) < 1.5 * error


def test_short_tensors_are_exact():
    points = walk({"a": (100,), "b": (5, 5)}, 6)
    found = grams(Memory(points), sketch=128)
    assert relative_error(found.increments(), exact(points)[0]) < 1e-12
    assert not found.standard_error.any()


def test_parts_of_fused_tensors():
    points = walk({"qkv": (96, 32)}, 5)
    parts = lambda t: {"a": [(0, 1000), (2000, 3072)], "b": [(1000, 2000)]}  # noqa: E731
    found = grams(Memory(points), sketch=2048, parts=parts)
    assert relative_error(found.increments("qkv[b]"), exact(points, "qkv", range(1000, 2000))[0]) < 1e-12


def test_a_live_stream_gives_what_files_give_and_reads_once():
    points = walk({**SHAPES, "long": (TILE + 1000,)}, 4)
    source = Memory(points)
    from_files = grams(source, sketch=256, seed=3)
    assert source.times_read() == {1}
    assert from_files.bytes_read == source.bytes_read
    live = Sketcher(256, seed=3)
    for step, point in enumerate(points):
        live.update(step, {name: torch.nn.Parameter(w) for name, w in point.items()})
    assert np.array_equal(live.grams().G, from_files.G)
    assert not np.array_equal(grams(Memory(points), sketch=256, seed=4).G, from_files.G)


def test_going_on_from_a_file_reads_only_the_new_checkpoint(tmp_path):
    points = walk(SHAPES, 6)
    sketcher = Sketcher(64)
    for index in range(5):
        sketcher.read(Memory(points), index)
    opened = Sketcher.open(sketcher.save(tmp_path / "sketch.safetensors"))
    source = Memory(points)
    opened.read(source, 5)
    assert {index for index, *_ in source.reads} == {5}
    assert np.array_equal(opened.grams().G, grams(Memory(points), sketch=64).G)
    (tmp_path / "sketch.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunFolderError):
        Sketcher.open(tmp_path / "sketch.safetensors")


def test_what_is_no_next_checkpoint():
    sketcher = Sketcher(8)
    with pytest.raises(InvalidInput, match="two"):
        sketcher.grams()
    sketcher.update(5, {"w": torch.zeros(3)})
    with pytest.raises(InvalidInput, match="Step 5 after step 5"):
        sketcher.update(5, {"w": torch.zeros(3)})
    with pytest.raises(InvalidInput):
        sketcher.update(6, {"w": torch.zeros(4)})
    with pytest.raises(NonFinite, match=r"step 6 .*'w'"):
        sketcher.update(6, {"w": torch.tensor([1.0, float("nan"), 0.0])})
    sketcher.update(7, {"w": torch.ones(3)})
    assert sketcher.grams().G.item() == 3
    with pytest.raises(InvalidInput, match="K is 0"):
        Sketcher(0)
    with pytest.raises(InvalidInput, match="tile"):
        grams(Memory(walk(SHAPES, 3)), sketch=8, tile=100)
