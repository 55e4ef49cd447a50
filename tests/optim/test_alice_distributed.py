"""Two processes over gloo: replicas agree bit for bit, and shards step as the whole would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("alice") / "results.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(Path(__file__).parent / "alice_worker.py"), str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(path.read_text())


def test_replicas(found):
    for one in found:
        assert one["ddp"]["equal"]
        assert one["ddp"]["error"] < 1e-12


def test_shards(found):
    """The same as one process with the whole tensors, through a distributed checkpoint in the middle."""
    assert [one["fsdp"]["local"] for one in found] == [8, 7]
    for one in found:
        assert one["fsdp"]["sharded"]
        assert one["fsdp"]["rates"] == 5e-3
        assert one["fsdp"]["error"] < 1e-12


def test_another_cut(found):
    signs = [one["cut"]["signs"] for one in found]
    assert len(signs[0]) == 12
    assert signs[0] != signs[1]
    assert all(one["cut"]["less"] for one in found)
