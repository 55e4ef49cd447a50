"""The options of ``thalweg lr``: a problem from flags, a checkpoint or a run, and the learning rate that is wanted."""

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
from thalweg.cli.rule import RuleConfig, build_rule, resolve_rule
from thalweg.cli.subject import Subject, locate, subject
from thalweg.cli.subject_config import SubjectConfig, as_run, refuse_changes, settings_beside
from thalweg.errors import InvalidInput, explain
from thalweg.runs import Run

DESCRIPTION = """Find the largest stable first step, the distance to divergence, and whether the learning rate that you want needs a warm-up.

MODEL is a run folder, RUN@STEP, a checkpoint file or a state dict. Without it, the model that --model describes is examined at its initial weights. The optimizer is new: its averages are empty. --rule.name says which, --rule.lr is the target. The answer holds for the data given: choose a mini-batch of training size with --samples for a rule that will see mini-batches. Nothing is written without --out.

The evidence has the anharmonicity, how many times larger the measured rate is than the local curvature says: 1 on a quadratic, some 16 in the first example, close to 1 at the default --model.init-scale 0.45, where the output starts near zero.

examples:
  thalweg lr --model.depth 8 --model.width 32 --model.activation relu --model.init-scale 1 --rule.lr 0.5
  thalweg lr --rule.name adamw --rule.lr 3e-3 --warmup-steps 1000
  thalweg lr runs/first@200 --rule.lr 0.3
  thalweg lr weights.pt --model-file mine.py:problem --rule.name heavy_ball --rule.lr 0.1

exit codes: 0 done, 1 nothing could be measured, 2 wrong input, 130 stopped with Ctrl-C
"""  # noqa: E501  (a paragraph is one line: tyro breaks no others as they stand here)


@dataclass(frozen=True)
class Told:
    """What ``thalweg lr`` is told.

    Attributes:
        path: Run folder, RUN@STEP, checkpoint file or state dict; without one, the initial weights.
        warmup_steps: Length of the warm-up that you would do, to say how many steps can be saved.
        steps: Length of the runs that look for divergence.
        tol: Relative width to which the critical learning rate is found.
        samples: Use the first so many samples only.
        model_file: Your own problem, as path.py:function; the file is executed, as python would.
        out: Draw the figure into this HTML file.
        json: Print the numbers as JSON instead of words.
        settings: The problem and the rule.
    """

    path: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL]", help_behavior_hint="")] = None
    warmup_steps: Annotated[int | None, if_given("INT")] = None
    steps: int = 10
    tol: float = 0.02
    samples: Annotated[int | None, if_given("INT")] = None
    model_file: Annotated[str | None, if_given("FILE:FUNCTION")] = None
    out: Annotated[Path | None, if_given("PATH")] = None
    json: Annotated[bool, *FLAG] = False
    settings: Annotated[SubjectConfig, tyro.conf.arg(name="")] = field(default_factory=SubjectConfig)


@dataclass(frozen=True)
class Place:
    """What the path names: a run or nothing, a file or nothing, a step or nothing."""

    run: Run | None = None
    file: Path | None = None
    step: int | None = None


def parse(arguments: Sequence[str]) -> tuple[Told, Place]:
    """Read the options, on top of the settings of the run that they name.

    Raises:
        InvalidInput: There is nothing at the path, or an option contradicts the run.
        RunFolderError: The path is a folder, and no run.
        SystemExit: Help was asked for, or an option is unknown.
    """
    told = _read(Told(), arguments)
    if told.path is None:
        return told, Place()
    place = _place(told.path)
    if place.run is None:
        return told, place
    own = settings_beside(place.run, told.model_file)
    if own is None:
        return told, place
    # another rule brings its own settings; those of the run's rule would not fit it
    named = dataclasses.replace(own, rule=_rule_of(own.rule, told.settings.rule, arguments))
    told = _read(Told(settings=named), arguments)
    refuse_changes(
        told.path,
        own,
        told.settings,
        told.model_file,
        remedy="Leave the option out; rules and learning rates may be changed",
        free={"rule"},
    )
    return told, place


def start(told: Told, place: Place) -> Subject:
    """Build problem, weights and rule; the rule is new, at the constant rate ``rule.lr``.

    Raises:
        InvalidInput: Settings do not fit each other, or the step has no checkpoint.
        RunFolderError: A file of the run is damaged.
    """
    config = resolve_rule(dataclasses.replace(told.settings.rule, schedule=type(told.settings.rule.schedule)()), 1)
    rule, fresh = build_rule(config, 1), False
    if place.run is None and place.file is None:
        settings = told.settings
        if told.model_file is not None:
            problem = load_problem(told.model_file)
        else:
            problem, fresh = build_problem(as_run(settings), check=told.samples is None), True
        words = (
            told.model_file or f"{settings.data.name}, {settings.model.name} of depth {settings.model.depth}, width "
        )
        if told.model_file is None:
            words += f"{settings.model.width}"
        found = Subject(problem, problem.initial, f"{words}, initial weights (seed {settings.seed})", "initial")
    else:
        found = subject(place.run, place.file, told.settings, place.step, told.model_file)
    found = found.first(told.samples, check=fresh)
    notes = tuple(note for note in found.notes if not note.startswith("The preconditioner of"))
    if found.step and rule.preconditioner(rule.init(found.w)) is not None:
        notes = (*notes, f"{rule.name} starts afresh here; the run's own averages would let it do other steps.")
    return dataclasses.replace(found, rule=rule, state=None, notes=notes)


def _place(path: str) -> Place:
    base, mark, step = path.rpartition("@")
    if mark and not Path(path).exists():
        try:
            number = None if step == "last" else int(step)
        except ValueError:
            raise InvalidInput(
                explain(f"{path} ends in @{step}", "a step of a run is a whole number, or last", "Correct the step")
            ) from None
        run, file = locate(Path(base))
        return Place(run, file, number)
    return Place(*locate(Path(path)))


def _rule_of(own: RuleConfig, given: RuleConfig, arguments: Sequence[str]) -> RuleConfig:
    named = any(argument.split("=")[0] == "--rule.name" for argument in arguments)
    return RuleConfig(name=given.name) if named and given.name != own.name else own


def _read(default: Told, arguments: Sequence[str]) -> Told:
    return tyro.cli(Told, args=arguments, prog="thalweg lr", description=DESCRIPTION, default=default)
