"""Claim: RMSProp's preconditioner settles at the best one that is stable, which a convex program finds."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, column, run

import thalweg as tw
from thalweg.flows.central import CentralMap
from thalweg.flows.registry import law_of
from thalweg.flows.stationary import stationary_preconditioner

RULES = {"RMSProp 3e-3": (3e-3, 0.95), "RMSProp 6e-3": (6e-3, 0.95)}
STEPS = 300


def problem(seed: int) -> tw.Problem:
    """Build a network of 79 weights, small enough to form its Hessian."""
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)]
    x = torch.randn(100, 4, dtype=torch.float64)
    y = torch.sin(2 * x[:, :1]) * x[:, 1:2] + 0.5 * torch.randn(100, 1, dtype=torch.float64)
    return tw.Problem(torch.nn.Sequential(*layers).double(), torch.nn.MSELoss(), (x, y))


def measure(case: str, seed: int) -> Numbers:
    """Follow the central flow, and compare its preconditioner with the stationary one, early and late."""
    eta, beta2 = RULES[case]
    rule, p = tw.rules.RMSProp(lr=eta, beta2=beta2, eps=0.0, bias_correction=True), problem(seed)
    w, state = p.initial, rule.init(p.initial)
    for _ in range(20):
        w, state = rule.advance(w, state, p.gradient(w))
    flow = CentralMap(p, law_of(rule), w, state)
    numbers: dict[str, float] = {}
    for t in range(STEPS):
        frame = flow.step()
        if t == 0 or t == STEPS - 1:
            best = stationary_preconditioner(p, rule, frame.w, tol=1e-5).preconditioner.numpy()
            assert frame.metric is not None
            own = frame.metric.numpy()
            when = "early" if t == 0 else "late"
            numbers[f"cosine_{when}"] = float(own @ best / np.linalg.norm(own) / np.linalg.norm(best))
            numbers[f"size_{when}"] = float(own.sum() / best.sum())
    numbers["critical"] = frame.values["critical"]
    return numbers


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Late it must be the stationary one; early it must not."""
    early, late, size = (column(rows, key) for key in ("cosine_early", "cosine_late", "size_late"))
    why = (
        f"the cosine of the flow's preconditioner with the stationary one goes from {early.min():.2f} to "
        f"{early.max():.2f} at the start to {late.min():.3f} to {late.max():.3f} after {STEPS} steps, where its trace "
        f"is {size.min():.2f} to {size.max():.2f} of the other's"
    )
    if bool((late > 0.95).all() and (late > early).all()):
        return HOLDS, why
    return (IN_KIND if bool((late > early).all()) else NOT), why


CLAIM = Claim(
    "flow_stationary_preconditioner",
    "RMSProp's preconditioner approaches the stationary one: that which minimises tr P + g' P^-1 g / eta^2 among those "
    "that are stable, H <= 2 P.",
    "arXiv 2410.24206",
    f"MLP 4-6-6-1, tanh, 79 weights, 100 noisy samples, float64; {STEPS} steps of the flow; stationary to 1e-5",
    measure,
    tuple(RULES),
    judge,
    {
        "cosine_early": "cosine at the start",
        "cosine_late": "cosine at the end",
        "size_early": "trace over the stationary one's, start",
        "size_late": "the same, end",
        "critical": "critical directions at the end",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
