import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from thalweg import open_run
from thalweg.cli.config import RunConfig, from_dict, to_dict
from thalweg.cli.main import main
from thalweg.cli.run import QUICK, free_folder, parse
from thalweg.errors import InvalidInput, RunFolderError

TINY = ["--data.samples", "40", "--model.width", "6", "--model.depth", "2", "--track.eigenvalues", "1"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def tiny(*more, report=False):
    return ["run", *TINY, *([] if report else ["--no-report"]), *map(str, more)]


def same_numbers(a, b):
    for name in a.data_vars:
        if not name.startswith("seconds"):
            np.testing.assert_array_equal(a[name].values, b[name].values, err_msg=name)


def test_no_options_give_the_defaults():
    told = parse([])
    assert told.settings == from_dict(to_dict(told.settings), "here")
    assert (told.settings.steps, told.settings.data.name, told.settings.rule.name) == (1500, "digits", "gd")
    assert told.settings.rule.lr is not None, "what is recorded is complete"
    assert told.out is told.config is told.resume is None


def test_options_win_over_the_file_and_the_file_over_quick(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("steps = 11\nseed = 5\n[rule]\nlr = 0.5\n")
    got = parse(["--quick", "--config", str(file), "--steps", "12"]).settings
    assert (got.steps, got.seed, got.rule.lr) == (12, 5, 0.5)
    assert got.track.every == QUICK["track"]["every"]
    assert parse([f"--config={file}"]).settings.steps == 11
    assert parse(["--steps", "12", "--quick"]).settings.steps == 12


def test_every_setting_is_a_flag_and_its_value_arrives(capsys):
    assert main(["run", "--help"]) == 0
    text = capsys.readouterr().out
    flags = set(re.findall(r"--([a-z_.0-9-]+)", text))
    wanted = {path.replace("_", "-") for path in paths(to_dict(RunConfig()))}
    assert wanted <= {flag.replace("_", "-") for flag in flags}
    got = parse(
        [
            "--model.init-scale",
            "0.2",
            "--rule.schedule.name",
            "cosine",
            "--dtype",
            "float64",
            "--track.threshold",
            "0.9",
        ]
    )
    assert got.settings.model.init_scale == 0.2
    assert got.settings.rule.schedule.name == "cosine"
    assert got.settings.dtype == "float64"
    assert got.settings.track.threshold == 0.9


def paths(table, where=""):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from paths(value, f"{where}{key}.")
        else:
            yield f"{where}{key}"


@pytest.mark.parametrize("arguments", [["--modle.width", "3"], ["--rule.name", "sgd"], ["--steps", "many"]])
def test_wrong_flags_end_with_2(arguments, capsys):
    assert main(["run", *arguments]) == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_run_is_recorded_with_its_configuration_and_told_about(capsys):
    assert main(tiny("--steps", 5, "--out", "here", "--seed", 3)) == 0
    run = open_run("here")
    assert (run.state, run.steps) == ("finished", 5)
    config = from_dict(run.manifest.config, "manifest")
    assert (config.seed, config.data.samples, config.model.width) == (3, 40, 6)
    assert np.isfinite(run.data.sharpness.values).all()
    out = capsys.readouterr().out
    assert "step 5/5 (100%)" in out, "plain lines where there is no terminal"
    assert "\x1b" not in out
    assert "Finished at step 5 of 5" in out
    assert f"{run.data.sharpness.values[-1]:.4g} now" in out


def test_folders_are_numbered_by_default():
    for number in (1, 2):
        assert main(tiny("--steps", 1)) == 0
        assert open_run(f"runs/digits-mlp-gd-{number}").state == "finished"
    assert free_folder(open_run("runs/digits-mlp-gd-1").path.parent, RunConfig()).name == "digits-mlp-gd-3"


def test_a_folder_with_a_run_is_not_overwritten_unless_told(capsys):
    assert main(tiny("--steps", 2, "--out", "here")) == 0
    assert main(tiny("--steps", 3, "--out", "here")) == 2
    assert "--replace" in capsys.readouterr().err
    assert open_run("here").steps == 2
    assert main(tiny("--steps", 3, "--out", "here", "--replace")) == 0
    assert open_run("here").steps == 3


def test_replace_deletes_nothing_that_is_no_run(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "thesis.txt").write_text("years of work")
    assert main(tiny("--steps", 3, "--out", "here", "--replace")) == 2
    assert (tmp_path / "here" / "thesis.txt").read_text() == "years of work"


def test_a_resumed_run_equals_one_that_went_through():
    assert main(tiny("--steps", 4, "--out", "a", "--rule.name", "adam")) == 0
    assert main(["run", "--resume", "a", "--steps", "9", "--no-report"]) == 0
    assert main(tiny("--steps", 9, "--out", "b", "--rule.name", "adam")) == 0
    same_numbers(open_run("a").data, open_run("b").data)


def test_a_longer_cosine_does_not_bend_on_resuming():
    schedule = ["--rule.schedule.name", "cosine"]
    assert main(tiny("--steps", 4, "--out", "a", *schedule)) == 0
    assert main(["run", "--resume", "a", "--steps", "6", "--no-report"]) == 0
    rates = open_run("a").data.learning_rate.values
    assert rates[4:] == pytest.approx(0.0, abs=1e-15)
    assert rates[2] == pytest.approx(rates[0] / 2)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--rule.lr", "9"], "--rule.lr"),
        (["--seed", "9"], "--seed"),
        (["--out", "b"], "--resume stands beside"),
        (["--quick"], "--resume stands beside"),
        (["--replace"], "--resume stands beside"),
        (["--steps", "2"], "never shortened"),
    ],
)
def test_resuming_refuses_what_would_make_it_another_run(more, word, capsys):
    assert main(tiny("--steps", 4, "--out", "a")) == 0
    assert main(["run", "--resume", "a", "--no-report", *more]) == 2
    assert word in capsys.readouterr().err
    assert (open_run("a").state, open_run("a").steps) == ("finished", 4)


