"""Where a forecast starts: problem, rule, weights and the rule's state, new or from a checkpoint of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from thalweg.cli.config import build_problem, resolve
from thalweg.cli.flow_options import FlowConfig, Start, Told
from thalweg.cli.rule import build_rule
from thalweg.errors import InvalidInput, NonFinite, RunFolderError, explain
from thalweg.runs import Run
from thalweg.runs.state import Position, load_position

if TYPE_CHECKING:
    from thalweg.problem import Problem
    from thalweg.rules import Rule, State

CLOSE = 1e-3
"""How far a replayed run may end from its checkpoint, relative to the distance travelled, without a word."""


@dataclass(frozen=True)
class Subject:
    """What is forecast, and from where.

    Attributes:
        problem: The loss.
        rule: The update rule.
        w: Weights, shape ``(P,)``.
        state: State of the rule before it takes in the gradient there.
        name: Short name for titles and files.
        source: Where the weights come from, in words.
        step: Step of the run; 0 without one.
        run: The run; None without one.
        notes: What limits the meaning of the numbers, in sentences.
        own_rule: The rule of the run where another one is asked about; else None.
        changed: What differs between them, in words.
    """

    problem: Problem
    rule: Rule
    w: Tensor
    state: State
    name: str
    source: str
    step: int = 0
    run: Run | None = None
    notes: tuple[str, ...] = ()
    own_rule: Rule | None = None
    changed: str = ""


def subject(told: Told, start: Start | None, say: Callable[[str], None]) -> Subject:
    """Build what is to be forecast.

    Args:
        told: The options.
        start: The run and its step, or None.
        say: Tells the user what takes long.

    Raises:
        InvalidInput: Settings do not fit each other, or the step has no checkpoint.
        RunFolderError: A file of the run is damaged.
    """
    settings = told.settings
    if start is not None:
        return _of_run(settings, start, say)
    config = resolve(settings.as_run(told.warm_start + told.time))
    rule = build_rule(config.rule, config.steps)  # first: it is quick, and data may be slow to load
    problem = build_problem(config)
    name = f"{config.data.name}-{config.model.name}-{config.rule.name}"
    source = f"{config.data.name}, {config.model.name}, from its initial weights (seed {config.seed})"
    return Subject(problem, rule, problem.initial, rule.init(problem.initial), name, source)


def _of_run(settings: FlowConfig, start: Start, say: Callable[[str], None]) -> Subject:
    run = start.run
    own = build_rule(start.config.rule, start.config.steps)
    rule = build_rule(settings.rule, start.config.steps) if start.changed else own
    problem = build_problem(settings.as_run(start.config.steps))
    if run.manifest.fingerprints.get("data") != problem.fingerprint()["data"] and settings.chunk == start.config.chunk:
        raise InvalidInput(
            explain(
                f"The data of the run in {run.path} has changed since it was recorded",
                "its fingerprint differs, so the forecast would be that of another loss",
                "Restore the data, or forecast without the run",
            )
        )
    notes: list[str] = []
    position = _position(run, problem, notes)
    step = _step(run, start.step, position)
    if position is not None and position.step == step:
        w = position.w.to(problem.device, problem.dtype)
        state = _cast(position.rule, w)
    else:
        w = problem.layout.flatten(run.checkpoint(step)).to(problem.device, problem.dtype)
        state = _state(own, step, w, problem, notes, say)  # what led there was the run's own rule
    changed = ", ".join(f"{path} {_said(now)} instead of {_said(then)}" for path, (then, now) in start.changed.items())
    source = f"{run.manifest.name}, step {step:,}" + (f", with {changed}" if changed else "")
    other = own if changed else None
    return Subject(problem, rule, w, state, run.manifest.name, source, step, run, tuple(notes), other, changed)


def _said(value: object) -> str:
    return "its default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _position(run: Run, problem: Problem, notes: list[str]) -> Position | None:
    try:
        if run.folder.in_use():  # what a run is writing just now is not read
            return None
        return load_position(run.folder.state, problem.device)
    except RunFolderError as error:
        notes.append(f"The state that the run would resume from was left aside: {error}")
        return None


def _step(run: Run, step: int, position: Position | None) -> int:
    """The step that is meant, which must have weights."""
    known = sorted({*run.checkpoints, *([position.step] if position is not None else [])})
    if not known:
        raise InvalidInput(
            explain(
                f"The run in {run.path} has no checkpoint",
                "a forecast starts from weights",
                "Wait for one, or run it again: thalweg run keeps the first and the last weights",
            )
        )
    chosen = known[step] if -len(known) <= step < 0 else step
    if chosen not in known:
        nearest = min(known, key=lambda other: abs(other - chosen))
        raise InvalidInput(
            explain(
                f"Step {chosen} of the run in {run.path} has no checkpoint",
                f"the nearest one is at step {nearest}, of {len(known)} in all",
                f"Use {run.path}@{nearest}, or train with --checkpoint-every",
            )
        )
    return chosen


def _state(rule: Rule, step: int, w: Tensor, problem: Problem, notes: list[str], say: Callable[[str], None]) -> State:
    """The rule's state at ``w``: a count, or what replaying the run gives, as checkpoints keep weights only."""
    state = rule.init(w)
    if step == 0:
        return state
    if set(state) == {"step"}:
        return state | {"step": state["step"] + step}
    say(f"The state of {rule.name} is kept for the last step only: replaying {step:,} steps from the start ...")
    point = first = problem.initial
    for _ in range(step):
        point, state = rule.advance(point, state, problem.gradient(point))
    off = float((point - w).norm() / (w - first).norm())
    if not off < float("inf"):
        raise NonFinite(
            explain("Replaying the run diverged", "the run itself may have done so", "Start from an earlier checkpoint")
        )
    if off > CLOSE:
        notes.append(
            f"The state of {rule.name} was found by replaying the run, which ended {off:.2%} of the distance travelled "
            "from the checkpoint: training amplifies rounding."
        )
    return state


def _cast(state: dict[str, Tensor], w: Tensor) -> State:
    return {
        name: tensor.to(w.device, w.dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()
    }
