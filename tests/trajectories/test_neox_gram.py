"""Sixty-four sharded half-precision checkpoints of a language model: every byte once, and the roles of its parts."""

import os
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
import torch

from checkpoint_makers import neox
from thalweg.runs.sources import trajectory
from thalweg.trajectories import grams, trajectory_map
from thalweg.trajectories.grouping import fused_parts

STEPS = [0, 1, 2, 4, 8, 16, 32, *range(64, 64 + 57 * 10, 10)]


@pytest.mark.slow
def test_every_byte_of_64_sharded_checkpoints_is_read_once(tmp_path, monkeypatch):
    saved = neox(tmp_path, STEPS)
    path = trajectory(tmp_path)
    assert len(path) == 64
    read, plain = defaultdict(list), os.preadv

    def counted(fd, buffers, offset, *flags):
        done = plain(fd, buffers, offset, *flags)
        read[os.readlink(f"/proc/self/fd/{fd}")].append((offset, offset + done))
        return done

    monkeypatch.setattr(os, "preadv", counted)
    found = grams(path, budget=64 << 20, parts=fused_parts(path))
    shards = list(tmp_path.glob("step*/*.safetensors"))
    assert len(shards) > 64, "the checkpoints are sharded"
    assert {str(file) for file in shards} == set(read)
    total = 0
    for file, ranges in read.items():
        ranges.sort()
        assert all(a[1] <= b[0] for a, b in pairwise(ranges)), f"{file} was read twice somewhere"
        total += sum(stop - start for start, stop in ranges)
    weights = sum(t.numel() for t in saved[0].values())
    assert total == found.bytes_read == path.bytes_read == 64 * 2 * weights
    points = torch.stack([torch.cat([saved[s][one.name].flatten() for one in path.tensors]) for s in STEPS])
    truth = points.double() @ points.double().T
    np.testing.assert_allclose(found.kernel(), truth.numpy(), rtol=1e-9)
    made = trajectory_map(found, groups="role")
    assert {"Q", "K", "V"} <= set(made.groups)
