r"""The freezing test: train on from epoch e with all but a few weights fixed, and see what that costs.

By default scales and shifts of normalisation layers stay trainable. What it says depends on its controls: the same
freeze at the start, the same number of random weights, the classifier kept as well, and stopping at epoch e.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn

from thalweg._rng import derive_seed, generator
from thalweg._vectors import Pattern, matcher
from thalweg.errors import InvalidInput, explain
from thalweg.problem.guards import preserved_rng
from thalweg.runs.sources import Trajectory
from thalweg.trajectories.freezing_loop import Cost, Score, Training
from thalweg.trajectories.freezing_result import FreezingTest as FreezingTest
from thalweg.trajectories.freezing_result import Frozen as Frozen
from thalweg.trajectories.map import trajectory_map

Control: TypeAlias = Literal["random", "classifier"]
CONTROLS: tuple[Control, ...] = get_args(Control)
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def freezing_test(
    model: Callable[[], nn.Module],
    data: tuple[Tensor, Tensor],
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    *,
    epochs: int,
    freeze_at: Sequence[int],
    test: tuple[Tensor, Tensor] | None = None,
    keep: Pattern | None = None,
    batch_size: int = 128,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    score: Score | Literal["auto"] | None = "auto",
    scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None,
    controls: Sequence[Control] = CONTROLS,
    classifier: Pattern | None = None,
    seed: int = 0,
) -> FreezingTest:
    r"""Train ``theta`` in full; then from ``theta_e`` on with all but the kept weights fixed, for each e, to the end.

    Every frozen run begins with the model, its running statistics, the optimizer's state of the surviving weights and
    the schedule of the full run at epoch e, and sees the same batches. Frozen weights leave the optimizer, so they
    do not decay; BatchNorm stays in training mode and its running statistics go on. Epoch 0 (random features) and
    ``"stopped"`` (the full run's own test at epoch e, nothing trained after it) are always among the controls.

    Args:
        model: Makes the model; called once.
        data: Training inputs and targets, samples first; on the model's device.
        optimizer: Makes an optimizer of parameters; one that treats each element alone, as SGD and Adam do, for the
            control ``"random"``.
        epochs: Of each run in all.
        freeze_at: Epochs e, each below ``epochs``; 0 is added.
        test: Inputs and targets of the test; None: the training data.
        keep: Names that stay trainable; None: scales and shifts of normalisation layers.
        batch_size: Samples of a step; a last, smaller batch of an epoch is left out.
        loss: ``(outputs, targets) -> 0-dim mean``.
        score: ``(outputs, targets) -> float``; ``"auto"``: accuracy where targets are whole numbers.
        scheduler: Makes a learning rate schedule of an optimizer, stepped once per epoch.
        controls: Further variants at each e: ``"random"`` keeps as many weights, drawn from those that ``keep`` does
            not take; ``"classifier"`` keeps the last linear layer, too.
        classifier: Names of that layer; None: the last `torch.nn.Linear` or convolution of the model.
        seed: Of model, batches and draws.

    Returns:
        All ends with what a step costs, counted and timed, and the map of the full run, whose checkpoints are held in
        memory.

    Raises:
        InvalidInput: ``keep`` takes nothing or everything, or an argument is out of range.

    Example:
        >>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        >>> found = freezing_test(
        ...     lambda: nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2)),
        ...     (x, (x[:, 0] > 0).long()),
        ...     lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
        ...     epochs=4, freeze_at=[2], batch_size=16,
        ... )
        >>> found.kept, found.at(2).trainable, found.parameters
        (('1.weight', '1.bias'), 64, 290)
        >>> [(run.variant, run.epoch) for run in found.of("stopped")]
        [('stopped', 0), ('stopped', 2)]

    Source: arXiv 2403.07379 (the test); protocol and controls are ours.
    """
    grid = sorted({0, *freeze_at})
    unknown = [control for control in controls if control not in CONTROLS]
    if unknown or epochs < 1 or grid[0] < 0 or grid[-1] >= epochs or not 1 <= batch_size <= len(data[0]):
        raise InvalidInput(
            explain(
                f"Got epochs={epochs}, freeze_at={list(freeze_at)}, batch_size={batch_size}, controls={list(controls)}",
                f"epochs to freeze at lie below the last, a batch holds 1 to {len(data[0])} samples, and controls are "
                f"among {', '.join(CONTROLS)}",
                "Correct the argument",
            )
        )
    scored = _accuracy if score == "auto" and not data[1].is_floating_point() else score
    device = data[0].device
    with preserved_rng(device):
        torch.manual_seed(derive_seed(seed, "freezing", "model"))
        start = model()
        kept, last = _names(start, keep, classifier)
        job = Training(start, data, test, optimizer, scheduler, batch_size, loss, scored if callable(scored) else None)
        points, history, rates, states = [], [], [], {}
        run = job.begin()
        for epoch in range(epochs + 1):
            points.append({n: p.detach().cpu().clone() for n, p in run.model.named_parameters() if p.requires_grad})
            history.append(run.test())
            rates.append(run.rate)
            if epoch in grid:
                states[epoch] = run.state()
            if epoch < epochs:
                run.epoch(seed, epoch)
        full = Frozen("full", epochs, job.parameters, *history[-1], run.training_loss(), run.cost())
        runs = []
        for epoch in grid:
            for variant in ("kept", *controls):
                again = job.begin(states[epoch])
                again.freeze(_masks(start, kept, last, variant, derive_seed(seed, "freezing", "random", epoch)))
                for later in range(epoch, epochs):
                    again.epoch(seed, later)
                end = again.test()
                runs.append(Frozen(variant, epoch, again.trainable, *end, again.training_loss(), again.cost()))
            stopped = job.begin(states[epoch])
            runs.append(Frozen("stopped", epoch, 0, *history[epoch], stopped.training_loss(), Cost(0, 0.0)))
    steps = [epoch * (len(data[0]) // batch_size) for epoch in range(epochs + 1)]
    path = Trajectory.from_arrays(points, steps, schedule={"learning_rate": np.array(rates)})
    return FreezingTest(
        full, tuple(runs), job.parameters, kept, epochs, trajectory_map(path), tuple(history), _notes(full, runs)
    )


def _names(model: nn.Module, keep: Pattern | None, classifier: Pattern | None) -> tuple[tuple[str, ...], set[str]]:
    """Return what stays trainable, in the model's order, and the names of the last layer."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    if keep is None:
        inside = {
            f"{at}.{name}" if at else name
            for at, one in model.named_modules()
            if isinstance(one, NORMS)
            for name, _ in one.named_parameters(recurse=False)
        }
        kept = tuple(name for name in names if name in inside)
    else:
        kept = tuple(filter(matcher(keep), names))
    if not kept or len(kept) == len(names):
        raise InvalidInput(
            explain(
                f"{'Nothing' if not kept else 'Everything'} stays trainable",
                f"the pattern takes {len(kept)} of {len(names)} tensors",
                f"Pass keep= with a pattern that takes some of {', '.join(names[:6])}",
            )
        )
    if classifier is not None:
        return kept, set(filter(matcher(classifier), names))
    linear = (nn.Linear, nn.modules.conv._ConvNd)
    layers = [at for at, one in model.named_modules() if isinstance(one, linear)]
    return kept, {name for name in names if layers and name.rpartition(".")[0] == layers[-1]}


