"""The example of the solvable model runs and says what is true."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "uv_model.py"


@pytest.mark.slow
def test_example(tmp_path, capsys):
    runpy.run_path(str(EXAMPLE))["main"](str(tmp_path / "uv"), seeds=40)
    told = capsys.readouterr().out
    assert "Sharpness reduction opens" in told
    assert "1.2361" in told
    assert "1.3023" in told
    assert {path.name for path in (tmp_path / "uv").glob("*.html")} == {"catapult.html", "phases.html", "orbits.html"}
