"""Claim: a smaller constant rate gives a larger gradient norm; and what the scale-free form says."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, run
from _stationarity import digits

RATES = (0.1, 0.03, 0.01)
DECAY, STEPS = 5e-3, 5000


def measure(case: str, seed: int) -> Numbers:
    """Norms over the second half of a run, as roots of mean squares."""
    path = digits(seed, float(case), DECAY).run(STEPS, 100)

    def root(name: str) -> float:
        return float(np.sqrt(max(0.0, path.column(name, 0.5).mean())))

    return {
        "loss": path.loss(0.5, 1),
        "gradient": root("U"),
        "noise": root("V"),
        "weights": float(path.column("norm", 0.5).mean()),
        "free": root("free"),
        "later": float(path.column("norm", 0.75).mean() / path.column("norm", 0.5, 0.75).mean()),
    }


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Larger at each smaller rate in every seed; the scale-free form is reported beside it."""

    def table(name: str) -> np.ndarray:
        seeds = sorted({row["seed"] for row in rows})
        return np.array(
            [[next(r for r in rows if (r["case"], r["seed"]) == (str(x), s))[name] for x in RATES] for s in seeds]
        )

    grows, noise = np.diff(table("gradient"), axis=1) > 0, np.diff(table("noise"), axis=1) > 0
    free, weights = table("free"), table("weights")
    means = {
        name: ", ".join(f"{x:.3g}" for x in table(name).mean(0)) for name in ("gradient", "noise", "free", "weights")
    }
    direction = (
        "falls"
        if (np.diff(free, axis=1) < 0).all()
        else "rises"
        if (np.diff(free, axis=1) > 0).all()
        else ("goes neither way in all seeds")
    )
    shrinks = "smaller" if (np.diff(weights, axis=1) < 0).all() else "not smaller at each step"
    why = (
        f"for rates {', '.join(map(str, RATES))} the mean gradient norm is {means['gradient']} and grows in "
        f"{int(grows.sum())} of {grows.size} steps, the noise {means['noise']} ({int(noise.sum())} of {noise.size}); "
        f"the norm of the weights is {means['weights']}, {shrinks} at smaller rates; the scale-free norm "
        f"{means['free']} {direction}"
    )
    if grows.all():
        return HOLDS, why
    ends = table("gradient")[:, -1] > table("gradient")[:, 0]
    return (IN_KIND if ends.all() else NOT), why


CLAIM = Claim(
    "stationarity_smaller_rate",
    "A smaller constant rate gives a larger gradient norm and noise.",
    "arXiv 2110.06256; that shrinking weights may be behind it is our hypothesis",
    f"MLP 64-64-64-10 with BatchNorm, 1,500 digits with 20 % random labels, batches of 100, SGD with momentum 0.9, "
    f"decay {DECAY:g}, {STEPS:,} steps, of which the second half counts; scale-free: |w| |grad| over "
    "scale-invariant groups",
    measure,
    tuple(map(str, RATES)),
    judge,
    {
        "loss": "loss",
        "gradient": "gradient norm",
        "noise": "noise",
        "weights": "norm of the weights",
        "free": "scale-free gradient norm",
        "later": "weights, fourth / third quarter",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