def _masks(model: nn.Module, kept: Sequence[str], last: set[str], variant: str, seed: int) -> dict[str, Tensor | None]:
    """Return what a variant keeps: whole tensors, or as many random elements of the other tensors."""
    if variant != "random":
        return dict.fromkeys([*kept, *sorted(last.difference(kept))] if variant == "classifier" else kept)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    others = [name for name in parameters if name not in kept]
    sizes = [parameters[name].numel() for name in others]
    count = min(sum(parameters[name].numel() for name in kept), sum(sizes))
    chosen = torch.zeros(sum(sizes), dtype=torch.bool)
    chosen[torch.randperm(len(chosen), generator=generator(seed, "elements"))[:count]] = True
    parts = {name: part.view(parameters[name].shape) for name, part in zip(others, torch.split(chosen, sizes))}
    return {name: part for name, part in parts.items() if part.any()}


def _accuracy(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) == targets).float().mean())


def _notes(full: Frozen, runs: Sequence[Frozen]) -> tuple[str, ...]:
    kept = [run for run in runs if run.variant == "kept"]
    flops = max(run.cost.flops for run in kept) / max(full.cost.flops, 1)
    time = max(run.cost.seconds for run in kept) / full.cost.seconds
    return (
        "Frozen weights left the optimizer, with their decay; optimizer state and schedule of the others went on; "
        "BatchNorm was in training mode.",
        f"A frozen step takes {flops:.0%} of the operations and {time:.0%} of the time of a full one: the forward pass "
        "stays, and activations flow back; only gradients of frozen weights are skipped: a third of a deep network.",
    )
