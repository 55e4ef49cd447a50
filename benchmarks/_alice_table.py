"""What the runs of alice.py come to: geometric means with intervals, at equal gradients and at equal time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from _alice_runs import LOOKS, METHODS, TASKS
from _common import table
from scipy import stats

UNIT = "AdamW"
"""What losses are divided by, seed by seed, and whose time for the common number of gradients is the common time."""

Run = Mapping[str, Any]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval by Student's t; infinite values have neither."""
    sample = np.array(values, dtype=float)
    if len(sample) < 2 or not np.isfinite(sample).all():
        return float(sample.mean()), math.nan, math.nan
    half = stats.t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample))
    return float(sample.mean()), float(sample.mean() - half), float(sample.mean() + half)


def at(run: Run, axis: str, where: float) -> float:
    """Read the log of a run's training loss off its curve; ``axis`` is "gradients" or "spent"."""
    losses = np.array(run["train_loss"], dtype=float)
    if not np.isfinite(losses).all():
        return math.inf
    return float(np.interp(where, run[axis], np.log(np.maximum(losses, 1e-12))))


def seconds_of(runs: Sequence[Run]) -> np.ndarray:
    """Seconds at each point of the curve: the median over runs, which noise in a single one does not reach."""
    return np.median([run["spent"] for run in runs], axis=0)


def compare(
    runs: Sequence[Run], tuning: Sequence[Run], factors: Mapping[tuple[str, str], float], points: Mapping[str, int]
) -> list[dict[str, Any]]:
    """One record per task and method that has runs."""
    records = []
    for task in TASKS:
        mine = [run for run in runs if run["task"] == task]
        if not any(run["method"] == UNIT for run in mine):
            continue
        clocks = {
            method: seconds_of([run for run in (*mine, *tuning) if (run["task"], run["method"]) == (task, method)])
            for method in {run["method"] for run in mine}
        }
        most = TASKS[task].evaluations
        unit = sorted((run for run in mine if run["method"] == UNIT), key=lambda run: run["seed"])
        time = float(np.interp(most, unit[0]["gradients"], clocks[UNIT]))
        logs: dict[str, dict[str, list[float]]] = {}
        for method in METHODS:
            own = sorted((run for run in mine if run["method"] == method), key=lambda run: run["seed"])
            own = [run for run in own if run["seed"] in {other["seed"] for other in unit}]
            if own:
                logs[method] = {
                    "gradients": [at(run, "gradients", most) for run in own],
                    "time": [at({**run, "spent": clocks[method]}, "spent", time) for run in own],
                }
        for method, found in logs.items():
            own = [run for run in mine if run["method"] == method]
            seeds = min(len(found["gradients"]), len(unit))
            record: dict[str, Any] = {"task": task, "method": method, "factor": factors[task, method], "seeds": seeds}
            for budget in ("gradients", "time"):
                ratio = [a - b for a, b in zip(found[budget], logs[UNIT]["gradients"])]
                record[budget] = {
                    "loss": [math.exp(x) for x in interval(found[budget])],
                    "ratio": [math.exp(x) for x in interval(ratio)],
                }
            record["accuracy"] = interval([run["held"][LOOKS.index(points[method])][1] for run in own])
            record["upper"] = float(np.mean([run["upper"] for run in own]))
            gradients = own[0]["gradients"][-1]
            record["milliseconds"] = 1e3 * float(clocks[method][-1]) / gradients
            # Methods that cost less than the common time ran longer, but not for ever.
            record["short"] = bool(clocks[method][-1] < 0.99 * time)
            record["diverged"] = int(sum(not math.isfinite(x) for x in found["gradients"]))
            records.append(record)
    return records


def show(triple: Sequence[float], digits: int = 3) -> str:
    """Format a mean and its interval."""
    if not math.isfinite(triple[0]):
        return "diverged"
    mean, low, high = (plain(value, digits) for value in triple)
    return mean if math.isnan(triple[1]) else f"{mean} [{low}, {high}]"


def plain(value: float, digits: int) -> str:
    """Format to so many digits, without an exponent for large numbers."""
    return f"{value:.{digits}g}" if not value >= 10 ** (digits - 0.5) else f"{value:.0f}"


