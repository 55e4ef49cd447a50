"""What a forecast costs: gradients and seconds per unit of time, beside the reference method and the training itself.

Three rules on an MLP 64-32-32-10 with GELU, 300 digits, 30 % of the labels random, and two of them at twice the rate,
where five directions are critical. The map is compared with Euler
substeps of the differential equation with fresh eigenvectors and exact third derivatives at every unit of time: at
one substep (the same flow, so that their difference is the error of the cheap scheme) and, at the lower rates, at four,
which come closer to the differential equation that "flow" solves. Costs are counted
in gradient-equivalents (1.5 for a product from a kept graph, 1.75 for recording it), which vary with no machine. Times
are the best of three where they are short; what torch loads at the first Hessian product of a process is left out.

    python benchmarks/flows.py            about eight minutes of CPU time
    python benchmarks/flows.py --quick    under a minute
    python benchmarks/flows.py --save     also writes results/flows.json and flows.md
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from _common import arguments, clock, header, machine, save, table

import thalweg as tw
from thalweg.flows.central import CentralMap
from thalweg.flows.continuous import CentralFlow
from thalweg.flows.process import Discrete, Process
from thalweg.flows.reference import CentralReference, Euler
from thalweg.flows.registry import law_of

DESCENT, SQUARES = (1.5, 6.0, 12.0), (3.0, 12.0, 24.0)
CASES = (
    ("gradient descent 0.2", tw.rules.GradientDescent(lr=0.2), 0, DESCENT),
    ("scalar RMSProp 0.04", tw.rules.ScalarRMSProp(lr=0.04, bias_correction=True), 10, SQUARES),
    ("RMSProp 5e-4", tw.rules.RMSProp(lr=5e-4, bias_correction=True), 10, SQUARES),
)
"""Name, rule, warm start, and the most gradients a unit that we aim at: before the edge, with three, with five."""
MANY = (
    ("gradient descent 0.4", tw.rules.GradientDescent(lr=0.4), 0, DESCENT),
    ("RMSProp 1e-3", tw.rules.RMSProp(lr=1e-3, bias_correction=True), 10, SQUARES),
)
"""The same at rates where five directions become critical. The edge comes soon: few units are before it."""


def digits(dtype: torch.dtype) -> tw.Problem:
    """The problem of all cases."""
    from sklearn.datasets import load_digits

    data = load_digits()
    stream = torch.Generator().manual_seed(0)
    picked = torch.randperm(len(data.target), generator=stream)[:300]
    x, y = torch.tensor(data.data)[picked], torch.tensor(data.target)[picked]
    wrong = torch.rand(300, generator=stream) < 0.3
    y[wrong] = torch.randint(0, 10, (int(wrong.sum()),), generator=stream)
    torch.manual_seed(0)
    layers = [
        torch.nn.Linear(64, 32),
        torch.nn.GELU(),
        torch.nn.Linear(32, 32),
        torch.nn.GELU(),
        torch.nn.Linear(32, 10),
    ]
    target = torch.nn.functional.one_hot(y, 10).to(dtype)

    def loss(out: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return 0.5 * (out - goal).square().sum(1).mean()

    return tw.Problem(torch.nn.Sequential(*layers).to(dtype), loss, (((x - x.mean()) / x.std()).to(dtype), target))


def follow(process: Process, steps: int) -> dict[str, Any]:
    """Run ``steps`` units of time; costs by number of critical directions."""
    begin = clock()
    losses, critical, spent = [], [], [0.0]
    for _ in range(steps):
        frame = process.step()
        losses.append(frame.values.get("predicted_loss", frame.values["loss"]))
        critical.append(int(frame.values.get("critical", 0)))
        spent.append(process.ledger.equivalents)
    seconds = clock() - begin
    bills = np.zeros(steps)  # a look at eigenvalues pays for the units until the next one
    looks = getattr(process, "looks", [])
    for (time, cost), after in zip(looks, [*looks[1:], (steps, 0.0)]):
        start, end = int(time), int(min(after[0], steps))
        if end <= start:  # it was gone back from
            start, end = end - 1, end
        if start < steps:
            bills[start:end] += cost / (end - start)
    rest = spent[-1] - sum(cost for _, cost in looks)
    bills = bills + rest / steps if looks else np.diff(spent)
    by_count: dict[int, list[float]] = defaultdict(list)
    for count, bill in zip(critical, bills.tolist()):
        by_count[count].append(bill)
    return {
        "seconds": seconds / steps,
        "cost": process.ledger.equivalents / steps,
        "products": process.ledger.products / steps,
        "by_count": {k: [float(np.mean(v)), len(v)] for k, v in sorted(by_count.items())},
        "losses": losses,
    }


def measure(
    name: str, rule: Any, warm: int, steps: int, dtype: torch.dtype, substeps: tuple[int, ...]
) -> dict[str, Any]:
    """Run discrete, map, flow and the references of one case."""
    problem, law = digits(dtype), law_of(rule)
    w, state = problem.initial, rule.init(problem.initial)
    for _ in range(warm):
        w, state = rule.advance(w, state, problem.gradient(w))
    CentralMap(problem, law, w, state).step()  # loads what torch loads late
    short: dict[str, Any] = {"training": Discrete, "map": CentralMap, "flow": CentralFlow}
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(3):  # in turn, so that other work on the machine meets them alike
        for kind, process in short.items():
            row = follow(process(problem, law, w, state), steps)
            rows[kind] = row | {"seconds": min(row["seconds"], rows.get(kind, row)["seconds"])}
    for count in substeps:
        kind = f"reference, {count} substep{'s' if count > 1 else ''}"
        rows[kind] = follow(CentralReference(problem, law, w, state, Euler(substeps=count)), steps)
    truth = np.array(rows["reference, 1 substep"]["losses"])
    for row in rows.values():
        row["error"] = float(np.abs(np.array(row.pop("losses")) / truth - 1).max())
    return {"case": name, "dtype": str(dtype).removeprefix("torch."), "steps": steps, "rows": rows}


def show(found: list[dict[str, Any]]) -> str:
    """Format the tables."""
    parts = []
    for one in found:
        unit = one["rows"]["training"]["seconds"]
        rows = []
        for kind, row in one["rows"].items():
            counts = "; ".join(f"k={k}: {cost:.1f} ({units})" for k, (cost, units) in row["by_count"].items())
            error = "" if kind == "training" else f"{row['error']:.0e}"
            rows.append([kind, f"{row['cost']:.1f}", counts, f"{row['seconds'] / unit:.1f}", error])
        head = ["process", "gradients a unit", "by critical directions (units)", "time / training", "loss differs by"]
        parts.append(f"### {one['case']}, {one['dtype']}, {one['steps']} units of time\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def main() -> int:
    """Measure, print, save; 1 if the map is not the same flow as its reference."""
    options = arguments(__doc__ or "", "flows")
    about = machine()
    cases = CASES[:1] if options.quick else (*CASES, *MANY)
    found = []
    for case in cases:
        steps = 120 if options.quick else 600 if case in MANY else 400
        found.append(measure(*case[:3], steps, torch.float32, (1,) if case in MANY else (1, 4)))
    text = f"## The cost of a forecast\n\n{header(about)}\n\n{show(found)}"
    print(text)
    for one, (_, _, _, goals) in zip(found, cases):
        for k, goal in list(zip((0, 3, 5), goals))[(one["case"] in [case[0] for case in MANY]) :]:
            cost = one["rows"]["map"]["by_count"].get(k)
            if cost:
                goal_met = "yes" if cost[0] <= goal else "NO"
                print(f"{one['case']}, k={k}: {cost[0]:.2f} of {goal} gradients a unit: {goal_met}")
        ratio = one["rows"]["map"]["seconds"] / one["rows"]["training"]["seconds"]
        print(f"{one['case']}: {ratio:.2f} of 4 times the training: {'yes' if ratio < 4 else 'NO'}")
    if options.save:
        save(options.out, "flows", {"machine": about, "quick": options.quick, "cases": found}, text)
    return int(any(one["rows"]["map"]["error"] > 5e-3 for one in found if "descent" in one["case"]))


if __name__ == "__main__":
    sys.exit(main())
