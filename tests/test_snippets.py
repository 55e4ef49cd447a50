"""Every Python block of the README and the docs runs, top to bottom, in an empty folder."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import thalweg

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for number, block in enumerate(blocks(page), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)
    assert namespace, "the page ran"


def every_module() -> list[str]:
    return [m.name for m in pkgutil.walk_packages(thalweg.__path__, "thalweg.")]


@pytest.mark.parametrize("name", every_module())
def test_docstring_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples in {name} fail"


def test_readme_shows_python():
    assert blocks(ROOT / "README.md"), "the README has a Python example"
