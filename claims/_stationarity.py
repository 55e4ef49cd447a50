"""Training at constant rates that the claims about stationarity share: losses of all steps, probes of the gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from _training import digits_split, perceptron
from torch import nn

import thalweg as tw
from thalweg.problem.data.builtin import text
from thalweg.problem.zoo.transformer import CausalTransformer
from thalweg.stationarity.gradient import gradient_level
from thalweg.stationarity.scale_free import Invariance, scale_invariant
from thalweg.stationarity.series import time_average

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Path:
    """Losses of mini-batches by step; by probe, the step, U, A and V, and |w|^2 U over invariant groups."""

    losses: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)

    def column(self, name: str, since: float = 0.0, until: float = 1.0) -> np.ndarray:
        """One number of the probes in a stretch of the run, given by the share of its steps."""
        low, high = since * len(self.losses), until * len(self.losses)
        return np.array([row[name] for step, row in zip(self.steps, self.rows) if low <= step <= high])

    def loss(self, since: float, until: float) -> float:
        """Mean loss of a stretch."""
        n = len(self.losses)
        return float(np.mean(self.losses[round(since * n) : round(until * n)]))


class Training:
    """A model, its data, SGD or Adam, and mini-batches drawn without replacement within an epoch."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: tuple[torch.Tensor, torch.Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        batch_size: int,
        seed: int,
        decay: float = 0.0,
    ) -> None:
        self.model, self.loss, self.data, self.optimizer = model, loss, data, optimizer
        self.batch_size, self.seed, self.decay = batch_size, seed, decay
        self.problem = tw.Problem(model, loss, data, check=False)
        self.groups: Invariance | None = None
        self._batches = self._drawn(torch.Generator().manual_seed(seed + 1000))

    def _drawn(self, stream: torch.Generator) -> Iterator[torch.Tensor]:
        while True:
            order = torch.randperm(len(self.data[0]), generator=stream)
            yield from torch.split(order[: len(order) // self.batch_size * self.batch_size], self.batch_size)

    def rate(self, value: float) -> None:
        """Set the learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = value

    def probe(self, number: int, mode: str = "train", batches: int = 16) -> dict[str, float]:
        """Gradient level where the model is."""
        if self.groups is None:
            self.groups = scale_invariant(self.problem, batch_size=self.batch_size)
        level = gradient_level(
            self.problem,
            batches=batches,
            batch_size=self.batch_size,
            seed=self.seed + 7919 * number,
            mode=mode,  # type: ignore[arg-type]
            decay=self.decay,
            scale_invariant_groups=self.groups if self.groups.groups else None,
        )
        return {
            "U": level.unbiased,
            "A": level.biased,
            "V": level.noise,
            "error": level.standard_error,
            "free": level.scale_free.unbiased if level.scale_free is not None else float("nan"),
            "norm": float(self.problem.initial.norm()),
        }

    def run(self, steps: int, every: int | None, path: Path | None = None) -> Path:
        """Go on for so many steps, probing every so many."""
        path = path or Path()
        x, y = self.data
        self.model.train()
        for _ in range(steps):
            if every is not None and len(path.losses) % every == 0:
                path.steps.append(len(path.losses))
                path.rows.append(self.probe(len(path.rows)))
            at = next(self._batches)
            value = self.loss(self.model(x[at]), y[at])
            self.optimizer.zero_grad()
            value.backward()
            self.optimizer.step()
            path.losses.append(float(value.detach()))
        return path

    def full_loss(self) -> float:
        """Loss over all data in train mode, decay left out; running statistics stay."""
        model = copy.deepcopy(self.model).train()
        with torch.no_grad():
            return float(self.loss(model(self.data[0]), self.data[1]))


def digits(seed: int, rate: float, decay: float, *, noise: float = 0.2, momentum: float = 0.9) -> Training:
    """Return an MLP with BatchNorm on digits with random labels among them, batches of 100."""
    data, _ = digits_split(seed, noise=noise)
    torch.manual_seed(seed)
    model = perceptron(64)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum, weight_decay=decay)
    return Training(model, nn.functional.cross_entropy, data, optimizer, batch_size=100, seed=seed, decay=decay)


def language(seed: int, rate: float, *, samples: int = 4000, length: int = 32) -> Training:
    """Return a causal transformer of one layer of width 32 on characters of Python's standard library."""
    data = text(samples, length)
    x, y = data.inputs, data.targets
    torch.manual_seed(seed)
    model = CausalTransformer(vocabulary=data.outputs, length=length, depth=1, width=16, heads=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    return Training(model, nn.functional.cross_entropy, (x, y), optimizer, batch_size=32, seed=seed)


def level(values: np.ndarray) -> tuple[float, float]:
    """Mean of a stationary series and its lower 95 % limit, with the error of correlated samples."""
    mean = time_average(values)
    return mean.value, mean.value - 1.96 * mean.standard_error
