"""Claim: glass dominates early layers, the Hessian the output."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, column, run
from _glass import BATCH, RATE, cases, network, split

from thalweg.glass.density import glass_density


def measure(case: str, seed: int) -> Numbers:
    """Move below which glass outweighs the Hessian, over Adam's move of 1e-3 per weight, by layer."""
    name, steps = split(case)
    found = glass_density(network(name, seed, steps).problem, sigma=RATE, batches=32, batch_size=BATCH, seed=seed)
    crossing = np.array([row.crossover for row in found.layers]) / RATE
    leakage = [row.leakage for row in found.layers]
    order = np.argsort(np.argsort(-crossing))
    rank = float(np.corrcoef(order, np.arange(len(order)))[0, 1])
    return {
        "first": crossing[0],
        "last_hidden": crossing[-2],
        "output": crossing[-1],
        "rank": rank,
        "leak_first": leakage[0],
        "leak_output": leakage[-1],
    }


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Glass ahead at Adam's move in the first layer, the Hessian in the output, and less glass the later a layer."""
    first, output, rank = (column(rows, key) for key in ("first", "output", "rank"))
    ends = float(np.mean((first > 1) & (output < 1)))
    start = [row for row in rows if ", 0 steps" in row["case"]]
    at_start = float(np.mean((column(start, "first") > 1) & (column(start, "output") < 1)))
    why = (
        f"glass outweighs the Hessian up to {first.min():.2g} to {first.max():.2g} moves of Adam in the first layer, "
        f"up to {output.max():.1g} in the output; so the first belongs to glass and the output to the Hessian at that "
        f"move in {at_start:.0%} of cases at the start, {ends:.0%} of all; rank correlation with depth "
        f"{rank.min():.2f} to {rank.max():.2f}"
    )
    if ends == 1 and rank.min() > 0.5:
        return HOLDS, why
    return (IN_KIND if at_start == 1 and (first > 10 * output).all() else NOT), why


CLAIM = Claim(
    "glass_layers",
    "Glass dominates the early layers, the Hessian those near the output.",
    "arXiv 2411.16914",
    "Digits, cross-entropy, Adam 1e-3, batches of 64; the move per weight at which glass and Hessian part of the "
    "expected loss change are equal, in units of 1e-3, which is Adam's own",
    measure,
    cases("ReLU MLP", "ReLU CNN", steps=(0, 60, 300)),
    judge,
    {
        "first": "first layer",
        "last_hidden": "last hidden layer",
        "output": "output layer",
        "rank": "rank correlation with depth",
        "leak_first": "glass in finite differences, first",
        "leak_output": "output",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
