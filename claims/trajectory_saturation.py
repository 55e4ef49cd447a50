"""Claim: directionality saturates early."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, column, run
from _training import mapped, sgd_path

from thalweg.trajectories.hallmarks import saturation
from thalweg.trajectories.nulls import walk

CASES = {
    "SGD, drops": {"learning_rate": 0.1},
    "momentum, decay, drops": {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-3},
    "momentum, decay, constant rate": {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-3, "drops": False},
}
DIRECTION, ALIKE, EARLY = 0.9, 0.95, 1 / 3


def settled(relative: np.ndarray) -> float:
    """Return the share of the run after which the way from the start keeps within a cosine of its end's."""
    below = np.flatnonzero(~(relative[1:, -1] >= DIRECTION))
    return float((below[-1] + 2 if len(below) else 1) / (len(relative) - 1))


def alike(similarity: np.ndarray) -> float:
    """Return the share of the run after which all checkpoints are alike."""
    found = saturation(similarity, ALIKE)
    return 1.0 if found is None else found / (len(similarity) - 1)


def measure(case: str, seed: int) -> Numbers:
    """Measure when a run has its direction, and when a random walk of the same update sizes would."""
    settings = CASES[case]
    path, _ = sgd_path(seed, **settings)
    whole = mapped(path, settings.get("weight_decay", 0.0), settings.get("momentum", 0.0)).path()
    null = walk(whole.steps, start=float(whole.norms[0]), lengths=whole.lengths)
    travelled = np.concatenate([[0.0], np.cumsum(whole.lengths)]) / whole.lengths.sum()
    share = settled(whole.relative(0))
    return {
        "settled": share,
        "settled_walk": settled(null.relative(0)),
        "length": float(travelled[round(share * (len(whole) - 1))]),
        "alike": alike(whole.similarity),
        "alike_walk": alike(null.similarity),
        "displacement": float(whole.radii[-1] / whole.norms[0]),
    }


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Early, and earlier than a random walk of the same updates, by the direction from the start.

    Saturation of the map itself stands beside it and is no part of the verdict: where displacement is small any path
    looks alike.
    """
    run, null = column(rows, "settled"), column(rows, "settled_walk")
    same, same_null = column(rows, "alike"), column(rows, "alike_walk")
    alike_too = (same_null <= same).sum()
    reading = ": that a map saturates is by itself no sign of direction" if alike_too > len(run) / 2 else ""
    why = (
        f"the way from the start keeps within a cosine of {DIRECTION} of its end's after {run.min():.0%} to "
        f"{run.max():.0%} of the run, within a third in {(run <= EARLY).sum()} of {len(run)} runs (random walk with "
        f"the same update sizes: {null.min():.0%} to {null.max():.0%}, later in {(run < null).sum()}). All "
        f"checkpoints are alike to {ALIKE} after {same.min():.0%} to {same.max():.0%}, but those of the walk after "
        f"{same_null.min():.0%} to {same_null.max():.0%}, no later in {alike_too} of {len(run)} runs{reading}"
    )
    early, earlier = run <= EARLY, run < null
    if bool(early.all() and earlier.all()):
        return HOLDS, why
    return (IN_KIND if bool(earlier.all() and early.mean() > 0.5) else NOT), why


CLAIM = Claim(
    "trajectory_saturation",
    "Directionality saturates in the first phase of training, earlier than in a random walk with the same "
    "update sizes.",
    "arXiv 2403.07379",
    "MLP 64-128-128-10 with BatchNorm, 1,500 digits with 20 % random labels, SGD 0.1, momentum 0 or 0.9, decay "
    "0 or 1e-3, "
    "batches of 128, 660 steps, 61 checkpoints",
    measure,
    tuple(CASES),
    judge,
    {
        "settled": "share of the run until the direction from the start is its last",
        "settled_walk": "the same for a random walk",
        "length": "share of the length travelled by then",
        "alike": "share of the run until all checkpoints are alike",
        "alike_walk": "the same for a random walk",
        "displacement": "displacement r_T / n_1",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
