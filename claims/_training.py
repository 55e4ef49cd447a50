"""Training with SGD that the claims about trajectories share: digits with noisy labels, checkpoints on the way."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import nn

from thalweg.runs.sources import Trajectory
from thalweg.trajectories.map import TrajectoryMap, trajectory_map
from thalweg.trajectories.nulls import Decay

NOISE = 0.2
TRAINING = 1500


def digits_split(
    seed: int, training: int = TRAINING, noise: float = NOISE
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Return training digits with a share of the labels random, and the others of 1,797 as clean test digits."""
    from sklearn.datasets import load_digits

    data, stream = load_digits(), torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.target), generator=stream)
    x, y = torch.tensor(data.data).float()[order], torch.tensor(data.target)[order]
    x = (x - x.mean()) / x.std()
    noisy = y.clone()
    wrong = torch.rand(training, generator=stream) < noise
    noisy[:training][wrong] = torch.randint(0, 10, (int(wrong.sum()),), generator=stream)
    return (x[:training], noisy[:training]), (x[training:], y[training:])


def perceptron(width: int = 128) -> nn.Module:
    """Build an MLP 64-w-w-10 with BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise((64, width, width)):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def sgd_path(
    seed: int,
    *,
    steps: int = 660,
    every: int = 11,
    learning_rate: float = 0.1,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    batch_size: int = 128,
    drops: bool = True,
) -> tuple[Trajectory, float]:
    """Train an MLP on noisy digits, the rate a tenth from 1/2 and from 3/4 on; return path and test accuracy."""
    (x, y), (test_x, test_y) = digits_split(seed)
    torch.manual_seed(seed)
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay)
    stream = torch.Generator().manual_seed(seed + 1000)
    at = torch.empty(0, dtype=torch.long)
    points, losses, rates = [], [], []
    value = float("nan")
    for step in range(steps + 1):
        rate = learning_rate * (0.1 ** ((2 * step >= steps) + (4 * step >= 3 * steps)) if drops else 1.0)
        if step % every == 0:
            points.append({name: p.detach().clone() for name, p in model.named_parameters()})
            losses.append(value)
            rates.append(rate)
        if step == steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate
        if len(at) < batch_size:
            at = torch.randperm(len(x), generator=stream)
        rows, at = at[:batch_size], at[batch_size:]
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = float(loss.detach())
    model.eval()
    with torch.no_grad():
        accuracy = float((model(test_x).argmax(1) == test_y).float().mean())
    schedule = {"loss": np.array(losses), "learning_rate": np.array(rates)}
    return Trajectory.from_arrays(points, range(0, steps + 1, every), schedule=schedule), accuracy


def mapped(path: Any, weight_decay: float = 0.0, momentum: float = 0.0, coupled: bool = True) -> TrajectoryMap:
    """Map a path with its decay null."""
    return trajectory_map(path, decay=Decay(weight_decay, momentum if coupled else 0.0, coupled))
