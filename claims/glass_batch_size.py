"""Claim: glass density scales as one over the batch size."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, column, run
from _glass import RATE, cases, network, split

from thalweg.glass.density import glass_density

SIZES = (32, 64, 128, 256, 512)


def measure(case: str, seed: int) -> Numbers:
    """Slope of log density against log batch size in the first layer and over the hidden layers."""
    name, steps = split(case)
    problem = network(name, seed, steps).problem
    rows = []
    for size in SIZES:
        found = glass_density(
            problem, sigma=RATE, batches=max(2048 // size, 12), batch_size=size, hessian=False, seed=seed
        )
        rows.append([size * row.rho for row in found.layers][:-1])
    scaled = np.array(rows)
    slopes = [float(np.polyfit(np.log(SIZES), np.log(scaled[:, j]), 1)[0]) - 1 for j in range(scaled.shape[1])]
    return {
        **{f"at_{size}": float(scaled[i, 0]) for i, size in enumerate(SIZES)},
        "first": slopes[0],
        "mean": float(np.mean(slopes)),
    }


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """A slope of minus one."""
    slopes = np.concatenate([column(rows, "first"), column(rows, "mean")])
    why = f"the slope of log density against log batch size is {slopes.min():.2f} to {slopes.max():.2f}"
    if (abs(slopes + 1) < 0.1).all():
        return HOLDS, why
    return (IN_KIND if (abs(slopes + 1) < 0.3).all() else NOT), why


CLAIM = Claim(
    "glass_batch_size",
    "Glass density is inversely proportional to the batch size.",
    "follows from the jumps' size and number; model of arXiv 2411.16914",
    "Digits, cross-entropy, probe 1e-3; batches of 32 to 512",
    measure,
    cases("ReLU MLP", "ReLU CNN"),
    judge,
    {
        **{f"at_{size}": f"rho x B at B = {size}" for size in SIZES},
        "first": "slope, first layer",
        "mean": "mean slope, hidden layers",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
