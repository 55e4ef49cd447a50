"""The page of a phase diagram: what it says and draws, and that it opens."""

import re

import numpy as np
import pytest

from thalweg.errors import RunFolderError
from thalweg.phases.critical_result import NAMES
from thalweg.phases.diagram import PhaseDiagram, assemble
from thalweg.report.phase_page import caveats, render_phase, write_phase_page


def diagram(c_loss=(3.0, 9.0, 20.0), seeds=5, **facts):
    spread, rows = np.linspace(0.96, 1.04, seeds), []
    for width, value in zip((256, 64, 16), c_loss):
        for seed in range(seeds):
            c = np.array([value, 1.3 * value, 2 * value, np.nan]) * spread[seed]
            found = np.array([1.0, 1.0, float(width > 16), np.nan])
            c[2] = c[2] if width > 16 else np.nan
            rows.append(((4, width, seed), {"c": c, "c_low": c / 1.03, "c_high": c * 1.03, "found": found,
                                            "fallback": 0.0 * found, "loss0": 0.4, "sharpness0": 12.0}))  # fmt: skip
    assert NAMES[2] == "c_max"
    return assemble(rows, {"name": "mlp on <digits>", "init": "standard", "loss": "mse_mean", "steps": 10, **facts})


def test_it_says_what_the_diagram_shows():
    page = render_phase(diagram())
    assert "mlp on &lt;digits&gt;" in page
    assert "Sharpness reduction opens" in page
    assert "sharpness reduction opens</li>" in page
    assert "depth 4, width 16" in page
    assert 'data-spec="fdiagram"' in page
    assert 'data-spec="fratio"' in page
    assert 'data-spec="fruns"' not in page  # none were kept
    assert not re.search(r"\bnan\b", re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL), re.IGNORECASE)


def test_it_says_what_to_keep_in_mind():
    assert any("Beyond the grid" in note and "5 seeds at depth 4, width 16" in note for note in caveats(diagram()))
    assert any("bars say little" in note for note in caveats(diagram(seeds=2)))
    assert any("--window catapult" in note for note in caveats(diagram(loss="cross_entropy", window="paper")))
    data = diagram().data.copy(deep=True)
    for name in ("c", "found"):
        data[name][0, 0, 1] = np.nan
    data["fallback"][0, 1, 0, 0] = 1.0
    notes = caveats(PhaseDiagram(data))
    assert any("Not measured: depth 4 width 16 seed 1" in note for note in notes)
    assert any(note.startswith("1 of") for note in notes)


def test_a_file_becomes_a_page(tmp_path):
    diagram().save(tmp_path / "phases.nc")
    page = write_phase_page(tmp_path / "phases.nc")
    assert page == tmp_path / "phases.html"
    assert "Phase diagram" in page.read_text()
    with pytest.raises(RunFolderError):
        write_phase_page(tmp_path / "none.nc")