def test_resuming_nothing_says_so():
    with pytest.raises(RunFolderError, match="nowhere"):
        parse(["--resume", "nowhere"])


def test_a_run_recorded_from_python_is_sent_back_there():
    import torch

    import thalweg as tw

    x = torch.randn(6, 2)
    problem = tw.Problem(torch.nn.Linear(2, 1), torch.nn.MSELoss(), (x, x[:, :1]))
    tw.train(problem, tw.rules.GradientDescent(lr=0.1), steps=2, folder="py")
    with pytest.raises(InvalidInput, match="recorded from Python"):
        parse(["--resume", "py"])


def test_a_diverging_run_fails_with_1_keeps_its_steps_and_its_report(capsys):
    assert main(tiny("--steps", 200, "--out", "a", "--rule.lr", 1e4, "--track.eigenvalues", 0, report=True)) == 1
    run = open_run("a")
    assert run.state == "failed"
    assert 0 < run.steps < 200
    assert (run.path / "report.html").stat().st_size > 1e5
    captured = capsys.readouterr()
    assert "Report of the steps before: a/report.html" in captured.out
    assert "Traceback" not in captured.err
    assert "diverged" in captured.err


def test_the_report_can_be_written_again_elsewhere(tmp_path, capsys):
    assert main(tiny("--steps", 4, "--out", "a")) == 0
    assert not (tmp_path / "a" / "report.html").exists(), "--no-report"
    assert main(["report", "a"]) == 0
    assert main(["report", "a", "--out", "page.html"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Report: page.html"
    assert (tmp_path / "page.html").read_text()[:15].lower() == "<!doctype html>"
    assert main(["report", "nowhere"]) == 2


def test_mini_batches_record_the_loss_over_all_data():
    assert main(tiny("--steps", 4, "--out", "a", "--batch-size", 8, "--track.every", 2)) == 0
    data = open_run("a").data
    assert np.isfinite(data.full_loss.values).tolist() == [True, False, True, False, True]


STAYS = """
import sys, time
from thalweg.cli import interrupt
from thalweg.cli.main import main

handle = interrupt.CtrlC._handle

def stays(self, number, frame):
    handle(self, number, frame)
    time.sleep(900)

interrupt.CtrlC._handle = stays
sys.exit(main(sys.argv[1:]))
"""
"""The command, in whose step the first Ctrl-C finds so much to do that the second one comes in the middle of it."""


def start(*arguments, program=("-m", "thalweg.cli.main")):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def wait_for_steps(folder, steps, process):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        try:
            if open_run(folder).steps >= steps:
                return
        except RunFolderError:
            pass  # not begun yet
        time.sleep(0.05)
    pytest.fail("the run did not get going")


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_the_rest_can_be_run_later():
    process = start(*tiny("--steps", 10**6, "--out", "a", report=True))
    wait_for_steps("a", 5, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    run = open_run("a")
    done = run.steps
    assert process.returncode == 130, err
    assert run.state == "interrupted"
    assert done >= 5
    assert "Stopping after this step" in err
    assert "Traceback" not in err
    assert "Go on with: thalweg run --resume a" in out
    assert "Report: a/report.html" in out
    assert (run.path / "report.html").exists()
    assert main(["run", "--resume", "a", "--steps", str(done + 3), "--no-report"]) == 0
    assert main(tiny("--steps", done + 3, "--out", "b")) == 0
    same_numbers(open_run("a").data, open_run("b").data)


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once_and_the_folder_stays_readable():
    process = start(*tiny("--steps", 10**6, "--out", "a", report=True), program=("-c", STAYS))
    wait_for_steps("a", 5, process)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n"
    assert "Ctrl-C again leaves at once" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "Left at once. Go on with: thalweg run --resume a" in out
    assert "Report:" not in out
    assert not (open_run("a").path / "report.html").exists()
    assert open_run("a").state == "interrupted"
    assert np.isfinite(open_run("a").data.loss.values).all()
