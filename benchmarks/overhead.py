"""Time ``Problem.value_and_gradient`` against the same by plain torch, interleaved, and compare the results.

What `Problem` adds is a constant per evaluation: parameters are passed through ``functional_call``, random state and
attention backends are guarded, gradients are joined into one vector. It shows on tiny models only.

    python benchmarks/overhead.py            under a minute
    python benchmarks/overhead.py --quick    a few seconds
    python benchmarks/overhead.py --save     also writes results/overhead.json and .md
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from _cases import Case, cnn, mlp, small_mlp, transformer
from _common import Spread, arguments, header, interleave, machine, ratios, save, table

import thalweg as tw

RAW = "plain torch"


def plain(case: Case, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and flat gradient of all batches, as one writes it by hand."""
    total = torch.zeros((), dtype=case.dtype)
    flat = torch.zeros(case.size, dtype=case.dtype)
    for x, y in batches:
        share = len(x) / len(case.x)
        value = case.loss(case.model(x), y)
        total += share * value.detach()
        grads = torch.autograd.grad(value, case.parameters)
        flat.add_(torch.cat([g.reshape(-1) for g in grads]), alpha=share)
    return total, flat


def measure(case: Case, pieces: int, rounds: int) -> dict[str, Any]:
    """Time both on ``case`` cut into ``pieces`` batches."""
    length = -(-len(case.x) // pieces)
    batches = list(zip(case.x.split(length), case.y.split(length)))
    problem = tw.Problem(case.model, case.loss, (case.x, case.y), batch_size=length)
    w = problem.initial
    mine, theirs = problem.value_and_gradient(w), plain(case, batches)
    error = float((mine[1] - theirs[1]).norm() / theirs[1].norm())
    times = interleave({RAW: partial(plain, case, batches), "Problem": partial(problem.value_and_gradient, w)}, rounds)
    extra = [1e3 * (a - b) / len(batches) for a, b in zip(times["Problem"], times[RAW])]
    return {
        "case": case.title,
        "batches": len(batches),
        "error": error,
        "times": times,
        "ratio": asdict(Spread.of(ratios(times["Problem"], times[RAW]))),
        "extra_ms_per_batch": asdict(Spread.of(extra)),
    }


def main() -> int:
    """Measure, print, save, and return 1 if the gradients differ by more than rounding."""
    options = arguments(__doc__ or "", "overhead")
    about = machine()
    builders = (small_mlp, mlp) if options.quick else (small_mlp, mlp, cnn, transformer)
    every = [build().to(dtype) for build in builders for dtype in (torch.float64, torch.float32)]
    found = [
        measure(case, n, 7 if options.quick else 25) for case in every for n in ((1,) if options.quick else (1, 4))
    ]
    rows = [
        [
            one["case"],
            str(one["batches"]),
            f"{Spread.of(one['times'][RAW]).median * 1e3:.2f}",
            Spread(**one["ratio"]).show(),
            Spread(**one["extra_ms_per_batch"]).show(),
            f"{one['error']:.0e}",
        ]
        for one in found
    ]
    head = [
        "case",
        "batches",
        f"{RAW}, ms",
        "Problem / plain [quartiles]",
        "extra ms a batch [quartiles]",
        "difference",
    ]
    text = header(about) + "\n\n" + table(head, rows)
    print("## Value and gradient: `Problem` against plain torch\n\n" + text)
    if options.save:
        save(options.out, "overhead", {"machine": about, "quick": options.quick, "cases": found}, text)
    wrong = [one["case"] for one in found if one["error"] > (1e-12 if "float64" in one["case"] else 1e-5)]
    for case in wrong:
        print(f"WRONG: gradients differ on {case}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
