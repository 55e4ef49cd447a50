"""Probes shared out over two gloo processes: the numbers of one process, by one reduction."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("two") / "results.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(Path(__file__).parent / "gradient_worker.py"), str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(path.read_text())


@pytest.mark.slow
class TestTwoProcesses:
    @pytest.mark.parametrize("keep", ["gradients", "sketch"])
    def test_the_level_of_one_process(self, found, keep):
        for row in found:
            assert row[keep][0] == pytest.approx(row[keep][1], rel=1e-5)
        assert found[0][keep][0] == found[1][keep][0]

    def test_one_reduction(self, found):
        assert all(row["calls"] == ["all_reduce"] for row in found)

    def test_the_probe_of_a_loop(self, found):
        for row in found:
            assert row["probe"][0] == pytest.approx(row["probe"][1], rel=1e-5)

    def test_errors(self, found):
        well, failed = found
        assert failed["nan here"].startswith("NonFinite: The loss is nan on mini-batch 1 of the probe")
        assert well["nan here"].startswith("DistributedError: 1 of 2 processes failed")
        assert all("different vectors" in row["points"] for row in found)
        assert all("a second pass would need a second reduction" in row["twice"].lower() for row in found)
