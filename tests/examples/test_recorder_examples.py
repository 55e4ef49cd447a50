"""The examples of recording run, learn something, and leave a folder that is a trajectory."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from thalweg.runs import open_run
from thalweg.runs.sources import trajectory

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "package", "checkpoints"),
    [
        ("plain", "sklearn", 16),
        ("transformers", "transformers", 9),
        ("lightning", "lightning", 7),
    ],
)
def test_example(name, package, checkpoints, tmp_path, capsys):
    pytest.importorskip(package)
    runpy.run_path(str(EXAMPLES / f"recorder_{name}.py"))["main"](str(tmp_path / "run"))
    run = open_run(tmp_path / "run")
    assert run.state == "finished"
    loss = run.data.loss.dropna("step").values
    assert loss[-1] < loss[0] - 0.5
    path = trajectory(tmp_path / "run")
    assert len(path) == checkpoints
    rates = run.data.learning_rate.dropna("step")
    assert rates.step.values.tolist() == list(range(run.steps))
    assert np.diff(rates.values).max() <= 0
    assert "finished" in capsys.readouterr().out
