"""``thalweg sweep``: status and merge, by its main(), and the progress of a sweep."""

import io
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from thalweg.cli.sweep import main
from thalweg.cli.sweep_meter import sweep_meter
from thalweg.errors import InvalidInput, RunFolderError
from thalweg.sweeps.plan import plan
from thalweg.sweeps.run_result import open_sweep
from thalweg.sweeps.sweep import sweep


def ratio(cell):
    return {"x": 1 / cell["width"]}


@pytest.fixture
def shares(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        for i in range(2):
            sweep(ratio, plan(width=range(6), depth=[1, 2]), tmp_path / f"node{i}", engine=pool, share=(i, 3))
    return tmp_path


def test_status_counts_and_names_failures(shares, capsys):
    assert main(["status", str(shares / "node0")]) == 0
    out, hints = capsys.readouterr()
    assert "of work left" in out
    assert "computes what is pending" in hints
    assert "retry_failed=True" in hints
    assert "ratio over Plan of 12 cells: 6 width x 2 depth, thalweg-" in out
    assert "3 done, 1 failed, 8 pending; no driver is at work" in out
    assert "failed: width=0, depth=1: ZeroDivisionError: division by zero" in out
    assert main(["status", str(shares / "node0"), "--traces"]) == 0
    assert 'return {"x": 1 / cell["width"]}' in capsys.readouterr().err


def test_merge_joins_shares(shares, capsys):
    out = shares / "all"
    assert main(["merge", str(shares / "node0"), str(shares / "node1"), "--out", str(out)]) == 0
    assert "6 done, 2 failed, 4 pending" in capsys.readouterr().out
    assert open_sweep(out).status().done == 6
    with pytest.raises(InvalidInput, match="has a ledger"):
        main(["merge", str(shares / "node0"), "--out", str(out)])


def test_a_sweep_that_is_whole_has_nothing_left_to_say(tmp_path, capsys):
    with ThreadPoolExecutor(1) as pool:
        sweep(ratio, plan(width=[1, 2]), tmp_path / "s", engine=pool)
    main(["status", str(tmp_path / "s")])
    out, hints = capsys.readouterr()
    assert "2 done, 0 failed, 0 pending" in out
    assert "left" not in out
    assert not hints


def test_many_failures_are_cut_short(tmp_path, capsys):
    with ThreadPoolExecutor(1) as pool:
        sweep(ratio, plan(width=[0], seed=range(13)), tmp_path / "s", engine=pool)
    main(["status", str(tmp_path / "s")])
    found = capsys.readouterr()
    assert found.out.count("failed: ") == 10
    assert "3 more failed" in found.err
    main(["status", str(tmp_path / "s"), "--traces"])
    assert capsys.readouterr().out.count("failed: ") == 13


def test_what_is_wrong_is_said(tmp_path, capsys):
    with pytest.raises(RunFolderError, match="There is no ledger at"):
        main(["status", str(tmp_path)])
    with pytest.raises(SystemExit):
        main(["merge", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "thalweg sweep merge node1 node2 --out all" in capsys.readouterr().out


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_on_the_console(tmp_path, terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with ThreadPoolExecutor(1) as pool:
        sweep(ratio, plan(width=range(10)), tmp_path / "s", engine=pool, meter=sweep_meter(console), ahead=1)
    out = console.file.getvalue()
    assert "10/10" in out
    assert "1 failed" in out
    assert "0 s left" in out
    if not terminal:
        lines = out.splitlines()
        assert len(lines) == 10
        assert lines[-1].startswith("cell 10/10 (100%), 0 s left: last cell ")
