"""``thalweg stationarity`` on run folders and on logs from elsewhere."""

import json

import numpy as np
import pytest
import torch

import thalweg as tw
from thalweg.cli.stationarity import main
from thalweg.errors import InvalidInput


@pytest.fixture
def log(tmp_path):
    rng = np.random.default_rng(0)
    t = np.arange(3000)
    loss = 1 + 2 * np.exp(-t / 200) + 0.1 * rng.standard_normal(3000)
    level = 0.5 + np.exp(-t / 200) + 0.05 * rng.standard_normal(3000)
    rows = [f"{s},{loss[s]:.6g},{f'{level[s]:.6g}' if s % 20 == 0 else ''},0.1" for s in t]
    path = tmp_path / "log.csv"
    path.write_text("step,train_loss,gradient_unbiased,lr\n" + "\n".join(rows) + "\n")
    return path


def test_a_log_is_told_and_drawn(log, capsys):
    assert main([str(log)]) == 0
    out, err = capsys.readouterr()
    for words in ("INVARIANT REGIME", "steps 1,500 to 2,999", "Evidence", "Advice: Lower the learning rate"):
        assert words in out.replace("\n", " ")
    assert "Columns were guessed" in err.replace("\n", " ")
    page = (log.parent / "log-stationarity.html").read_text()
    assert "invariant regime" in page
    assert page.count('class="plot"') == 4


def test_json_is_whole(log, capsys):
    target = log.parent / "page.html"
    assert main([str(log), "--json", "--window", "1500", "2900", "--floor", "0.01", "--out", str(target)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "invariant regime"
    assert told["window"] == [1500, 2900]
    assert told["gradient"]["floor"] == 0.01
    assert told["undecided"] == []
    assert target.is_file()


def test_what_is_open_is_told(log, capsys):
    assert main([str(log), "--window", "2800", "2999"]) == 0
    out = capsys.readouterr().out.replace("\n", " ")
    assert "UNDECIDED" in out
    assert "probed 10 times in the window" in out
    assert "more steps would decide it" in out


def test_columns_may_be_named(log, capsys):
    assert main([str(log), "--columns", "loss=train_loss"]) == 0
    with pytest.raises(InvalidInput, match="curve=column"):
        main([str(log), "--columns", "loss"])


def test_a_run_folder_needs_no_options(tmp_path, capsys):
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    problem = tw.Problem(torch.nn.Linear(3, 1), torch.nn.MSELoss(), (x, x[:, :1]))
    tw.train(problem, tw.rules.GradientDescent(lr=0.1), 30, folder=tmp_path / "run")
    assert main([str(tmp_path / "run")]) == 0
    assert "The log holds no gradient level" in capsys.readouterr().out.replace("\n", " ")
    assert (tmp_path / "run" / "stationarity.html").is_file()
    with pytest.raises(InvalidInput, match="no CSV file"):
        main([str(tmp_path / "run"), "--columns", "loss=loss"])
