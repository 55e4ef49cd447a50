"""Compare what Alice's arithmetic costs with AdamW's: everything but the gradients, per gradient.

One flat float32 parameter with a gradient that stays where it is. A period of Alice is ``quick_steps`` batches with one
evaluation and one with three; its time is divided by the evaluations in it. AdamW's step is one
evaluation's. The goal is 1.3 times AdamW with foreach=True. Passes over memory are counted on tensors of
one block, the operations one by one; larger ones are cut into blocks that stay in the cache, or compiled.
Page faults tell where the C library gets new memory from the system at every step, which doubles AdamW's time.

    python benchmarks/alice_arithmetic.py            about three minutes, of which one compiles
    python benchmarks/alice_arithmetic.py --quick    smallest size, fewest rounds
    python benchmarks/alice_arithmetic.py --save     also writes results/alice_arithmetic.json and .md
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import resource
import sys
from collections.abc import Callable
from typing import Any

import torch
from _common import Spread, arguments, header, interleave, machine, ratios, save, table
from torch.utils._python_dispatch import TorchDispatchMode

from thalweg.optim.alice import Alice

GOAL = 1.3
SIZES = (1_000_000, 10_000_000)
WAYS: dict[str, dict[str, Any]] = {
    "block by block": {"foreach": False},
    "foreach": {"foreach": True},
    "compiled": {"compiled": True},
}


class Passes(TorchDispatchMode):
    """Count how many whole tensors the operations read and write."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.count = size, 0.0
        self.views = ("view", "permute", "slice", "narrow", "detach", "alias", "empty", "as_strided", "reshape")

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.__name__
        if not any(view in name for view in self.views):
            read = {
                t.data_ptr()
                for t in _tensors((args, {k: v for k, v in (kwargs or {}).items() if k != "out"}))
                if t.numel() == self.size
            }
            # In place, to `out`, or a new tensor: in each case one tensor is written.
            written = 1 if "_foreach" not in name else max(1, len(args[0]))
            touches = bool(read) or any(t.numel() == self.size for t in _tensors(result))
            self.count += (len(read) + written) * touches
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    return [t for part in tree for t in _tensors(part)] if isinstance(tree, (list, tuple, type({}.values()))) else []


def parameter(size: int) -> torch.nn.Parameter:
    made = torch.nn.Parameter(torch.randn(size, generator=torch.Generator().manual_seed(0)))
    made.grad = torch.randn(size, generator=torch.Generator().manual_seed(1))
    return made


def adamw(size: int, **options: Any) -> Callable[[], Any]:
    return torch.optim.AdamW([parameter(size)], **options).step


def alice(size: int, quick: int, **options: Any) -> Callable[[], Any]:
    """One period, after the warm-up."""
    optimizer = Alice([parameter(size)], quick_steps=quick, **options)

    def batch() -> None:
        for point in optimizer.points():
            optimizer.observe(point)
        optimizer.step()

    def period() -> None:
        for _ in range(quick + 1):
            batch()

    for _ in range(12):
        batch()
    return period


def measure(size: int, rounds: int) -> dict[str, Any]:
    jobs: dict[str, tuple[Callable[[], Any], int]] = {
        "AdamW foreach": (adamw(size, foreach=True), 1),
        "AdamW one by one": (adamw(size, foreach=False), 1),
        "AdamW fused": (adamw(size, fused=True), 1),
    }
    for name, options in WAYS.items():
        for quick in (0, 3):
            jobs[f"Alice {name}, quick_steps={quick}"] = (alice(size, quick, **options), quick + 3)
    times = interleave({name: job for name, (job, _) in jobs.items()}, rounds)
    each = {name: [t / jobs[name][1] for t in sample] for name, sample in times.items()}
    return {"size": size, "seconds_per_evaluation": each, "page_faults_of_adamw": faults(jobs["AdamW foreach"][0])}


def faults(job: Callable[[], Any]) -> int:
    """Pages that one call gets from the system."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    job()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def passes() -> dict[str, float]:
    """Whole tensors read and written per evaluation, one operation after another."""
    size, found = 1000, {}
    jobs = {"AdamW": (adamw(size, foreach=False), 1)}
    jobs |= {f"Alice, quick_steps={quick}": (alice(size, quick, foreach=False), quick + 3) for quick in (0, 3)}
    for name, (job, evaluations) in jobs.items():
        job()
        with Passes(size) as counter:
            job()
        found[name] = counter.count / evaluations
    return found


def main() -> int:
    options = arguments(__doc__ or "", "alice_arithmetic")
    about = machine()
    counted = passes()
    found = [measure(size, 5 if options.quick else 7) for size in (SIZES[:1] if options.quick else SIZES)]
    rows, reached = [], []
    for one in found:
        each = one["seconds_per_evaluation"]
        for name, sample in each.items():
            relative = Spread.of(ratios(sample, each["AdamW foreach"]))
            nanoseconds = Spread.of([1e9 * t / one["size"] for t in sample])
            rows.append([f"{one['size']:,}", name, nanoseconds.show(2), relative.show(2)])
            if name.startswith("Alice"):
                reached.append((relative.median, f"{name} at {one['size']:,}"))
    titles = ["numbers", "way", "ns per number and gradient", "against AdamW foreach"]
    good = [name for ratio, name in reached if ratio <= GOAL]
    pages = ", ".join(f"{one['page_faults_of_adamw']:,} at {one['size']:,}" for one in found)
    counts = ", ".join(f"{name} {count:.1f}" for name, count in counted.items())
    verdict = (
        f"Goal {GOAL}: reached by {'; '.join(good) or 'none'}; "
        f"not by {'; '.join(name for ratio, name in reached if ratio > GOAL) or 'none'}.\n\n"
        f"Tensors read and written per gradient, operations one by one: {counts}.\n\n"
        f"Pages that a step of AdamW foreach gets from the system: {pages}."
    )
    text = f"{header(about)}\n\n{table(titles, rows)}\n\n{verdict}"
    print("## Alice's arithmetic against AdamW's\n\n" + text)
    if options.save:
        record = {"machine": about, "quick": options.quick, "passes": counted, "found": found}
        save(options.out, "alice_arithmetic", record, text)
    compiled = [ratio for ratio, name in reached if "compiled" in name]
    return 0 if max(compiled) <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
