"""Timing on a noisy machine, tables, and what has to be said about where numbers come from."""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import json
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("thalweg", "torch", "numpy", "scipy", "curvlinops-for-pytorch", "hessian-eigenthings", "pyhessian")


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, sample: Sequence[float]) -> Spread:
        """Summarise ``sample``; fewer than three values have no quartiles, and show their range."""
        ordered = sorted(sample)
        if len(ordered) < 3:
            return cls(statistics.median(ordered), ordered[0], ordered[-1], len(ordered))
        low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
        return cls(statistics.median(ordered), low, high, len(ordered))

    def show(self, digits: int = 2) -> str:
        """Format as ``median [low, high]``."""
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def clock() -> float:
    """Seconds to take differences of.

    With one thread this is the process's own CPU time, which other users of the machine do not add to. Their share of
    caches and memory remains, and interleaving is for that.
    """
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def interleave(
    jobs: Mapping[str, Callable[[], Any]], rounds: int, *, seed: int = 0, at_least: float = 0.004
) -> dict[str, list[float]]:
    """Time every job once per round, in an order shuffled per round, so that a busy minute hits all of them alike.

    Args:
        jobs: What to time, by name. Each is called once before, to warm up.
        rounds: How many seconds-per-call samples to take of each.
        seed: Of the orders.
        at_least: Calls shorter than this many seconds are repeated within a sample until they last as long.

    Returns:
        Seconds per call; entry ``r`` of every list was measured in round ``r``, so they can be divided pairwise.
    """
    repeats = {}
    for name, job in jobs.items():
        job()
        start = clock()
        job()
        repeats[name] = max(1, math.ceil(at_least / max(clock() - start, 1e-9)))
    shuffle = random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        order = list(jobs)
        shuffle.shuffle(order)
        gc.collect()
        for name in order:
            start = clock()
            for _ in range(repeats[name]):
                jobs[name]()
            times[name].append((clock() - start) / repeats[name])
    return times


def ratios(times: Sequence[float], unit: Sequence[float]) -> list[float]:
    """Divide measurements of the same round."""
    return [a / b for a, b in zip(times, unit)]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Any:
    """Set torch's default dtype while open, for peers that create tensors without one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def math_attention() -> Any:
    """Open the attention kernel that can be differentiated twice; peers need it set for them on the CPU."""
    return sdpa_kernel(SDPBackend.MATH)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table with aligned columns."""
    lines = [list(head), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |"

    return "\n".join([line(lines[0]), line(["-" * w for w in widths]), *map(line, lines[1:])])


def machine() -> dict[str, Any]:
    """Say where and with what this runs."""
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as info:
            cpu = next(line.split(":")[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": "CPU time" if torch.get_num_threads() == 1 else "wall time",
        "load_at_start": round(load, 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def header(about: Mapping[str, Any]) -> str:
    """Format what `machine` gave as two lines."""
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in about["versions"].items())
    return (
        f"{about['date']}, {about['cpu']}, {about['cores']} cores, {about['threads']} thread(s), "
        f"{about['clock']}, load {about['load_at_start']} at start, "
        f"{about['system']}, Python {about['python']}\n{versions}"
    )


def arguments(about: str, name: str) -> argparse.Namespace:
    """Read the options that every script here has, and set the number of threads."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="smallest cases and fewest rounds, under a minute")
    parser.add_argument("--threads", type=int, default=1, help="for torch; default 1, steadier on shared cores")
    parser.add_argument("--save", action="store_true", help=f"write {name}.json and .md: the docs' numbers")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for --save")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def save(folder: Path, name: str, record: Mapping[str, Any], text: str) -> None:
    """Write raw numbers and the tables made of them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text + "\n")
    print(f"written: {folder / name}.json, .md", file=sys.stderr)
