"""Claim: late in training, freezing over 99 % of the parameters costs little."""

from __future__ import annotations

import sys
from typing import Any

from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, column, run
from _training import digits_split, perceptron
from torch import nn, optim

from thalweg.trajectories.freezing import FreezingTest, freezing_test

EPOCHS, GRID, LITTLE = 40, (0, 3, 10, 20, 30), 0.01


def convolutions() -> nn.Module:
    """Build three 3 x 3 convolutions of 16, 32 and 64 channels with BatchNorm and ReLU, a mean, a linear layer."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for before, channels, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers += [
            nn.Conv2d(before, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


MODELS = {
    "convolutions": (convolutions, 0.0),
    "convolutions, 20 % random labels": (convolutions, 0.2),
    "MLP of width 512": (lambda: perceptron(512), 0.0),
}
DONE: dict[tuple[str, int], FreezingTest] = {}


def tested(model: str, seed: int) -> FreezingTest:
    """Run the test of one model and seed, once."""
    if (model, seed) not in DONE:
        make, noise = MODELS[model]
        training, test = digits_split(seed, training=600, noise=noise)
        DONE[model, seed] = freezing_test(
            make,
            training,
            lambda weights: optim.SGD(weights, lr=0.05, momentum=0.9, weight_decay=5e-4),
            epochs=EPOCHS,
            freeze_at=GRID,
            test=test,
            batch_size=64,
            scheduler=lambda optimizer: optim.lr_scheduler.MultiStepLR(optimizer, (EPOCHS // 2, 3 * EPOCHS // 4), 0.1),
            seed=seed,
        )
    return DONE[model, seed]


CASES = {f"{model}; epoch {epoch}": (model, epoch) for model in MODELS for epoch in GRID}


def measure(case: str, seed: int) -> Numbers:
    """Freeze at one epoch, with all controls."""
    model, epoch = CASES[case]
    found = tested(model, seed)
    kept = found.at(epoch)
    return {
        "share": found.share,
        "full": found.full.score,
        **{variant: round(found.lost(epoch, variant), 6) for variant in ("kept", "random", "classifier", "stopped")},
        "loss": kept.loss - found.full.loss,
        "omega": found.similarity.omega,
        "flops": kept.cost.flops / found.full.cost.flops,
        "seconds": kept.cost.seconds / found.full.cost.seconds,
    }


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Below a percentage point from half of the run on, in every run, and more at the start."""
    late = [row for row in rows if CASES[row["case"]][1] >= EPOCHS // 2]
    first = [row for row in rows if CASES[row["case"]][1] == 0]
    cost, start = column(late, "kept"), column(first, "kept")
    stopped, random = column(late, "stopped"), column(late, "random")
    why = (
        f"with {column(rows, 'share').min():.2%} or more frozen from half or three quarters of the run on, test "
        "accuracy "
        f"is {100 * cost.min():+.2f} to {100 * cost.max():+.2f} points below the full run's, by less than one in "
        f"{(cost < LITTLE).sum()} of {len(cost)} runs (frozen at the start "
        f"{100 * start.min():+.1f} to {100 * start.max():+.1f}). But as many random weights cost "
        f"{100 * random.min():+.2f} to {100 * random.max():+.2f}, and stopping there {100 * stopped.min():+.2f} to "
        f"{100 * stopped.max():+.2f}. A frozen step takes {column(late, 'flops').min():.0%} to "
        f"{column(late, 'flops').max():.0%} of the operations and {column(late, 'seconds').min():.0%} to "
        f"{column(late, 'seconds').max():.0%} of the time of a full one"
    )
    little = cost < LITTLE
    if bool(little.all() and column(rows, "share").min() > 0.99 and start.min() > cost.max()):
        return HOLDS, why
    return (IN_KIND if bool(little.mean() > 0.5 and start.mean() > cost.mean()) else NOT), why


CLAIM = Claim(
    "trajectory_freezing",
    "Late in training over 99 % of the parameters, all but scales and shifts of normalisation, can be frozen at little "
    "cost.",
    "arXiv 2403.07379",
    "three convolutions of 16, 32 and 64 channels, and an MLP 64-512-512-10, both with BatchNorm; 600 training "
    "and 1,197 "
    f"test digits, SGD 0.05 with momentum 0.9 and decay 5e-4, two drops of the rate, batches of 64, {EPOCHS} epochs; "
    f"little is below {LITTLE:.0%}",
    measure,
    tuple(CASES),
    judge,
    {
        "share": "share frozen",
        "full": "test accuracy of the full run",
        "kept": "lost by freezing",
        "random": "with as many random weights instead",
        "classifier": "with the classifier kept, too",
        "stopped": "by stopping there",
        "loss": "test loss more than the full run's",
        "omega": "mean similarity of the full run",
        "flops": "operations of a frozen step, of a full one",
        "seconds": "its time, of a full one",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
