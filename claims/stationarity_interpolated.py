"""Claim: the gradient vanishes where the data is interpolated."""

from __future__ import annotations

import sys
from typing import Any

import torch
from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, column, run
from _stationarity import digits

DECAY = {"no decay": 0.0, "decay 3e-3": 3e-3}


def measure(case: str, seed: int) -> Numbers:
    """U and A at the start and over the last quarter, in train and in eval mode."""
    training = digits(seed, 0.1, DECAY[case])
    path = training.run(6000, 100)
    last = training.probe(len(path.rows), "eval", 64)
    training.model.eval()
    with torch.no_grad():
        x, y = training.data
        right = float((training.model(x).argmax(1) == y).float().mean())
    return {
        "loss": path.loss(0.75, 1),
        "accuracy": right,
        "start": float(path.column("U", 0, 0.01).mean()),
        "U": float(path.column("U", 0.75).mean()),
        "A": float(path.column("A", 0.75).mean()),
        "fallen": float(path.column("U", 0, 0.01).mean() / path.column("U", 0.75).mean()),
        "bias": float(path.column("A", 0.75).mean() / path.column("U", 0.75).mean()),
        "eval": last["U"],
    }


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Interpolated: U falls by more than a hundred, and to a tenth of the level with decay; A stands beside it."""
    free, held = ([row for row in rows if row["case"] == case] for case in DECAY)
    interpolated = bool((column(free, "accuracy") > 0.99).all())
    fallen, apart = column(free, "U") / column(free, "start"), column(free, "U").max() / column(held, "U").min()
    why = (
        f"without decay {100 * column(free, 'accuracy').min():.3g} % or more of the noisy training labels are fitted "
        f"and mean U of the last quarter is {column(free, 'U').min():.2g} to {column(free, 'U').max():.2g}, a share of "
        f"{fallen.min():.1g} to {fallen.max():.1g} of the start; with decay it is {column(held, 'U').min():.2g} to "
        f"{column(held, 'U').max():.2g}; the biased A without decay is {column(free, 'A').min():.2g} to "
        f"{column(free, 'A').max():.2g}, {column(free, 'bias').min():.1f} to {column(free, 'bias').max():.1f} times U"
    )
    if interpolated and fallen.max() < 0.01 and apart < 0.1:
        return HOLDS, why
    return (IN_KIND if interpolated and fallen.max() < 0.1 and apart < 1 else NOT), why


CLAIM = Claim(
    "stationarity_interpolated",
    "Where the training data is interpolated the gradient norm goes to zero, and the biased estimate hides how far.",
    "arXiv 2110.06256 (the vanishing norm; the comparison of estimates is ours)",
    "MLP 64-64-64-10 with BatchNorm, 1,500 digits with 20 % random labels, batches of 100, SGD 0.1 with momentum 0.9, "
    "6,000 steps; U and A of 16 mini-batches every 100 steps, train mode, decay included",
    measure,
    tuple(DECAY),
    judge,
    {
        "loss": "loss, last quarter",
        "accuracy": "training accuracy",
        "start": "U at the start",
        "U": "mean U, last quarter",
        "A": "mean A",
        "fallen": "U at start / U",
        "bias": "A / U",
        "eval": "U at the end, eval mode",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
