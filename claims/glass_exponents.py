"""Claim: gradients vary like the distance in ReLU layers, and like its square in smooth ones."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, column, run
from _glass import cases, network, split

from thalweg.glass.exponents import variation_exponents


def measure(case: str, seed: int) -> Numbers:
    """Powers of hidden and output layers, distances 1e-4 to 3e-3 per weight."""
    found = variation_exponents(network(*_of(case, seed)).problem, batches=12, batch_size=128, seed=seed).layers
    hidden, output = found[:-1], found[-1]
    return {
        "first": float(np.mean([layer.first for layer in hidden])),
        "second": float(np.mean([layer.second for layer in hidden])),
        "lowest": min(layer.second for layer in hidden),
        "highest": max(layer.second for layer in hidden),
        "output_first": output.first,
        "output_second": output.second,
    }


def _of(case: str, seed: int) -> tuple[str, int, int]:
    name, steps = split(case)
    return name, seed, steps


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Hidden ReLU layers near 1 in both, smooth ones at 2 and 4."""
    relu = [row for row in rows if row["case"].startswith("ReLU")]
    smooth = [row for row in rows if not row["case"].startswith("ReLU")]
    start = [row for row in relu if ", 0 steps" in row["case"]]
    flat = bool((abs(column(smooth, "first") - 2) < 0.1).all() and (abs(column(smooth, "second") - 4) < 0.15).all())
    near = [bool((abs(column(start, key) - 1) < 0.25).all()) for key in ("first", "second")]
    all_near = bool((abs(column(relu, "first") - 1) < 0.25).all())
    why = (
        f"hidden ReLU layers: first differences {column(start, 'first').min():.2f} to "
        f"{column(start, 'first').max():.2f} at the start, {column(relu, 'first').min():.2f} to "
        f"{column(relu, 'first').max():.2f} over all; second {column(relu, 'second').min():.2f} to "
        f"{column(relu, 'second').max():.2f}; smooth networks: {column(smooth, 'first').min():.2f} to "
        f"{column(smooth, 'first').max():.2f} and {column(smooth, 'second').min():.2f} to "
        f"{column(smooth, 'second').max():.2f}"
    )
    if flat and all(near) and all_near:
        return HOLDS, why
    return (IN_KIND if flat and (column(relu, "second") < 2).all() else NOT), why


CLAIM = Claim(
    "glass_exponents",
    "Gradient variation grows like distance to the power 1 in ReLU layers and 2 in smooth ones (second differences: "
    "1 and 4).",
    "arXiv 2411.16914",
    "Digits, cross-entropy, batches of 128, 1e-4 to 3e-3 per weight; at the start and after 60 Adam steps",
    measure,
    cases("ReLU MLP", "ReLU CNN", "tanh MLP", "GELU MLP"),
    judge,
    {
        "first": "first differences, hidden",
        "second": "second differences, hidden",
        "lowest": "lowest second",
        "highest": "highest second",
        "output_first": "first, output layer",
        "output_second": "second, output layer",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
