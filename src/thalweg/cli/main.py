"""The command ``thalweg``: finds the subcommand, and turns errors into messages and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from thalweg import __version__
from thalweg.cli.console import complain, show_traceback
from thalweg.cli.structure import near
from thalweg.errors import NonFinite, StorageError, ThalwegError

COMMANDS = {
    "run": "Train a model and record its loss, weights and leading curvature",
    "spectrum": "Measure the curvature at a checkpoint: eigenvalues, trace, density, layers",
    "flow": "Forecast the time-averaged path of an optimizer, and what its oscillation does",
    "map": "Map the whole path of the weights, of a run or of any checkpoints, beside what noise gives",
    "phase": "Find the phases of early training over depth, width and learning rate",
    "regimes": "Cut a run, or a log from elsewhere, into the regimes of training, with evidence",
    "lr": "Say how large the first step may be, whether a warm-up is due, and how far divergence is",
    "stationarity": "Say whether training has settled, on what, and whether more steps would help",
    "glass": "Measure the curvature of kinks, which no Hessian sees, by layer and step length",
    "sweep": "Show how far a sweep is, or merge sweeps of several machines",
    "report": "Write the one-page report of a run",
    "doctor": "Check which numbers can be trusted on this machine and model",
}

HELP = f"""usage: thalweg COMMAND [OPTIONS]

See where the training of a neural network goes: record a run, measure its curvature, read one page about it.

commands:
{chr(10).join(f"  {name:<14}{text}" for name, text in COMMANDS.items())}

options:
  -h, --help     show this message; thalweg COMMAND --help shows all settings of a command
  --version      show the version
  --debug        show the full traceback of an error

examples:
  thalweg run                                   digits, an MLP, gradient descent at the edge of stability
  thalweg run --quick                           the same, short
  thalweg run --rule.name adam --rule.lr 1e-3 --steps 500 --out runs/adam
  thalweg run --resume runs/adam --steps 1000   go on after a crash or a Ctrl-C, or for longer
  thalweg spectrum runs/adam                    eigenvalues, trace, density and layers of the last checkpoint
  thalweg flow runs/first@200 --time 100        the central flow from step 200 on, beside the run itself
  thalweg map checkpoints --budget 2GiB         a trajectory map of checkpoints from anywhere, each byte read once
  thalweg phase --depths 4 8 --widths 64 128    the phase diagram of a network: critical learning rates by depth, width
  thalweg regimes log.csv --rule adam           where a run went through transient, sharpening, edge of stability
  thalweg lr --model.depth 8 --rule.lr 0.5      the largest stable first step of a model
  thalweg stationarity runs/adam                settled, or not: with evidence, and what to do next
  thalweg glass runs/adam                       which curvature matters in which layers: kinks or the Hessian
  thalweg report runs/adam --open               write the page again, and look at it

exit codes: 0 done, 1 the run failed, 2 wrong input, 130 stopped with Ctrl-C
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``thalweg`` with ``arguments``, by default those of the process.

    Returns:
        The exit code: 0 done, 1 the run failed (numbers or storage), 2 wrong input, 130 stopped by Ctrl-C.

    Example:
        >>> main(["--version"])
        thalweg 0.1.0
        0
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(given)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has read enough, as head does
        with suppress(OSError, ValueError):  # what is left to write at exit goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell counts a process that ended by SIGPIPE
    return code


def _run(given: list[str]) -> int:
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    if not given or given[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if given[0] in ("--version", "-V"):
        print(f"thalweg {__version__}")
        return 0
    if given[0] not in COMMANDS:
        return _unknown(given[0])
    try:
        command = importlib.import_module(f"thalweg.cli.{given[0]}")
        code: int = command.main(given[1:])
        return code
    except SystemExit as stop:  # tyro's help (0) and its complaints about flags (2)
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        complain("Left at once.", "note")
        return 130
    except ThalwegError as error:
        if debug:
            show_traceback(error)
        complain(str(error))
        return 1 if isinstance(error, NonFinite | StorageError) else 2


def _unknown(name: str) -> int:
    matches = near(name, list(COMMANDS))
    remedy = f"Perhaps {matches[0]} was meant." if matches else f"Choose among: {', '.join(COMMANDS)}."
    complain(f"There is no command {name!r}. {remedy}")
    return 2


if __name__ == "__main__":
    sys.exit(main())
