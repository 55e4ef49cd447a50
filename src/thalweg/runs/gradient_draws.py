"""Gradients of mini-batches that are drawn independently over all data, without leaving a trace in the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn

from thalweg import _rng
from thalweg.errors import EmptyData, InvalidInput, NonFinite, explain
from thalweg.operators.data_parallel import DataParallelProblem
from thalweg.problem import Problem
from thalweg.problem.batches import TensorBatches, map_tensors
from thalweg.problem.guards import preserved_rng
from thalweg.runs.gradient_passes import Evaluated, passes
from thalweg.runs.gradient_source import IndexedBatches
from thalweg.runs.gradient_streams import reseed

Mode = Literal["train", "eval", "current"]
Gradient = Callable[[int], tuple[Tensor, Sequence[Tensor]]]
T = TypeVar("T")


@contextmanager
def switched(model: nn.Module, mode: Mode) -> Iterator[None]:
    """Put every module of ``model`` into ``mode`` while open; ``"current"`` leaves each as it is."""
    before = {module: module.training for module in model.modules()}
    try:
        if mode != "current":
            for module in before:
                module.training = mode == "train"
        yield
    finally:
        for module, training in before.items():
            module.training = training


class Draws:
    """Mini-batch ``i`` of a probe, and the gradient on it: the same for the same seed, in whatever order it is asked.

    Each mini-batch holds ``batch_size`` different samples, and is drawn over all data regardless of the others, so that
    the gradients are independent. It is evaluated in one piece, from random numbers of its own for dropout and
    augmentation.

    Args:
        problem: Model, loss and data; its own batch size is not used.
        batch_size: Samples in a mini-batch.
        seed: Of the mini-batches.
        mode: Of the model while it is evaluated.

    Raises:
        InvalidInput: The data cannot be indexed, the size is out of range, or the mode has another name.
    """

    def __init__(self, problem: Problem, batch_size: int, seed: int, mode: Mode) -> None:
        if isinstance(problem, DataParallelProblem):
            raise InvalidInput(
                explain(
                    "The problem is a DataParallelProblem",
                    "each process then has a part of the data, and mini-batches are drawn over the whole",
                    "Pass the Problem on all data on every process, and group=: the probes are shared out",
                )
            )
        if mode not in get_args(Mode):
            raise InvalidInput(
                explain(f"mode is {mode!r}", "gradients belong to a mode", f"Choose among {', '.join(get_args(Mode))}")
            )
        samples = problem._batches.samples
        if samples is None:
            raise InvalidInput(
                explain(
                    "Mini-batches were to be drawn from a loader of batches",
                    "a loader can only be read in its own order",
                    "Pass thalweg.runs.gradient_data.SampledProblem(model, loss, loader), which draws from its Dataset",
                )
            )
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or not 1 <= batch_size <= samples:
            raise InvalidInput(
                explain(
                    f"The mini-batch size is {batch_size!r}",
                    f"the data has {samples} samples",
                    "Choose a size between 1 and that; best the one of the steps",
                )
            )
        self.problem, self.samples, self.batch_size, self.seed, self.mode = problem, samples, batch_size, seed, mode
        source = problem._batches
        self.source = source.opened() if isinstance(source, IndexedBatches) else source

    def indices(self, i: int) -> Tensor:
        """Return the samples of mini-batch ``i``, int64, shape ``(batch_size,)``."""
        if self.batch_size == self.samples:
            return torch.arange(self.samples)
        stream = np.random.default_rng(_rng.derive_seed(self.seed, "gradient probe", i))
        return torch.from_numpy(stream.choice(self.samples, self.batch_size, replace=False))

    def gradient(self, w: Tensor, i: int) -> tuple[float, list[Tensor]]:
        """Return the loss of mini-batch ``i`` and its gradient, tensor by tensor, in float32 or wider.

        Args:
            w: The point, shape ``(P,)``.
            i: Number of the mini-batch.

        Raises:
            NonFinite: One of them is NaN or infinite.
        """
        value, grads = self.at(w, lambda gradient: gradient(i))
        wide = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in grads]
        square = sum(float(torch.linalg.vector_norm(g)) for g in wide)
        check_finite(i, float(value), square)
        return float(value), wide

    def at(self, w: Tensor, job: Callable[[Gradient], T]) -> T:
        """Call ``job(gradient)``, where ``gradient(i)`` is loss and gradient of mini-batch ``i`` at ``w``.

        What keeps an evaluation from leaving a trace is set up once for all of the job, which is where most of the time
        of short passes went. Each pass has random numbers of its own, and buffers as the model has them.

        Args:
            w: The point, shape ``(P,)``.
            job: Calls ``gradient`` as often as it likes, and keeps none of it.
        """
        with switched(self.problem.model, self.mode), preserved_rng(self.problem.device):
            return passes(self.problem, w, lambda evaluate: job(lambda i: self._one(evaluate, i)))

    def _one(self, evaluate: Callable[[Any], Evaluated], i: int) -> tuple[Tensor, Sequence[Tensor]]:
        batch = self._batch(i)
        reseed(_rng.derive_seed(self.seed, "gradient probe noise", i), self.problem.device)
        value, grads, weight = evaluate(batch)
        if not weight:
            raise EmptyData(
                explain(
                    f"Mini-batch {i} of the probe has weight 0",
                    "all its targets are left out of the loss",
                    "Take larger mini-batches, or leave such samples out of the data",
                )
            )
        return value, grads

    def _batch(self, i: int) -> Any:
        indices, source = self.indices(i), self.source
        if isinstance(source, IndexedBatches):
            batch = source.fetch(indices, _rng.derive_seed(self.seed, "gradient probe samples", i))
        elif isinstance(source, TensorBatches):
            batch = map_tensors(lambda t: t[indices.to(t.device)], source.data)
        else:
            reseed(_rng.derive_seed(self.seed, "gradient probe noise", i), self.problem.device)  # a transform may draw
            batch = next(iter(source.subset(indices).recut(self.batch_size)))
        return self.problem._place(batch)


def check_finite(i: int, loss: float, size: float) -> None:
    """Refuse a mini-batch whose loss, or the size of whose gradient, is NaN or infinite.

    Raises:
        NonFinite: It is.
    """
    if math.isfinite(loss) and math.isfinite(size):
        return
    what = f"The loss is {loss}" if not math.isfinite(loss) else f"The loss is {loss:.6g}, and its gradient not finite,"
    raise NonFinite(
        explain(
            f"{what} on mini-batch {i} of the probe",
            "a gradient level over it has no value",
            "Find out at which step the run left the domain of its loss, and look at it before that",
        )
    )
