"""Compare the peak memory that ``problem.plan`` predicts with what the job then takes.

One process per model plans every job, then does it and counts the bytes alive at every operation. Another one for each
job only watches its resident memory: the kernel's high-water mark during the job, less what was resident before it,
with model and data in place and every library loaded by a one-sample run. There, blocks of 64 kB and more go back to
the system when they are freed (MALLOC_MMAP_THRESHOLD_): what glibc's heap keeps in its holes is no need of the job.

    python benchmarks/memory.py            about seven minutes
    python benchmarks/memory.py --quick    smallest models, resident memory of one job each, under a minute
    python benchmarks/memory.py --save     also writes results/memory.json and memory.md
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _common import arguments, header, machine, save, table
from _jobs import PRODUCTS, cnn, gpt2, mlp, run

from thalweg.problem import Problem
from thalweg.problem.live import LiveBytes
from thalweg.problem.plan import Plan

LIMIT = 1.2
"""Largest ratio of measured to predicted peak before this script fails."""
PAGES = 4_000_000
"""Resident bytes beyond that ratio which are stacks, code and pages of a process rather than the job's."""
MODELS: dict[str, Callable[[], Problem]] = {
    "MLP 784-1000-1000-10": lambda: mlp(2000),
    "CNN 32-64-128": lambda: cnn(64),
    "GPT-2 shape 2 x 128": lambda: gpt2(4),
    "GPT-2 shape 4 x 256": lambda: gpt2(4, layers=4, width=256),
}
QUICK: dict[str, Callable[[], Problem]] = {
    "MLP 784-200-200-10": lambda: mlp(1000, 200),
    "CNN 8-16-32": lambda: cnn(64, 8),
    "GPT-2 shape 1 x 64": lambda: gpt2(4, 64, 1, 64),
}
JOBS: tuple[dict[str, Any], ...] = (
    {"job": "gradient"},
    {"job": "product", "layout": "linearised"},
    {"job": "product", "layout": "double_backward"},
    {"job": "eigenpairs", "layout": "linearised", "basis": 6, "products": PRODUCTS},
    {"job": "eigenpairs", "layout": "double_backward", "basis": 6, "products": PRODUCTS},
    {"job": "critical_sharpness"},
)
WATCHED = 3
"""The job whose resident memory the quick run watches."""
FIELDS = ("job", "peak_bytes", "seconds", "batch_size", "chunk", "layout", "basis", "products", "budget")


def planned(problem: Problem, options: dict[str, Any]) -> dict[str, Any]:
    """Plan, do it while counting bytes, and return what another process needs to know of it."""
    start = time.perf_counter()
    plan = problem.plan(**options)
    about = {name: getattr(plan, name) for name in FIELDS}
    about |= {"planning": time.perf_counter() - start, "misfit": plan.misfit, "table": repr(plan)}
    with LiveBytes() as live:
        run(plan, plan.apply())
    return {"plan": about, "live": live.peak}


def resident(problem: Problem, about: dict[str, Any]) -> dict[str, Any]:
    """Do the planned job and return how far resident memory rose."""
    plan = Plan(**{name: about[name] for name in FIELDS}, parts=(), present_bytes=0, misfit=None, problem=problem)
    cut = plan.apply()
    small = replace(plan, basis=plan.basis and 3)
    run(small, cut.subset([0]).recut(1))
    before = resident_now()
    start = time.perf_counter()
    run(plan, cut)
    seconds = time.perf_counter() - start
    return {"resident": highest() - before, "seconds": seconds}


def resident_now() -> int:
    """Give free memory back to the system, restart the high-water mark, and return what is resident."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def highest() -> int:
    """Return the high-water mark of resident memory."""
    return _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{name} is not in /proc/self/status")


def child(task: dict[str, Any]) -> list[dict[str, Any]]:
    """What one process does."""
    torch.set_num_threads(task["threads"])
    problem = {**MODELS, **QUICK}[task["model"]]()
    return [resident(problem, task["plan"])] if "plan" in task else [planned(problem, job) for job in JOBS]


def alone(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Run `child` in a process of its own."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def measure(model: str, threads: int, watched: Sequence[int]) -> list[dict[str, Any]]:
    """Plan and measure every job of one model, the resident memory of those ``watched``."""
    task = {"model": model, "threads": threads}
    rows = [{"model": model} | row for row in alone(task)]
    for number in watched:
        rows[number] |= alone(task | {"plan": rows[number]["plan"]})[0]
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """Format the table."""
    lines = []
    for row in rows:
        plan = row["plan"]
        how = ", ".join(
            f"{name} {plan[key]}"
            for name, key in (("batch", "batch_size"), ("chunk", "chunk"), ("basis", "basis"))
            if plan[key] is not None
        )
        peak = plan["peak_bytes"]
        numbers = [f"{n / 1e6:.1f}" for n in (peak, row["live"])] + [f"{row['live'] / peak:.3f}"]
        numbers += [f"{row['resident'] / 1e6:.1f}", f"{row['resident'] / peak:.2f}"] if "resident" in row else ["", ""]
        seconds = [
            f"{plan['planning']:.1f}",
            f"{plan['seconds']:.1f}",
            f"{row['seconds']:.1f}" if "seconds" in row else "",
        ]
        lines.append([row["model"], plan["job"], plan["layout"] or "", how, *numbers, *seconds])
    head = ["model", "job", "layout", "cut", "predicted MB", "alive MB", "/ predicted", "resident MB", "/ predicted"]
    return table([*head, "planning s", "predicted s", "measured s"], lines)


def main() -> int:
    """Measure, print, save; 1 if a peak is more than 20 % above its prediction."""
    options = arguments(__doc__ or "", "memory")
    about = machine()
    rows = []
    for model in QUICK if options.quick else MODELS:
        rows += measure(model, options.threads, [WATCHED] if options.quick else range(len(JOBS)))
        print(show(rows[-len(JOBS) :]), file=sys.stderr, flush=True)
    text = f"{header(about)}\n\n{show(rows)}"
    print(text)
    if options.save:
        save(options.out, "memory", {"machine": about, "quick": options.quick, "rows": rows}, text)
    bad = [r for r in rows if r["live"] > LIMIT * r["plan"]["peak_bytes"]]
    if not options.quick:  # where the model is small, the pages of one library weigh more than the job
        bad += [r for r in rows if r.get("resident", 0) > LIMIT * r["plan"]["peak_bytes"] + PAGES]
    for row in bad:
        print(f"OVER: {row['model']}: {row['plan']['table']}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        print(json.dumps(child(json.loads(sys.argv[1]))))
        sys.exit(0)
    sys.exit(main())
