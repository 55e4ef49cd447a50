"""How well central flows forecast: five networks, two losses, three rules, two learning rates each.

Each row is a run of the rule and its forecast from the same start, after ten steps of the rule itself. Errors are those
of `FlowResult.compare`: the loss averaged over time by a Gaussian of 20 steps, from the time at which the flow becomes
critical; distances are end distances over the way that the rule has gone. The larger rate of each rule is
the largest of a grid that is stable after those steps, the smaller half of it. Where the map refuses, the row is that
of the differential equation, mode "flow"; where both refuse, it says why.

    python benchmarks/flow_validation.py            an hour of CPU time
    python benchmarks/flow_validation.py --quick    one network, about a minute
    python benchmarks/flow_validation.py --save     also writes results/flow_validation.json and .md
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import multiprocessing
import sys
from collections.abc import Callable
from typing import Any

import torch
from _common import arguments, header, machine, save, table

import thalweg as tw
from thalweg.errors import ThalwegError
from thalweg.flows import FlowSettings, Settings, central_flow
from thalweg.problem.data import Data, DataConfig, load_data, loss_for
from thalweg.problem.zoo import ModelConfig, build_model

SIGMA, WARM, MOST = 20.0, 10, 8
"""Width of the averages and steps of the rule before, in steps, and most directions that are followed."""
STEPS = {"transformer, sorting": 150}
"""Units of time, 400 elsewhere: its steps cost ten times those of the others."""
MODELS = {
    "MLP, tanh": (ModelConfig("mlp", depth=3, width=32, activation="tanh"), "digits", 300),
    "MLP, GELU": (ModelConfig("mlp", depth=3, width=32, activation="gelu"), "digits", 300),
    "CNN": (ModelConfig("cnn", depth=3, width=8, activation="gelu"), "digits", 200),
    "ViT": (ModelConfig("vit", depth=1, width=16, heads=2, activation="gelu"), "digits", 200),
    "transformer, sorting": (ModelConfig("transformer", depth=1, width=16, heads=2, activation="gelu"), "sorting", 200),
}


def problem_of(name: str, loss: str, seed: int) -> tw.Problem:
    """Build one of the networks, in float32."""
    config, dataset, samples = MODELS[name]
    data: Data = load_data(DataConfig(name=dataset, samples=samples, seed=seed))
    torch.manual_seed(seed)
    return tw.Problem(build_model(config, data, seed), loss_for(loss, data), data.pair())


def rules(problem: tw.Problem) -> dict[str, Any]:
    """Two learning rates of each rule: the largest of a grid that is stable after the first steps, and half of it."""
    kinds: dict[str, tuple[float, Callable[[float], Any]]] = {
        "GD": (4.0, lambda lr: tw.rules.GradientDescent(lr=lr)),
        "scalar RMSProp": (0.1, lambda lr: tw.rules.ScalarRMSProp(lr=lr, bias_correction=True)),
        "RMSProp": (2e-3, lambda lr: tw.rules.RMSProp(lr=lr, bias_correction=True)),
    }
    found = {}
    for name, (lr, make) in kinds.items():
        while not stable(problem, make(lr)):
            lr /= 1.5
        found |= {f"{name} {rate:.2g}": make(float(f"{rate:.2g}")) for rate in (lr, lr / 2)}
    return found


def stable(problem: tw.Problem, rule: Any) -> bool:
    """Whether the rule lowers the loss in its first steps, and is below 0.9 of its limit after them."""
    w, state = problem.initial, rule.init(problem.initial)
    first = problem.value(w)
    for _ in range(WARM):
        w, state = rule.advance(w, state, problem.gradient(w))
    try:
        return bool(problem.value(w) < first) and tw.edge(problem, rule, w, state).ratio < 0.9
    except ThalwegError:  # the curvature there is no number
        return False


def forecast(problem: tw.Problem, rule: Any, steps: int) -> dict[str, Any]:
    """One row: by the map, or where that refuses, by the differential equation itself."""
    refused = ""
    flow = None
    for mode, settings in (("map", Settings(max_critical=MOST)), ("flow", FlowSettings(max_critical=MOST))):
        try:
            flow = central_flow(
                problem,
                rule,
                steps,
                warm_start=WARM,
                mode=mode,  # type: ignore[arg-type]
                settings=settings,
                processes=("discrete", "midpoint", "central", "stable"),
            )
            break
        except ThalwegError as error:
            refused += f"{mode}: {type(error).__name__}: {str(error).split('. ')[0]}. "
    if flow is None:
        return {"failed": refused}
    found = flow.compare(SIGMA)
    middle = flow.data.get("distance_stable_midpoint")
    travelled = float(flow.data["travelled"].values[-1])
    return {
        **{name: getattr(found, name) for name in found.__dataclass_fields__},
        "mode": flow.mode,
        "refused": refused,
        "stable_to_midpoint": float("nan") if middle is None else float(middle.values[-1]) / travelled,
        "most_critical": int(flow.data["critical"].max()),
        "cost": flow.cost["central"],
    }


def show(rows: list[dict[str, Any]]) -> str:
    """Format the table."""
    formats: dict[str, Callable[[dict[str, Any]], str]] = {
        "network": lambda r: r["model"],
        "loss": lambda r: r["loss"],
        "rule": lambda r: r["rule"],
        "mode": lambda r: r["mode"],
        "critical from": lambda r: f"{r['onset']:.0f}, k <= {r['most_critical']}",
        "loss error mean / max": lambda r: f"{r['loss_error']:.2%} / {r['loss_error_max']:.1%}",
        "without oscillation": lambda r: f"{r['loss_error_without']:.2%}",
        "central to midpoint": lambda r: f"{r['midpoint_distance']:.1%}",
        "stable to midpoint": lambda r: f"{r['stable_to_midpoint']:.1%}",
        "largest eigenvalue": lambda r: f"{r['largest_eigenvalue']:.3f}",
        "variance ratio": lambda r: f"{r['variance_ratio']:.2f}",
        "correlation": lambda r: f"{r['variance_correlation']:.2f}",
        "gradients a unit": lambda r: f"{r['cost']:.1f}",
    }
    lines = []
    for row in rows:
        if "failed" in row:
            lines.append([row["model"], row["loss"], row["rule"], "refused", row["failed"], *[""] * (len(formats) - 5)])
        else:
            lines.append([make(row).replace("nan%", "-").replace("nan", "-") for make in formats.values()])
    return table(list(formats), lines)


def group(job: tuple[str, str, int]) -> list[dict[str, Any]]:
    """All rows of one network and loss."""
    model, loss, steps = job
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    try:
        problem = problem_of(model, loss, 0)
    except ThalwegError as error:  # sorting has classes at each position, and no squared error
        return [{"model": model, "loss": loss, "rule": "-", "seed": 0, "failed": str(error)}]
    for name, rule in rules(problem).items():
        rows.append({"model": model, "loss": loss, "rule": name, "seed": 0} | forecast(problem, rule, steps))
        print(show(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    return rows


def main() -> int:
    """Measure, print, save; 1 if a flow ran past its limit."""
    options = arguments(__doc__ or "", "flow_validation")
    about = machine()
    rows: list[dict[str, Any]] = []

    def keep(done: int, of: int) -> None:
        rows.sort(key=lambda row: (list(MODELS).index(row["model"]), row["loss"] != "mse"))
        ended = "" if done == of else f"\n\n{done} of {of} pairs of network and loss."
        text = f"{header(about)}{ended}\n\n{show(rows)}"
        if done == of:
            print(text)
        if options.save:
            record = {"machine": about, "quick": options.quick, "sigma": SIGMA, "rows": rows}
            save(options.out, "flow_validation", record, text)

    if options.quick:
        rows += group(("MLP, GELU", "mse", 150))
        keep(1, 1)
    else:  # nothing is timed, so the groups may run side by side
        jobs = [(model, loss, STEPS.get(model, 400)) for model in MODELS for loss in ("mse", "cross_entropy")]
        with multiprocessing.get_context("spawn").Pool() as pool:
            for done, found in enumerate(pool.imap_unordered(group, jobs[::-1]), 1):
                rows += found
                keep(done, len(jobs))
    return int(any(row.get("largest_eigenvalue", 0.0) > 2.05 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
