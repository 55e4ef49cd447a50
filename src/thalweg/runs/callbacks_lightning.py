"""A recorder as a callback of the Trainer of Lightning."""

from __future__ import annotations

from typing import Any

from thalweg.errors import MissingExtra, explain
from thalweg.runs.joined import Joined
from thalweg.runs.recorder import Recorder


class TrajectoryCallback(Joined):
    """Records what a ``lightning.Trainer`` trains, through a `Recorder`.

    Each optimizer step is one step (``trainer.global_step``), however many batches are accumulated for it. Loss,
    learning rate and gradient norm (after clipping) are those of the step. A Trainer that resumes from a checkpoint
    continues the recorded run there.

    Args:
        path: The run folder.
        settings: As for `Recorder`; ``on_error`` is ``"warn"`` unless told otherwise.

    Raises:
        MissingExtra: lightning is not installed.

    Example:
        >>> callback = TrajectoryCallback("runs/lightning", every=50)  # doctest: +SKIP
        >>> lightning.Trainer(max_epochs=3, callbacks=[callback]).fit(module, data)  # doctest: +SKIP
    """

    def __init__(self, path: Any, **settings: Any) -> None:
        super().__init__()
        self.path, self.settings = path, {"on_error": "warn"} | settings
        self.recorder: Recorder | None = None
        self._rates: dict[str, float] = {}

    @staticmethod
    def base() -> type:
        """Return ``lightning.pytorch.Callback``, or that of the package ``pytorch_lightning``."""
        for name in ("lightning.pytorch", "pytorch_lightning"):
            try:
                return __import__(name, fromlist=["Callback"]).Callback  # type: ignore[no-any-return]
            except ImportError:
                continue
        raise MissingExtra(
            explain("lightning is not installed", "this is a callback of its Trainer", "pip install thalweg[lightning]")
        )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the recorder."""
        steps = trainer.estimated_stepping_batches
        settings: dict[str, Any] = {"steps": int(steps) if 0 < steps < float("inf") else None} | self.settings
        if trainer.global_step:
            settings |= {"start": trainer.global_step, "resume": True}
        optimizer = trainer.optimizers[0] if trainer.optimizers else None
        self.recorder = Recorder(self.path, pl_module, optimizer, **settings).open()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Note the learning rates of the update, which a scheduler changes before the batch ends."""
        self._rates = {
            f"learning_rate_{number}" if number else "learning_rate": float(group["lr"])
            for number, group in enumerate(optimizer.param_groups[:8])
        }

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record the update, if this batch ended one."""
        if self.recorder is None or trainer.global_step <= self.recorder.steps_done:
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self.recorder.step(trainer.global_step, loss=loss, **self._rates)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the recorder."""
        if self.recorder is not None:
            recorder, self.recorder = self.recorder, None
            recorder.close("interrupted" if trainer.interrupted else "finished")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the recorder with what went wrong."""
        if self.recorder is not None:
            recorder, self.recorder = self.recorder, None
            interrupted = isinstance(exception, KeyboardInterrupt)
            recorder.close(
                "interrupted" if interrupted else "failed",
                "" if interrupted else f"{type(exception).__name__}: {exception}",
            )
