import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from thalweg import open_run
from thalweg.cli.config import build_problem, from_dict
from thalweg.cli.flow_meter import FlowLines
from thalweg.cli.flow_options import parse
from thalweg.cli.flow_start import subject
from thalweg.cli.main import main
from thalweg.cli.rule import build_rule
from thalweg.errors import NonFinite, NotConverged
from thalweg.flows import forecast
from thalweg.flows.forecast import central_flow
from thalweg.flows.saving import saved_progress
from thalweg.flows.stored import open_flow
from thalweg.operators import hessian

PROBLEM = ["--data.samples", "40", "--dtype", "float64", "--model.width", "8", "--model.depth", "3"]
EDGE = [*PROBLEM, "--rule.lr", "0.19"]
RMSPROP = [*PROBLEM, "--rule.name", "rmsprop", "--rule.lr", "0.001", "--rule.beta2", "0.9"]
PAIR = ["--processes", "discrete", "central"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs that were recorded once; tests that write take copies."""
    home = tmp_path_factory.mktemp("runs")
    common = ["--steps", "30", "--checkpoint-every", "10", "--track.eigenvalues", "0", "--no-report"]
    assert main(["run", *EDGE, *common, "--out", str(home / "gd")]) == 0
    assert main(["run", *RMSPROP, *common, "--out", str(home / "rmsprop")]) == 0
    assert main(["run", *EDGE, *common, "--batch-size", "20", "--steps", "2", "--out", str(home / "noisy")]) == 0
    return home


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def failed(capsys, *arguments, code=2):
    assert main(["flow", *map(str, arguments)]) == code
    assert not list(Path().glob("*.nc"))
    return capsys.readouterr().err


def test_a_new_problem_is_forecast_as_the_library_does_it(capsys):
    assert (
        main(["flow", *EDGE, "--rule.lr", "0.27", "--time", "45", "--sigma", "5", "--seed", "3", "--out", "mine"]) == 0
    )
    out = capsys.readouterr().out
    kept = open_flow("mine.nc")
    assert kept.processes == ("discrete", "midpoint", "central", "stable")
    told, _ = parse([*EDGE, "--rule.lr", "0.27", "--time", "45", "--seed", "3"])
    problem = build_problem(told.settings.as_run(45))
    rule = build_rule(told.settings.rule, 45)
    again = central_flow(problem, rule, 45, processes=kept.processes)
    for name in again.data.variables:
        np.testing.assert_array_equal(kept.data[name], again.data[name], err_msg=name)
    assert all(torch.equal(kept.points[name], w) for name, w in again.points.items())
    assert kept.compare(5.0) == again.compare(5.0)
    facts = kept.data.attrs
    assert (facts["rule"], facts["learning_rate"], facts["flow_mode"]) == ("GradientDescent", 0.27, "map")
    assert facts["comparison_loss_error"] == again.compare(5.0).loss_error
    assert facts["smoothing"] == 5.0
    assert facts["fingerprint_data"] == problem.fingerprint()["data"]
    assert from_dict(json.loads(facts["config"]), "the file").seed == 3
    assert "45 units of time in map mode" in out
    assert "time 45/45 (100%)" in out
    assert "The flow becomes critical at step" in out
    assert "Results: mine.nc" in out
    assert "Forecast</p>" in Path("mine.html").read_text()
    assert not list(Path().glob(".tmp-*"))


def test_a_forecast_from_a_checkpoint_is_the_run_while_it_is_stable(folder, tmp_path, capsys):
    run = shutil.copytree(folder / "gd", tmp_path / "copy")
    assert main(["report", str(run)]) == 0
    assert "forecast from step" not in (run / "report.html").read_text()
    assert main(["flow", f"{run}@10", "--time", "8", *PAIR]) == 0
    kept = open_flow(run / "analyses" / "flow-10.nc")
    recorded = open_run(run).data.loss.sel(step=slice(10, 17)).values
    np.testing.assert_allclose(kept.data["loss_discrete"].values, recorded, rtol=1e-12)
    np.testing.assert_allclose(kept.data["loss_central"].values, recorded, rtol=1e-6, err_msg="below the limit")
    assert (kept.data.attrs["step"], kept.data.attrs["first_step"]) == (10, 10)
    assert "forecast from step 10</h2>" in (run / "report.html").read_text()
    assert (run / "analyses" / "flow-10.html").is_file()
    assert "Report: " in capsys.readouterr().out
    assert main(["flow", f"{run}@10", "--time", "8"]) == 2, "it is there already"
    assert "replace it (--replace)" in capsys.readouterr().err
    assert main(["flow", "--from", f"{run}@10", "--time", "3", *PAIR, "--replace"]) == 0
    assert open_flow(run / "analyses" / "flow-10.nc").data.sizes["time"] == 3


def told_of(*arguments):
    told, start = parse([*map(str, arguments)])
    said = []
    return subject(told, start, said.append), said


def test_where_a_forecast_starts(folder):
    run = open_run(folder / "gd")
    start, _ = told_of(folder / "gd")
    assert (start.step, int(start.state["step"])) == (0, 0)
    torch.testing.assert_close(start.w, start.problem.initial, rtol=0, atol=0)
    last, _ = told_of(f"{folder / 'gd'}@last")
    assert (last.step, int(last.state["step"])) == (30, 30)
    middle, _ = told_of("--from", f"{folder / 'gd'}@20")
    torch.testing.assert_close(middle.w, middle.problem.layout.flatten(run.checkpoint(20)), rtol=0, atol=0)
    assert told_of(f"{folder / 'gd'}@-2")[0].step == 20
    assert middle.rule.describe() == run.manifest.rule


def test_the_state_of_rmsprop_is_that_of_the_run(folder):
    """Read from the saved position at the end, replayed elsewhere: both go on exactly as the run did."""
    losses = open_run(folder / "rmsprop").data.loss
    for step, replayed in ((0, False), (10, True), (30, False)):
        found, said = told_of(f"{folder / 'rmsprop'}@{step}")
        assert bool(said) == replayed
        assert int(found.state["step"]) == step
        w, state = found.w, found.state
        for later in range(step, min(step + 5, 30)):
            assert float(found.problem.value(w)) == pytest.approx(float(losses.sel(step=later)), rel=1e-12)
            w, state = found.rule.advance(w, state, found.problem.gradient(w))
    assert not found.notes


def test_rmsprop_starts_after_some_steps_of_its_own(capsys):
    assert main(["flow", *RMSPROP, "--warm-start", "15", "--time", "6", *PAIR, "--out", "r.nc"]) == 0
    kept = open_flow("r.nc")
    assert (kept.data.attrs["warm_start"], kept.data.attrs["first_step"]) == (15, 15)
    assert 0 < kept.compare(20.0).distance < 1


def test_the_reference_mode_is_named(capsys):
    assert main(["flow", *EDGE, "--time", "3", "--mode", "reference", *PAIR, "--out", "r.nc"]) == 0
    captured = capsys.readouterr()
    assert "in reference mode" in captured.out
    assert "the differential equation itself is followed" in captured.err
    assert open_flow("r.nc").mode == "reference"


def test_settings_from_a_file(capsys):
    Path("mine.toml").write_text("steps = 9\n[rule]\nlr = 0.05\n[model]\nwidth = 9\n")
    told, start = parse(["--config", "mine.toml", "--rule.lr", "0.06"])
    assert start is None
    assert (told.settings.rule.lr, told.settings.model.width) == (0.06, 9)
    Path("noisy.toml").write_text("batch_size = 10\n")
    assert "mini-batches of 10 samples" in failed(capsys, "--config", "noisy.toml")
    Path("wrong.toml").write_text("[rule]\nlearning = 1\n")
    assert "rule.learning" in failed(capsys, "--config", "wrong.toml")


def test_what_the_theory_does_not_cover_is_refused(folder, capsys):
    assert "says nothing about their noise" in failed(capsys, folder / "noisy", "--time", 5)
    relu = ["--model.activation", "relu", "--model.init-scale", "0.8", "--rule.lr", "0.058", "--time", 5]
    told = failed(capsys, *PROBLEM, *relu, *PAIR)
    assert "third derivative" in told or "ReLU" in told
    assert "stable" in failed(capsys, *PROBLEM, "--rule.name", "adam", "--time", 3, "--processes", "stable")
    assert "map" in failed(capsys, *PROBLEM, "--rule.name", "adam", "--time", 3, *PAIR, "--mode", "reference")
    assert "unstable" in failed(capsys, *PROBLEM, "--rule.lr", 3.0, "--time", 3)


def test_momentum_runs_without_the_stable_flow():
    assert main(["flow", *PROBLEM, "--rule.name", "adam", "--time", "3", "--out", "a.nc"]) == 0
    assert "stable" not in open_flow("a.nc").processes


def test_errors_name_what_is_wrong(folder, tmp_path, capsys):
    assert "Perhaps discrete was meant" in failed(capsys, "--processes", "discret", "central")
    assert "nearest one is at step 10" in failed(capsys, f"{folder / 'gd'}@12")
    assert "gd@10" in failed(capsys, f"{folder / 'gd'}@12").split("Use")[1]
    assert "step is a whole number, or last" in failed(capsys, f"{folder / 'gd'}@end")
    assert "does not exist" in failed(capsys, "nowhere@3")
    assert "mean the same" in failed(capsys, folder / "gd", "--from", folder / "gd")
    assert "state of one rule" in failed(capsys, folder / "gd", "--rule.name", "adam")
    assert "--model.width" in failed(capsys, folder / "gd", "--model.width", "9")
    assert "--config" in failed(capsys, folder / "gd", "--config", "mine.toml")
    assert "--time is 0" in failed(capsys, "--time", 0)
    assert "--save-every is 0" in failed(capsys, "--save-every", 0)
    assert "--sigma is -1.0" in failed(capsys, "--sigma", -1)
    assert "mode 'flaw'" in failed(capsys, *EDGE, "--time", 3, "--mode", "flaw")
    run = shutil.copytree(folder / "gd", tmp_path / "bare")
    for path in (*(run / "checkpoints").iterdir(), *(run / "state").iterdir()):
        path.unlink()
    assert "has no checkpoint" in failed(capsys, run)


def test_runs_from_python_and_changed_data_are_refused(folder, tmp_path, capsys):
    run = shutil.copytree(folder / "gd", tmp_path / "copy")
    text = (run / "manifest.json").read_text()
    manifest = json.loads(text)
    (run / "manifest.json").write_text(json.dumps(manifest | {"config": {}}))
    assert "recorded from Python" in failed(capsys, run)
    (run / "manifest.json").write_text(text.replace(manifest["fingerprints"]["data"], "0" * 64))
    assert "has changed since it was recorded" in failed(capsys, run)


def test_how_to_compute_may_be_chosen_beside_a_run(folder):
    found, _ = told_of(folder / "gd", "--dtype", "float32", "--chunk", "7")
    assert found.problem.dtype == torch.float32
    assert found.w.dtype == torch.float32


def test_ctrl_c_saves_and_resume_goes_on_to_the_same_bits(monkeypatch, capfd):
    step = FlowLines.step

    def press(self, values):
        step(self, values)
        if self.reached == 4:
            os.kill(os.getpid(), signal.SIGINT)

    command = ["flow", *EDGE, "--time", "30", *PAIR, "--out", "mine"]
    with monkeypatch.context() as patch:
        patch.setattr(FlowLines, "step", press)
        assert main(command) == 130
    captured = capfd.readouterr()
    assert "Stopped after 4 of 30 units of time: time 4 is saved; go on with --resume." in captured.out
    assert "Stopping after this unit of time" in captured.err
    assert [path.name for path in Path().iterdir()] == ["mine.state.safetensors"]
    assert main(command) == 2
    assert "was interrupted" in capfd.readouterr().err
    assert main([*command, "--resume", "--rule.lr", "0.2"]) == 2
    assert "rule.lr is 0.19 there and 0.2 now" in capfd.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert "Going on from time 4 of 30." in capfd.readouterr().out
    assert main(["flow", *EDGE, "--time", "12", *PAIR, "--out", "short"]) == 0
    assert main(["flow", *EDGE, "--time", "30", *PAIR, "--out", "short"]) == 2
    assert "extend it (--resume with a larger --time)" in capfd.readouterr().err
    assert main(["flow", *EDGE, "--time", "30", *PAIR, "--out", "short", "--resume"]) == 0
    assert main(["flow", *EDGE, "--time", "3", *PAIR, "--out", "short", "--resume"]) == 2
    assert "never shortened" in capfd.readouterr().err
    assert main([*command, "--out", "whole", "--resume"]) == 0
    assert "Nothing was saved in whole.state.safetensors yet" in capfd.readouterr().out
    for other in ("mine.nc", "short.nc"):
        same_forecast(other, "whole.nc")
    assert main([*command, "--time", "2", "--replace"]) == 0
    assert open_flow("mine.nc").data.sizes["time"] == 2
    assert main([*command, "--replace", "--resume"]) == 2


def same_forecast(one, other):
    first, second = open_flow(one), open_flow(other)
    for name in second.data.variables:
        np.testing.assert_array_equal(first.data[name], second.data[name], err_msg=name)
    assert all(torch.equal(first.points[name], w) for name, w in second.points.items())


@pytest.mark.slow
def test_a_killed_forecast_goes_on(capsys):
    command = ["flow", *EDGE, "--save-every", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "thalweg.cli.main", *command, "--time", "100000", "--out", "killed"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    state, deadline = Path("killed.state.safetensors"), time.monotonic() + 300
    while (saved_progress(state) or (0, 0.0))[0] < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    reached = saved_progress(state)[0]
    assert not Path("killed.nc").exists()
    length = str(reached + 40)
    assert main([*command, "--time", length, "--out", "killed", "--resume"]) == 0
    assert f"Going on from time {reached} of {length}." in capsys.readouterr().out
    assert main([*command, "--time", length, "--out", "whole"]) == 0
    same_forecast("killed.nc", "whole.nc")


def test_another_learning_rate_from_a_checkpoint(folder, tmp_path, capsys):
    run = shutil.copytree(folder / "rmsprop", tmp_path / "copy")
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    ask = ["flow", "--from", f"{run}@30", "--rule.lr", "0.0005", "--time", "6", *PAIR]
    assert main(ask) == 0
    path = run / "analyses" / "flow-30-lr-0.0005.nc"
    kept = open_flow(path)
    assert (kept.data.attrs["optimizer"], kept.data.attrs["run_optimizer"]) == (
        "RMSProp, learning rate 0.0005, beta2 0.9",
        "RMSProp, learning rate 0.001, beta2 0.9",
    )
    told = capsys.readouterr().out
    assert "rule.lr 0.0005 instead of 0.001" in told
    assert "the rule is not that of the run" in told
    assert "the rule is not that of the run" in path.with_suffix(".html").read_text()
    assert (run / "report.html").read_text() == page, "the page of the run is about its own rule"
    own, _ = told_of(f"{run}@30")
    asked, _ = told_of(f"{run}@30", "--rule.lr", "0.0005")
    assert int(asked.state["step"]) == 30
    torch.testing.assert_close(asked.state["nu"], own.state["nu"], rtol=0, atol=0)
    w, state, rule = own.w, own.state, dataclasses.replace(own.rule, lr=0.0005)
    for t in range(6):
        assert kept.data.loss_discrete.values[t] == float(own.problem.value(w))
        w, state = rule.advance(w, state, own.problem.gradient(w))
    middle, said = told_of(f"{run}@10", "--rule.lr", "0.0005")
    again, _ = told_of(f"{run}@10")
    assert said, "replayed"
    torch.testing.assert_close(middle.state["nu"], again.state["nu"], rtol=0, atol=0)


def test_a_rate_beyond_the_limit_is_refused_with_the_largest_stable_one(folder, capsys):
    told = failed(capsys, "--from", f"{folder / 'gd'}@last", "--rule.lr", "1.0", "--time", "5", *PAIR)
    start, _ = told_of(f"{folder / 'gd'}@last")
    sharpness = float(torch.linalg.eigvalsh(hessian(start.problem, start.w).dense())[-1])
    assert f"the largest stable learning rate here is {2 / sharpness:.3g}" in told
    assert main(["flow", f"{folder / 'gd'}@last", "--rule.lr", f"{1.8 / sharpness:.6g}", "--time", "2", *PAIR]) == 0
    said = capsys.readouterr().out
    assert f"the largest rate that keeps it stable is {2 / sharpness:.3g}" in said


def test_what_was_found_before_a_failure_is_kept(monkeypatch, capsys):
    def fail(problem, rule, time, **more):
        found = central_flow(problem, rule, 5, **more)
        found = dataclasses.replace(found, stop="It ended at time 5 of 9: no eigenpairs.")
        raise NotConverged("No eigenpairs. They are clustered. Ask for fewer.", found)

    monkeypatch.setattr(forecast, "central_flow", fail)
    assert main(["flow", *EDGE, "--time", "9", *PAIR, "--out", "part.nc"]) == 1
    captured = capsys.readouterr()
    assert "Ended at time 5 of 9" in captured.out
    assert "No eigenpairs" in captured.err
    assert "It ended at time 5 of 9" in Path("part.html").read_text()
    assert open_flow("part.nc").data.sizes["time"] == 5


def test_a_failure_on_the_way_is_told(monkeypatch, capsys):
    def fail(problem, rule, time, *, meter, **more):
        meter.init(time)
        meter.step({"step": 2, "loss": 1.0, "critical": 1.0})
        raise NonFinite("The loss is nan at time 2. It diverged. Lower the learning rate.")

    monkeypatch.setattr(forecast, "central_flow", fail)
    assert main(["flow", *EDGE, "--time", "9"]) == 1
    captured = capsys.readouterr()
    assert "Failed after 2 of 9 units of time: nothing was written." in captured.out
    assert "nan at time 2" in captured.err
    assert not list(Path().iterdir())
