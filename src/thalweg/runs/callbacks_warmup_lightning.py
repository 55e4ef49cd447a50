"""Warm-up from the critical learning rate, and GI-Adam, as callbacks of the Trainer of Lightning."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from thalweg.errors import InvalidInput, ThalwegWarning, explain
from thalweg.optim.search import CriticalRate, as_problem
from thalweg.optim.warmup import CriticalRamp
from thalweg.runs.callbacks_lightning import TrajectoryCallback
from thalweg.runs.callbacks_warmup import Warming, Where, bare, first_gradient_adam, first_problem
from thalweg.runs.joined import Joined


class CriticalWarmupCallback(Joined):
    r"""``\eta(t) = s(t) \min(1, \eta_c / \eta^* + t / T)``: a warm-up that begins at the critical learning rate.

    ``s`` is the schedule of the module, of which this is a factor, or a constant, and ``\eta^* = s(0)``. ``\eta_c`` is
    measured right before the first update, by calls of ``training_step`` on its batches and with its gradient:
    accumulated, clipped, and averaged over processes. Each process evaluates its own batches, and all take the mean of
    their losses. Nothing is logged in these calls; weights, buffers and random states stay as they are. Checkpoints
    hold the state, and a Trainer that resumes goes on in the ramp. List it before other callbacks that read rates.

    Args:
        steps: ``T``, the updates of the ordinary ramp from zero.
        where: Measures elsewhere: takes the module, returns a Problem or ``(model, loss, batch)``. For a
            ``training_step`` that changes something, such as a metric of torchmetrics or a list of its own.
        search: Further arguments of `critical_learning_rate`, such as ``delta`` and ``tol``.

    Attributes:
        found: The `CriticalRate`; None before the first update and after resuming.
        ramp: The factor, a `CriticalRamp` with the target 1; None before the first update.

    Raises:
        MissingExtra: lightning is not installed.
        InvalidInput: The ramp has no length. During training: the schedule has a warm-up of its own, there is not one
            optimizer, the module optimizes by hand, or its parameters are in shards.

    Example:
        >>> callback = CriticalWarmupCallback(steps=500)  # doctest: +SKIP
        >>> lightning.Trainer(max_epochs=3, callbacks=[callback]).fit(module, data)  # doctest: +SKIP

    Source: arXiv 2406.09405.
    """

    def __init__(self, steps: int, *, where: Where | None = None, **search: Any) -> None:
        super().__init__()
        self.steps, self.where, self.search = steps, where, search
        self._saved: dict[str, Any] = {}
        self._warming = Warming(steps, search)
        self._batches: list[tuple[Any, int]] = []

    @staticmethod
    def base() -> type:
        """Return ``lightning.pytorch.Callback``, or that of the package ``pytorch_lightning``."""
        return TrajectoryCallback.base()

    @property
    def found(self) -> CriticalRate | None:
        """The measurement."""
        return self._warming.found

    @property
    def ramp(self) -> CriticalRamp | None:
        """The factor on the schedule."""
        return self._warming.ramp

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return self._warming.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, when training starts."""
        self._saved = dict(state_dict)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Take over the optimizer and its schedulers."""
        _refuse_unlike(trainer, pl_module)
        self._warming.detach()
        self._warming, self._batches = Warming(self.steps, self.search), []
        saved, self._saved = self._saved, {}
        if trainer.global_step:
            self._warming.load(saved)
            if self.ramp is None:
                warnings.warn(
                    f"Training goes on at step {trainer.global_step} from a checkpoint without a warm-up: none is "
                    "done.",
                    ThalwegWarning,
                    stacklevel=2,
                )
                return
        self._warming.attach(trainer.optimizers[0], [config.scheduler for config in trainer.lr_scheduler_configs])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Keep the batches of the first update."""
        if self._waiting and self.where is None:
            self._batches.append((batch, batch_idx))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Measure, before the first update."""
        if not self._waiting:
            return
        batches, self._batches = self._batches, []
        with clipped(trainer, pl_module, optimizer), _unlogged(pl_module):
            if self.where is None:
                problem = first_problem(pl_module, _Step(trainer, pl_module), batches)
            else:
                problem = as_problem(self.where(pl_module))
            self._warming.measure(problem)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Set the rates of the next update, should no scheduler have stepped."""
        self._warming.apply()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Let go of everything."""
        self._warming.detach()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Let go of everything."""
        self._warming.detach()

    @property
    def _waiting(self) -> bool:
        return self.ramp is None and self._warming.attached


