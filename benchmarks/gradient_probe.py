"""What a gradient probe costs: forward-backward passes and seconds, against the steps of training between two probes.

Three networks train by SGD with momentum on the CPU: an MLP with BatchNorm on digits, a small causal transformer on
characters, and a perceptron so small that calling it takes longer than computing it. A probe takes n mini-batches of
the size of the steps and all of their inner products, in train mode. By passes it costs n / every; in seconds more or
less: products of gradients are taken, and no optimizer step follows; where gradients are kept and passes are short,
many mini-batches share one call. Steps and probes are timed in alternation, in seconds of the processor.

    python benchmarks/gradient_probe.py            a minute
    python benchmarks/gradient_probe.py --quick    some seconds
    python benchmarks/gradient_probe.py --save     also writes results/gradient_probe.json and .md
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import itertools
import sys
from collections.abc import Callable
from typing import Any

import torch
from _common import Spread, arguments, header, interleave, machine, save, table
from torch import nn

import thalweg as tw
from thalweg.problem.data.builtin import digits, text
from thalweg.problem.zoo.transformer import CausalTransformer
from thalweg.runs.gradient_draws import Draws
from thalweg.runs.gradient_probe import GradientProbe
from thalweg.stationarity.scale_free import scale_invariant

SETTINGS = ((64, 500, 0.13), (16, 1000, 0.016))
"""Mini-batches, steps between two probes, and the share of training by passes."""
WAYS = ("gradients", "sketch")


def perceptron() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    data = digits(None, True)
    sizes = (64, 256, 256)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 10)), data.inputs.flatten(1), data.targets


def transformer() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    data = text(2000, 32)
    return CausalTransformer(data.outputs, 32, 1, 64, 4), data.inputs, data.targets


def small() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    data = digits(None, True)
    layers = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 10))
    return layers, data.inputs.flatten(1), data.targets


CASES: dict[str, tuple[Callable[[], tuple[nn.Module, torch.Tensor, torch.Tensor]], int]] = {
    "MLP with BatchNorm": (perceptron, 128),
    "causal transformer": (transformer, 8),
    "small MLP": (small, 32),
}


def drawn(job: Callable[[], object]) -> int:
    """Count the mini-batches that a job draws: many may share one call of the model."""
    count, original = 0, Draws.indices

    def indices(self: Draws, i: int) -> torch.Tensor:
        nonlocal count
        count += 1
        return original(self, i)

    Draws.indices = indices  # type: ignore[method-assign]
    try:
        job()
    finally:
        Draws.indices = original  # type: ignore[method-assign]
    return count


def measure(name: str, rounds: int, steps: int) -> dict[str, Any]:
    """Time a stretch of steps and each probe in alternation, and count the mini-batches of each probe."""
    make, size = CASES[name]
    torch.manual_seed(0)
    model, x, y = make()
    loss = nn.functional.cross_entropy
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    problem = tw.Problem(model, loss, (x, y), check=False)

    def train() -> None:
        model.train()
        for _ in range(steps):
            at = torch.randint(0, len(x), (size,))
            optimizer.zero_grad()
            loss(model(x[at]), y[at]).backward()
            optimizer.step()

    def probing(n: int, keep: Any) -> Callable[[], object]:
        probe = GradientProbe(batch_size=size, batches=n, keep=keep)
        return lambda: probe.probe(problem)

    draws, w = Draws(problem, size, 0, "train"), problem.initial
    jobs: dict[str, Callable[[], object]] = {
        "train": train,
        "passes": lambda: draws.at(w, lambda gradient: [gradient(i)[0] for i in range(16)]),
    }
    jobs |= {f"{n} {keep}": probing(n, keep) for n, _, _ in SETTINGS for keep in WAYS}
    passes = {}
    for job in jobs:
        jobs[job]()  # to warm up: the first probe of a problem also compares its way of taking gradients
        passes[job] = drawn(jobs[job])
    times = interleave(jobs, rounds)
    step = [t / steps for t in times["train"]]
    rows = []
    for n, every, claimed in SETTINGS:
        for keep in WAYS:
            share = [t / (every * s) for t, s in zip(times[f"{n} {keep}"], step)]
            rows.append(
                {
                    "n": n,
                    "every": every,
                    "keep": keep,
                    "claimed": claimed,
                    "passes": passes[f"{n} {keep}"],
                    "by_passes": passes[f"{n} {keep}"] / every,
                    "seconds": Spread.of(times[f"{n} {keep}"]).median,
                    "share": Spread.of(share).median,
                    "low": Spread.of(share).low,
                    "high": Spread.of(share).high,
                }
            )
    return {
        "case": name,
        "parameters": problem.dimension,
        "batch_size": size,
        "step_ms": 1e3 * Spread.of(step).median,
        "pass_over_step": Spread.of([t / 16 / s for t, s in zip(times["passes"], step)]).median,
        "rows": rows,
        "search_passes": scale_invariant(problem, batch_size=size).passes,
        "times": times,
    }


def main() -> int:
    options = arguments(__doc__ or "", "gradient_probe")
    about = machine()
    found = [measure(name, *((1, 10) if options.quick else (5, 40))) for name in CASES]
    rows = [
        [
            one["case"],
            f"{one['parameters']:,}",
            f"{one['step_ms']:.2f}",
            f"{row['n']} every {row['every']}",
            row["keep"],
            f"{row['passes']}",
            f"{100 * row['by_passes']:.1f} %",
            f"{row['seconds']:.3f}",
            f"{100 * row['share']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]",
        ]
        for one in found
        for row in one["rows"]
    ]
    head = [
        "network",
        "parameters",
        "step, ms",
        "probe",
        "kept",
        "passes",
        "of training, by passes",
        "seconds",
        "by time",
    ]
    notes = [
        f"{one['case']}: a single pass takes {one['pass_over_step']:.2f} of a step; finding scale-invariant groups, "
        f"once, {one['search_passes']} passes."
        for one in found
    ]
    text_ = "\n\n".join(["# Gradient probes", header(about), table(head, rows), *notes])
    print(text_)
    if options.save:
        save(options.out, "gradient_probe", {"about": about, "cases": found}, text_)
    return 0


if __name__ == "__main__":
    sys.exit(main())
