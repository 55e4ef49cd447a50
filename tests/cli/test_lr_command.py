import json
from pathlib import Path

import pytest

from thalweg import open_run, rules
from thalweg.cli.config import build_problem, from_dict
from thalweg.cli.lr import main as lr
from thalweg.cli.main import main
from thalweg.errors import InvalidInput, RunFolderError
from thalweg.phases.rates import first_step

SMALL = ["--data.samples", "40", "--dtype", "float64", "--model.width", "6", "--model.depth", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    common = ["run", *SMALL, "--steps", "10", "--checkpoint-every", "5", "--track.eigenvalues", "0", "--no-report"]
    assert main([*common, "--out", str(home / "gd")]) == 0
    assert main([*common, "--rule.name", "adam", "--rule.beta1", "0.8", "--out", str(home / "adam")]) == 0
    return home


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def answer(capsys, *arguments):
    assert lr([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_initial_weights_in_words(capsys):
    assert lr([*SMALL, "--rule.lr", "0.5", "--warmup-steps", "100"]) == 0
    out = capsys.readouterr().out
    for words in (
        "initial weights (seed 0)",
        "before its first step",
        "A target of 0.5",
        "anharmonicity",
        "Measured in",
    ):
        assert words in out
    assert not list(Path().iterdir()), "nothing is written"


@pytest.mark.slow
def test_the_first_example_of_the_help_is_as_it_says(capsys):
    with pytest.raises(SystemExit):
        lr(["--help"])
    shown = capsys.readouterr().out
    assert "some 16 in the first example" in " ".join(shown.split())
    example = next(line for line in shown.splitlines() if line.startswith("  thalweg lr ")).split()[2:]
    assert answer(capsys, *example)["anharmonicity"] == pytest.approx(16, rel=0.15)
    where = example.index("--model.init-scale")
    assert answer(capsys, *example[:where], *example[where + 2 :])["anharmonicity"] == pytest.approx(1, rel=0.15)


def test_a_target_that_diverges_is_told(capsys):
    found = answer(capsys, *SMALL, "--rule.lr", "1e4", "--warmup-steps", "1000", "--out", "figures/lr.html")
    assert found["warmup"] == "needed"
    assert found["target"] == 1e4
    assert "needs a warm-up: start at" in found["answer"]
    assert found["saved"] is not None
    assert "plotly" in Path("figures/lr.html").read_text()[:10000].lower()


def test_a_step_of_a_run(folder, capsys):
    run = open_run(folder / "gd")
    problem = build_problem(from_dict(run.manifest.config, "here"))
    for step in (0, 5, 10):
        w = problem.layout.flatten(run.checkpoint(step)).to(problem.dtype)
        found = answer(capsys, f"{folder / 'gd'}@{step}", "--rule.lr", "0.3")
        truth = first_step(problem, rules.GradientDescent(lr=0.3), w)
        assert found["learning_rate"] == pytest.approx(truth.learning_rate, rel=1e-9)
        assert found["sharpness"] == pytest.approx(truth.sharpness, rel=1e-9)
    last = answer(capsys, folder / "gd")
    assert last["learning_rate"] == pytest.approx(truth.learning_rate, rel=1e-9)
    assert last["target"] == 0.14, "the run's own rate"


def test_another_rule_than_the_runs(folder, capsys):
    own = answer(capsys, f"{folder / 'adam'}@5")
    assert own["name"] == "Adam"
    assert own["target"] == 1e-3
    other = answer(capsys, f"{folder / 'adam'}@5", "--rule.name", "gd", "--rule.lr", "0.2")
    assert (other["name"], other["target"]) == ("gradient descent", 0.2)
    lr([f"{folder / 'adam'}@5"])
    assert "starts afresh" in capsys.readouterr().err


def test_a_mini_batch_and_a_file_of_ones_own(capsys):
    Path("mine.py").write_text(
        "import torch\nfrom thalweg import Problem\n"
        "def problem():\n    torch.manual_seed(0)\n"
        "    return Problem(torch.nn.Linear(3, 1), torch.nn.MSELoss(), (torch.randn(30, 3), torch.randn(30, 1)))\n"
    )
    found = answer(capsys, "--model-file", "mine.py:problem", "--samples", "10", "--rule.lr", "0.1")
    assert found["anharmonicity"] == pytest.approx(1, rel=0.03), "a linear model is a quadratic"


def test_bad_input_is_told(folder):
    for arguments, words in (
        (["nowhere"], "There is no"),
        ([f"{folder / 'gd'}@7"], "Step 7 has no checkpoint"),
        ([f"{folder / 'gd'}@soon"], "whole number"),
        ([str(folder / "gd"), "--model.width", "7"], "model.width"),
        ([*SMALL, "--rule.lr", "-1"], "lr"),
        ([*SMALL, "--steps", "0"], "positive"),
        ([*SMALL, "--rule.momentum", "0.5"], "rule.momentum"),
    ):
        with pytest.raises(InvalidInput, match=words):
            lr(arguments)
    with pytest.raises(RunFolderError):
        lr([str(folder)])


def test_only_the_samples_that_were_asked_for_are_evaluated(monkeypatch, capsys):
    from thalweg.problem.problem import Problem

    seen, evaluate = [], Problem._batch_gradient

    def counted(self, leaves, batch, **settings):
        seen.append(len(batch[0]))
        return evaluate(self, leaves, batch, **settings)

    monkeypatch.setattr(Problem, "_batch_gradient", counted)
    answer(capsys, "--samples", "10", "--rule.lr", "0.1", "--model.width", "6", "--model.depth", "2")
    assert set(seen) == {10}
