"""Tasks, optimizers and one training run for alice.py: what a cell of its sweep computes."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from _common import math_attention
from torch import Tensor, nn

from thalweg.optim.alice import Alice
from thalweg.problem.data import Data, DataConfig, load_data, loss_for
from thalweg.problem.zoo import ModelConfig, build_model
from thalweg.sweeps.cells import Cell

POINTS = 12
"""How often a run's loss is looked at on its way, so that it can be read off at any time spent."""
LOOKS = (8, 12)
"""Where loss and accuracy on held-out data are looked at: at the common budget of a run half as long again, and at the
end."""


@dataclass(frozen=True)
class Task:
    """A model, data, and how many gradient evaluations a run may take."""

    about: str
    model: ModelConfig
    data: DataConfig
    batch: int
    train: int
    evaluations: int


DIGITS = DataConfig(name="digits")
TASKS = {
    "mlp": Task("ReLU MLP, digits", ModelConfig("mlp", 4, 64, activation="relu"), DIGITS, 64, 1437, 240),
    "cnn": Task("ReLU CNN, digits", ModelConfig("cnn", 4, 12, activation="relu", bias=True), DIGITS, 32, 1437, 240),
    "transformer": Task(
        "causal transformer with ReLU, text",
        ModelConfig("transformer", 2, 32, activation="relu", norm="rms", bias=False),
        DataConfig(name="text", samples=4000, length=32),
        8,
        3600,
        160,
    ),
    "gelu": Task("GELU MLP, digits", ModelConfig("mlp", 4, 64, activation="gelu"), DIGITS, 64, 1437, 240),
}

MODES: dict[str, dict[str, Any]] = {
    "glass": {"hess_comp": "zero", "grad_glass": True},
    "abs": {"hess_comp": "abs", "grad_glass": False},
    "abs+glass": {"hess_comp": "abs", "grad_glass": True},
    "rms": {"hess_comp": "rms", "grad_glass": False},
}


def _alice(ratio: float = 2.0, **options: Any) -> Callable[[nn.Module, float], list[Any]]:
    """Alice at the published learning rate, with the upper bound a multiple of it."""

    def make(model: nn.Module, factor: float) -> list[Any]:
        rate = 5e-3 * factor
        return [Alice(model.parameters(), rate, lr_max=ratio * rate, **{"quick_steps": 0, **options})]

    return make


def _bounds_only(model: nn.Module, factor: float) -> list[Any]:
    """Alice with her step fixed to the published bound: Adam at a look-ahead point. Curvature is hardly sampled."""
    rate = 5e-3 * factor
    return [Alice(model.parameters(), rate, lr_min=2 * rate, lr_max=2 * rate, sample_every=900)]


def _torch(name: str, rate: float, **options: Any) -> Callable[[nn.Module, float], list[Any]]:
    return lambda model, factor: [getattr(torch.optim, name)(model.parameters(), lr=rate * factor, **options)]


def _peer(name: str, rate: float) -> Callable[[nn.Module, float], list[Any]]:
    def make(model: nn.Module, factor: float) -> list[Any]:
        return [getattr(importlib.import_module("pytorch_optimizer"), name)(model.parameters(), lr=rate * factor)]

    return make


def _muon(model: nn.Module, factor: float) -> list[Any]:
    """Muon for hidden matrices; AdamW for the rest, embeddings and the output layer among it, as its authors say."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    outer = {id(p) for p in (*matrices[:1], *matrices[-1:])}
    inner = [p for p in matrices if id(p) not in outer]
    if not inner:
        raise NotImplementedError("no hidden weight is a matrix")
    chosen = {id(p) for p in inner}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [torch.optim.Muon(inner, lr=0.02 * factor), torch.optim.AdamW(rest, lr=1e-3 * factor)]


METHODS: dict[str, Callable[[nn.Module, float], list[Any]]] = {
    "Adam": _torch("Adam", 1e-3),
    "AdamW": _torch("AdamW", 1e-3),
    "NAdam": _torch("NAdam", 1e-3),
    "SGD, momentum 0.9": _torch("SGD", 0.1, momentum=0.9),
    "Muon": _muon,
    "AdaHessian": _peer("AdaHessian", 0.15),
    "SophiaH": _peer("SophiaH", 6e-2),
    **{f"Alice {name}": _alice(**mode) for name, mode in MODES.items()},
    "Alice, bounds only": _bounds_only,
    **{f"Alice {name}, bound x10": _alice(20.0, **mode) for name, mode in MODES.items()},
    **{f"Alice {name}, bound x100": _alice(200.0, **MODES[name]) for name in MODES},
    "Alice abs+glass, bound x10, quick 3": _alice(20.0, quick_steps=3, **MODES["abs+glass"]),
    "Alice rms, bound x100, quick 3": _alice(200.0, quick_steps=3, **MODES["rms"]),
    **{f"Alice {name}, trust": _alice(200.0, trust=True, **MODES[name]) for name in MODES},
}
"""Each at the learning rate that its authors or its package name, times a factor."""

PEERS = ("AdaHessian", "SophiaH")


_OPENED = (
    "Alice, bounds only",
    *(f"Alice {mode}, {how}" for mode in ("glass", "abs") for how in ("bound x10", "bound x100", "trust")),
)
LEFT_OUT = {
    "gelu": ("Adam", "NAdam", "AdaHessian", "Alice glass", "Alice abs", *_OPENED),
    "transformer": ("Adam", "NAdam", "Alice rms, bound x10", "Alice abs+glass, bound x100", *_OPENED),
    "cnn": ("Muon",),  # no hidden weight of it is a matrix
}
"""By task, to save time where no reason is given."""


def applies(method: str, task: str) -> bool:
    """Whether a method is run on a task."""
    return method not in LEFT_OUT.get(task, ()) and not (task in ("gelu", "transformer") and "quick" in method)


@cache
def data_of(task: str) -> Data:
    """The task's data, read once."""
    return load_data(TASKS[task].data)


