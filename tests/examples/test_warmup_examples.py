"""The examples of warm-up run, begin where they say, and learn something."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stop"), [("transformers", "NO_RISE"), ("lightning", "FOUND")])
def test_example(name, stop, capsys):
    pytest.importorskip(name)
    told = runpy.run_path(str(EXAMPLES / f"warmup_{name}.py"))["main"]()
    rates, losses = zip(*told)
    assert losses[-1] < losses[0] - 0.5
    assert 0 < rates[0] < max(rates) / 2
    out = capsys.readouterr().out
    assert f"stop={stop}" in out
    assert "step   0: learning rate" in out
