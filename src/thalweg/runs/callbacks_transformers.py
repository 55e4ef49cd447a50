"""A recorder as a callback of the Trainer of Hugging Face transformers."""

from __future__ import annotations

from typing import Any

from thalweg.errors import MissingExtra, explain
from thalweg.runs.joined import Joined
from thalweg.runs.recorder import Recorder

LOGGED = {"loss": "loss", "eval_loss": "validation_loss", "grad_norm": "logged_gradient_norm"}
"""What the Trainer logs, and the names under which it is recorded."""


class TrajectoryCallback(Joined):
    """Records what a ``transformers.Trainer`` trains, through a `Recorder`.

    Each optimizer step is one step, however many batches are accumulated for it. Learning rate and gradient norm
    (after clipping) are those of the step. The losses are the Trainer's own: means over ``logging_steps``, filed under
    the step at which they are logged. A Trainer that resumes from a checkpoint continues the recorded run there.

    Args:
        path: The run folder.
        settings: As for `Recorder`; ``on_error`` is ``"warn"`` unless told otherwise.

    Raises:
        MissingExtra: transformers is not installed.

    Example:
        >>> callback = TrajectoryCallback("runs/trainer", every=50)  # doctest: +SKIP
        >>> Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()  # doctest: +SKIP
    """

    def __init__(self, path: Any, **settings: Any) -> None:
        super().__init__()
        self.path, self.settings = path, {"on_error": "warn"} | settings
        self.recorder: Recorder | None = None

    @staticmethod
    def base() -> type:
        """Return ``transformers.TrainerCallback``."""
        try:
            from transformers import TrainerCallback
        except ImportError as error:
            raise MissingExtra(
                explain("transformers is not installed", "this is a callback of its Trainer", "pip install thalweg[hf]")
            ) from error
        return TrainerCallback

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the recorder."""
        settings = {"steps": state.max_steps} | self.settings
        if state.global_step:
            settings |= {"start": state.global_step, "resume": True}
        self.recorder = Recorder(self.path, kwargs["model"], kwargs.get("optimizer"), **settings).open()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the update, before the learning rate changes and gradients are cleared."""
        if self.recorder is not None:
            self.recorder.step(state.global_step + 1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """File the Trainer's own scalars."""
        if self.recorder is not None:
            found = {LOGGED[key]: value for key, value in (logs or {}).items() if key in LOGGED}
            self.recorder.log(state.global_step, **found)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the recorder."""
        if self.recorder is not None:
            recorder, self.recorder = self.recorder, None
            recorder.close()
