"""Memory as predicted, below the budget given; what does not fit is refused with what would."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from reference.trajectories import Info, Memory, walk
from thalweg.errors import InvalidInput
from thalweg.trajectories import gram_plan, grams
from thalweg.trajectories.gram_plan import LEAST_READ, READ

MEBI = 2**20

# Sparse files: zeros that take no disk, read like any others.
CHILD = """
import json, re, sys
from pathlib import Path
import torch
from thalweg.runs.sources import trajectory
from thalweg.trajectories import gram_plan, grams

folder, count, shapes, budget = Path(sys.argv[1]), *json.loads(sys.argv[2])
for step in range(count):
    header, at = {}, 0
    for t, shape in enumerate(shapes):
        size = 2 * shape[0] * shape[1]
        header[f"layers.{t}.weight"] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / f"step{step}.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)

def memory(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

import numpy as np
np.ones((2, 2), np.float32) @ np.ones((2, 2), np.float32)  # libraries load what they load
grams(trajectory(folder).window([0, 1]).select("layers.0.weight"), tile=100_000)
path = trajectory(folder)
plan = gram_plan(path, budget)
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
found = grams(path, budget=budget)
peak = memory("VmHWM") - before
print(json.dumps([plan.peak_bytes, peak, found.bytes_read, path.bytes_read, plan.total_bytes]))
"""


def measured(folder, count, shapes, budget):
    text = json.dumps([count, shapes, budget])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), text], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Sized(SimpleNamespace):
    def __len__(self):
        return len(self.steps)


def made(count, shape=(1000, 1000), tensors=2, dtype=torch.float16):
    return Sized(tensors=tuple(Info(f"w{i}", shape, dtype) for i in range(tensors)), steps=tuple(range(count)))


@pytest.mark.parametrize("budget", [64 * MEBI, 200 * MEBI, 2**30, None])
@pytest.mark.parametrize("count", [2, 64, 154])
def test_the_plan_stays_below_the_budget_and_uses_it(count, budget):
    plan = gram_plan(made(count, (30000, 1000)), budget)
    assert plan.least_bytes <= plan.peak_bytes <= (budget or 2**30)
    assert LEAST_READ <= plan.read_bytes <= READ
    assert plan.read_bytes == READ or plan.peak_bytes > 0.95 * (budget or 2**30)
    assert plan.total_bytes == count * 2 * 2 * 30_000_000
    assert plan.flops == 2 * count**2 * 2 * 30_000_000


def test_pythia_12b_as_the_arithmetic_says():
    plan = gram_plan(made(154, (11_846_072_320 // 436, 1), 436), 4 * 2**30)
    assert plan.total_bytes == pytest.approx(3.65e12, rel=1e-3)
    assert plan.flops == pytest.approx(562e12, rel=1e-3)
    assert plan.result_bytes == pytest.approx(83e6, rel=0.01)


def test_a_budget_too_small_is_refused_with_the_least_that_works():
    path = made(64)
    with pytest.raises(InvalidInput, match="at least") as caught:
        gram_plan(path, 2 * MEBI)
    least = int(str(caught.value).split("Allow at least ")[1].split()[0])
    assert gram_plan(path, least).peak_bytes <= least
    with pytest.raises(InvalidInput):
        gram_plan(path, least - 1)
    with pytest.raises(InvalidInput, match="at least"):
        grams(Memory(walk({"w": (100, 100)}, 3)), budget=MEBI)


def test_a_tile_that_is_asked_for_is_planned_for():
    assert gram_plan(made(10), tile=1000).read_bytes == 2000
    with pytest.raises(InvalidInput, match="leave the tile"):
        gram_plan(made(64), 60 * MEBI, tile=10**6)


MIXED = [[2000, 512], [512, 512], [512, 1], [1024, 512], [512, 1], [512, 1024], [3, 5], [2000, 512]]
TINY = [[1 + i % 50, 8] for i in range(400)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
@pytest.mark.parametrize(
    ("count", "shapes", "budget"),
    [
        (8, [[2048, 1024]] * 2, None),
        (8, MIXED, 20 * MEBI),
        (8, TINY, None),
        (40, [[2048, 2048]], 300 * MEBI),
        (40, MIXED, 60 * MEBI),
        (40, TINY, None),
        (40, [[256, 64]] * 30, None),
        (154, [[1024, 1024]], 150 * MEBI),
        (154, MIXED, 100 * MEBI),
        (154, TINY[:100], None),
    ],
)
def test_measured_memory_is_the_predicted_one(tmp_path, count, shapes, budget):
    predicted, peak, read, counted, total = measured(tmp_path, count, shapes, budget)
    print(f"predicted {predicted / MEBI:.1f} MiB, measured {peak / MEBI:.1f} MiB")
    assert read == counted == total
    assert 0.8 < peak / predicted < 1.2
    if budget is not None:
        assert peak <= budget
