"""Follow critical sharpness along training runs: forward passes, error, and the Hessian products it avoids.

Every tenth step the critical learning rate of the actual update is searched three ways: cold, cold with the slope
known, and warm from the last one. The reference is the same crossing by Brent's method to 1e-13 in float64, where a
scan of the loss brackets its first rise. Beside it: what the sharpness itself costs in Hessian products, cold and to
1 %.

    python benchmarks/critical.py            about a minute
    python benchmarks/critical.py --quick    seconds
    python benchmarks/critical.py --save     also writes results/critical.json and .md
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _cases import digits
from _common import arguments, header, machine, save, table
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg import Problem, rules
from thalweg.errors import ThalwegError
from thalweg.operators import hessian
from thalweg.rules.direction import update_direction
from thalweg.spectra import Lanczos, top_eigenpairs
from thalweg.spectra.critical import CriticalSharpness, critical_sharpness

WAYS = ("cold", "cold, slope known", "warm")


def reference(problem: Problem, w: Tensor, direction: Tensor, near: float) -> float:
    """The first crossing: a scan up to twice ``near``, then Brent's method."""
    start = float(problem.value(w))

    def change(eta: float) -> float:
        return float(problem.value(w - eta * direction)) - start

    grid = np.linspace(0, 2 * near, 41)[1:]
    risen = next((i for i, eta in enumerate(grid) if change(eta) > 0), None)
    if risen is None:
        return float("nan")
    low = grid[risen - 1] if risen else 1e-9 * near
    return float(brentq(change, low, grid[risen], xtol=1e-13 * near))


def follow(title: str, problem: Problem, rule: rules.Rule, steps: int, dtype: torch.dtype) -> dict[str, Any]:
    """Train in float64, and measure in ``dtype`` every tenth step."""
    measured = problem.in_dtype(dtype)
    w, state = problem.initial, rule.init(problem.initial)
    rows: list[dict[str, Any]] = []
    guess: float | None = None
    for step in range(steps + 1):
        gradient = problem.gradient(w)
        if step % 10 == 0:
            direction = update_direction(problem, rule, w, state, gradient=gradient)
            slope = float(direction @ gradient)
            options: dict[str, dict[str, Any]] = {
                "cold": {},
                "cold, slope known": {"slope": slope},
                "warm": {"guess": guess, "slope": slope},
            }
            found: dict[str, CriticalSharpness] = {
                way: critical_sharpness(measured, w, direction, strict=False, **options[way]) for way in WAYS
            }
            eta = found["warm"].learning_rate
            answered = 0 < eta < float("inf") and slope > 0
            guess = eta if answered else None
            exact = 2 / reference(problem, w, direction, eta) if answered else float("nan")
            with hessian(problem, w) as H:
                top = top_eigenpairs(H, method=Lanczos(tol=1e-2))
                curvature = float(direction @ H.matvec(direction)) / slope
            rows.append(
                {
                    "step": step,
                    "loss": float(problem.value(w)),
                    "lambda_max": float(top.values[0]),
                    "products": top.products,
                    "exact": exact,
                    "second_order": curvature,
                    **{
                        way: {"value": r.value, "passes": r.evaluations, "stop": r.stop.name, "interval": r.interval}
                        for way, r in found.items()
                    },
                }
            )
        w, state = rule.advance(w, state, gradient)
    return {"run": title, "rule": rule.describe(), "dtype": str(dtype), "measurements": rows}


def summarise(run: dict[str, Any]) -> list[list[str]]:
    """One row of the table per way to search."""
    rows = run["measurements"]
    lines = []
    for way in WAYS:
        held = rows[1:] if way == "warm" else rows  # the first has nothing to start from
        good = [r for r in held if r[way]["stop"] == "CONVERGED" and np.isfinite(r["exact"])]
        errors = [abs(r[way]["value"] / r["exact"] - 1) for r in good]
        passes = [r[way]["passes"] for r in held]
        lines.append(
            [
                run["run"],
                way,
                f"{statistics.mean(passes):.1f}",
                str(max(passes)),
                f"{len(good)} of {len(held)}",
                f"{statistics.median(errors):.0e}" if errors else "-",
                f"{max(errors):.0e}" if errors else "-",
                f"{statistics.mean(r['products'] for r in held):.1f}",
            ]
        )
    return lines


def wrong(run: dict[str, Any]) -> list[str]:
    """Converged answers whose interval misses the reference."""
    found = []
    for r in run["measurements"]:
        for way in WAYS:
            low, high = r[way]["interval"]
            slack = 1e-6 if run["dtype"] == "torch.float64" else 1e-3
            inside = low * (1 - slack) <= r["exact"] <= high * (1 + slack)
            if r[way]["stop"] == "CONVERGED" and np.isfinite(r["exact"]) and not inside:
                found.append(f"{run['run']}, step {r['step']}, {way}: {r['exact']} is not in [{low}, {high}]")
    return found


def main() -> int:
    """Measure, print, and fail where an answer of ours is wrong."""
    options = arguments(__doc__ or "", "critical")
    samples, steps = (200, 40) if options.quick else (1000, 300)
    x, y = digits(samples)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)).double()
    squared: Callable[[Tensor, Tensor], Tensor] = nn.MSELoss()
    regression = Problem(model, squared, (x, F.one_hot(y, 10).double()))
    classification = Problem(model, nn.CrossEntropyLoss(), (x, y))
    runs = [
        follow("descent, MSE", regression, rules.GradientDescent(lr=1.5), steps, torch.float64),
        follow("descent, MSE, float32", regression, rules.GradientDescent(lr=1.5), steps, torch.float32),
        follow("heavy ball, cross-entropy", classification, rules.HeavyBall(lr=0.05), steps, torch.float64),
        follow("AdamW, cross-entropy", classification, rules.AdamW(lr=3e-3), steps, torch.float64),
    ]
    about = machine()
    head = ["run", "search", "passes", "most", "within 2 %", "median error", "largest", "products for the sharpness"]
    text = table(head, [line for run in runs for line in summarise(run)])
    print(header(about))
    print(f"MLP 64-32-32-10 in {regression.dimension:,} parameters, {samples} digits, {steps} steps\n")
    print(text)
    failures = [line for run in runs for line in wrong(run)]
    print("\n".join(failures) or "\nEvery converged interval holds the reference.")
    if options.save:
        save(options.out, "critical", {"machine": about, "samples": samples, "steps": steps, "runs": runs}, text)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ThalwegError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
