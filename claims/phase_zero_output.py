"""Claim: a network whose output starts at zero has c_loss near two at every depth and width."""

from __future__ import annotations

import sys
from typing import Any

from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, column, run

from thalweg.phases.critical import critical_constants
from thalweg.phases.early_network import network_runs

SIZES = {"4 x 128": (4, 128), "4 x 32": (4, 32), "8 x 64": (8, 64)}


def measure(case: str, seed: int) -> Numbers:
    """c_loss with the last layer zero, and as usual."""
    depth, width = SIZES[case]
    found = {}
    for init, eps in (("zero_output", 0.05), ("standard", 0.0)):
        runs = network_runs(depth, width, (seed,), samples=500, init=init)
        found[init] = critical_constants(runs, barrier=False, eps_sharp=eps)["c_loss"]
    return {"zero": float(found["zero_output"].value[0]), "standard": float(found["standard"].value[0])}


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Within a fifth of two for every seed, whatever the standard initialisation has."""
    zero, standard = column(rows, "zero"), column(rows, "standard")
    why = (
        f"c_loss is {zero.min():.2f} to {zero.max():.2f} with a zero output, {standard.min():.1f} to "
        f"{standard.max():.1f} without"
    )
    if bool((abs(zero / 2 - 1) < 0.2).all() and (zero < standard).all()):
        return HOLDS, why
    return (IN_KIND if bool((zero < standard).mean() > 0.8) and zero.mean() < 3 else NOT), why


CLAIM = Claim(
    "phase_zero_output",
    "With a zero output at initialisation c_loss is near 2 whatever depth and width: the phase of sharpness reduction "
    "does not open.",
    "arXiv 2302.12250",
    "ReLU MLPs, depth x width, 500 digits, full batch, half mean squared error, 10 steps, grid of 0.1 in log2 c",
    measure,
    tuple(SIZES),
    judge,
    {"zero": "c_loss, zero output", "standard": "c_loss, standard"},
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
