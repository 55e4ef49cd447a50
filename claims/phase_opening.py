"""Claim: the phase of sharpness reduction opens with depth and 1/width, and local curvature does not show it."""

from __future__ import annotations

import sys
from typing import Any

import torch
from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, column, run

from thalweg.operators import hessian
from thalweg.phases.critical import critical_constants
from thalweg.phases.early_network import network_runs

SIZES = {"4 x 128": (4, 128), "4 x 64": (4, 64), "4 x 32": (4, 32), "8 x 64": (8, 64), "8 x 32": (8, 32)}
SAMPLES = 500


def measure(case: str, seed: int) -> Numbers:
    """c_loss of one initialisation, beside what the quadratic along its gradient predicts."""
    depth, width = SIZES[case]
    runs = network_runs(depth, width, (seed,), samples=SAMPLES)
    found = critical_constants(runs, barrier=False)
    single: Any = network_runs(depth, width, (seed,), samples=SAMPLES, engine="loop")
    g = single.first_gradient(0)
    along = float(torch.dot(g, hessian(single.copies[0].train, single.starts[0]).matvec(g)) / torch.dot(g, g))
    value = {name: float(one.value[0]) for name, one in found.constants.items()}
    quadratic = 2 * float(runs.sharpness0[0]) / along
    return {**value, "quadratic": quadratic, "missed": value["c_loss"] / quadratic}


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Means grow with depth and 1/width, every seed lies above two, and the quadratic falls short where it is open."""

    def mean(case: str, key: str = "c_loss") -> float:
        return float(column([row for row in rows if row["case"] == case], key).mean())

    chain = [mean(case) for case in ("4 x 128", "4 x 64", "4 x 32")]
    grows = chain[0] < chain[1] < chain[2] and mean("8 x 64") > mean("4 x 64") and mean("8 x 32") > mean("4 x 32")
    above = bool((column(rows, "c_loss") > 2).all())
    missed = [mean(case, "missed") for case in SIZES]
    why = (
        f"mean c_loss at depth 4 is {chain[0]:.1f}, {chain[1]:.1f}, {chain[2]:.1f} for widths 128, 64, 32, and at "
        f"depth 8 {mean('8 x 64'):.1f} and {mean('8 x 32'):.1f} for 64 and 32; the quadratic along the first gradient "
        f"predicts {column(rows, 'quadratic').min():.1f} to {column(rows, 'quadratic').max():.1f} throughout, too "
        f"little by a mean factor of {min(missed):.1f} to {max(missed):.1f}"
    )
    if grows and above and max(missed) > 2:
        return HOLDS, why
    return (IN_KIND if above and chain[0] < chain[2] else NOT), why


CLAIM = Claim(
    "phase_opening",
    "Learning rates well above 2 / sharpness still lower the loss at once, the more so for deep and narrow networks, "
    "and local second-order quantities do not predict up to where.",
    "arXiv 2302.12250",
    "ReLU MLPs, depth x width, 500 digits, full batch, half mean squared error, 10 steps, grid of 0.1 in log2 c",
    measure,
    tuple(SIZES),
    judge,
    {
        "c_loss": "c_loss",
        "c_sharp": "c_sharp",
        "c_max": "c_max",
        "quadratic": "c_loss of the quadratic",
        "missed": "measured / quadratic",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
