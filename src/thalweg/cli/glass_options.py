"""The options of ``thalweg glass``: a model from flags, a checkpoint or a run, its steps, and how to probe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from thalweg.cli.config import build_problem
from thalweg.cli.doctor import load_problem
from thalweg.cli.options import FLAG, if_given
from thalweg.cli.rule import build_rule, resolve_rule
from thalweg.cli.subject import Subject, locate, subject
from thalweg.cli.subject_config import SubjectConfig, as_run, refuse_changes, settings_beside
from thalweg.errors import InvalidInput, RunFolderError, explain
from thalweg.problem.zoo import ModelConfig
from thalweg.rules import Rule, State
from thalweg.runs import Run
from thalweg.runs.state import load_position

DESCRIPTION = """Measure the curvature that ReLU kinks give the expected loss, which no Hessian sees: glass density, powers, loss changes.

MODEL_OR_RUN is a run folder, RUN@STEP, a checkpoint file or a state dict. Without it, the model that --model describes is examined at its initial weights. With several --steps of a run the page shows the density over training. Gradients are of mini-batches, by default of the run's own size. Results go into analyses/ of the run, or beside --out: a netCDF file, which xarray opens, and a page.

examples:
  thalweg glass runs/first@200
  thalweg glass runs/first --steps 0 100 last
  thalweg glass runs/first --steps all --sigma 1e-3
  thalweg glass --model.activation relu --model.depth 4 --rule.name adam --rule.lr 1e-3 --batch-size 64
  thalweg glass weights.pt --model-file mine.py:problem --json

