"""Claim: the gradient stays bounded away from zero while the loss settles."""

from __future__ import annotations

import sys
from typing import Any

from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, column, run
from _stationarity import digits, language, level

SETTLED = 0.02


def measure(case: str, seed: int) -> Numbers:
    """Loss and gradient level over the second half of a run at a constant rate."""
    mlp = case == "BatchNorm MLP"
    path = digits(seed, 0.1, 3e-3).run(6000, 100) if mlp else language(seed, 0.3).run(2000, 50)
    fall = path.losses[0] - path.loss(0.75, 1)
    mean, low = level(path.column("U", 0.5))
    start = float(path.column("U", 0, 0.01).mean())
    return {
        "first": path.losses[0],
        "third": path.loss(0.5, 0.75),
        "fourth": path.loss(0.75, 1),
        "moved": abs(path.loss(0.5, 0.75) - path.loss(0.75, 1)) / fall,
        "start": start,
        "U": mean,
        "low": low,
        "share": low / start,
        "A": float(path.column("A", 0.5).mean()),
        "later": float(path.column("U", 0.75).mean() / path.column("U", 0.5, 0.75).mean()),
    }


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """A settled loss, a lower limit of the mean level above zero and above a twentieth of the start, and no fall."""
    settled = column(rows, "moved") < SETTLED
    above, far = column(rows, "low") > 0, column(rows, "share") > 0.05
    steady = column(rows, "later") > 0.5
    parts = []
    for case in CASES:
        mine = [row for row in rows if row["case"] == case]
        parts.append(
            f"{case}: the loss moves by at most {100 * column(mine, 'moved').max():.2g} % of its fall between the last "
            f"two quarters, the mean squared norm there is {column(mine, 'U').min():.3g} to "
            f"{column(mine, 'U').max():.3g}, "
            f"its lower 95 % limit at least {column(mine, 'low').min():.3g}, which is "
            f"{100 * column(mine, 'share').min():.2g} % of the start or more"
        )
    why = "; ".join(parts) + (
        f"; the lower limit is above a twentieth of the start in {int(far.sum())} of {len(rows)} runs, and the level "
        f"of the last quarter over that of the third {column(rows, 'later').min():.2g} to "
        f"{column(rows, 'later').max():.2g}"
    )
    if (settled & above & steady & far).all():
        return HOLDS, why
    return (IN_KIND if (settled & above & steady).all() else NOT), why


CASES = ("BatchNorm MLP", "language model")
CLAIM = Claim(
    "stationarity_gradient_stays",
    "On tasks that are not interpolated the gradient norm stays bounded away from zero while the loss settles.",
    "arXiv 2110.06256",
    "SGD with momentum 0.9 at a constant rate. MLP 64-64-64-10 with BatchNorm, 1,500 digits with 20 % random labels, "
    "batches of 100, rate 0.1, decay 3e-3, 6,000 steps; a causal transformer of one layer of width 16 on 4,000 "
    "sequences of 32 characters, batches of 32, rate 0.3, 2,000 steps. Unbiased level U of 16 mini-batches every "
    "100 or 50 steps, train mode, decay included; errors with autocorrelation",
    measure,
    CASES,
    judge,
    {
        "first": "first loss",
        "third": "loss, third quarter",
        "fourth": "loss, fourth",
        "moved": "change / fall",
        "start": "U at the start",
        "U": "mean U, second half",
        "low": "its lower limit",
        "share": "lower limit / start",
        "A": "mean A",
        "later": "U, fourth / third quarter",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
