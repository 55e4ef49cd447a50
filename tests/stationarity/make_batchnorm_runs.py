"""Train the two runs of batchnorm_runs.npz: the same network on noisy labels, with weight decay and without.

python tests/stationarity/make_batchnorm_runs.py     (about a minute on one core)
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from thalweg.problem import Problem
from thalweg.runs.gradient_probe import GradientProbe
from thalweg.stationarity.observables import Observables

STEPS, BATCH, RATE, MOMENTUM = 7000, 64, 0.1, 0.9
SAMPLES, INPUTS, CLASSES, WIDTH, NOISY = 2048, 20, 4, 64, 0.2
DECAYS = {"decayed": 1e-3, "undecayed": 0.0}
TARGET = Path(__file__).parent / "batchnorm_runs.npz"


def data() -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, INPUTS, generator=stream)
    teacher = torch.randn(INPUTS, CLASSES, generator=stream)
    y = (x @ teacher).argmax(1)
    wrong = torch.rand(SAMPLES, generator=stream) < NOISY
    return x, torch.where(wrong, torch.randint(0, CLASSES, (SAMPLES,), generator=stream), y)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(INPUTS, WIDTH, bias=False),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH, bias=False),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, CLASSES),
    )


def train(decay: float, steps: int = STEPS) -> dict[str, np.ndarray]:
    """Return the columns of one run, NaN where a probe was not due."""
    x, y = data()
    model, loss = network(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=decay)
    problem = Problem(model, loss, (x, y))
    probe = GradientProbe(batch_size=BATCH, every=50, batches=16, modes=("train", "eval"), decay=decay)
    observables = Observables(every=20, size=16)
    columns: dict[str, np.ndarray] = {}

    def note(step: int, found: dict) -> None:
        for name, value in found.items():
            value = np.asarray(value, dtype=np.float64)
            if name not in columns:
                columns[name] = np.full((steps, *value.shape), np.nan)
            columns[name][step] = value

    for step in range(steps):
        if step % (SAMPLES // BATCH) == 0:
            order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1000 + step))
        place = step % (SAMPLES // BATCH)
        chosen = order[place * BATCH : (place + 1) * BATCH]
        if step % probe.every == 0:
            note(step, probe.probe(problem, seed=step))
        if step % observables.every == 0:
            note(step, observables.look(problem))
            weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
            note(step, {"weight_norm": float(weights.norm())})
        value = loss(model(x[chosen]), y[chosen])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        note(step, {"loss": value.item()})
    return columns | {"learning_rate": np.full(steps, RATE), "weight_decay": np.full(steps, decay)}


KEPT = ("loss", "learning_rate", "weight_decay", "gradient_unbiased", "gradient_biased", "gradient_noise",
        "gradient_standard_error", "gradient_unbiased_eval", "evaluation_loss", "weight_norm", "function_sketch",
        "weight_sketch")  # fmt: skip


def load() -> dict[str, dict[str, np.ndarray]]:
    """Return both runs by name, as `assess` takes them."""
    with np.load(TARGET) as stored:
        runs = {}
        for run in DECAYS:
            columns = {"step": np.arange(STEPS)}
            for name in KEPT:
                values = stored[f"{run}/{name}"].astype(np.float64)
                rows = stored[f"{run}/{name}/rows"]
                columns[name] = np.full((STEPS, *values.shape[1:]), np.nan)
                columns[name][:: int(rows)] = values
            runs[run] = columns
    return runs


if __name__ == "__main__":
    torch.set_num_threads(1)
    stored = {}
    for run, decay in DECAYS.items():
        columns = train(decay, int(sys.argv[1]) if len(sys.argv) > 1 else STEPS)
        for name in KEPT:
            known = np.flatnonzero(~np.isnan(columns[name]).reshape(len(columns[name]), -1).all(1))
            rows = int(known[1] - known[0])
            stored[f"{run}/{name}"] = columns[name][::rows].astype(np.float32)
            stored[f"{run}/{name}/rows"] = np.array(rows)
    np.savez_compressed(TARGET, **stored)
    print(f"{TARGET}: {TARGET.stat().st_size / 1024:.0f} KiB")
