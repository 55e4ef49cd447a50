"""The house's rules: imports go down, modules stay small, nothing prints, optional packages stay optional."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "thalweg"

LEVELS = {
    "errors": 0,
    "engines": 1,
    "_vectors": 1,
    "_rng": 1,
    "problem": 2,
    "operators": 3,
    "spectra": 4,
    "rules": 5,
    "optim": 6,
    "runs": 7,
    "sweeps": 8,
    "flows": 9,
    "glass": 9,
    "phases": 9,
    "stationarity": 9,
    "trajectories": 9,
    "report": 10,
    "cli": 11,
}
OPTIONAL = {
    "sklearn",
    "datasets",
    "transformers",
    "accelerate",
    "huggingface_hub",
    "lightning",
    "ray",
    "dask",
    "distributed",
    "ruptures",
    "selenium",
    "pytest",
    "hypothesis",
}


def modules():
    return sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_down(path):
    here = room(path)
    if here == "__init__":
        return
    assert here in LEVELS, f"{here} has no level: add it to LEVELS where it belongs"
    for name in imported(ast.parse(path.read_text())):
        if name.startswith("thalweg."):
            there = name.split(".")[1]
            if there == "__version__":
                continue
            assert LEVELS[there] <= LEVELS[here], f"{path.name} imports {name}, which lies above {here}"
            if there != here:
                assert LEVELS[there] < LEVELS[here], f"{here} and {there} are of the same height"


def test_there_is_no_circle():
    graph = {}
    for path in modules():
        tree = ast.parse(path.read_text())
        body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        name = "thalweg." + ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        graph[name.removesuffix(".__init__")] = [n for n in imported(ast.Module(body, [])) if "thalweg" in n]
    known = set(graph)
    edges = {
        module: {n if n in known else n.rsplit(".", 1)[0] for n in names} & known - {module}
        for module, names in graph.items()
    }
    done, path = set(), []

    def visit(module):
        if module in path:
            pytest.fail("circle: " + " -> ".join([*path[path.index(module) :], module]))
        if module not in done:
            path.append(module)
            for below in edges[module]:
                visit(below)
            path.pop()
            done.add(module)

    for module in edges:
        visit(module)
    assert done == known


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_modules_stay_small(path):
    assert len(path.read_text().splitlines()) <= 400, "split the second concept out"


def test_optional_packages_are_imported_inside_functions():
    for path in modules():
        top = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)]
        for name in imported(ast.Module(top, [])):
            assert name.split(".")[0] not in OPTIONAL, f"{path.name} imports {name} at its top"


def test_importing_thalweg_does_not_import_torch():
    code = "import sys, thalweg; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
