"""Many short runs as one program against one after the other, and a phase diagram by bisection against its grid.

Batched against individual, at equal work: gradients and Hessian products of copies of an MLP, as one stack and by
the same Problem's own calls, and whole measured runs with the same Lanczos on both sides. Beside them, what share of
the machine's best matrix product the stack reaches; its operations are counted by torch.

The diagram: c_loss, c_sharp and c_max of every depth, width and seed, once by `critical_constants(mode="bisect")` on
stacked runs, once by a plain loop over the grid c = 2^x that trains run after run until one diverges and measures every
step, with the same Lanczos, guesses and tolerance. The grid is given the sharpness at initialisation; bisection pays
for it.

    python benchmarks/sweep.py            about four minutes of CPU time
    python benchmarks/sweep.py --quick    seconds
    python benchmarks/sweep.py --save     also writes results/sweep.json and .md
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import math
import sys
from typing import Any

import torch
from _common import Spread, arguments, clock, header, interleave, machine, ratios, save, table
from torch.utils.flop_counter import FlopCounterMode

from thalweg import Problem
from thalweg.errors import ThalwegError
from thalweg.operators import hessian
from thalweg.phases.critical import critical_constants
from thalweg.phases.early_network import network_runs
from thalweg.problem.data import DataConfig, load_data
from thalweg.problem.losses import OneHotSquares
from thalweg.problem.zoo import ModelConfig, build_model
from thalweg.sweeps.batched import train_stack
from thalweg.sweeps.stack import Stack

STEP = 0.1
LAST = 100
TOL = 1e-3
NAMES = ("c_loss", "c_sharp", "c_max")


def problem_of(depth: int, width: int, samples: int, dtype: torch.dtype, seed: int = 0) -> Problem:
    """Digits, half mean squares, ReLU without biases."""
    data = load_data(DataConfig(samples=samples))
    model = build_model(ModelConfig("mlp", depth, width, activation="relu", bias=False), data, seed)
    return Problem(model, OneHotSquares(data.outputs, 2.0 * data.outputs), data.pair(), dtype=dtype)


def peak(dtype: torch.dtype, rounds: int) -> float:
    """Operations per second of a square product that is as large as helps."""
    a = torch.randn(1024, 1024, dtype=dtype)
    times = interleave({"product": lambda: a @ a}, rounds)["product"]
    return 2 * 1024**3 / min(times)


def operations(job: Any) -> int:
    """Matrix products' operations in one call."""
    with FlopCounterMode(display=False) as counter:
        job()
    return int(counter.get_total_flops())


def equal_work(depth: int, width: int, samples: int, rows: int, rounds: int, best: float) -> dict[str, Any]:
    """Time ``rows`` copies together and one by one."""
    problem = problem_of(depth, width, samples, torch.float32)
    W = problem.initial * torch.linspace(0.95, 1.05, rows)[:, None]
    V = torch.randn(W.shape, generator=torch.Generator().manual_seed(0))
    stack, loop = Stack(problem), Stack(problem, method="loop")
    together, alone = stack.products(W), [hessian(problem, w, layout="linearised") for w in W]
    top = float(torch.linalg.vector_norm(alone[0].matvec(together.gradient[0])) / together.gradient[0].norm())
    rates = torch.linspace(0.5, 2.0, rows) / top

    def run_alone() -> None:
        for w, rate in zip(W, rates):
            train_stack(loop, w, rate[None], 2, tol=TOL)

    jobs = {
        "gradient, stacked": lambda: stack.value_and_gradient(W),
        "gradient, alone": lambda: [problem.value_and_gradient(w) for w in W],
        "product, stacked": lambda: together.matvec(V),
        "product, alone": lambda: [one.matvec(v) for one, v in zip(alone, V)],
        "run, stacked": lambda: train_stack(stack, W, rates, 2, tol=TOL),
        "run, alone": run_alone,
    }
    flops = {name: operations(jobs[f"{name}, stacked"]) for name in ("gradient", "product")}
    times = interleave(jobs, rounds)
    together_, alone_ = train_stack(stack, W, rates, 2, tol=TOL), train_stack(loop, W, rates, 2, tol=TOL)
    off = abs(together_.loss / alone_.loss - 1).max()
    return {
        "depth": depth, "width": width, "samples": samples, "copies": rows, "parameters": problem.dimension,
        "rows_at_once": stack.rows_at_once, "seconds": times, "flops": flops,
        "share": {name: flops[name] / min(times[f"{name}, stacked"]) / best for name in flops},
        "share_alone": {name: flops[name] / min(times[f"{name}, alone"]) / best for name in flops},
        "largest_difference": float(off),
    }  # fmt: skip


