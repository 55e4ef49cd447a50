"""Claim: the Hessian misjudges the expected loss change near kinks, and the glass term repairs it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, column, run
from _glass import BATCH, cases, network, split

from thalweg.glass.look import look

LENGTHS = (0.1, 0.3, 1.0, 3.0)


def measure(case: str, seed: int) -> Numbers:
    """Deviation from the Hessian model along Adam's next update over what glass predicts, by length."""
    name, steps = split(case)
    found = network(name, seed, steps)
    change = look(
        found.problem, update=found.optimizer, batches=24, batch_size=BATCH, lengths=LENGTHS, seed=seed
    ).change
    assert change is not None
    e = change.expected
    at = LENGTHS.index(1.0)
    return {
        **{f"ratio_{t:g}": float(r) for t, r in zip(LENGTHS, change.ratio)},
        **{f"whole_{t:g}": float(r) for t, r in zip(LENGTHS, change.ratio_with_mean)},
        "misjudged": float(change.size[at] / abs(e.hessian[at])),
        "one_sign": float(abs(change.mean[at]) / change.size[at]),
        "power": e.power,
    }


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Repaired: within half and one and a half of the glass; in kind: nearer with glass than without, above a half."""
    relu = [row for row in rows if row["case"].startswith("ReLU")]
    far = [t for t in LENGTHS if t >= 0.3]
    ratios, whole = (np.concatenate([column(relu, f"{kind}_{t:g}") for t in far]) for kind in ("ratio", "whole"))
    smooth = column([row for row in rows if not row["case"].startswith("ReLU")], "power")
    told = bool((smooth > 3.5).all())
    near, near_whole = (float(np.mean((part > 0.5) & (part < 1.5))) for part in (ratios, whole))
    better = float(np.mean(ratios > 0.5))
    missed, signed = column(relu, "misjudged"), column(relu, "one_sign")
    why = (
        f"from 0.3 updates on the deviation is {ratios.min():.2f} to {ratios.max():.2f} times the glass predicted, "
        f"median {np.median(ratios):.2f}; within a half of it in {near:.0%}, nearer to it than to the Hessian's zero "
        f"in {better:.0%}; with the mean effect of kinks, which finite differences see, {whole.min():.2f} to "
        f"{whole.max():.2f}, within a half in {near_whole:.0%}: up to {signed.max():.0%} of it has one sign, "
        f"against the model of zero-mean jumps; it is {missed.min():.0%} to {missed.max():.0%} of the Hessian part at "
        f"one update; along smooth networks' updates the power is {smooth.min():.2f} or more"
    )
    if told and near > 0.9:
        return HOLDS, why
    return (IN_KIND if told and better > 0.9 else NOT), why


CLAIM = Claim(
    "glass_loss_change",
    "Near kinks the Hessian misjudges the expected loss change of a step, and the glass term repairs it, as a function "
    "of the step's length.",
    "arXiv 2411.16914",
    "Digits, Adam 1e-3, its next update at 0.1 to 3 lengths, 24 batches of 64; deviation of a batch's loss from its "
    "own Hessian model, mean absolute value, over c sqrt(rho) t^1.5 with the density along the update",
    measure,
    cases("ReLU MLP", "ReLU CNN", "tanh MLP"),
    judge,
    {
        "ratio_0.1": "deviation / glass at 0.1",
        "ratio_0.3": "at 0.3",
        "ratio_1": "at 1 update",
        "ratio_3": "at 3",
        "whole_0.3": "with mean effect, at 0.3",
        "whole_1": "at 1 update",
        "whole_3": "at 3",
        "misjudged": "deviation / Hessian part at 1",
        "one_sign": "share of one sign",
        "power": "power along the update",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
