"""Claim: at the edge of stability progress is steady, though the loss goes up at times."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, column, digits, run

import thalweg as tw

RATES = {"gradient descent 0.2": 0.2, "gradient descent 0.3": 0.3}


def measure(case: str, seed: int) -> Numbers:
    """Compare how often the loss rises along the run, and along the flow."""
    flow = tw.central_flow(digits(seed), tw.rules.GradientDescent(lr=RATES[case]), 500)
    critical = flow.data["critical"].values > 0
    edge = int(np.argmax(critical)) if critical.any() else len(critical) - 2
    run_loss, flow_loss = (flow.data[f"loss_{name}"].values[edge:] for name in ("discrete", "central"))
    return {
        "onset": float(edge),
        "run_rises": float((np.diff(run_loss) > 0).mean()),
        "flow_rises": float((np.diff(flow_loss) > 0).mean()),
        "largest_rise": float((np.diff(flow_loss) / flow_loss[:-1]).max()),
        "gained": float(1 - flow_loss[-1] / flow_loss[0]),
    }


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """The flow's loss must never rise, and the run's must."""
    ups, flow = column(rows, "run_rises"), column(rows, "flow_rises")
    why = (
        f"after the onset the loss of the run rises at {ups.min():.0%} to {ups.max():.0%} of the steps, that at the "
        f"flow at {flow.max():.1%} at most, and falls by {column(rows, 'gained').min():.0%} or more"
    )
    if bool((flow == 0).all() and (ups > 0).all()):
        return HOLDS, why
    return (IN_KIND if bool((flow < ups / 5).all()) else NOT), why


CLAIM = Claim(
    "flow_progress_at_the_edge",
    "At the edge of stability gradient descent makes steady progress: the loss along its central flow never rises, "
    "though its own loss does.",
    "arXiv 2410.24206",
    "MLP 64-32-32-10, GELU, 300 digits with 30 % random labels, full batch, 500 steps",
    measure,
    tuple(RATES),
    judge,
    {
        "onset": "critical from step",
        "run_rises": "steps at which the run's loss rises",
        "flow_rises": "at which the flow's does",
        "largest_rise": "largest relative change of the flow's loss in a step",
        "gained": "loss lost by the flow since",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
