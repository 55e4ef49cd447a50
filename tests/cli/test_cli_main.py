import os
import subprocess
import sys
from contextlib import contextmanager, redirect_stdout

import pytest

from thalweg import __version__
from thalweg.cli import main as command
from thalweg.errors import InvalidInput, NonFinite, StorageError


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(capsys, arguments):
    assert command.main(arguments) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in command.COMMANDS)


def test_the_version(capsys):
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"thalweg {__version__}\n"


def test_an_unknown_command_suggests_one(capsys):
    assert command.main(["rnu"]) == 2
    assert "no command 'rnu'. Perhaps run was meant" in capsys.readouterr().err
    assert command.main(["zzz"]) == 2
    assert f"Choose among: {', '.join(command.COMMANDS)}." in capsys.readouterr().err


def test_help_and_version_import_no_heavy_package():
    code = (
        "import sys; from thalweg.cli.main import main; main(['--help']); main(['--version']);"
        "heavy = {'torch', 'numpy', 'xarray', 'plotly', 'tyro', 'scipy'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def fails_with(error, monkeypatch):
    class Command:
        @staticmethod
        def main(arguments):
            raise error

    monkeypatch.setattr(command.importlib, "import_module", lambda name: Command)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInput("Found. Why. Remedy."), 2),
        (NonFinite("Found. Why. Remedy."), 1),
        (StorageError("Found. Why. Remedy."), 1),
        (KeyboardInterrupt(), 130),
        (SystemExit(2), 2),
        (SystemExit(0), 0),
    ],
)
def test_errors_become_exit_codes_without_a_traceback(monkeypatch, capsys, error, code):
    fails_with(error, monkeypatch)
    assert command.main(["run"]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    if isinstance(error, InvalidInput | NonFinite | StorageError):
        assert err == "thalweg: error: Found. Why. Remedy.\n"


def test_debug_shows_the_traceback_too(monkeypatch, capsys):
    fails_with(InvalidInput("[bold]Found[/bold]. Why. Remedy."), monkeypatch)
    assert command.main(["run", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("thalweg: error: [bold]Found[/bold]. Why. Remedy.\n"), "text is no markup"


def test_errors_that_are_not_ours_are_not_hidden(monkeypatch):
    fails_with(ZeroDivisionError(), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        command.main(["run"])


def test_a_reader_that_has_enough_ends_it_quietly():
    code = "import sys; from thalweg.cli.main import main; sys.exit(main(['run', '--help']))"
    reader, writer = os.pipe()
    os.close(reader)  # as head does; before the first byte, for the whole text may fit into the pipe
    with os.fdopen(writer, "w") as stream:
        child = subprocess.run(
            [sys.executable, "-c", code], stdout=stream, stderr=subprocess.PIPE, text=True, timeout=300
        )
    assert child.returncode == 141
    assert child.stderr == ""


@contextmanager
def nobody_reads():
    """Standard output whose reader has gone, as after ``| head``; written a line at a time."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream, redirect_stdout(stream):
        yield


@pytest.mark.parametrize("words", [[], *([name] for name in command.COMMANDS)], ids=str)
def test_help_that_nobody_reads_ends_quietly(capsys, words):
    with nobody_reads():
        code = command.main([*words, "--help"])
    assert code == 141
    assert capsys.readouterr().err == ""


def test_a_run_that_nobody_reads_ends_quietly(capsys, tmp_path):
    options = ["--data.samples", "20", "--model.width", "4", "--model.depth", "2", "--steps", "2"]
    with nobody_reads():
        code = command.main(["run", *options, "--out", str(tmp_path / "run")])
    assert code == 141
    assert capsys.readouterr().err == ""
