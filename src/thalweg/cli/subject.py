"""What a spectrum is measured of: problem, weights and rule, found from a run folder or a checkpoint file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thalweg.cli.checkpoint import fit, read_weights
from thalweg.cli.config import build_problem, from_dict
from thalweg.cli.doctor import load_problem
from thalweg.cli.rule import build_rule, resolve_rule
from thalweg.cli.subject_config import SubjectConfig, as_run, settings_of
from thalweg.errors import InvalidInput, RunFolderError, explain
from thalweg.runs import Run, open_run
from thalweg.runs.minibatches import MiniBatches
from thalweg.runs.rules import recorded_rule
from thalweg.runs.state import Position, load_position

if TYPE_CHECKING:
    from thalweg.problem import Problem
    from thalweg.rules import Rule, State


@dataclass(frozen=True)
class Subject:
    """What is to be measured, and where.

    Attributes:
        problem: The loss.
        w: The point, shape ``(P,)``.
        source: Where the weights come from, in words.
        name: Short name for titles and files.
        step: Step of the run; None outside a run.
        run: The run; None outside one.
        rule: The update rule; None where it is not known.
        state: Its state as the update at this step uses it; None where a preconditioner is not on disk.
        notes: What limits the meaning of the numbers, in sentences.
    """

    problem: Problem
    w: Tensor
    source: str
    name: str
    step: int | None = None
    run: Run | None = None
    rule: Rule | None = None
    state: State | None = None
    notes: tuple[str, ...] = ()

    def first(self, samples: int | None, *, check: bool = False) -> Subject:
        """Return the same on the first so many samples only, which a note says; None leaves all.

        Args:
            samples: How many.
            check: Evaluate the part twice, where the whole was not, as that may be many times larger.
        """
        if samples is None:
            return self
        part = self.problem.subset(slice(0, samples), check=check)
        note = f"Measured on {part.samples:,} of {self.problem.samples:,} samples."
        return dataclasses.replace(self, problem=part, notes=(*self.notes, note))


def locate(path: Path) -> tuple[Run | None, Path | None]:
    """Return ``(run, file)``: the run that ``path`` is or lies in, and the checkpoint file if it names one.

    Raises:
        InvalidInput: There is nothing at ``path``.
        RunFolderError: It is a folder, and no run.
    """
    if path.is_dir():
        return open_run(path), None
    if not path.exists():
        raise InvalidInput(
            explain(
                f"There is no {path}",
                "a spectrum is measured at the weights of a run folder or a checkpoint file",
                "Correct the path",
            )
        )
    home = path.resolve().parent
    if home.name == "checkpoints" and (home.parent / "manifest.json").is_file():
        return open_run(home.parent), path
    return None, path


def subject(
    run: Run | None, file: Path | None, settings: SubjectConfig, step: int | None, model_file: str | None
) -> Subject:
    """Build what is to be measured.

    Args:
        run: The run, or None.
        file: A checkpoint file, of the run if there is one.
        settings: The problem, unless ``model_file`` gives it.
        step: Step of the run; None: the last that is known.
        model_file: ``path.py:function`` that returns a Problem; the file is executed.

    Raises:
        InvalidInput: The step has no weights, or they do not fit the model.
        RunFolderError: A file of the run is damaged.
    """
    own = settings_of(run) if run is not None else None
    if own is not None:  # the seed is now that of the measurement
        settings = dataclasses.replace(settings, seed=own.seed)
    problem = load_problem(model_file) if model_file is not None else build_problem(as_run(settings))
    if model_file is not None and settings.dtype is not None:
        problem = problem.in_dtype({"float32": torch.float32, "float64": torch.float64}[settings.dtype])
    if run is not None:
        return _of_run(run, file, settings, step, problem)
    assert file is not None  # locate() gave one of the two
    problem.model.to(problem.dtype)  # or weights of higher precision would be rounded
    fit(problem.model, read_weights(file, step), str(file))
    rule = build_rule(resolve_rule(settings.rule, 1), 1) if settings.rule.lr is not None else None
    state = rule.init(problem.initial) if rule is not None else None
    if rule is not None and state is not None and rule.preconditioner(state) is not None:
        state = None
    return Subject(problem, problem.initial, str(file), file.stem, rule=rule, state=state)


def _of_run(run: Run, file: Path | None, settings: SubjectConfig, step: int | None, problem: Problem) -> Subject:
    notes = []
    theirs = run.manifest.fingerprints.get("data")
    if theirs != problem.fingerprint()["data"]:
        same = settings.chunk == run.manifest.config.get("chunk") and bool(run.manifest.config)
        if same:
            raise InvalidInput(
                explain(
                    f"The data of the run in {run.path} has changed since it was recorded",
                    "its fingerprint differs, so the curvature would be that of another loss",
                    "Restore the data, or measure the checkpoint file with --data and --model of your own",
                )
            )
        notes.append("The data could not be compared with the run's, because it is cut or built in another way.")
    position = None
    try:
        if not run.folder.in_use():  # what a run is writing just now is not read
            position = load_position(run.folder.state, problem.device)
    except RunFolderError as error:
        notes.append(f"The state that the run would resume from was left aside: {error}")
    chosen, tensors = _weights(run, file, step, position)
    if position is not None and position.step == chosen:
        w = position.w.to(problem.device, problem.dtype)
        problem.layout.split(w)
    else:
        position = None
        _check(problem, tensors, f"The checkpoint of step {chosen}")
        w = problem.layout.flatten(tensors).to(problem.device, problem.dtype)
    rule = _rule(run)
    state = None if rule is None else _state(rule, chosen, w, position, problem, run)
    if rule is not None and state is None:
        notes.append(
            f"The preconditioner of {rule.name} is kept for the start and the last saved step only, so the distance to "
            f"its edge of stability is not known at step {chosen:,}."
        )
    source = f"{run.manifest.name}, step {chosen:,}"
    return Subject(problem, w, source, run.manifest.name, chosen, run, rule, state, tuple(notes))


def _weights(run: Run, file: Path | None, step: int | None, position: Position | None) -> tuple[int, dict[str, Tensor]]:
    """The step to measure and its weights; of the saved position only the step."""
    if file is not None:
        known = sorted({int(name.split("/", 1)[0]) for name in _names(file)})
    else:
        known = sorted({*run.checkpoints, *([position.step] if position is not None else [])})
    if not known:
        raise InvalidInput(
            explain(f"The run in {run.path} has no checkpoint yet", "there are no weights to look at", "Wait for one")
        )
    chosen = known[-1] if step is None else known[step] if -len(known) <= step < 0 else step
    if chosen not in known:
        raise InvalidInput(
            explain(
                f"Step {step} has no checkpoint",
                f"there {'is one' if len(known) == 1 else 'are some'} at {_steps(known)}",
                "Pass --step with one of these, or train with a smaller --checkpoint-every",
            )
        )
    if position is not None and chosen == position.step:
        return chosen, {}
    return chosen, read_weights(file, chosen) if file is not None else run.checkpoint(chosen)


def _names(file: Path) -> list[str]:
    from thalweg.runs.files import tensor_names

    return [name for name in tensor_names(file) if name.split("/", 1)[0].isdecimal()]


def _steps(known: list[int]) -> str:
    if len(known) <= 8:
        return ", ".join(map(str, known))
    return f"{', '.join(map(str, known[:4]))}, ..., {', '.join(map(str, known[-3:]))} ({len(known)} in all)"


def _check(problem: Problem, tensors: dict[str, Tensor], source: str) -> None:
    """Name what does not fit, before the layout complains about the first tensor only."""
    shapes = dict(zip(problem.layout.names, problem.layout.shapes))
    wrong = [f"it lacks {name}" for name in shapes if name not in tensors]
    wrong += [f"the problem has no {name}" for name in tensors if name not in shapes]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)} and not {tuple(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if wrong:
        raise InvalidInput(
            explain(
                f"{source} does not fit the model: {'; '.join(wrong[:4])}{', ...' if len(wrong) > 4 else ''}",
                "every parameter must be there in its own shape",
                "Use the model that was trained",
            )
        )


def _rule(run: Run) -> Rule | None:
    if not run.manifest.config:  # recorded from Python
        return recorded_rule(run.manifest.loop.get("rule", {}))
    config = from_dict(run.manifest.config, str(run.folder.manifest))
    return build_rule(config.rule, config.steps)


def _state(rule: Rule, step: int, w: Tensor, position: Position | None, problem: Problem, run: Run) -> State | None:
    """The state after this step's gradient is taken in, which is what the step moves with."""
    before = rule.init(w)
    if rule.preconditioner(before) is None:
        return before | {"step": torch.tensor(step)}
    if position is not None:
        before = {name: t.to(w.dtype) if t.is_floating_point() else t for name, t in position.rule.items()}
    elif step != 0:
        return None
    size, part = run.manifest.loop.get("batch_size"), problem
    if isinstance(size, int):
        batches = MiniBatches(problem._batches.samples or 0, size, run.manifest.seeds.get("run", 0))
        part = problem.subset(batches.indices(step))
    return rule.update(before, part.gradient(w), w)