def grid_one_by_one(depth: int, width: int, samples: int, seeds: range, steps: int = 10) -> dict[str, Any]:
    """The plain way: every c of every seed until one diverges, a run at a time, sharpness at every step."""
    runs = network_runs(depth, width, seeds, samples=samples, dtype="float64", tol=TOL)
    begin = clock()
    found: dict[str, list[int | None]] = {name: [] for name in NAMES}
    count = products = gradients = 0
    for place, seed in enumerate(seeds):
        problem = problem_of(depth, width, samples, torch.float64, seed)
        stack, start = Stack(problem, method="loop"), problem.initial
        top = torch.tensor([runs.sharpness0[place]])
        first: dict[str, int | None] = dict.fromkeys(NAMES)
        k = 0
        while first["c_max"] is None and k <= LAST:
            curves = train_stack(stack, start, torch.tensor([2.0 ** (STEP * k)]) / top, steps, tol=TOL, sharpness0=top)
            count, products, gradients = count + 1, products + curves.products, gradients + curves.gradients
            loss, sharpness = curves.loss[0], curves.sharpness[0]
            gone = bool(curves.diverged[0] >= 0)
            for name, yes in zip(NAMES, (loss.max() > loss[0], gone or sharpness.max() > sharpness[0], gone)):
                if yes and first[name] is None:
                    first[name] = k
            k += 1
        for name in NAMES:
            found[name].append(first[name])
    return {
        "seconds": clock() - begin, "first": found, "runs": count, "products": products, "gradients": gradients
    }  # fmt: skip


def bisected(depth: int, width: int, samples: int, seeds: range) -> dict[str, Any]:
    """The fast way, all seeds together; its time includes building the stack and the sharpness at initialisation."""
    begin = clock()
    runs = network_runs(depth, width, seeds, samples=samples, dtype="float64", tol=TOL)
    built = clock() - begin
    found = critical_constants(runs, mode="bisect", grid_step=STEP, stop=STEP * LAST, barrier=False)
    seconds = clock() - begin
    first = {
        name: [round(math.log2(high) / STEP) if math.isfinite(high) else None for high in found[name].high]
        for name in NAMES
    }
    return {
        "seconds": seconds, "setup_seconds": built, "first": first, "runs": found.cost.runs,
        "products": found.cost.products, "gradients": found.cost.gradients, "forwards": found.cost.forwards,
        "fallback": any(bool(any(found[name].fallback)) for name in NAMES),
    }  # fmt: skip


def diagram(cells: list[tuple[int, int, range]], samples: int) -> list[dict[str, Any]]:
    """Both ways for every cell, after one that is thrown away: first calls import and allocate."""
    bisected(2, 8, 40, range(1))
    return [
        {"depth": depth, "width": width, "samples": samples, "seeds": len(seeds),
         "bisect": bisected(depth, width, samples, seeds),
         "grid": grid_one_by_one(depth, width, samples, seeds)}
        for depth, width, seeds in cells
    ]  # fmt: skip


def work_table(cases: list[dict[str, Any]]) -> str:
    """One row per network: ratios of times, and shares of the best product."""
    head = [
        "depth, width",
        "samples",
        "copies",
        "P",
        "gradient",
        "product",
        "measured run",
        "peak: gradient",
        "product",
    ]
    rows = []
    for case in cases:
        times = case["seconds"]
        gains = [
            Spread.of(ratios(times[f"{n}, alone"], times[f"{n}, stacked"])).show(1) + "x"
            for n in ("gradient", "product", "run")
        ]
        shares = [f"{case['share'][n]:.0%} ({case['share_alone'][n]:.0%})" for n in ("gradient", "product")]
        rows.append(
            [
                f"{case['depth']}, {case['width']}",
                *(f"{case[n]:,}" for n in ("samples", "copies", "parameters")),
                *gains,
                *shares,
            ]
        )
    return table(head, rows)


