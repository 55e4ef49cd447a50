"""Claim: momentum and weight decay together lower directional similarity more than either alone."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, run
from _training import mapped, sgd_path

MOMENTUM, DECAY = 0.9, 1e-3
CASES = {
    "neither": {},
    "decay": {"weight_decay": DECAY},
    "momentum": {"momentum": MOMENTUM},
    "both": {"momentum": MOMENTUM, "weight_decay": DECAY},
    "rate x 10": {"learning_rate": 0.1 / (1 - MOMENTUM)},
    "rate x 10, decay": {"learning_rate": 0.1 / (1 - MOMENTUM), "weight_decay": DECAY},
}


def measure(case: str, seed: int) -> Numbers:
    """Map one run."""
    settings = CASES[case]
    path, accuracy = sgd_path(seed, **settings)
    found = mapped(path, settings.get("weight_decay", 0.0), settings.get("momentum", 0.0))
    row = found.table()["omega_off"]
    return {
        "omega": found.mds["uniform"].omega,
        "omega_off": row.value,
        "null": row.decay,
        "displacement": found.table()["displacement"].value,
        "accuracy": accuracy,
    }


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Lowest with both in every seed, and by more than the sum; beside it, what the null does."""
    seeds = sorted({row["seed"] for row in rows})

    def of(case: str, key: str = "omega_off") -> np.ndarray:
        return np.array([row[key] for seed in seeds for row in rows if (row["case"], row["seed"]) == (case, seed)])

    lowest = of("both") < np.minimum(of("momentum"), of("decay"))
    alone, within = of("neither") - of("decay"), of("momentum") - of("both")
    together = within > alone
    share = (of("momentum", "null") - of("both", "null")) / within
    rate = (of("rate x 10") - of("rate x 10, decay")) / within
    total = (of("neither", "null") - of("both", "null")) / (of("neither") - of("both"))
    reading = ": it accounts for more than the whole drop, and updates along the old weights offset the rest"
    why = (
        f"similarity without the diagonal is lowest with both in {lowest.sum()} of {len(seeds)} runs; decay lowers it "
        f"by {alone.mean():.4f} alone and by {within.mean():.4f} with momentum (more in {together.sum()} of "
        f"{len(seeds)}). The decay null, in which what is added is unrelated to the old weights, falls by "
        f"{share.min():.1f} to {share.max():.1f} times what decay adds under momentum, and by {total.min():.1f} to "
        f"{total.max():.1f} times all that both do{reading if min(share.min(), total.min()) > 1 else ''}. Ten times "
        f"the rate in place of momentum, so that rate / (1 - momentum) is the same, makes decay lower it by "
        f"{rate.min():.2f} to {rate.max():.2f} of what it does under momentum"
    )
    if bool(lowest.all() and together.all()):
        return HOLDS, why
    return (IN_KIND if bool(lowest.mean() > 0.5) else NOT), why


CLAIM = Claim(
    "trajectory_momentum_decay",
    "Momentum and weight decay together lower directional similarity more than either alone, and more than their sum.",
    "arXiv 2403.07379",
    "MLP 64-128-128-10 with BatchNorm, 1,500 digits with 20 % random labels, SGD 0.1 with two drops, batches of 128, "
    "660 steps, 61 checkpoints; momentum 0.9, decay 1e-3",
    measure,
    tuple(CASES),
    judge,
    {
        "omega": "mean similarity",
        "omega_off": "the same without the diagonal",
        "null": "that of the decay null",
        "displacement": "displacement r_T / n_1",
        "accuracy": "test accuracy",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
