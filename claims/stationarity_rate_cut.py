"""Claim: from an invariant regime the loss drops when the rate is cut."""

from __future__ import annotations

import copy
import math
import sys
from typing import Any

import numpy as np
from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, column, run
from _stationarity import Training, digits, language

from thalweg.stationarity.series import time_average

BEFORE = {"BatchNorm MLP": 4000, "language model": 1500}
AFTER, CUT = 600, 0.1


def start(case: str, seed: int) -> tuple[Training, float]:
    """Return a training and its rate."""
    rate = 0.1 if case == "BatchNorm MLP" else 0.3
    return (digits(seed, rate, 3e-3) if case == "BatchNorm MLP" else language(seed, rate)), rate


def measure(case: str, seed: int) -> Numbers:
    """Losses with the rate kept and cut, from the same state and with the same mini-batches."""
    training, rate = start(case, seed)
    path = training.run(BEFORE[case], None)
    fork, _ = start(case, seed)
    fork.model.load_state_dict(copy.deepcopy(training.model.state_dict()))
    fork.optimizer.load_state_dict(copy.deepcopy(training.optimizer.state_dict()))
    for _ in range(BEFORE[case]):
        next(fork._batches)
    fork.rate(rate * CUT)
    kept, cut = np.array(training.run(AFTER, None).losses), np.array(fork.run(AFTER, None).losses)
    first, second = kept[AFTER // 2 :], cut[AFTER // 2 :]
    error = math.hypot(time_average(first).standard_error, time_average(second).standard_error)
    return {
        "before": path.loss(1 - AFTER / BEFORE[case], 1),
        "kept": float(first.mean()),
        "cut": float(second.mean()),
        "soon": float(kept[:100].mean() - cut[:100].mean()),
        "drop": float(first.mean() - second.mean()),
        "z": float((first.mean() - second.mean()) / error),
    }


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Below the kept rate by more than three standard errors in every run, where the loss had settled before."""
    parts, settled = [], []
    for case in BEFORE:
        mine = [row for row in rows if row["case"] == case]
        drop = column(mine, "drop")
        share, fell = drop / column(mine, "kept"), column(mine, "before") - column(mine, "kept")
        settled.append(bool((fell < 0.2 * drop).all()))
        parts.append(
            f"{case}: with the rate cut the loss is lower by {100 * share.min():.2g} to {100 * share.max():.2g} % of "
            f"what it is with the rate kept, z {column(mine, 'z').min():.1f} to {column(mine, 'z').max():.1f}; within "
            f"100 steps by {column(mine, 'soon').min():.2g} to {column(mine, 'soon').max():.2g}; with the rate kept it "
            + (
                "had settled"
                if settled[-1]
                else f"still fell by {fell.min():.2g} to {fell.max():.2g}, so no invariant regime"
            )
        )
    sure, down = column(rows, "z") > 3, column(rows, "drop") > 0
    return (HOLDS if sure.all() and all(settled) else IN_KIND if down.all() else NOT), "; ".join(parts)


CLAIM = Claim(
    "stationarity_rate_cut",
    "From an invariant regime the loss drops when the rate is cut, where more steps at the same rate do not lower it.",
    "arXiv 2110.06256, Theorem 5.2 (one step) and figures",
    f"BatchNorm MLP on digits with 20 % random labels, rate 0.1, decay 3e-3, 4,000 steps; transformer of one layer on "
    f"characters, rate 0.3, 1,500 steps; then {AFTER} steps twice from the same state on the same mini-batches, rate "
    f"kept or cut to a tenth; losses of mini-batches, the second half of these steps, errors with autocorrelation",
    measure,
    tuple(BEFORE),
    judge,
    {
        "before": "loss before",
        "kept": "loss, rate kept",
        "cut": "loss, rate cut",
        "soon": "kept - cut, first 100 steps",
        "drop": "kept - cut, second half",
        "z": "z",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