def diagram_table(cells: list[dict[str, Any]]) -> str:
    """One row per cell, and all of them together."""
    head = ["depth, width", "seeds", "runs", "products", "grid, s", "bisect, s", "ratio", "same critical values"]
    rows = []
    for cell in cells:
        grid, fast = cell["grid"], cell["bisect"]
        same = [sum(a == b for a, b in zip(grid["first"][n], fast["first"][n])) for n in NAMES]
        rows.append([
            f"{cell['depth']}, {cell['width']}", str(cell["seeds"]), f"{grid['runs']} / {fast['runs']}",
            f"{grid['products']:,} / {fast['products']:,}", f"{grid['seconds']:.1f}", f"{fast['seconds']:.2f}",
            f"{grid['seconds'] / fast['seconds']:.0f}x", f"{sum(same)} of {len(NAMES) * cell['seeds']}",
        ])  # fmt: skip
    slow, quick = (sum(cell[way]["seconds"] for cell in cells) for way in ("grid", "bisect"))
    runs = sum(cell["grid"]["runs"] for cell in cells)
    rows.append(
        [
            "all",
            "",
            f"{runs / slow:.1f} / {runs / quick:.0f} per s",
            "",
            f"{slow:.1f}",
            f"{quick:.2f}",
            f"{slow / quick:.0f}x",
            "",
        ]
    )
    return table(head, rows)


def wrong(cases: list[dict[str, Any]], cells: list[dict[str, Any]]) -> list[str]:
    """What the two ways disagree on."""
    found = [
        f"depth {case['depth']}, width {case['width']}: losses differ by {case['largest_difference']:.1e}"
        for case in cases
        if not case["largest_difference"] < 1e-3  # single precision, two steps
    ]
    for cell in cells:
        for name in NAMES:
            grid, fast = cell["grid"]["first"][name], cell["bisect"]["first"][name]
            if grid != fast:
                found.append(
                    f"depth {cell['depth']}, width {cell['width']}: {name} at {grid} by the grid, {fast} by bisection"
                )
    return found


def main() -> int:
    """Measure, print, and fail where the two ways give different answers."""
    options = arguments(__doc__ or "", "sweep")
    rounds = 3
    sizes = [(4, 16, 128, 32), (4, 32, 128, 32), (4, 64, 512, 8), (4, 256, 512, 4)]
    # a narrow network takes no time, and a stack of a few fills no core: as many draws as one would make
    places = [(2, 16, range(1))] if options.quick else [(4, 16, range(8)), (4, 64, range(2)), (8, 64, range(2))]
    samples = 64 if options.quick else 300
    about = machine()
    best = peak(torch.float32, rounds)
    print(header(about))
    print(f"best product: {best / 1e9:.0f} GFLOP/s in float32\n")
    cases = [equal_work(*size, rounds, best) for size in (sizes[:1] if options.quick else sizes)]
    first = work_table(cases)
    print(first + "\n", flush=True)
    cells = diagram(places, samples)
    second = diagram_table(cells)
    print(second)
    failures = wrong(cases, cells)
    print("\n".join(failures) or "\nBoth ways find the same critical values.")
    if options.save:
        text = (
            f"Copies of a ReLU network on digits, float32: how much faster as one stack than one by one. In "
            f"brackets, the share of peak ({best / 1e9:.0f} GFLOP/s) that single calls reach.\n\n{first}\n\n"
            f"Critical constants of {samples} digits, float64, sharpness to {TOL:g}: the grid in steps of {STEP} one "
            f"run at a time / bisected in a stack.\n\n{second}"
        )
        save(options.out, "sweep", {"machine": about, "peak": best, "work": cases, "diagram": cells}, text)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ThalwegError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
