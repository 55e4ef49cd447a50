"""The command: exit codes, the table, and files of the user's."""

import pytest
from rich.console import Console

from thalweg.cli.doctor import Doctor, load_problem, main, show
from thalweg.errors import InvalidInput
from thalweg.operators.diagnosis import Check, Diagnosis
from thalweg.problem import Problem
from thalweg.problem.data import DataConfig
from thalweg.problem.zoo import ModelConfig

GOOD = """
import torch
from thalweg.problem import Problem

def problem():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    return Problem(model, torch.nn.MSELoss(), (torch.ones(5, 3), torch.ones(5, 2)))

def parts():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    return model, torch.nn.MSELoss(), [(torch.ones(5, 3), torch.ones(5, 2))]

def dropout():
    model = torch.nn.Sequential(torch.nn.Linear(3, 9), torch.nn.Dropout())
    return model, torch.nn.MSELoss(), (torch.ones(5, 3), torch.ones(5, 9))

def breaks():
    raise KeyError("inside")

def other():
    return 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize("function", ["problem", "parts"])
def test_a_good_file(file, capsys, function):
    assert main(["--model-file", f"{file}:{function}"]) == 0
    out = capsys.readouterr().out
    assert "second derivative" in out
    assert "can be trusted" in out


def test_a_failed_check_is_exit_code_one(file, capsys):
    assert main(["--model-file", f"{file}:dropout"]) == 1
    out = capsys.readouterr().out
    assert "Not to be trusted: determinism" in out


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("mine.py", "path.py:function"),
        ("missing.py:problem", "no file"),
        ("{file}:nothing", "no function .nothing.*It has problem, parts"),
        ("{file}:breaks", "KeyError"),
        ("{file}:other", "returned a int"),
    ],
)
def test_files_that_are_no_problem(file, place, message):
    with pytest.raises(InvalidInput, match=message):
        load_problem(place.format(file=file))


def test_built_in_models():
    told = Doctor(samples=6, model=ModelConfig(width=5), data=DataConfig(samples=20))
    problem = told.problem()
    assert isinstance(problem, Problem)
    assert problem.samples == 6
    assert told.run() == 0


def test_nothing_to_examine():
    with pytest.raises(InvalidInput, match="Samples is 0"):
        Doctor(samples=0).problem()


def test_the_table_shows_text_as_it_is():
    check = Check("norms", "warn", 0.25, 1e-3, "uses x[bold] of [3, 4]...", "Call model.eval()")
    console = Console(record=True, width=120)
    show(Diagnosis((check,), "Problem[red]"), console)
    text = console.export_text()
    assert "x[bold] of [3, 4]" in text
    assert "Problem[red]" in text
    assert "2e-01" in text
    assert "with care about: norms" in text


def test_through_the_main_command(capsys):
    from thalweg.cli.main import main as thalweg

    assert thalweg(["doctor", "--samples", "4", "--model.width", "4"]) == 0
    assert thalweg(["doctor", "--model-file", "missing.py:f"]) == 2
    assert "no file missing.py" in capsys.readouterr().err
