"""Does Alice help? Nineteen ways to use her beside seven optimizers, on four small tasks.

Everybody gets the same gradient evaluations (a Hessian product counts as one), the same starting weights and batches,
and a learning rate from the same grid of factors on its published one, chosen on a seed of its own. The loss at equal
time is read off the same runs. Rates are constant.

Runs are the cells of a sweep: interrupted, the script goes on where it was.

    python benchmarks/alice.py            about ten minutes of CPU time
    python benchmarks/alice.py --quick    one task, four methods, a minute
    python benchmarks/alice.py --save     also writes results/alice.json, alice.md, alice_tuning.md and the docs' tables
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib.util
import math
import sys
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _alice_runs import METHODS, PEERS, POINTS, TASKS, applies, measure
from _alice_table import compare, grid_table, report
from _common import RESULTS, arguments, header, machine, save
from page import fill

from thalweg.errors import ThalwegError
from thalweg.sweeps.plan import Plan, plan
from thalweg.sweeps.sweep import sweep

FACTORS = (10**-0.5, 1.0, 10**0.5, 10.0)
TUNING_SEED = 100
SEEDS = range(1, 6)
LONGER = 1.5
"""Methods that spend less time on a gradient run so much longer, to be compared at equal time."""
FOLDER = Path("runs/alice_benchmark")
VERSION = "1"
PAGE = Path(__file__).parent.parent / "docs" / "alice_benchmark.md"


def evaluations(task: str, method: str) -> int:
    """How many gradients a run takes."""
    own = TASKS[task].evaluations
    return own if method.startswith("Alice") else int(LONGER * own)


def point_of(method: str) -> int:
    """At which point of its curve a method has used the common budget."""
    return POINTS if method.startswith("Alice") else round(POINTS / LONGER)


def cells(pairs: list[tuple[str, str]], factors: dict[tuple[str, str], list[float]], seeds: list[int]) -> Plan:
    """The runs of some seeds."""
    rows = [
        {"task": t, "method": m, "factor": f, "seed": s, "evaluations": evaluations(t, m)}
        for s in seeds
        for t, m in pairs
        for f in factors[t, m]
    ]
    return plan(rows).versioned(VERSION)


def compute(wanted: Plan, folder: Path) -> list[dict[str, Any]]:
    """Run what is not in the folder yet; return one dictionary per run, of its values and results."""
    with ThreadPoolExecutor(1) as pool:
        found = sweep(measure, wanted, folder, engine=pool, extend=True, retry_failed=True, meter=Dots())
    for record in found.failed:
        print(f"failed: {record.cell}: {record.error}", file=sys.stderr)
    keys = {cell.key for cell in wanted}
    table = found.table(long=True)
    rows = []
    for i, cell in enumerate(found.plan.cells):
        if cell.key in keys and str(table.status[i].item()) == "done":
            names = [str(name) for name in table.data_vars if name != "status"]
            rows.append({**cell.values, **{name: table[name].values[i].tolist() for name in names}})
    return rows


class Dots:
    """Progress on stderr, now and then."""

    def __init__(self) -> None:
        self.last = 0.0

    def init(self, steps: int, start: int = 0) -> None:
        """Take the number of runs."""
        self.steps = steps

    def step(self, values: Mapping[str, float]) -> None:
        """Show how many are done."""
        if time.monotonic() - self.last > 30:
            self.last = time.monotonic()
            left = values.get("seconds_left") or math.nan
            print(f"{values['step']:.0f} of {self.steps} runs, {left:.0f} s left", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to do."""


def chosen(tuning: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """The factor with the lowest training loss after the common number of gradients."""
    best: dict[tuple[str, str], tuple[float, float]] = {}
    for run in tuning:
        pair = run["task"], run["method"]
        best[pair] = min(best.get(pair, (math.inf, 1.0)), (run["train_loss"][point_of(run["method"])], run["factor"]))
    return {pair: factor for pair, (_, factor) in best.items()}


def slim(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs without digits that mean nothing, and without the middle of what grows evenly."""

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(entry) for entry in value]
        if isinstance(value, float):
            return float(f"{value:.4g}") if math.isfinite(value) else None
        return value

    ends = [{**run, "gradients": run["gradients"][-1], "spent": run["spent"][-1]} for run in runs]
    return [{name: short(value) for name, value in run.items() if value is not None} for run in ends]


def main() -> int:
    """Tune, run, print."""
    options = arguments(__doc__ or "", "alice")
    warnings.filterwarnings("ignore", category=UserWarning)
    missing = [] if importlib.util.find_spec("pytorch_optimizer") else list(PEERS)
    pairs = [(t, m) for t in TASKS for m in METHODS if applies(m, t) and m not in missing]
    folder, seeds = FOLDER, list(SEEDS)
    if options.quick:
        few = ("AdamW", "SGD, momentum 0.9", "Alice abs+glass", "Alice rms, bound x100")
        pairs, folder, seeds = [("mlp", m) for m in few], FOLDER.with_name("alice_quick"), seeds[:2]
    about = machine()
    print(header(about))
    if missing:
        print(f"not installed, left out: {', '.join(missing)} (pytorch_optimizer)")
    tuning = compute(cells(pairs, {pair: list(FACTORS) for pair in pairs}, [TUNING_SEED]), folder)
    rates = chosen(tuning)
    runs = compute(cells(pairs, {pair: [rates[pair]] for pair in pairs}, seeds), folder)
    points = {method: point_of(method) for method in METHODS}
    records = compare(runs, tuning, rates, points)
    text = report(records, runs, tuning, missing)
    print(text)
    if options.save:
        kept = {"machine": about, "missing": missing, "records": records, "runs": slim([*tuning, *runs])}
        save(options.out, "alice", kept, text)
        (options.out / "alice_tuning.md").write_text(grid_table(tuning, points) + "\n")
        if options.out == RESULTS:
            PAGE.write_text(fill(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ThalwegError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
