"""Two gloo processes record one run: the first one writes, and sharded weights are gathered whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import recorder_worker
import torch

from thalweg.runs import open_run
from thalweg.runs.checkpoints import Checkpoints

WORKER = Path(recorder_worker.__file__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("recorded")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(WORKER), str(found)],
        capture_output=True,
        text=True,
        timeout=540,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_recorded_by_two_processes(how, folder):
    run = open_run(folder / how)
    assert run.state == "finished"
    assert run.checkpoints == [0, 2, 4, 5]
    assert Checkpoints(folder / how / "sketches").steps() == [0, 1, 4, 5]
    assert run.data.loss.dropna("step").step.values.tolist() == [0, 1, 2, 3, 4]
    alone = recorder_worker.build()
    wanted = {name: p for name, p in alone.named_parameters() if p.requires_grad}
    assert set(run.checkpoint(0)) == set(wanted)
    for name, tensor in run.checkpoint(0).items():
        assert torch.equal(tensor, wanted[name])
    recorder_worker.train(alone, 5)
    for name, tensor in run.checkpoint(5).items():
        torch.testing.assert_close(tensor, wanted[name].detach(), rtol=1e-5, atol=1e-6)
