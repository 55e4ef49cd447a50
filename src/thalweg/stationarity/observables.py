"""Observables of training as time series: loss and entropy on fixed data, norms, sketches of function and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from thalweg import _rng
from thalweg.errors import InvalidInput, explain
from thalweg.problem import Problem
from thalweg.problem.batches import not_indexable
from thalweg.problem.forms import pair
from thalweg.runs.gradient_draws import Draws, switched
from thalweg.runs.measures import Context, Measure, check_every
from thalweg.runs.metrics import Value, Variable
from thalweg.runs.sketches import Projection

if TYPE_CHECKING:
    from thalweg.runs.recorder import Recorder


@dataclass(frozen=True)
class Observables(Measure):
    """What a verdict looks at beside loss and gradient, on fixed samples and in eval mode.

    It records ``evaluation_loss``; ``entropy``, the mean entropy of predictions, where targets are classes;
    ``function_sketch``, random projections of the outputs; ``weight_sketch``, of the weights; ``tensor_norms``, one for
    each tensor; and, for groups that are scale-invariant, ``direction_sketch``, of ``w / |w|`` group by group. Inner
    products of sketches are those of what they stand for, to about ``1 / sqrt(size)``.

    Args:
        every: Steps between two snapshots; a third of the autocorrelation time is plenty.
        samples: How many samples are fixed.
        size: Numbers in a sketch, 32 to 64.
        directions: Scale-invariant groups of parameters, names by group; see `thalweg.stationarity.scale_free`.
        seed: Of samples and sketches: the same for all runs that are compared.

    Raises:
        InvalidInput: A setting is out of range.

    Example:
        >>> import thalweg as tw
        >>> x = torch.randn(60, 2)
        >>> problem = tw.Problem(torch.nn.Linear(2, 3), torch.nn.CrossEntropyLoss(), (x, torch.arange(60) % 3))
        >>> run = tw.train(problem, tw.rules.GradientDescent(lr=0.1), 10, measures=[Observables(every=5, size=8)])
        >>> run.data["function_sketch"].dropna("step").shape, bool(run.data["entropy"][0] < 1.1)
        ((3, 8), True)
    """

    every: int = 10
    samples: int = 256
    size: int = 32
    directions: Mapping[str, Sequence[str]] | None = None
    seed: int = 0
    name: str = "observables"

    def __post_init__(self) -> None:
        for value in (self.every, self.samples, self.size):
            check_every(self.name, value)

    @property
    def variables(self) -> Mapping[str, Variable]:
        """Every column that may be filled."""
        found = {
            "evaluation_loss": Variable("loss", f"loss on {self.samples} fixed samples, eval mode"),
            "entropy": Variable("nat", "mean entropy of predictions on fixed samples"),
            "function_sketch": Variable("1", "random projections of the outputs", dim="function_axis"),
            "weight_sketch": Variable("weight", "random projections of the weights", dim="weight_axis"),
            "tensor_norms": Variable("weight", "norm of each tensor", dim="tensor"),
        }
        if self.directions:
            found["direction_sketch"] = Variable("1", "random projections of w / |w|", dim="direction_axis")
        return found

    def measure(self, context: Context) -> Mapping[str, Value]:
        """Look at ``context.w``."""
        return self.look(context.problem, context.w)

    def look(self, problem: Problem, w: Tensor | None = None) -> dict[str, Value]:
        """Return the observables at a point; nothing of the model is changed.

        Args:
            problem: On all data.
            w: The point, shape ``(P,)``; None: where the model is.
        """
        point = problem.initial if w is None else w
        total = problem._batches.samples
        if total is None:
            raise not_indexable()
        count = min(self.samples, total)
        chosen = torch.randperm(total, generator=_rng.generator(self.seed, "observed samples"))[:count].sort().values
        part = problem.subset(chosen)
        loss, outputs = predictions(part, point)
        found: dict[str, Value] = {"evaluation_loss": loss}
        flat = outputs.detach().to("cpu", torch.float64)
        if classes(part) and flat.ndim > 1 and flat.shape[-1] > 1:
            logs = torch.log_softmax(flat, -1)
            found["entropy"] = float(-(logs.exp() * logs).sum(-1).mean())
        projection = Projection(self.size, self.seed)
        found["function_sketch"] = projection.of("function", flat)[0].numpy() / np.sqrt(count)
        found["weight_sketch"] = projection.of("weights", point.detach().cpu())[0].numpy()
        pieces = dict(zip(problem.layout.names, problem.layout.split(point.detach().to("cpu", torch.float64))))
        found["tensor_norms"] = np.array([float(torch.linalg.vector_norm(p)) for p in pieces.values()])
        if self.directions:
            found["direction_sketch"] = self._directions(pieces, projection)
        return found

    def record(self, recorder: Recorder, problem: Problem, *, now: bool = False) -> dict[str, float] | None:
        """Look where the model is and file it under the recorder's point, if that is due.

        Call it before the loop and after each `Recorder.step`. Vectors become numbered columns, which
        `thalweg.stationarity.assess` puts together again.

        Args:
            recorder: Of the loop.
            problem: A `Problem` on the model that is trained.
            now: Look though it is not due.
        """
        if recorder.steps_done % self.every and not now:
            return None
        flat: dict[str, float] = {}
        for name, value in self.look(problem).items():
            if np.ndim(value):
                flat |= {f"{name}_{i}": float(x) for i, x in enumerate(np.asarray(value))}
            else:
                flat[name] = float(value)
        recorder.log(recorder.steps_done, **flat)
        return flat

    def _directions(self, pieces: Mapping[str, Tensor], projection: Projection) -> np.ndarray:
        total = np.zeros(self.size)
        for group, names in (self.directions or {}).items():
            unknown = [name for name in names if name not in pieces]
            if unknown:
                raise InvalidInput(
                    explain(
                        f"Group {group!r} names {unknown[0]!r}",
                        f"the parameters are {', '.join(list(pieces)[:20])}",
                        "Name these",
                    )
                )
            whole = torch.cat([pieces[name].reshape(-1) for name in names])
            found = projection.of(f"direction {group}", whole / torch.linalg.vector_norm(whole))[0].numpy()
            total[: len(found)] += found
        return total


@dataclass(frozen=True)
class Promise(Measure):
    r"""``promised_descent``, ``-<\nabla L, u>`` of this step's update u, from gradients that the step did not see.

    With it the descent ratio Q can be had for any optimizer. The step's own mini-batch must not be used again: its
    noise is in the update.

    Args:
        every: Steps between two.
        batch_size: Samples in a fresh mini-batch; None: the gradient over all data.
        batches: Fresh mini-batches, averaged.
        curvature: Also record ``curvature_descent``, ``u^T H u / 2`` over all data, for comparison with ``1 - Q``.

    Raises:
        InvalidInput: A setting is out of range.
    """

    every: int = 10
    batch_size: int | None = None
    batches: int = 4
    curvature: bool = False
    name: str = "promise"

    def __post_init__(self) -> None:
        check_every(self.name, self.every)
        check_every(self.name, self.batches)

    @property
    def variables(self) -> Mapping[str, Variable]:
        """``promised_descent``, and ``curvature_descent`` if asked for."""
        found = {"promised_descent": Variable("loss", "descent that the gradient promises for this step")}
        if self.curvature:
            found["curvature_descent"] = Variable(
                "loss", "half the curvature along this step, times its length squared"
            )
        return found

    def measure(self, context: Context) -> Mapping[str, Value]:
        """Take the product with this step's update."""
        if context.update is None:
            return {}
        problem, w, u = context.problem, context.w, context.update.to(torch.float64)
        if self.batch_size is None:
            promised = -float(problem.gradient(w).to(torch.float64) @ u)
        else:
            seed = _rng.derive_seed(context.seed, "measure", self.name, context.step)
            draws = Draws(problem, self.batch_size, seed, "current")
            promised = 0.0
            for i in range(self.batches):
                _, pieces = draws.gradient(w, i)
                flat = torch.cat([piece.reshape(-1) for piece in pieces]).to(torch.float64)
                promised -= float(flat @ u) / self.batches
        decay = 0.0 if context.rule.decoupled else context.rule.decay
        promised -= decay * float(w.to(torch.float64) @ u)
        if not self.curvature:
            return {"promised_descent": promised}
        from thalweg.operators import hessian

        bent = hessian(problem, w).matvec(context.update).to(torch.float64)
        return {
            "promised_descent": promised,
            "curvature_descent": 0.5 * (float(bent @ u) + decay * float(u @ u)),
        }


def predictions(problem: Problem, w: Tensor) -> tuple[float, Tensor]:
    """Return loss and outputs of the model on all of a problem's data, in eval mode.

    Args:
        problem: Usually a `Problem.subset`.
        w: The point.

    Raises:
        InvalidInput: The model returns neither a tensor nor something with ``logits``.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        found = getattr(output, "logits", output)
        found = found[0] if isinstance(found, (tuple, list)) and found else found
        if not isinstance(found, Tensor):
            raise InvalidInput(
                explain(
                    f"The model returned a {type(output).__name__}",
                    "a function-space sketch is made of a tensor of outputs, or of its logits",
                    "Wrap the model so that it returns one",
                )
            )
        kept.append(found.detach())

    handle = problem.model.register_forward_hook(keep)
    try:
        with switched(problem.model, "eval"), torch.no_grad():
            loss = float(problem.value(w))
    finally:
        handle.remove()
    return loss, torch.cat(kept)


def classes(problem: Problem) -> bool:
    """Return whether targets are whole numbers, one for each sample."""
    batch, _ = next(problem.batches())
    try:
        target = pair(batch)[1]
    except InvalidInput:
        return False
    return isinstance(target, Tensor) and not target.is_floating_point() and not target.is_complex()
