"""``thalweg glass`` on runs, their steps, checkpoints, and models from flags."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from thalweg import open_run
from thalweg.cli.config import build_problem, from_dict
from thalweg.cli.glass import _short, main
from thalweg.cli.glass_options import parse, start
from thalweg.cli.main import main as thalweg
from thalweg.errors import InvalidInput, RunFolderError
from thalweg.glass.density import glass_density
from thalweg.runs.analyses import read_analysis

DATA = ["--data.samples", "80", "--dtype", "float64"]
MODEL = ["--model.width", "8", "--model.depth", "2", "--model.activation", "relu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of Adam on mini-batches, recorded once; commands add analyses only."""
    home = tmp_path_factory.mktemp("runs")
    common = ["run", *DATA, *MODEL, "--steps", "12", "--checkpoint-every", "6", "--track.eigenvalues", "0"]
    common += ["--rule.name", "adam", "--batch-size", "16", "--no-report", "--out", str(home / "adam")]
    assert thalweg(common) == 0
    return home / "adam"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_step_of_a_run_is_measured_as_in_python(folder, capsys):
    assert main([f"{folder}@6", "--batches", "4", "--sigma", "1e-3"]) == 0
    out = capsys.readouterr().out
    assert "the curvature that matters is" in out
    assert "mean too" in out
    data = read_analysis(folder / "analyses" / "glass-6.nc", "glass")
    run = open_run(folder)
    problem = build_problem(from_dict(run.manifest.config, "here"))
    w = problem.layout.flatten(run.checkpoint(6)).double()
    seed = run.manifest.config.get("seed", 0)
    found = glass_density(problem, w, sigma=1e-3, batches=4, batch_size=16, seed=seed)
    np.testing.assert_allclose(data.rho, [row.rho for row in found.layers], rtol=1e-9)
    np.testing.assert_allclose(data.tensor_leakage, [row.leakage for row in found.tensors], rtol=1e-9)
    assert data.attrs["batch_size"] == 16
    assert data.attrs["step"] == 6
    page = (folder / "analyses" / "glass-6.html").read_text()
    assert str(data.attrs["text"])[:40] in page


@pytest.mark.slow
def test_several_steps_give_a_history(folder):
    assert main([str(folder), "--steps", "all", "--batches", "2"]) == 0
    page = (folder / "analyses" / "glass-12.html").read_text()
    assert "Glass density over training" in page
    for step in (0, 6, 12):
        assert read_analysis(folder / "analyses" / f"glass-{step}.nc", "glass").attrs["step"] == step


def test_the_saved_state_is_the_one_that_moves_next(folder):
    """At the last step Adam's averages are on disk: the update that is followed is the run's own."""
    told, place = parse([str(folder)])
    found, rule, state = start(told, place, None)
    assert found.step == 12
    assert int(state["step"]) == 12
    assert not any("not on disk" in note for note in found.notes)
    earlier, _, none = start(told, place, 6)
    assert none is None
    assert any("not on disk" in note for note in earlier.notes)
    assert rule.name == "Adam"


def test_json_is_whole_and_the_rest_goes_to_standard_error(folder, capsys):
    assert main([str(folder), "--batches", "2", "--json", "--out", "mine.nc"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["variables"]["rho"]["units"] == "gradient^2 / weight"
    assert "matters" in told["variables"]
    assert Path("mine.html").is_file()


def test_a_model_needs_no_run(capsys):
    assert main([*DATA, *MODEL, "--rule.lr", "0.1", "--batches", "2", "--batch-size", "20"]) == 0
    assert "initial weights" in capsys.readouterr().out
    data = read_analysis(Path("initial-glass.nc"), "glass")
    assert "deviation" in data
    assert data.attrs["optimizer"].startswith("gradient descent") or "0.1" in data.attrs["optimizer"]
    assert data.attrs["name"] == "relu mlp 2 x 8 on digits, initial weights"
    assert "<h1>relu mlp 2 x 8 on digits, initial weights</h1>" in Path("initial-glass.html").read_text()


def test_a_state_dict_without_a_rule_has_no_loss_change(folder, capsys):
    save_file(open_run(folder).checkpoint(12), "weights.safetensors")
    assert main(["weights.safetensors", *DATA, *MODEL, "--batches", "2"]) == 0
    assert "no step is followed" in capsys.readouterr().err.replace("\n", " ")
    assert "deviation" not in read_analysis(Path("weights-glass.nc"), "glass")


def test_long_names_of_layers_take_no_room_from_the_numbers():
    assert _short("layers.0.norm_attention", 23) == "layers.0.norm_attention"
    assert _short("layers.0.norm_attention", 12) == "laye…tention"
    assert len(_short("layers.10.self_attn.out_proj", 17)) == 17


@pytest.mark.slow
def test_your_own_problem(capsys):
    Path("mine.py").write_text(
        "import torch, thalweg as tw\n"
        "def problem():\n"
        "    torch.manual_seed(0)\n"
        "    model = torch.nn.Sequential(torch.nn.Linear(3, 9), torch.nn.ReLU(), torch.nn.Linear(9, 1))\n"
        "    x = torch.randn(64, 3)\n"
        "    return tw.Problem(model, torch.nn.MSELoss(), (x, x[:, :1]))\n"
    )
    assert main(["--model-file", "mine.py:problem", "--rule.lr", "0.1", "--batches", "2", "--samples", "48"]) == 0
    assert "Measured on 48 of 64 samples" in capsys.readouterr().err.replace("\n", " ")
    assert "<h1>mine.py:problem, initial weights</h1>" in Path("initial-glass.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}@x"], "whole number"),
        (["{run}@6", "--steps", "0"], "Both name steps"),
        (["{run}", "--steps", "0", "6", "--out", "a.nc"], "one file"),
        (["{run}", "--rule.lr", "0.1"], "its own problem and rule"),
        (["{run}@5"], "no checkpoint"),
        (["--steps", "all", "weights.safetensors"], "No run is named"),
        (["{run}", "--batches", "0"], "At least one"),
        (["{run}", "--samples", "0"], "counts samples"),
    ],
)
def test_bad_options_are_refused(folder, arguments, words):
    with pytest.raises(InvalidInput, match=words):
        main([argument.format(run=folder) for argument in arguments])


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunFolderError):
        main([str(tmp_path)])


def test_nothing_of_the_run_changes(folder):
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and "analyses" not in p.parts}
    state = torch.get_rng_state()
    main([str(folder), "--batches", "2"])
    after = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and "analyses" not in p.parts}
    assert before == after
    assert torch.equal(state, torch.get_rng_state())
