"""``thalweg phase``: the plan, the sweep and its resumption, what is written, and what is refused."""

from pathlib import Path

import pytest

from thalweg.cli.phase import main
from thalweg.cli.phase_options import parse
from thalweg.errors import InvalidInput
from thalweg.phases.diagram_stored import open_diagram

SMALL = [
    "--depths",
    "2",
    "--widths",
    "8",
    "16",
    "--seeds",
    "2",
    "--samples",
    "40",
    "--steps",
    "3",
    "--grid-step",
    "0.5",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_plan_is_shown_first_and_alone(capsys, tmp_path):
    assert main([*SMALL, "--plan"]) == 0
    told = capsys.readouterr().out
    assert "4 cells, about" in told
    assert "40 samples" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_is_measured_drawn_and_taken_up_again(capsys, tmp_path):
    more = ["--no-barrier", "--workers", "1", "--out", "found"]
    assert main([*SMALL, *more]) == 0
    told = capsys.readouterr().out
    assert "c_loss" in told
    assert "c_barrier" not in told
    assert "cell 4/4" in told
    found = open_diagram("found/phases.nc")
    assert found.widths == [8, 16]
    assert found.data.attrs["samples"] == 40
    assert "Phase diagram" in (tmp_path / "found" / "phases.html").read_text()
    before = found.table()
    assert main([*SMALL, *more]) == 0  # nothing is left to compute
    assert "cell 1/4" not in capsys.readouterr().out
    assert open_diagram("found/phases.nc").table() == before
    with pytest.raises(InvalidInput, match="function"):  # other settings are another sweep
        main([*SMALL, *more, "--window", "catapult"])


@pytest.mark.slow
def test_saturation_is_measured_when_asked_for(capsys):
    options = ["--depths", "2", "--widths", "8", "--seeds", "2", "--samples", "30", "--grid-step", "0.5"]
    assert main([*options, "--no-barrier", "--saturation", "--workers", "1", "--out", "found"]) == 0
    found = open_diagram("found/phases.nc")
    assert found.data["saturation"].sizes["tau_c"] > 5
    assert found.plot_saturation().data
    assert "After the transient" in Path("found/phases.html").read_text()


@pytest.mark.parametrize(
    "options",
    [
        ["--widths", "0"],
        ["--depths", "-1"],
        ["--seeds", "0"],
        ["--samples", "0"],
        ["--steps", "0"],
        ["--workers", "0"],
        ["--grid-step", "0"],
        ["--eps-sharp", "-0.1"],
        ["--address", "auto"],
        ["--widths", "64", "64"],
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(InvalidInput):
        parse(options)


def test_a_zero_output_lets_the_sharpness_jitter():
    assert parse(["--init", "zero_output"]).measure.eps_sharp == 0.05
    assert parse(["--init", "zero_output", "--eps-sharp", "0"]).measure.eps_sharp == 0
    assert parse([]).measure.eps_sharp == 0
