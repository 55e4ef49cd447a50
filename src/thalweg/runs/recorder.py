"""Recording a training loop that is not ours: weights, projections and scalars into a run folder, as it goes."""

from __future__ import annotations

import atexit
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from thalweg._vectors import Pattern
from thalweg.errors import InvalidInput, StorageError, ThalwegWarning, explain
from thalweg.problem import Problem
from thalweg.runs import taking_up
from thalweg.runs.described import describe
from thalweg.runs.disk import Prediction, check_room, predict
from thalweg.runs.folder import RunFolder
from thalweg.runs.forwarding import forward_to
from thalweg.runs.manifest import State, plain
from thalweg.runs.retention import Keep, Retention, When
from thalweg.runs.run import Run
from thalweg.runs.sketches import Projection
from thalweg.runs.snapshots import Live, Snapshot
from thalweg.runs.writer import Point, Writer


class Recorder:
    """Records the weights ``w_t`` of a live training loop, and the scalars that it has, into a run folder.

    Step t is the point after t updates: ``step`` is called after each update, keeps ``w_{t+1}`` where that is due, and
    files loss, learning rate and gradient norm under t, the point that they belong to. `train` writes the same layout,
    so that everything that reads its folders reads these. The model, its gradients, the optimizer and all random
    streams are left alone. A thread writes; the loop waits only where ``queue`` snapshots are waiting already.
    Whatever happens, files are whole or absent; killed, a run lacks the last second or so.

    Args:
        path: The run folder.
        model: What is trained: a module, wrapped or not (torch.compile, DDP, FSDP), or a `Problem`. In a process
            group every process makes its recorder and calls `step`; the first one writes.
        optimizer: Where the learning rate is read; None: it is not recorded.
        every: Steps between two checkpoints.
        schedule: ``"linear"``; ``"log"`` for the powers of two below ``every``, too; or the steps themselves.
        bursts: ``(count, period)``: projections of ``count`` steps in a row at each multiple of ``period``, for
            instance ``(64, 1000)``.
        keep: ``"all"`` checkpoints; k for each k-th, the others as projections; ``"sketches"`` for projections only,
            beside the first and last checkpoint.
        steps: Updates that the run is meant to do, from which the bytes are predicted; None: not known.
        disk_budget: Bytes that checkpoints and projections may take; None: what is free.
        dtype: Weights are stored in it, for instance ``torch.bfloat16``; None: in their own.
        parameters: Which parameters; None: all that require a gradient.
        forward: Trackers that get the scalars, too: see `forward_to`. They are called from the writer's thread.
        sketch: Dimensions of a tensor's projection.
        seed: Seed of the projections.
        start: Updates done before the first `step`; None: 0, or the last checkpoint of the run that is continued.
        resume: Continue the run in the folder from ``start`` on, where there is one; what is later in it is removed.
        replace: Delete the run in the folder first.
        on_error: When writing fails recording ends, with a warning. ``"exit"``: the error is raised when the context
            closes; ``"raise"``: at the next `step`; ``"warn"``: never.
        queue: Snapshots that may wait for the disk.
        config: The caller's own configuration, kept in the manifest.

    Attributes:
        steps_done: Updates done.

    Raises:
        InvalidInput: A setting is out of range, or the model has nothing to record.
        RunFolderError: The folder holds a run and neither ``resume`` nor ``replace`` is set, or the run that is to be
            continued does not fit.
        StorageError: The predicted bytes exceed the budget or the free space, or the folder cannot be written.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with Recorder("runs/mine", model, optimizer, every=10) as recorder:
        ...     for _ in range(30):
        ...         optimizer.zero_grad()
        ...         loss = model(torch.ones(4, 2)).square().mean()
        ...         loss.backward()
        ...         optimizer.step()
        ...         recorder.step(loss=loss)
        >>> recorder.run.checkpoints, recorder.run.data.sizes["step"]
        ([0, 10, 20, 30], 31)
    """

    def __init__(
        self,
        path: str | Path,
        model: nn.Module | Problem,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        every: int = 100,
        schedule: When = "linear",
        bursts: tuple[int, int] | None = None,
        keep: Keep = "all",
        steps: int | None = None,
        disk_budget: int | None = None,
        dtype: torch.dtype | None = None,
        parameters: Pattern | None = None,
        forward: Sequence[Any] = (),
        sketch: int = 1024,
        seed: int = 0,
        start: int | None = None,
        resume: bool = False,
        replace: bool = False,
        on_error: Literal["exit", "raise", "warn"] = "exit",
        queue: int = 2,
        config: Mapping[str, Any] | object | None = None,
    ) -> None:
        _check(steps=steps, disk_budget=disk_budget, start=start, queue=queue)
        if on_error not in ("exit", "raise", "warn"):
            raise InvalidInput(explain(f"on_error is {on_error!r}", "it is 'exit', 'raise' or 'warn'", "Pass one"))
        if dtype is not None and not dtype.is_floating_point:
            raise InvalidInput(explain(f"dtype is {dtype}", "weights are floating", "Pass torch.bfloat16 or such"))
        if resume and replace:
            raise InvalidInput(explain("resume was given together with replace", "nothing would be left", "Drop one"))
        self.folder = RunFolder(Path(path))
        self.retention = Retention(every, schedule, keep, bursts)
        self.projection = Projection(sketch, seed)
        self.steps_done = start or 0
        self.error: BaseException | None = None
        self._live, self._optimizer = Live(model, parameters), optimizer
        self._steps, self._budget, self._dtype = steps, disk_budget, dtype
        self._forward = [forward_to(target) for target in forward]
        self._start, self._resume, self._replace, self._on_error = start, resume, replace, on_error
        self._queue, self._config = queue, plain(config) if config is not None else {}
        self._model = model
        self._writer: Writer | None = None
        self._stack = ExitStack()
        self._kept = -1
        self._open = False

    @property
    def run(self) -> Run:
        """The recorded run, also while it goes on."""
        return Run(self.folder.root)

    def open(self) -> Recorder:
        """Begin, as ``with`` does."""
        first = self._live.take()  # on every process: of a sharded model it is gathered
        if first is not None:
            try:
                self._begin(first)
            except BaseException:
                self._stack.close()
                raise
        self._open = True
        return self

    def _begin(self, first: Snapshot) -> None:
        tensors = first.wait()
        manifest = describe(
            self.folder.root.resolve().name,
            tensors,
            self._model,
            self._optimizer,
            retention=self.retention,
            projection=self.projection,
            dtype=self._dtype,
            steps=self._steps,
            config=self._config,
        )
        going_on = self._resume and self.folder.begun
        if not going_on:
            self.folder.check_free(replace=self._replace)
        check_room(self.folder.root, self.prediction(tensors), self._budget)
        self.folder.make()
        self._stack.enter_context(self.folder.lock())
        there = False
        if going_on:
            manifest, there = taking_up.continued(self.folder, manifest, tensors, self._start, self._dtype)
            self.steps_done = int(manifest.resumed[-1]["step"])
        else:
            self.folder.claim(replace=self._replace)
        start = self.steps_done if going_on else None
        writer = Writer(self.folder, self.projection, self._dtype, self._budget, self._queue, self._forward, start)
        writer.open()
        self._writer, self._manifest = writer, manifest
        self._write_manifest(state="running")  # from here on the folder is a run
        atexit.register(self._abandon)
        # A point that the run goes on from is kept, whatever the schedule says of it.
        sketch = self.retention.sketch(self.steps_done) and not there
        writer.put(Point(self.steps_done, first, not there, sketch))
        self._kept = self.steps_done

    def prediction(self, tensors: Mapping[str, Tensor] | None = None) -> Prediction:
        """Predict the bytes of the run.

        Args:
            tensors: The weights; None: those of the model as it is now.

        Raises:
            InvalidInput: ``steps`` was not given, or ``tensors`` is left out on a process that holds no weights.
        """
        if tensors is None:
            found = self._live.take()
            tensors = {} if found is None else found.wait()
        return predict(tensors, self.retention, self.projection, self._steps, self._dtype)

    def step(self, step: int | None = None, *, loss: float | Tensor | None = None, **scalars: float | Tensor) -> None:
        """Note that an update was done.

        To be called right after it: before a scheduler changes the learning rate and before gradients are cleared.

        Args:
            step: Updates done, counting this one; None: one more than before.
            loss: Loss that this update was made from. A tensor is not waited for.
            scalars: Other numbers of that moment. ``learning_rate`` and ``gradient_norm`` replace what would be found.

        Raises:
            InvalidInput: The step is not after the one before, or a scalar is no number.
            StorageError: Writing failed, and ``on_error="raise"``.
        """
        if not self._open:
            raise InvalidInput(
                explain("The recorder is not open", "there is nowhere to write", "Use it in a with block")
            )
        done = self.steps_done + 1 if step is None else step
        if not isinstance(done, int) or done <= self.steps_done:
            raise InvalidInput(
                explain(
                    f"Step {done!r} comes after step {self.steps_done}",
                    "steps count the updates of one run",
                    "Begin again with Recorder(..., resume=True, start=...), which removes what is later",
                )
            )
        if self._writer is not None and self._watch(self._writer):
            self.log(done - 1, **self._found(done - 1, loss, scalars))
        if self.retention.looks(done):
            snapshot = self._live.take()
            if snapshot is not None and self._writer is not None and self.error is None:
                weights = self.retention.weights(done)
                self._writer.put(Point(done, snapshot, weights, self.retention.sketch(done)))
                self._kept = done if weights else self._kept
        self.steps_done = done

    def log(self, step: int, **scalars: float | Tensor) -> None:
        """File scalars under a point, such as a loss on held-out data; of one given twice, the first one counts."""
        if self._writer is not None and self.error is None:
            self._writer.log(step, {name: _number(name, value) for name, value in scalars.items()})

    def _found(
        self, step: int, loss: float | Tensor | None, scalars: dict[str, float | Tensor]
    ) -> dict[str, float | Tensor]:
        found: dict[str, float | Tensor] = {} if loss is None else {"loss": loss}
        if self._optimizer is not None and "learning_rate" not in scalars:
            for number, group in enumerate(self._optimizer.param_groups[:8]):
                found[f"learning_rate_{number}" if number else "learning_rate"] = group["lr"]
        if "gradient_norm" not in scalars and self.retention.looks(step):
            norm = self._live.gradient_norm()
            found |= {} if norm is None else {"gradient_norm": norm}
        return found | scalars

    def _watch(self, writer: Writer) -> bool:
        """Return whether the writer still writes; say once where it does not."""
        while writer.notes:
            warnings.warn(writer.notes.popleft(), ThalwegWarning, stacklevel=3)
        if writer.error is None or self.error is not None:
            return self.error is None
        self.error = writer.error
        if self._on_error == "raise":
            raise self.error
        warnings.warn(f"Recording ended, training goes on. {self.error}", ThalwegWarning, stacklevel=3)
        return False

    def flush(self) -> None:
        """Return once all that was recorded is on the disk, for instance to read the run in the middle of the loop.

        Raises:
            StorageError: Writing failed, and ``on_error="raise"``.
        """
        if self._writer is not None:
            self._writer.flush()
            self._watch(self._writer)

    def close(self, state: State = "finished", error: str = "") -> None:
        """End the recording, as leaving ``with`` does: whatever waits is written.

        Args:
            state: ``"finished"``; else the weights may be in the middle of an update, and are not kept.
            error: What went wrong.

        Raises:
            StorageError: Writing failed, and ``on_error`` is not ``"warn"``.
        """
        if not self._open:
            return
        self._open = False
        last = self._live.take() if state == "finished" and (self._kept < self.steps_done) else None
        if self._writer is None:
            return
        writer = self._writer
        try:
            if last is not None:
                writer.put(Point(self.steps_done, last, True, False))
            writer.close()
            late = self.error is None and writer.error is not None
            self.error = self.error or writer.error
            if self.error is not None:
                state, error = "failed", f"{type(self.error).__name__}: {self.error}"
            steps = max(self._steps or 0, self.steps_done)
            with suppress(StorageError) if self.error is not None else nullcontext():  # the first error is the one
                self._write_manifest(state=state, error=error, steps_done=self.steps_done, steps=steps)
        finally:
            atexit.unregister(self._abandon)
            self._stack.close()
        for note in writer.notes:
            warnings.warn(note, ThalwegWarning, stacklevel=2)
        if self.error is not None and (self._on_error == "exit" or (self._on_error == "raise" and late)):
            raise self.error
        if late:
            warnings.warn(f"The end of the run is not recorded. {self.error}", ThalwegWarning, stacklevel=2)

    def _abandon(self) -> None:
        """Keep what there is where a process ends without a word."""
        self._on_error = "warn"
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.close("interrupted")

    def _write_manifest(self, **changes: Any) -> None:
        self._manifest = dataclasses.replace(self._manifest, **changes)
        self._manifest.write(self.folder.manifest)

    def __enter__(self) -> Recorder:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        state: State = "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
        self._on_error = "warn"  # the loop's own error is the one to raise
        self.close(state, "" if state == "interrupted" else f"{kind.__name__}: {error}")

    def __repr__(self) -> str:
        state = "open" if self._open else "closed"
        return f"Recorder({str(self.folder.root)!r}, {state}, {self.steps_done} steps done)"


def _number(name: str, value: Any) -> float | Tensor:
    if isinstance(value, Tensor):
        if value.numel() == 1 and not value.is_complex():
            value = value.detach()
            return value.clone() if value.is_cuda else float(value)
    else:
        with suppress(TypeError, ValueError):
            return float(value)
    raise InvalidInput(explain(f"{name!r} is {value!r}", "a row holds numbers", "Pass a float or a tensor of one"))


def _check(**values: int | None) -> None:
    for name, value in values.items():
        low = 1 if name == "queue" else 0
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
            raise InvalidInput(
                explain(f"{name}={value!r} is out of range", "it is a count", f"Pass a whole number of at least {low}")
            )
