"""Claim: the central flow predicts time averages of training at the edge of stability."""

from __future__ import annotations

import sys
from typing import Any

from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, column, digits, run

import thalweg as tw

RULES = {
    "gradient descent 0.2": (tw.rules.GradientDescent(lr=0.2), 0),
    "scalar RMSProp 0.04": (tw.rules.ScalarRMSProp(lr=0.04, bias_correction=True), 10),
    "RMSProp 5e-4": (tw.rules.RMSProp(lr=5e-4, bias_correction=True), 10),
}


def measure(case: str, seed: int) -> Numbers:
    """Forecast 500 steps beside the run."""
    rule, warm = RULES[case]
    flow = tw.central_flow(digits(seed), rule, 500, warm_start=warm)
    found = flow.compare(sigma=20)
    return {
        "error": found.loss_error,
        "worst": found.loss_error_max,
        "without": found.loss_error_without,
        "distance": found.distance,
        "variance": found.variance_ratio,
    }


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Under one per cent everywhere, and better than without the oscillation."""
    error, without, ratio = column(rows, "error"), column(rows, "without"), column(rows, "variance")
    why = (
        f"the averaged loss is off by {error.min():.2%} to {error.max():.2%} ({without.min():.2%} to "
        f"{without.max():.2%} without the oscillation), and the measured variance is {ratio.min():.2f} to "
        f"{ratio.max():.2f} of the predicted one"
    )
    if bool((error < 0.01).all() and (error < without).all()):
        return HOLDS, why
    return (IN_KIND if bool((error < without).mean() > 0.5) else NOT), why


CLAIM = Claim(
    "flow_time_averages",
    "The central flow predicts time averages of loss and oscillation for gradient descent, scalar RMSProp and RMSProp.",
    "arXiv 2410.24206",
    "MLP 64-32-32-10, GELU, 300 digits with 30 % random labels, full batch, 500 steps; averages over 20 steps",
    measure,
    tuple(RULES),
    judge,
    {
        "error": "loss error, mean",
        "worst": "loss error, most",
        "without": "the same without oscillation",
        "distance": "end distance over travel",
        "variance": "variance measured / predicted",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
