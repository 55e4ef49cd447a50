"""How well forecasts hold for rules that average gradients, whose flow is our own derivation.

MLP 64-32-32-10 with GELU, 300 digits, 30 % of the labels random, 400 steps; averages over 20 steps.

    python benchmarks/flow_momentum.py            about a minute; --quick runs two of the rules
    python benchmarks/flow_momentum.py --save     also writes results/flow_momentum.json and .md
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from dataclasses import asdict

import torch
from _common import arguments, header, machine, save, table

import thalweg as tw
from flows import digits

RULES = (
    (tw.rules.GradientDescent(lr=0.2), 0),
    (tw.rules.HeavyBall(lr=0.2, momentum=0.5), 0),
    (tw.rules.HeavyBall(lr=0.2, momentum=0.9), 0),
    (tw.rules.Nesterov(lr=0.2, momentum=0.5), 0),
    (tw.rules.Nesterov(lr=0.1, momentum=0.9), 0),
    (tw.rules.Adam(lr=2e-3, beta1=0.5, beta2=0.99), 10),
    (tw.rules.Adam(lr=2e-3, beta1=0.9, beta2=0.99), 10),
    (tw.rules.AdamW(lr=2e-3, beta1=0.9, beta2=0.99, weight_decay=0.1), 10),
)


def main() -> int:
    """Measure, print, save."""
    options = arguments(__doc__ or "", "flow_momentum")
    about, found = machine(), []
    for rule, warm in RULES[:2] if options.quick else RULES:
        flow = tw.central_flow(digits(torch.float32), rule, 400, warm_start=warm)
        found.append({"rule": rule.describe(), **asdict(flow.compare(20.0)), "cost": flow.cost["central"]})
    head = [
        "rule",
        "loss error mean / max",
        "without oscillation",
        "end distance",
        "variance ratio",
        "gradients a unit",
    ]
    rows = [
        [
            one["rule"],
            f"{one['loss_error']:.2%} / {one['loss_error_max']:.1%}",
            f"{one['loss_error_without']:.2%}",
            f"{one['distance']:.1%}",
            f"{one['variance_ratio']:.2f}",
            f"{one['cost']:.1f}",
        ]
        for one in found
    ]
    text = f"{header(about)}\n\n{table(head, rows)}"
    print(text)
    if options.save:
        save(options.out, "flow_momentum", {"machine": about, "quick": options.quick, "rows": found}, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
