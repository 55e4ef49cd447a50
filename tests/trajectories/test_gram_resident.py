"""Blocks of checkpoints that wait for all others: the same sums, and as many reads as promised."""

import numpy as np
import pytest
import torch

from reference.trajectories import Memory, walk
from thalweg.errors import InvalidInput
from thalweg.trajectories import checkpoint_reads, grams

SHAPES = {"embed": (300, 64), "norm": (32,)}


@pytest.mark.parametrize("resident", [1, 3, 4, 10, 100])
def test_the_same_sums_from_few_checkpoints_at_a_time(resident):
    points = walk(SHAPES, 12)
    source, fetched = Memory(points), []
    found = grams(source, resident=resident, exact=True, fetch=fetched.append)
    whole = grams(Memory(points), exact=True)
    scale = np.sqrt(np.diag(whole.increments()))
    np.testing.assert_allclose(
        found.increments() / np.outer(scale, scale), whole.increments() / np.outer(scale, scale), atol=1e-12
    )
    np.testing.assert_allclose(found.c, whole.c, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.m, whole.m, rtol=1e-12)
    np.testing.assert_allclose(found.unchanged, whole.unchanged)
    reads = sum(source.checkpoint_reads().values())
    assert reads == len(fetched) == checkpoint_reads(12, min(resident, 11))
    assert found.bytes_read == source.bytes_read
    assert [index for index, *_ in source.reads][::2] == fetched  # each fetched before its two tensors are read


def test_only_the_checkpoint_being_read_need_be_there():
    points, here = walk(SHAPES, 9), set()

    class Remote(Memory):
        def read(self, index, name, start, stop):
            assert here == {index}
            return super().read(index, name, start, stop)

    def fetch(index):
        here.clear()
        here.add(index)

    grams(Remote(points), resident=3, fetch=fetch)


def test_about_half_of_t_squared_over_b():
    for count, resident in ((154, 8), (64, 4), (100, 10)):
        assert checkpoint_reads(count, resident) == pytest.approx(count**2 / (2 * resident), rel=0.15)


def test_a_budget_that_holds_fewer_names_how_many():
    points = [{"w": torch.full((4000, 1000), float(i), dtype=torch.float16)} for i in range(6)]
    with pytest.raises(InvalidInput, match="resident=2 "):
        grams(Memory(points), resident=4, budget=20 * 2**20 + 5 * 8_000_000)
    grams(Memory(points), resident=2, budget=20 * 2**20 + 5 * 8_000_000)
