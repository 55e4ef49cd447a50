"""``thalweg regimes`` on run folders and on logs from elsewhere."""

import json

import numpy as np
import pytest
import torch

import thalweg as tw
from thalweg.cli.regimes import main
from thalweg.errors import InvalidInput


@pytest.fixture
def log(tmp_path):
    t = np.arange(3001)
    lam = np.exp(np.interp(np.log1p(t), np.log1p([0, 15, 150, 1000, 3000]), np.log([9, 2, 2, 20, 20])))
    loss = np.exp(-t / 1500 + 0.01 * np.random.default_rng(0).normal(size=len(t)))
    rows = [f"{s},{loss[s]:.6g},{f'{lam[s]:.6g}' if s % 7 == 0 or s < 60 else ''},0.1" for s in t]
    path = tmp_path / "log.csv"
    path.write_text("step,train_loss,sharpness,lr\n" + "\n".join(rows) + "\n")
    return path


def test_a_log_is_told_and_drawn(log, capsys):
    assert main([str(log)]) == 0
    out, err = capsys.readouterr()
    for word in ("transient", "saturation", "sharpening", "edge of stability", "confidence"):
        assert word in out
    assert "Columns were guessed: step = step, loss = train_loss" in err.replace("\n", " ")
    assert "plain gradient descent" in err
    page = (log.parent / "log-regimes.html").read_text()
    assert "edge of stability" in page


def test_json_is_whole(log, capsys):
    main([str(log), "--json", "--rule", "heavy_ball", "--out", str(log.parent / "page.html")])
    told = json.loads(capsys.readouterr().out)
    assert [s["label"] for s in told["segments"]][:3] == ["transient", "saturation", "sharpening"]
    assert "edge of stability" not in {s["label"] for s in told["segments"]}  # 3.8 / lr is out of reach
    assert told["segments"][0]["batch_ratio"] is None
    assert (log.parent / "page.html").is_file()


def test_columns_may_be_named(log, capsys):
    assert main([str(log), "--columns", "loss=train_loss", "sharpness=sharpness", "--rule", "gd"]) == 0
    assert "step = step, learning rate = lr" in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(InvalidInput, match="curve=column"):
        main([str(log), "--columns", "loss"])


def test_small_batches_are_told_apart(log, capsys):
    main([str(log), "--batch-size", "32", "--samples", "1000", "--rule", "gd"])
    out, err = capsys.readouterr()
    assert "edge of stability" not in out.split("Steps 0-")[0]
    assert "Batch sharpness can" in err.replace("\n", " ")


def test_a_run_folder_needs_no_options(tmp_path, capsys):
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))
    problem = tw.Problem(model, torch.nn.MSELoss(), (x, x[:, :1] * x[:, 1:2]))
    from thalweg.runs import Spectrum

    run = tw.train(problem, tw.rules.GradientDescent(lr=0.05), 60, folder=tmp_path / "run", measures=[Spectrum(k=1)])
    assert main([str(run.path)]) == 0
    assert "transient" in capsys.readouterr().out
    assert (run.path / "regimes.html").is_file()
    with pytest.raises(InvalidInput, match="--lr was given with a run folder"):
        main([str(run.path), "--lr", "0.1"])


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(tw.errors.RunFolderError):
        main([str(tmp_path)])