exit codes: 0 done, 1 the measurement failed, 2 wrong input, 130 stopped with Ctrl-C (finished steps are kept)
"""  # noqa: E501  (a paragraph is one line: tyro breaks no others as they stand here)


@dataclass(frozen=True)
class Told:
    """What ``thalweg glass`` is told.

    Attributes:
        path: Run folder, RUN@STEP, checkpoint file or state dict; without one, the initial weights.
        steps: Steps of the run with a checkpoint: numbers (negative: from the end), last, or all.
        sigma: Length of the probe per weight; by default that of the update.
        batches: Mini-batches of each measurement.
        batch_size: Samples in each; by default as the run, else 64, or a quarter of the data if that is less.
        lengths: Multiples of the update at which the loss is looked at.
        samples: Use the first so many samples only.
        model_file: Your own problem, as path.py:function; the file is executed, as python would.
        out: netCDF file to write, with the page beside it; by default analyses/glass-STEP.nc in the run folder,
            NAME-glass.nc here otherwise.
        json: Print the results as JSON; what else is said then goes to standard error.
        settings: The problem and the rule.
    """

    path: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL_OR_RUN]", help_behavior_hint="")
    ] = None
    steps: tuple[str, ...] = ("last",)
    sigma: Annotated[float | None, if_given("FLOAT")] = None
    batches: int = 16
    batch_size: Annotated[int | None, if_given("INT")] = None
    lengths: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    samples: Annotated[int | None, if_given("INT")] = None
    model_file: Annotated[str | None, if_given("FILE:FUNCTION")] = None
    out: Annotated[Path | None, if_given("PATH")] = None
    json: Annotated[bool, *FLAG] = False
    settings: Annotated[SubjectConfig, tyro.conf.arg(name="")] = field(default_factory=SubjectConfig)


@dataclass(frozen=True)
class Place:
    """What the path names: a run or nothing, a file or nothing, and the steps to look at (None: the last)."""

    run: Run | None = None
    file: Path | None = None
    steps: tuple[int | None, ...] = (None,)


def parse(arguments: Sequence[str]) -> tuple[Told, Place]:
    """Read the options, on top of the settings of the run that they name.

    Raises:
        InvalidInput: There is nothing at the path, or an option contradicts the run or another one.
        RunFolderError: The path is a folder, and no run.
        SystemExit: Help was asked for, or an option is unknown.
    """
    told = _read(Told(), arguments)
    place = _place(told)
    if told.out is not None and len(place.steps) > 1:
        raise InvalidInput(
            explain("--out is one file", f"{len(place.steps)} steps are to be measured", "Leave --out or steps out")
        )
    if place.run is None:
        return told, place
    own = settings_beside(place.run, told.model_file)
    if own is None:
        return told, place
    told = _read(Told(settings=own), arguments)
    refuse_changes(
        told.path,
        own,
        told.settings,
        told.model_file,
        why="a run has its own problem and rule",
        remedy="Leave the option out; to measure another loss, pass the checkpoint file as a state dict",
    )
    return told, place


def start(told: Told, place: Place, step: int | None) -> tuple[Subject, Rule | None, State | None]:
    """Build the problem at one step, and the rule whose next update is followed, with its state where it is known.

    Raises:
        InvalidInput: Settings do not fit each other, or the step has no checkpoint.
        RunFolderError: A file of the run is damaged.
    """
    rule: Rule | None = None
    fresh = False
    if place.run is None and place.file is None:
        if told.model_file is not None:
            problem = load_problem(told.model_file)
        else:
            problem, fresh = build_problem(as_run(told.settings), check=told.samples is None), True
        name = told.model_file or model_words(told.settings.model, told.settings.data.name)
        found = Subject(problem, problem.initial, f"{name}, initial weights", f"{name}, initial weights")
        if told.model_file is None or told.settings.rule.lr is not None:
            rule = build_rule(resolve_rule(told.settings.rule, 1), 1)
    else:
        found = subject(place.run, place.file, told.settings, step, told.model_file)
        rule = found.rule
    if told.samples is not None and told.samples < 1:
        raise InvalidInput(explain(f"--samples is {told.samples}", "it counts samples", "Correct the number"))
    found = found.first(told.samples, check=fresh)
    notes = tuple(note for note in found.notes if not note.startswith("The preconditioner of"))
    state = None
    if rule is not None and found.step:
        state = _state(found)
        if state is None:  # at the rate of its step
            rule = dataclasses.replace(rule, lr=rule.learning_rate_at(found.step))
            if len(rule.init(found.w)) > 1:
                notes = (
                    *notes,
                    f"The averages of {rule.name} at step {found.step:,} are not on disk; the update that is followed "
                    "is its first one from empty averages.",
                )
    if rule is None:
        notes = (*notes, "No update rule is known, so that no step is followed; name one with --rule.lr.")
    return dataclasses.replace(found, notes=notes), rule, state


def model_words(model: ModelConfig, data: str) -> str:
    """Return what a model is, with its depth and width, in a few words.

    Example:
        >>> model_words(ModelConfig(depth=4, width=32, activation="relu"), "digits")
        'relu mlp 4 x 32 on digits'
    """
    kind = model.hf_name if model.name == "hf" else f"{model.activation} {model.name}"
    return f"{kind} {model.depth} x {model.width} on {data}"


def _state(found: Subject) -> State | None:
    """The rule's state before the update of the saved step."""
    run = found.run
    if run is None or run.folder.in_use():
        return None
    try:
        position = load_position(run.folder.state, found.problem.device)
    except RunFolderError:
        return None
    if position is None or position.step != found.step:
        return None
    dtype = found.w.dtype
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in position.rule.items()}


def _place(told: Told) -> Place:
    if told.path is None:
        if told.steps != ("last",):
            raise InvalidInput(
                explain(f"--steps is {' '.join(told.steps)}", "no run is named", "Name the run before --steps")
            )
        return Place()
    base, mark, step = told.path.rpartition("@")
    names: Sequence[str] = told.steps
    path = told.path
    if mark and not Path(told.path).exists():
        if told.steps != ("last",):
            raise InvalidInput(
                explain(f"{told.path} is given with --steps", "both name steps", "Leave one of them out")
            )
        path, names = base, (step,)
    run, file = locate(Path(path))
    if "all" in names:
        if run is None:
            raise InvalidInput(explain("--steps is all", "only a run has several", "Leave it out"))
        return Place(run, file, tuple(run.checkpoints))
    steps: list[int | None] = []
    for name in names:
        try:
            steps.append(None if name == "last" else int(name))
        except ValueError:
            raise InvalidInput(
                explain(f"A step is {name!r}", "it is a whole number, last or all", "Correct the step")
            ) from None
    return Place(run, file, tuple(steps) or (None,))


def _read(default: Told, arguments: Sequence[str]) -> Told:
    return tyro.cli(Told, args=arguments, prog="thalweg glass", description=DESCRIPTION, default=default)
