"""Networks on digits or text, at the start and after training with Adam, that the claims about glass share."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import nn

import thalweg as tw
from thalweg.problem.data import DataConfig, load_data
from thalweg.problem.zoo import ModelConfig, build_model

TRAINING = 60
RATE = 1e-3
BATCH = 64

CONFIGS = {
    "ReLU MLP": ModelConfig(depth=4, width=64, activation="relu"),
    "tanh MLP": ModelConfig(depth=4, width=64, activation="tanh"),
    "GELU MLP": ModelConfig(depth=4, width=64, activation="gelu"),
    "ReLU CNN": ModelConfig("cnn", depth=4, width=16, activation="relu"),
    "ReLU ResNet": ModelConfig("resnet", depth=8, width=8, activation="relu", norm="group"),
    "GELU ViT": ModelConfig("vit", depth=2, width=32, activation="gelu"),
    "ReLU transformer": ModelConfig("transformer", depth=2, width=32, activation="relu"),
    "GELU transformer": ModelConfig("transformer", depth=2, width=32, activation="gelu"),
}
TEXT = DataConfig("text", samples=2048, length=32)
"""For causal transformers, which predict each next character; the activation is that of their feed-forward layers."""


@dataclass(frozen=True)
class Case:
    """A problem at a point of its training, and the optimizer that is about to move it."""

    problem: tw.Problem
    optimizer: torch.optim.Adam
    loss: float


@functools.cache
def network(name: str, seed: int, steps: int, samples: int | None = None) -> Case:
    """Train ``name`` with cross-entropy for so many steps of Adam at 1e-3 and batches of 64."""
    config = CONFIGS[name]
    data = load_data(TEXT if config.name == "transformer" else DataConfig("digits", samples=samples))
    model = build_model(config, data, seed)
    x, y = data.pair()
    y = y if y.dtype == torch.int64 else y.argmax(dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    stream = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        picked = torch.randint(0, len(x), (BATCH,), generator=stream)
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x[picked]), y[picked]).backward()
        optimizer.step()
    problem = tw.Problem(model, nn.CrossEntropyLoss(), (x, y))
    return Case(problem, optimizer, float(problem.value(problem.initial)))


def split(case: str) -> tuple[str, int]:
    """Name of the network and steps of training of a case called ``NAME, STEPS steps``."""
    name, _, rest = case.partition(", ")
    return name, int(rest.split()[0])


def cases(*names: str, steps: tuple[int, ...] = (0, TRAINING)) -> tuple[str, ...]:
    """Names of cases, every network at every step."""
    return tuple(f"{name}, {step} steps" for name in names for step in steps)
