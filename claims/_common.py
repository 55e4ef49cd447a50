"""What every claim's script does: run over seeds, print numbers, judge, and save for the page of claims."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import thalweg as tw

RESULTS = Path(__file__).parent / "results"
HOLDS, IN_KIND, NOT = "holds", "holds in kind", "not reproduced"
Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, and how it is tested here.

    Attributes:
        name: Of the script and its results.
        statement: What is claimed, in our words.
        source: Where.
        setting: What is run here.
        measure: Numbers of one case and seed.
        cases: Names of the cases.
        judge: The verdict on all rows, with a sentence that says why.
        units: Column titles by the keys of ``measure``.
    """

    name: str
    statement: str
    source: str
    setting: str
    measure: Callable[[str, int], Numbers]
    cases: Sequence[str]
    judge: Callable[[list[dict[str, Any]]], tuple[str, str]]
    units: Mapping[str, str]


def run(claim: Claim) -> int:
    """Run the script's command line; 0 whatever the verdict is, for "not reproduced" is a result."""
    parser = argparse.ArgumentParser(description=claim.statement)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--save", action="store_true", help="write results/NAME.json, of which the page is made")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for --save")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin, rows = time.perf_counter(), []
    for case in claim.cases:
        for seed in range(options.seeds):
            rows.append({"case": case, "seed": seed, **claim.measure(case, seed)})
            print(_line(rows[-1]))
    verdict, why = claim.judge(rows)
    print(f"\n{claim.statement}\n{verdict}: {why}")
    if options.save:
        options.out.mkdir(parents=True, exist_ok=True)
        record = {
            "name": claim.name,
            "statement": claim.statement,
            "source": claim.source,
            "setting": claim.setting,
            "units": dict(claim.units),
            "rows": rows,
            "verdict": verdict,
            "why": why,
            "seconds": round(time.perf_counter() - begin),
            "date": datetime.date.today().isoformat(),
            "versions": {name: importlib.metadata.version(name) for name in ("thalweg", "torch")},
        }
        (options.out / f"{claim.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


def _line(row: Mapping[str, Any]) -> str:
    return "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{value}" for key, value in row.items())


def column(rows: list[dict[str, Any]], key: str) -> np.ndarray:
    """One number of all rows."""
    return np.array([row[key] for row in rows], dtype=float)


def digits(seed: int, samples: int = 300, noise: float = 0.3, width: int = 32) -> tw.Problem:
    """Build an MLP 64-w-w-10 with GELU on handwritten digits, a share of the labels random, half squared error."""
    from sklearn.datasets import load_digits

    data = load_digits()
    stream = torch.Generator().manual_seed(seed)
    picked = torch.randperm(len(data.target), generator=stream)[:samples]
    x, y = torch.tensor(data.data).float()[picked], torch.tensor(data.target)[picked]
    wrong = torch.rand(samples, generator=stream) < noise
    y[wrong] = torch.randint(0, 10, (int(wrong.sum()),), generator=stream)
    torch.manual_seed(seed)
    sizes = (64, width, width, 10)
    layers: list[torch.nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(a, b), torch.nn.GELU()]
    target = torch.nn.functional.one_hot(y, 10).float()

    def loss(out: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return 0.5 * (out - goal).square().sum(1).mean()

    return tw.Problem(torch.nn.Sequential(*layers[:-1]), loss, ((x - x.mean()) / x.std(), target))