class GIAdamCallback(Joined):
    r"""``\nu_0 = g_0^2``: Adam's second moment starts from the first gradient, accumulated and clipped; see `gi_adam_`.

    List it before `CriticalWarmupCallback`, which then measures the Adam that will step. A Trainer that resumes has the
    second moment in its checkpoint.

    Raises:
        MissingExtra: lightning is not installed.
        InvalidInput: At the first update: the optimizer is not Adam or AdamW of torch, or not the only one.

    Example:
        >>> callbacks = [GIAdamCallback(), CriticalWarmupCallback(steps=500)]  # doctest: +SKIP

    Source: arXiv 2406.09405.
    """

    @staticmethod
    def base() -> type:
        """Return ``lightning.pytorch.Callback``, or that of the package ``pytorch_lightning``."""
        return TrajectoryCallback.base()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what has no single first update."""
        _refuse_unlike(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Set the second moment, before the first update."""
        if trainer.global_step == 0:
            with clipped(trainer, pl_module, optimizer):
                first_gradient_adam(bare(optimizer, "optimizer"))


class _Step:
    """``training_step`` of a module, as Lightning calls it."""

    def __init__(self, trainer: Any, module: Any) -> None:
        self._trainer = trainer
        self._numbered = len(inspect.signature(module.training_step).parameters) > 1

    def __call__(self, model: Any, kept: tuple[Any, int]) -> Tensor:
        batch, number = kept
        with self._trainer.precision_plugin.train_step_context():
            found = model.training_step(batch, number) if self._numbered else model.training_step(batch)
        loss = found.get("loss") if isinstance(found, Mapping) else found
        if not isinstance(loss, Tensor):
            raise InvalidInput(
                explain(
                    f"training_step returned {type(found).__name__}",
                    "its loss is evaluated at other weights",
                    "Return the loss, or pass where=lambda module: (model, loss, batch)",
                )
            )
        return loss


@contextmanager
def clipped(trainer: Any, module: Any, optimizer: Any) -> Iterator[None]:
    """Clip gradients as Lightning will do after this, and put them back: clipping twice need not be clipping once."""
    held = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    before = [p.grad.detach().clone() for p in held]
    try:
        module.configure_gradient_clipping(
            optimizer,
            gradient_clip_val=trainer.gradient_clip_val,
            gradient_clip_algorithm=trainer.gradient_clip_algorithm,
        )
        yield
    finally:
        for parameter, gradient in zip(held, before):
            parameter.grad.copy_(gradient)


@contextmanager
def _unlogged(module: Any) -> Iterator[None]:
    """Let the module log nothing: what it tries would be averaged with what it trains."""

    def nothing(*_: Any, **__: Any) -> None:
        return None

    names = [name for name in ("log", "log_dict") if name not in module.__dict__]
    try:
        for name in names:
            module.__dict__[name] = nothing
        yield
    finally:
        for name in names:
            module.__dict__.pop(name, None)


def _refuse_unlike(trainer: Any, module: Any) -> None:
    if not module.automatic_optimization or len(trainer.optimizers) != 1:
        raise InvalidInput(
            explain(
                f"The module has {len(trainer.optimizers)} optimizers"
                + ("" if module.automatic_optimization else " and steps them by hand"),
                "which batches belong to which update is not known",
                "Use thalweg.optim.warmup.CriticalWarmup.found and gi_adam_ in its training_step",
            )
        )
