r"""One fresh update from the whole state of training, evaluated and taken back: does the loss still fall on average?

At snapshots ``s_j = (weights, momentum, second moments, place in the epoch)`` the change ``D_j = L(F(s_j)) - L(s_j)``
under a fresh random update estimates, averaged, ``mu_n(P L - L)``. Weights alone are not the state of an optimizer with
memory. Where samples are drawn without replacement the chain has the epoch for its period, so that the update to try is
a fresh epoch, from the start of one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thalweg import _rng
from thalweg.errors import InvalidInput, explain
from thalweg.problem import Problem
from thalweg.problem.guards import preserved_rng
from thalweg.rules import Rule
from thalweg.runs.measures import Context, Measure, check_every
from thalweg.runs.metrics import Value, Variable
from thalweg.runs.minibatches import MiniBatches
from thalweg.stationarity.autocorrelation import Series, as_series, is_constant
from thalweg.stationarity.series import Mean, time_average


@dataclass(frozen=True)
class FreshSteps:
    """Changes of the loss over fresh updates at snapshots of a window.

    Attributes:
        mean: Their time average, with an error that counts autocorrelation.
        z: Mean over error; NaN where nothing moves.
    """

    mean: Mean
    z: float

    @property
    def says(self) -> str:
        """What it means: ``|z|`` above 3 is clear."""
        if not abs(self.z) > 3:
            return "no mean change"
        return "the loss still falls on average" if self.z < 0 else "the loss rises on average"

    def __repr__(self) -> str:
        return f"a fresh update changes the loss by {self.mean}, z = {self.z:+.2f}: {self.says}"


def fresh_steps(changes: Series) -> FreshSteps:
    """Return the mean change, with its error.

    Args:
        changes: D_j in the order of steps, shape ``(J,)``, at least 4.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> fresh_steps(rng.standard_normal(200)).says, fresh_steps(rng.standard_normal(200) - 1).says
        ('no mean change', 'the loss still falls on average')
    """
    values = as_series(changes, "the changes")
    if is_constant(values):
        mean = Mean(float(values.mean()), 0.0, 1.0, float(len(values)), len(values))
        return FreshSteps(mean, 0.0 if mean.value == 0 else float(np.copysign(np.inf, mean.value)))
    mean = time_average(values, "the changes")
    return FreshSteps(mean, mean.value / mean.standard_error)


@contextmanager
def restored(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Iterator[None]:
    """Put weights, buffers, gradients, modes, optimizer state and random streams back, bit for bit, when closed.

    Tensors keep their places in memory, so that references to them stay good.

    Args:
        model: The module.
        optimizer: Its optimizer; None: there is no state beside the weights.
    """
    tensors = [*model.parameters(), *model.buffers()]
    kept = [t.detach().clone() for t in tensors]
    gradients = [None if t.grad is None else t.grad.detach().clone() for t in tensors]
    places = [t.grad for t in tensors]
    modes = {module: module.training for module in model.modules()}
    slots: dict[Any, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    if optimizer is not None:
        slots = {p: {name: (x, _copied(x)) for name, x in state.items()} for p, state in optimizer.state.items()}
        groups = [{k: copy.deepcopy(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    devices = {t.device for t in tensors}
    device = next((d for d in devices if d.type != "cpu"), torch.device("cpu"))
    try:
        with preserved_rng(device):
            yield
    finally:
        with torch.no_grad():
            for tensor, old, place, gradient in zip(tensors, kept, places, gradients):
                tensor.copy_(old)
                tensor.grad = place
                if place is not None and gradient is not None:
                    place.copy_(gradient)
            if optimizer is not None:
                for key in [key for key in optimizer.state if key not in slots]:
                    del optimizer.state[key]
                for key, state in slots.items():
                    optimizer.state[key].clear()
                    for name, (place, old) in state.items():
                        if isinstance(place, Tensor):
                            place.copy_(old)
                        optimizer.state[key][name] = place if isinstance(place, Tensor) else old
                for group, saved in zip(optimizer.param_groups, groups):
                    for name in [name for name in group if name != "params" and name not in saved]:
                        del group[name]
                    group.update(saved)
        for module, training in modes.items():
            module.training = training


def fresh_change(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    update: Callable[[], object],
    evaluate: Callable[[], float],
    *,
    draws: int = 1,
    seed: int = 0,
) -> float:
    """Return the mean change of a loss over fresh updates of a live training loop, and put everything back.

    Args:
        model: What is trained.
        optimizer: Its optimizer.
        update: Makes one update from data of its own: draw a batch, backward, step; a whole epoch where samples are
            drawn without replacement. Draw from torch's, NumPy's or Python's global streams, which are seeded anew
            for each draw and put back afterwards; a data loader's own position is yours to leave alone.
        evaluate: The loss on a fixed set, without side effects.
        draws: Updates to average over, each from the same state.
        seed: Of the draws.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> def loss(): return (model(torch.ones(1, 1)) - 2).square().mean()
        >>> def update(): optimizer.zero_grad(); loss().backward(); optimizer.step()
        >>> before, fall = model.weight.clone(), fresh_change(model, optimizer, update, lambda: float(loss().detach()))
        >>> fall < 0, bool((model.weight == before).all())
        (True, True)
    """
    if draws < 1:
        raise InvalidInput(explain(f"draws is {draws}", "the mean is over one at least", "Pass 1 or more"))
    with restored(model, optimizer):
        before = float(evaluate())
    changes = []
    for draw in range(draws):
        with restored(model, optimizer):
            _seeded(_rng.derive_seed(seed, "fresh step", draw))
            update()
            changes.append(float(evaluate()) - before)
    return float(np.mean(changes))


@dataclass
class FreshStep(Measure):
    """``fresh_change``: the change of the loss over one fresh update, or one fresh epoch, in `thalweg.train`.

    With mini-batches (drawn without replacement) it is taken at starts of epochs, over one whole epoch in a fresh
    order; with full batches there is nothing random, and it is the next change itself. The whole state goes along:
    weights, the rule's state, the count of steps. It costs the updates that it tries, and two evaluations of all.

    Args:
        period: Steps between two; with mini-batches, rounded up to whole epochs.
        batch_size: As of the run; None: full batches.
        draws: Fresh updates to average over.
    """

    period: int = 1000
    batch_size: int | None = None
    draws: int = 1
    name: str = "fresh_step"
    every: int = field(default=1, init=False)  # it looks at every step, and waits for the last one of an epoch

    def __post_init__(self) -> None:
        check_every(self.name, self.period)
        check_every(self.name, self.draws)

    @property
    def variables(self) -> Mapping[str, Variable]:
        """``fresh_change``."""
        return {"fresh_change": Variable("loss", "change of the loss over a fresh update")}

    def measure(self, context: Context) -> Mapping[str, Value]:
        """Try a fresh update from the state that this step leaves behind."""
        if context.update is None:
            return {}
        problem, following = context.problem, context.step + 1
        samples = problem._batches.samples or 0
        epoch = 1 if self.batch_size is None else MiniBatches(samples, self.batch_size, 0).per_epoch
        if following % (-(-self.period // epoch) * epoch):
            return {}
        w = context.w + context.update
        before = float(problem.value(w))
        found = []
        for draw in range(self.draws):
            batches = None
            if self.batch_size is not None:
                seed = _rng.derive_seed(context.seed, "measure", self.name, following, draw)
                batches = MiniBatches(samples, self.batch_size, seed)
            moved = advanced(problem, context.rule, w, context.state, batches, epoch)
            found.append(float(problem.value(moved)) - before)
        return {"fresh_change": float(np.mean(found))}


def advanced(
    problem: Problem, rule: Rule, w: Tensor, state: dict[str, Tensor], batches: MiniBatches | None, steps: int
) -> Tensor:
    """Return the weights after some updates; rules are pure functions, so that nothing else changes."""
    for t in range(steps):
        part = problem if batches is None else problem.subset(batches.indices(t))
        _, gradient = part.value_and_gradient(w)
        w, state = rule.advance(w, state, gradient)
    return w


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _seeded(seed: int) -> None:
    import random

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
