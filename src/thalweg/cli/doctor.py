"""``thalweg doctor``: which numbers can be trusted, for a model and on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from thalweg.cli.console import talk
from thalweg.errors import InvalidInput, NotDeterministic, explain
from thalweg.operators.diagnosis import Diagnosis
from thalweg.operators.verify import doctor
from thalweg.problem import Problem
from thalweg.problem.data import DataConfig
from thalweg.problem.data.load import LossName
from thalweg.problem.zoo import ModelConfig

DESCRIPTION = """Check which derivatives of a model can be trusted on this machine, and what to do about the rest.

examples:
  thalweg doctor
  thalweg doctor --model.name vit --model.depth 2
  thalweg doctor --data.name sorting --model.name transformer --loss cross_entropy
  thalweg doctor --model-file mine.py:problem

--model-file runs the Python file that it names, as python would. The function takes no argument and returns a
Problem, or (model, loss, data).

exit codes: 0 all right (warnings included), 1 a check failed, 2 wrong input
"""

COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red", "skipped": "dim"}


@dataclass(frozen=True)
class Doctor:
    """What ``thalweg doctor`` is told.

    Attributes:
        model_file: Your own problem, as path.py:function; the file is executed.
        samples: Examine the first so many samples of data that can be indexed.
        loss: mse, mse_mean or cross_entropy, for the built-in models.
        dtype: Dtype of the built-in models; derivatives are compared in float64 in any case.
        seed: Seed of the built-in models, and of the random directions.
        data: Built-in data.
        model: Built-in model.
    """

    model_file: str | None = None
    samples: int = 64
    loss: LossName = "mse"
    dtype: Literal["float32", "float64"] = "float32"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)

    def problem(self) -> Problem:
        """Build what is to be examined.

        Raises:
            InvalidInput: The file, the function or the configuration cannot be used.
        """
        if self.samples < 1:
            raise InvalidInput(explain(f"samples is {self.samples}", "there is nothing to examine", "Take at least 1"))
        made = self._built_in() if self.model_file is None else load_problem(self.model_file)
        try:
            return made.subset(slice(0, self.samples))
        except InvalidInput:  # a loader cannot be cut
            return made

    def run(self) -> int:
        """Examine, print the table, and return the exit code: 1 where something failed."""
        diagnosis = doctor(self.problem(), seed=self.seed)
        show(diagnosis, talk())
        return 0 if diagnosis.healthy else 1

    def _built_in(self) -> Problem:
        import torch

        from thalweg.problem.data import load_data, loss_for
        from thalweg.problem.zoo import build_model

        data = load_data(self.data)
        model = build_model(self.model, data, self.seed)
        dtype = {"float32": torch.float32, "float64": torch.float64}[self.dtype]
        return _unguarded(model, loss_for(self.loss, data), data.pair(), dtype=dtype)


def load_problem(place: str) -> Problem:
    """Execute ``path.py`` of ``path.py:function`` and return the function's problem.

    Raises:
        InvalidInput: There is no such file or function, it raises, or it returns something else.
    """
    path, _, name = place.rpartition(":")
    if not path or not Path(path).is_file():
        raise InvalidInput(
            explain(
                f"--model-file is {place!r}",
                "it names a Python file and a function in it" if not path else f"there is no file {path}",
                "Write path.py:function",
            )
        )
    try:
        spec = importlib.util.spec_from_file_location("thalweg_model_file", path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        made = _function(module, name, path)()
    except InvalidInput:
        raise
    except Exception as error:  # anything may come out of a file that is not ours
        raise InvalidInput(
            explain(
                f"{place} raised {type(error).__name__}: {error}",
                "the problem is what its function returns",
                "Run the file with python first; thalweg doctor --debug shows the traceback",
            )
        ) from error
    if isinstance(made, Problem):
        return made
    if isinstance(made, tuple) and len(made) == 3:
        return _unguarded(*made)
    raise InvalidInput(
        explain(
            f"{place} returned a {type(made).__name__}",
            "what is examined is a Problem",
            "Return a Problem, or (model, loss, data)",
        )
    )


def _function(module: ModuleType, name: str, path: str) -> Callable[[], Any]:
    function = getattr(module, name, None)
    if not callable(function):
        own = (key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__)
        raise InvalidInput(
            explain(
                f"{path} has no function {name!r}",
                f"it has {', '.join(own) or 'none of its own'}",
                "Write path.py:function, with a function that takes no argument and returns a Problem",
            )
        )
    return cast("Callable[[], Any]", function)


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print the diagnosis as a table, and one sentence that sums it up."""
    table = Table(title=Text(diagnosis.summary), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", justify="right", no_wrap=True)
    table.add_column("at most", justify="right", no_wrap=True)
    table.add_column("what it means, and what to do", overflow="fold")
    for check in diagnosis:
        numbers = ["" if number is None else f"{number:.0e}" for number in (check.value, check.tolerance)]
        text = ". ".join(part.rstrip(".") for part in (check.meaning, check.remedy) if part) + "."
        table.add_row(check.name, Text(check.status, COLOURS[check.status]), *numbers, Text(text))
    console.print(table)
    bad = [check.name for check in diagnosis if check.status == "fail"]
    careful = [check.name for check in diagnosis if check.status == "warn"]
    if bad:
        console.print(f"Not to be trusted: {', '.join(bad)}.", style="bold red")
    elif careful:
        console.print(f"Can be trusted, with care about: {', '.join(careful)}.", style="yellow")
    else:
        console.print("Everything that was checked can be trusted.", style="green")


def main(arguments: Sequence[str]) -> int:
    """Examine as the options say; return the exit code."""
    told = tyro.cli(Doctor, args=arguments, prog="thalweg doctor", description=DESCRIPTION)
    return told.run()


def _unguarded(model: Any, loss: Any, data: Any, **options: Any) -> Problem:
    """Build a problem whose randomness the doctor then reports, rather than one that cannot be built."""
    try:
        return Problem(model, loss, data, **options)
    except NotDeterministic:
        return Problem(model, loss, data, check=False, **options)