PAIRS = (
    ("Alice abs+glass", "Alice abs"),
    ("Alice abs+glass", "Alice glass"),
    ("Alice abs+glass", "Alice, bounds only"),
    ("Alice abs+glass, bound x10", "Alice abs+glass"),
    ("Alice abs+glass, bound x10, quick 3", "Alice abs+glass, bound x10"),
    ("Alice abs+glass, trust", "Alice abs+glass"),
    ("Alice abs+glass, trust", "Alice abs+glass, bound x10"),
    ("Alice abs+glass, trust", "Alice abs+glass, bound x100"),
    ("Alice rms, trust", "Alice rms"),
    ("Alice glass, trust", "Alice glass, bound x100"),
    ("Alice abs, trust", "Alice abs, bound x100"),
    ("Alice rms, trust", "Alice rms, bound x100"),
)
"""Ways of Alice to compare seed by seed."""


def within(runs: Sequence[Run]) -> str:
    """Ratios of training losses after equal gradients, between Alice's own ways: one row per pair."""
    rows = []
    for first, second in PAIRS:
        row = [f"{first} / {second.removeprefix('Alice').lstrip(', ')}"]
        for task in TASKS:
            logs = [
                {
                    run["seed"]: at(run, "gradients", TASKS[task].evaluations)
                    for run in runs
                    if (run["task"], run["method"]) == (task, method)
                }
                for method in (first, second)
            ]
            ratios = [logs[0][seed] - logs[1][seed] for seed in logs[0] if seed in logs[1]]
            row.append(show([math.exp(x) for x in interval(ratios)]) if ratios else "")
        rows.append(row)
    return table(["training losses of", *TASKS], rows)


def edge(factor: float, factors: Sequence[float]) -> str:
    """Format the chosen factor, with a sign where it is an end of the grid."""
    return f"{factor:.2g}" + ("*" if factor in (min(factors), max(factors)) else "")


def task_table(records: Sequence[Mapping[str, Any]], factors: Sequence[float]) -> str:
    """One row per method."""
    head = [
        "method",
        "factor",
        "train loss",
        "/ AdamW",
        "at equal time",
        "held-out accuracy",
        "ms per gradient",
        "at upper bound",
    ]
    rows = []
    for record in records:
        upper = record["upper"]
        rows.append([
            record["method"],
            edge(record["factor"], factors),
            show(record["gradients"]["loss"]),
            show(record["gradients"]["ratio"]),
            show(record["time"]["ratio"]) + (" (not all)" if record["short"] else ""),
            f"{record['accuracy'][0]:.1%}",
            f"{record['milliseconds']:.1f}",
            "" if math.isnan(upper) else f"{upper:.0%}",
        ])  # fmt: skip
    return table(head, rows)


def grid_table(tuning: Sequence[Run], points: Mapping[str, int]) -> str:
    """Training loss on the tuning seed by factor; 1 is the published learning rate."""
    factors = sorted({run["factor"] for run in tuning})
    pairs = {(run["task"], run["method"]): {} for run in tuning}
    for run in tuning:
        pairs[run["task"], run["method"]][run["factor"]] = run["train_loss"][points[run["method"]]]
    rows = [[t, m, *(f"{found.get(f, math.nan):.3g}" for f in factors)] for (t, m), found in pairs.items()]
    return table(["task", "method", *(f"{f:.2g}" for f in factors)], rows)


def report(
    records: Sequence[Mapping[str, Any]], runs: Sequence[Run], tuning: Sequence[Run], missing: Sequence[str]
) -> str:
    """All tables, with what their columns mean."""
    factors = sorted({run["factor"] for run in tuning})
    parts = []
    for task, config in TASKS.items():
        mine = [record for record in records if record["task"] == task]
        if mine:
            seeds = min(record["seeds"] for record in mine)
            parts.append(
                f"**{config.about}**, batch {config.batch}, {config.evaluations} gradients, {seeds} seeds:\n\n"
                + task_table(mine, factors)
            )
    left = f"Not installed and left out: {', '.join(missing)}.\n\n" if missing else ""
    return (
        "Training loss (geometric mean over seeds, 95 % t interval) after equal gradient evaluations; its ratio to "
        "AdamW's, seed by seed; the same after the CPU time in which AdamW takes these evaluations, over the same "
        "losses of AdamW; accuracy on held-out data after equal gradients. A Hessian product counts as one gradient. "
        f"Factor: times the published learning rate, from {', '.join(f'{f:.2g}' for f in factors)}, by training loss "
        "on another seed; * is an end of the grid. (not all): the run was done before the time was. At upper "
        "bound: share of coordinates there at the end.\n\n"
        f"{left}"
        + "\n\n".join(parts)
        + "\n\n**Between Alice's ways**, ratios of training losses after equal gradients, seed by seed:\n\n"
        + within(runs)
    )
