"""Training that is recorded as it goes, can be killed at any moment, and resumes bit for bit."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

from thalweg.errors import InvalidInput, StorageError, explain
from thalweg.problem import Problem
from thalweg.rules import Rule
from thalweg.runs import resuming
from thalweg.runs.checkpoints import CheckpointWriter
from thalweg.runs.folder import RunFolder
from thalweg.runs.interrupts import Interrupts
from thalweg.runs.manifest import Manifest, State, plain
from thalweg.runs.measures import Measure
from thalweg.runs.meter import Meter, Silent
from thalweg.runs.metrics import MetricsWriter
from thalweg.runs.minibatches import MiniBatches
from thalweg.runs.run import Run
from thalweg.runs.state import Pace, Position, save_position
from thalweg.runs.stepper import Stepper, all_variables


def train(
    problem: Problem,
    rule: Rule,
    steps: int,
    *,
    folder: str | Path | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    measures: Sequence[Measure] = (),
    checkpoint_every: int | None = None,
    save_every: int | None = None,
    meter: Meter | None = None,
    resume: bool = False,
    replace: bool = False,
    config: Mapping[str, Any] | object | None = None,
    on_interrupt: Literal["raise", "return"] = "raise",
) -> Run:
    r"""Iterate ``w_{t+1} = w_t + u_t`` for ``t < steps``, and record every step at its own point ``w_t``.

    Row ``t`` holds the loss, the gradient and the measures at ``w_t`` and the update ``u_t`` that leaves it;
    the last row, ``t = steps``, has no update. A row is on disk, whole, before the next step begins. The model
    is not changed: ``problem.load(problem.layout.flatten(run.checkpoint(-1)))`` puts the final weights there.

    Args:
        problem: Model, loss and data.
        rule: The update rule.
        steps: Updates to do. A resumed run may be given more than before.
        folder: The run folder; None: a temporary one that lives as long as the returned run.
        batch_size: Samples in a mini-batch, drawn without replacement within an epoch; None: all data at
            each step.
        seed: Root seed of the mini-batches and of what measures draw.
        measures: What to measure on the way, such as `Spectrum` and `FullLoss`, or `Measure.from_function`.
        checkpoint_every: Keep the weights every so many steps; the first and the last are always kept.
        save_every: Save every so many steps what resuming needs; None: every five seconds, at a bounded cost.
        meter: Shows progress; None: nothing is shown.
        resume: Continue the run in ``folder``; where none was begun, begin it.
        replace: Delete the run in ``folder`` first.
        config: The caller's own configuration, a mapping or a dataclass, kept in the manifest and compared on
            resuming (a top-level ``steps`` may grow).
        on_interrupt: After Ctrl-C the step is finished and the run saved; then ``"raise"`` raises
            ``KeyboardInterrupt``, ``"return"`` returns the run as it is.

    Returns:
        The `Run`, with ``state`` ``"finished"``, or ``"interrupted"``.

    Raises:
        InvalidInput: An argument is out of range, or two measures record the same variable.
        RunFolderError: The folder holds a run and neither ``resume`` nor ``replace`` is set, or other files;
            on resuming: configuration or fingerprints differ, or the saved state is damaged.
        NonFinite: The loss or its gradient became NaN or infinite; the run up to there is recorded.
        StorageError: The folder cannot be written; what is in it stays readable.

    Example:
        >>> import torch, thalweg as tw
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> problem = tw.Problem(model, torch.nn.MSELoss(), (x, 2 * x))
        >>> run = train(problem, tw.rules.GradientDescent(lr=0.05), steps=20, folder="runs/line")
        >>> run.state, run.data.sizes["step"], round(run.checkpoint(-1)["weight"].item(), 3)
        ('finished', 21, 2.0)
    """
    _check(steps, folder, checkpoint_every, save_every, resume=resume, replace=replace)
    batches = None if batch_size is None else MiniBatches(problem._batches.samples or 0, batch_size, seed)
    variables = all_variables(measures)
    keep = tempfile.TemporaryDirectory(prefix="thalweg-") if folder is None else None
    home = RunFolder(Path(keep.name if keep else folder or "."))
    manifest = Manifest(
        name=home.root.resolve().name,
        rule=rule.describe(),
        steps=steps,
        config=plain(config) if config is not None else {},
        loop={
            "rule": plain(rule),
            "batch_size": batch_size,
            "checkpoint_every": checkpoint_every,
            "measures": [resuming.describe(measure) for measure in measures],
        },
        seeds={"run": seed},
        fingerprints=problem.fingerprint(),
        problem=resuming.facts(problem),
    )
    going_on = resume and home.begun
    if not going_on:
        home.check_free(replace=replace)
        home.make()
    stepper = Stepper(problem, rule, measures, batches, seed, steps)
    with home.lock():
        if going_on:
            manifest = resuming.continued(home, manifest)
            if manifest.state == "finished":
                return Run(home.root, keep)
        else:
            home.claim(replace=replace)
        recorder = _Recorder(home, manifest, stepper, variables, checkpoint_every, Pace(save_every), meter or Silent())
        interrupted = recorder.run(resumed=going_on)
    if interrupted and on_interrupt == "raise":
        raise KeyboardInterrupt
    return Run(home.root, keep)


class _Recorder:
    """Drives a `Stepper` and keeps metrics, checkpoints, state and manifest in step with it."""

    def __init__(
        self,
        folder: RunFolder,
        manifest: Manifest,
        stepper: Stepper,
        variables: Mapping[str, Any],
        checkpoint_every: int | None,
        pace: Pace,
        meter: Meter,
    ) -> None:
        self._folder, self._manifest, self._stepper = folder, manifest, stepper
        self._every, self._pace, self._meter = checkpoint_every, pace, meter
        self._metrics = MetricsWriter(folder.metrics, variables)
        self._position: Position | None = None

    def run(self, *, resumed: bool) -> bool:
        """Train to the end and return whether Ctrl-C cut it short."""
        state: State = "failed"
        error, finished = "", False
        try:
            self._checkpoints = CheckpointWriter(self._folder.checkpoints)
            position = self._position = self._begin(resumed=resumed)
            self._meter.init(self._manifest.steps, position.step)
            with Interrupts() as interrupts:
                finished = self._loop(position, interrupts)
            state = "finished" if finished else "interrupted"
        except KeyboardInterrupt:
            state = "interrupted"  # in the middle of a step: what was saved last stands
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}"
            raise
        finally:
            self._close(state, error)
        return not finished

    def _begin(self, *, resumed: bool) -> Position:
        if not resumed:
            self._write_manifest(state="running")  # from here on the folder is a run
            return self._stepper.begin()
        position, entry = resuming.restore(self._folder, self._stepper, self._metrics, self._checkpoints)
        self._write_manifest(resumed=[*self._manifest.resumed, entry])
        return position

    def _loop(self, position: Position, interrupts: Interrupts) -> bool:
        last = self._manifest.steps
        while True:
            if interrupts.asked or position.step == last or self._pace.due(position.step):
                self._save(position)
                if interrupts.asked:
                    return False
            t, w = position.step, position.w
            row, following = self._stepper.step(position)
            if t in (0, last) or (self._every is not None and t % self._every == 0):
                self._checkpoints.add(t, self._stepper.problem.layout.unflatten(w))
            self._metrics.write(t, row.values, row.events)
            if row.error is not None:
                raise row.error
            self._meter.step({"step": t} | {k: v for k, v in row.values.items() if isinstance(v, float)})
            if t == last:
                self._checkpoints.flush()
                return True
            position = self._position = following

    def _save(self, position: Position) -> None:
        """Checkpoints first, then rows, then the position: what it says was done is then on disk."""
        self._pace.start()
        self._checkpoints.flush()
        self._metrics.sync()
        save_position(self._folder.state, self._stepper.remember(position))
        self._pace.done()

    def _write_manifest(self, **changes: Any) -> None:
        self._manifest = dataclasses.replace(self._manifest, **changes)
        self._manifest.write(self._folder.manifest)

    def _close(self, state: State, error: str) -> None:
        self._meter.close()
        done = self._position.step if self._position is not None else 0
        broken = state != "finished"
        with suppress(StorageError) if broken else nullcontext():  # an earlier error is the one to report
            if broken and self._position is not None:
                self._checkpoints.flush()
        self._metrics.close()
        with suppress(StorageError) if broken else nullcontext():
            self._write_manifest(state=state, error=error, steps_done=done)


def _check(
    steps: int,
    folder: str | Path | None,
    checkpoint_every: int | None,
    save_every: int | None,
    *,
    resume: bool,
    replace: bool,
) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise InvalidInput(
            explain(f"The number of steps is {steps!r}", "it counts updates", "Pass a whole number of at least 0")
        )
    for name, every in (("checkpoint_every", checkpoint_every), ("save_every", save_every)):
        if every is not None and (not isinstance(every, int) or every < 1):
            raise InvalidInput(
                explain(
                    f"{name} is {every!r}",
                    "an interval counts steps",
                    "Pass a whole number of at least 1, or None",
                )
            )
    if resume and (replace or folder is None):
        raise InvalidInput(
            explain(
                "resume was given " + ("together with replace" if replace else "without a folder"),
                "there is then nothing to continue",
                "Drop one of the two" if replace else "Pass folder=...",
            )
        )