@cache
def prepared(task: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Any]:
    """Data in two parts, split by a fixed permutation, and the loss."""
    data = data_of(task)
    assert data.inputs is not None
    assert data.targets is not None
    order = torch.randperm(len(data.inputs), generator=torch.Generator().manual_seed(12345))
    first, rest = order[: TASKS[task].train], order[TASKS[task].train :]
    return (
        (data.inputs[first], data.targets[first]),
        (data.inputs[rest], data.targets[rest]),
        loss_for("cross_entropy", data),
    )


def batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Indices, epoch after epoch, each in an order of its own; the same for every optimizer."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count - count % size].split(size)


@torch.no_grad()
def score(model: nn.Module, loss: Any, part: tuple[Tensor, Tensor], most: int = 500) -> tuple[float, float]:
    """Loss and accuracy on (the first samples of) a part."""
    x, y = part[0][:most], part[1][:most]
    out = model(x)
    return float(loss(out, y)), float((out.argmax(1) == y).double().mean())


def measure(cell: Cell) -> dict[str, Any]:
    """Train once, for a cell of the sweep."""
    torch.set_num_threads(1)
    seed, evaluations = cell["seed"], cell["evaluations"]
    assert isinstance(seed, int)
    assert isinstance(evaluations, int)
    return train(str(cell["task"]), str(cell["method"]), float(cell["factor"] or 0), seed, evaluations)


class Trainer:
    """A model, its optimizers, and one batch after the other at a constant learning rate.

    A gradient is one forward and one backward pass; a Hessian product counts as one gradient more.
    """

    def __init__(self, task: str, method: str, factor: float, seed: int) -> None:
        self.part, self.held, self.loss = prepared(task)
        self.model = build_model(TASKS[task].model, data_of(task), seed)
        self.optimizers = METHODS[method](self.model, factor)
        self.alice = self.optimizers[0] if isinstance(self.optimizers[0], Alice) else None
        self.every = {"AdaHessian": 1, "SophiaH": 10}.get(method, 0)
        self.fused = task != "transformer"
        self.source = batches(len(self.part[0]), TASKS[task].batch, seed)
        self.gradients = self.steps = 0
        torch.manual_seed(seed)

    def step(self) -> float:
        """Take one step and return the batch's loss before it."""
        index = next(self.source)
        x, y = self.part[0][index], self.part[1][index]
        product = bool(self.every) and self.steps % self.every == 0

        def closure() -> Tensor:
            self.gradients += 1
            self._clear()
            value: Tensor = self.loss(self.model(x), y)
            value.backward(create_graph=product)
            return value.detach()

        if self.alice is not None:
            value = self.alice.step(closure)
        else:
            with nullcontext() if self.fused or not product else math_attention():
                value = closure()
            for optimizer in self.optimizers:
                optimizer.step()
            if product:
                self._clear()  # or the graph would live on in the gradients
        self.gradients += product
        self.steps += 1
        return float(value)

    def _clear(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()


def train(task: str, method: str, factor: float, seed: int, evaluations: int) -> dict[str, Any]:
    """Train for a number of gradient evaluations (the last step may exceed it), looking at the loss on the way."""
    trainer = Trainer(task, method, factor, seed)
    model, loss = trainer.model, trainer.loss
    spent = 0.0
    held: list[tuple[float, float]] = []
    curve, finite = [(0.0, 0.0, score(model, loss, trainer.part)[0])], True
    for goal in range(1, POINTS + 1):
        while finite and trainer.gradients < evaluations * goal / POINTS:
            begin = time.thread_time()
            finite = math.isfinite(trainer.step())
            spent += time.thread_time() - begin
        now = score(model, loss, trainer.part)[0] if finite else math.inf
        curve.append((trainer.gradients, spent, now if math.isfinite(now) else math.inf))
        if goal in LOOKS:
            held.append(score(model, loss, trainer.held))
    gradients, seconds, losses = zip(*curve)
    return {
        "gradients": ("point", np.array(gradients)),
        "spent": ("point", np.array(seconds)),
        "train_loss": ("point", np.array(losses)),
        "held": (("look", "what"), np.nan_to_num(np.array(held), nan=math.inf, posinf=math.inf)),
        "steps": trainer.steps,
        "upper": math.nan if trainer.alice is None else trainer.alice.report().groups[0].upper,
    }
