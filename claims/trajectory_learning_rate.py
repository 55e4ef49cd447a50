"""Claim: larger learning rates lower directional similarity."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, run
from _training import mapped, sgd_path

RATES = {"0.02": 0.02, "0.05": 0.05, "0.1": 0.1, "0.2": 0.2, "0.5": 0.5}
MOMENTUM, DECAY = 0.9, 5e-4


def measure(case: str, seed: int) -> Numbers:
    """Map one run."""
    path, accuracy = sgd_path(seed, learning_rate=RATES[case], momentum=MOMENTUM, weight_decay=DECAY)
    table = mapped(path, DECAY, MOMENTUM).table()
    return {
        "omega_off": table["omega_off"].value,
        "null": table["omega_off"].decay,
        "relative": table["relative"].value,
        "displacement": table["displacement"].value,
        "accuracy": accuracy,
    }


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Falling from each rate to the next, in every seed."""
    seeds = sorted({row["seed"] for row in rows})
    table = np.array(
        [[next(r for r in rows if (r["case"], r["seed"]) == (c, s))["omega_off"] for c in RATES] for s in seeds]
    )
    falls = np.diff(table, axis=1) < 0
    relative = np.array([row["relative"] for row in rows])
    why = (
        f"similarity without the diagonal falls from {table[:, 0].mean():.4f} at {min(RATES.values())} to "
        f"{table[:, -1].mean():.4f} at {max(RATES.values())}, at {falls.sum()} of {falls.size} steps between "
        "neighbouring "
        f"rates; relative to the start it is {relative.min():.2f} to {relative.max():.2f}"
    )
    if bool(falls.all()):
        return HOLDS, why
    return (IN_KIND if bool((table[:, -1] < table[:, 0]).all() and falls.mean() > 0.5) else NOT), why


CLAIM = Claim(
    "trajectory_learning_rate",
    "Larger learning rates lower directional similarity.",
    "arXiv 2403.07379",
    "MLP 64-128-128-10 with BatchNorm, 1,500 digits with 20 % random labels, SGD with momentum 0.9, decay 5e-4 and two "
    "drops of the rate, batches of 128, 660 steps, 61 checkpoints",
    measure,
    tuple(RATES),
    judge,
    {
        "omega_off": "mean similarity without the diagonal",
        "null": "that of the decay null",
        "relative": "mean relative similarity",
        "displacement": "displacement r_T / n_1",
        "accuracy": "test accuracy",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
