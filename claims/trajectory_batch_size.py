"""Claim: larger batches lower directional similarity."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, run
from _training import TRAINING, mapped, sgd_path

SIZES = (30, 75, 150, 300)
MOMENTUM, DECAY, EPOCHS, STEPS = 0.9, 5e-4, 30, 600
BUDGETS = ("epochs", "steps", "epochs, scaled rate")
CASES = {f"{size}, equal {budget}": (size, budget) for budget in BUDGETS for size in SIZES}


def measure(case: str, seed: int) -> Numbers:
    """Map one run; the rate is in proportion to the batch where it is scaled."""
    size, budget = CASES[case]
    steps = STEPS if budget == "steps" else EPOCHS * TRAINING // size
    rate = 0.1 * size / 150 if "scaled" in budget else 0.1
    path, accuracy = sgd_path(
        seed,
        steps=steps,
        every=steps // 30,
        batch_size=size,
        learning_rate=rate,
        momentum=MOMENTUM,
        weight_decay=DECAY,
    )
    table = mapped(path, DECAY, MOMENTUM).table()
    return {
        "steps": float(steps),
        "omega_off": table["omega_off"].value,
        "null": table["omega_off"].decay,
        "displacement": table["displacement"].value,
        "accuracy": accuracy,
    }


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Falling from each size to the next, at equal epochs as papers train; the other budgets stand beside."""
    seeds = sorted({row["seed"] for row in rows})

    def table(budget: str) -> np.ndarray:
        names = [name for name, (_, known) in CASES.items() if known == budget]
        return np.array(
            [[next(r for r in rows if (r["case"], r["seed"]) == (c, s))["omega_off"] for c in names] for s in seeds]
        )

    falls = {budget: np.diff(table(budget), axis=1) < 0 for budget in BUDGETS}
    parts = [
        f"at equal {budget} it goes from {table(budget)[:, 0].mean():.4f} to {table(budget)[:, -1].mean():.4f} "
        "and falls "
        f"at {falls[budget].sum()} of {falls[budget].size} steps between neighbouring sizes"
        for budget in BUDGETS
    ]
    why = f"similarity without the diagonal, from batches of {SIZES[0]} to {SIZES[-1]}: " + "; ".join(parts)
    if all(bool(one.all()) for one in falls.values()):
        return HOLDS, why
    ends = [bool((table(budget)[:, -1] < table(budget)[:, 0]).all()) for budget in BUDGETS]
    return (IN_KIND if ends[0] else NOT), why


CLAIM = Claim(
    "trajectory_batch_size",
    "Larger batches lower directional similarity.",
    "arXiv 2403.07379",
    "MLP 64-128-128-10 with BatchNorm, 1,500 digits with 20 % random labels, SGD 0.1 with momentum 0.9, decay 5e-4 and "
    f"two drops of the rate; {EPOCHS} epochs, or {STEPS} steps, or {EPOCHS} epochs with a rate in proportion to "
    "the batch "
    "(0.1 at 150); 31 checkpoints",
    measure,
    tuple(CASES),
    judge,
    {
        "steps": "steps",
        "omega_off": "mean similarity without the diagonal",
        "null": "that of the decay null",
        "displacement": "displacement r_T / n_1",
        "accuracy": "test accuracy",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
