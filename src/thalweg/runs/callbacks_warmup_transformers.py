"""Warm-up from the critical learning rate, and GI-Adam, as callbacks of the Trainer of Hugging Face transformers."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from thalweg.errors import InvalidInput, MissingExtra, ThalwegWarning, explain
from thalweg.optim.search import CriticalRate, as_problem
from thalweg.optim.warmup import CriticalRamp
from thalweg.runs.callbacks_warmup import Warming, Where, bare, first_gradient_adam, first_problem
from thalweg.runs.joined import Joined


class CriticalWarmupCallback(Joined):
    r"""``\eta(t) = s(t) \min(1, \eta_c / \eta^* + t / T)``: a warm-up that begins at the critical learning rate.

    ``s`` is the Trainer's own schedule, of which this is a factor, and ``\eta^* = s(0)``. ``\eta_c`` is measured right
    before the first update, by forward passes on its micro-batches and with its gradient: accumulated, clipped, and
    averaged over processes. Each process evaluates its own batches, and all take the mean of their losses. Rates that
    are logged are those that were used. Checkpoints hold the state, and a Trainer that resumes goes on in the ramp.

    Args:
        steps: ``T``, the updates of the ordinary ramp from zero. Leave ``warmup_steps`` of the Trainer at 0.
        where: Measures elsewhere: takes the model, returns a Problem or ``(model, loss, batch)``. Needed where the
            Trainer computes the loss itself (``compute_loss_func``, label smoothing) and the model gives none.
        search: Further arguments of `critical_learning_rate`, such as ``delta`` and ``tol``.

    Attributes:
        found: The `CriticalRate`; None before the first update and after resuming.
        ramp: The factor, a `CriticalRamp` with the target 1; None before the first update.

    Raises:
        MissingExtra: transformers is not installed.
        InvalidInput: The ramp has no length. During training: the schedule has a warm-up of its own, the model gives no
            loss, its parameters are in shards, or gradients are scaled (fp16 without ``max_grad_norm``).

    Example:
        >>> callback = CriticalWarmupCallback(steps=500)  # doctest: +SKIP
        >>> Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()  # doctest: +SKIP

    Source: arXiv 2406.09405.
    """

    def __init__(self, steps: int, *, where: Where | None = None, **search: Any) -> None:
        super().__init__()
        self.steps, self.where, self.search = steps, where, search
        self.progress: dict[str, Any] = {}
        self._warming = Warming(steps, search)
        self._batches: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._hook: Any = None

    @staticmethod
    def base() -> type:
        """Return ``transformers.TrainerCallback`` with a state that checkpoints hold."""
        return _stateful()

    @property
    def found(self) -> CriticalRate | None:
        """The measurement."""
        return self._warming.found

    @property
    def ramp(self) -> CriticalRamp | None:
        """The factor on the schedule."""
        return self._warming.ramp

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs, in the Trainer's form."""
        return {"args": {"steps": self.steps}, "attributes": {"progress": self._warming.state()}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take over the optimizer; listen for the first batches, or go on where the checkpoint was."""
        self._forget()
        self._warming.detach()
        self._warming = Warming(self.steps, self.search)
        _refuse_scaled(args)
        if args.n_gpu > 1:
            raise InvalidInput(
                explain(
                    f"The Trainer spreads batches over {args.n_gpu} GPUs of one process",
                    "each has a copy of the model, and only the first has the weights",
                    "Start it with torchrun, one process for each GPU",
                )
            )
        if state.global_step:
            saved = state.stateful_callbacks.get(type(self).__name__) or {}
            saved = saved[0] if isinstance(saved, list) else saved
            self.progress = saved.get("attributes", {}).get("progress", {}) or self.progress
            self._warming.load(self.progress)
            state.stateful_callbacks.setdefault(type(self).__name__, self.state())
            if self.ramp is None:
                warnings.warn(
                    f"Training goes on at step {state.global_step} from a checkpoint without a warm-up: none is done.",
                    ThalwegWarning,
                    stacklevel=2,
                )
                return
        self._warming.attach(kwargs["optimizer"], [kwargs.get("lr_scheduler")])
        if self.ramp is None and self.where is None:
            self._hook = kwargs["model"].register_forward_pre_hook(self._keep, with_kwargs=True)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure, before the first update."""
        if self.ramp is not None or not self._warming.attached:
            return
        batches = list(self._batches)
        self._forget()
        model = kwargs["model"]
        self._warming.measure(
            first_problem(model, _loss, batches) if self.where is None else as_problem(self.where(model))
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the rates of the next update, should the scheduler not have stepped."""
        self._warming.apply()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let go of everything."""
        self._forget()
        self._warming.detach()

    def _keep(self, module: Any, arguments: tuple[Any, ...], settings: dict[str, Any]) -> None:
        """Keep what the model is called with, until the first update."""
        if module.training:
            self._batches.append((arguments, settings))

    def _forget(self) -> None:
        self._batches = []
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


class GIAdamCallback(Joined):
    r"""``\nu_0 = g_0^2``: Adam's second moment starts from the first gradient, accumulated and clipped; see `gi_adam_`.

    List it before `CriticalWarmupCallback`, which then measures the Adam that will step. A Trainer that resumes has the
    second moment in its checkpoint.

    Raises:
        MissingExtra: transformers is not installed.
        InvalidInput: At the first update: the optimizer is not Adam or AdamW of torch, or gradients are scaled.

    Example:
        >>> callbacks = [GIAdamCallback(), CriticalWarmupCallback(steps=500)]  # doctest: +SKIP

    Source: arXiv 2406.09405.
    """

    @staticmethod
    def base() -> type:
        """Return ``transformers.TrainerCallback``."""
        return _callbacks()[0]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the second moment, before the first update."""
        if state.global_step == 0:
            _refuse_scaled(args)
            first_gradient_adam(bare(kwargs["optimizer"], "optimizer"))


@functools.cache
def _callbacks() -> tuple[type, type]:
    try:
        from transformers.trainer_callback import ExportableState, TrainerCallback
    except ImportError as error:
        raise MissingExtra(
            explain("transformers is not installed", "this is a callback of its Trainer", "pip install thalweg[hf]")
        ) from error
    return TrainerCallback, ExportableState


@functools.cache
def _stateful() -> type:
    return type("StatefulCallback", _callbacks(), {})


def _loss(model: Any, call: tuple[tuple[Any, ...], Mapping[str, Any]]) -> Tensor:
    """Return the loss of one forward pass, called as the Trainer did."""
    arguments, settings = call
    found = model(*arguments, **settings)
    loss = found.get("loss") if isinstance(found, Mapping) else getattr(found, "loss", None)
    if loss is None and isinstance(found, tuple) and found and isinstance(found[0], Tensor) and not found[0].ndim:
        loss = found[0]
    if loss is None:
        raise InvalidInput(
            explain(
                f"The model gave a {type(found).__name__} without a loss",
                "the Trainer computes it from labels that the model does not see",
                "Pass where=lambda model: (model, loss, batch), with the loss that is trained",
            )
        )
    return loss  # type: ignore[no-any-return]


def _refuse_scaled(args: Any) -> None:
    if getattr(args, "fp16", False) and not args.max_grad_norm:
        raise InvalidInput(
            explain(
                "Gradients are scaled for fp16 when the first update is looked at",
                "the Trainer unscales them to clip them, and max_grad_norm is 0",
                "Set max_grad_norm, or use bf16",
            )
        )
