"""Starting the warm-up at the critical learning rate saves steps."""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import numpy as np
import torch
from _common import HOLDS, IN_KIND, NOT, Claim, column, run
from torch import nn

from thalweg import Problem
from thalweg.optim.search import critical_learning_rate
from thalweg.optim.warmup import CriticalWarmup

WARMUP = 150
"""Steps of the ordinary ramp, from zero to the target."""
SMOOTH = 10
"""Steps over which the mini-batch loss is averaged."""
SAMPLES, BATCH = 600, 100

CASES: dict[str, dict[str, Any]] = {
    f"{name}, {share:g} x critical": {**settings, "share": share}
    for name, settings in (
        ("GD, squared error", {"batch": SAMPLES}),
        ("SGD", {"entropy": True}),
        ("SGD with momentum", {"entropy": True, "momentum": 0.9}),
        ("Adam", {"entropy": True, "adam": True}),
    )
    for share in (0.25, 1.0, 2.0)
}


def network(seed: int, depth: int = 4, width: int = 64) -> nn.Module:
    """ReLU, no biases, variance 2 / fan-in, in the last layer 1 / fan-in."""
    stream, layers = torch.Generator().manual_seed(seed), []
    for number, (a, b) in enumerate(itertools.pairwise([64] + [width] * (depth - 1) + [10]), 1):
        layer = nn.Linear(a, b, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(b, a, generator=stream) * math.sqrt((2 if number < depth else 1) / a))
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def data(seed: int, entropy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Digits, each standardised on its own, every fifth label random: targets as classes or one-hot."""
    from sklearn.datasets import load_digits

    loaded, stream = load_digits(), torch.Generator().manual_seed(seed)
    picked = torch.randperm(len(loaded.target), generator=stream)[:SAMPLES]
    x, y = torch.tensor(loaded.data).float()[picked], torch.tensor(loaded.target)[picked]
    y[::5] = torch.randint(0, 10, (len(y[::5]),), generator=stream)
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    return x, y if entropy else nn.functional.one_hot(y, 10).float()


def half_square(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Half the squared error, averaged over samples and classes."""
    return 0.5 * (out - target).square().mean()


def optimizer_of(case: dict[str, Any], model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Build the case's optimizer."""
    if case.get("adam"):
        return torch.optim.Adam(model.parameters(), lr=rate)
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=case.get("momentum", 0.0))


def measure(name: str, seed: int) -> dict[str, float]:
    """Train with the ordinary ramp and with one that starts at eta_c, on the same batches, and count steps."""
    case = CASES[name]
    loss = nn.CrossEntropyLoss() if case.get("entropy") else half_square
    x, y = data(seed, bool(case.get("entropy")))
    size = case.get("batch", BATCH)
    first = (x, y) if size == SAMPLES else (x[:size], y[:size])  # a mini-batch of the training's size
    model = network(seed)
    found = critical_learning_rate(Problem(model, loss, first), optimizer_of(case, model, 1.0))
    target = case["share"] * found.learning_rate
    losses = {}
    for kind in ("ordinary", "critical"):
        model = network(seed)
        optimizer = optimizer_of(case, model, target)
        start = target / WARMUP if kind == "ordinary" else found.learning_rate
        warmup = CriticalWarmup(optimizer, start, WARMUP)
        losses[kind] = train(model, optimizer, warmup, loss, x, y, size, seed)
    # The search's first evaluation comes with a gradient: a whole step; two further forward passes count as one.
    paid = found.gradients + (found.evaluations - found.gradients) / 2
    share = min(1.0, found.learning_rate / target)
    row = {
        "critical": found.learning_rate,
        "target": target,
        "paid": paid,
        "sooner": WARMUP * share - paid,
        "expected": WARMUP * share * (1 - share / 2) - paid,
    }
    for key, step in (("saved", WARMUP), ("later", 2 * WARMUP)):
        goal = float(losses["ordinary"][step - 1])
        row[key] = reached(losses["ordinary"], goal) - reached(losses["critical"], goal) - paid
    return row


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    warmup: CriticalWarmup,
    loss: Any,
    x: torch.Tensor,
    y: torch.Tensor,
    size: int,
    seed: int,
) -> np.ndarray:
    """Return the loss of every step, averaged over the last ones."""
    stream, seen = torch.Generator().manual_seed(seed + 1000), []
    for _ in range(3 * WARMUP):
        rows = torch.randperm(len(x), generator=stream)[:size] if size < len(x) else slice(None)
        value = loss(model(x[rows]), y[rows])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        warmup.step()
        seen.append(float(value.detach()))
    window = 1 if size == len(x) else SMOOTH
    values = np.array(seen)
    return np.array([values[max(0, t + 1 - window) : t + 1].mean() for t in range(len(values))])


def reached(losses: np.ndarray, goal: float) -> float:
    """First step at which the loss is down at the goal; all steps where it never is, NaN without a goal."""
    if not math.isfinite(goal):
        return math.nan
    under = np.flatnonzero(losses <= goal)
    return float(under[0] + 1) if len(under) else float(len(losses))


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Fewer steps to the ordinary run's loss at the end of its ramp, in every run."""
    gained, later = column(rows, "saved"), column(rows, "later")
    known = np.isfinite(gained)
    share = np.array([CASES[row["case"]]["share"] for row in rows])
    won = gained[known] > 0

    def words(group: float) -> str:
        here, expected = gained[known & (share == group)], column(rows, "expected")[share == group]
        return (
            f"at {group:g} it does so in {(here > 0).sum()} of {len(here)} runs, median {np.median(here):.0f} of "
            f"{WARMUP} steps, worst {here.min():.0f} ({np.median(expected):.0f} expected)"
        )

    groups = "; ".join(words(group) for group in sorted(set(share.tolist())))
    why = (
        f"it saves steps to the loss at the ordinary ramp's end in {won.sum()} of {len(won)} runs, the search paid "
        f"for. By the target in units of the critical rate: {groups}. Expected is what equal sums of learning rates "
        f"let one expect. To the loss after twice as many steps it saves some in {int((later[known] > 0).sum())}"
    )
    if not known.all():
        why += f"; in {int((~known).sum())} the ordinary ramp diverged"
    if bool(won.all()):
        return HOLDS, why
    return (IN_KIND if won.mean() > 0.5 and np.median(gained[known]) > 0 else NOT), why


CLAIM = Claim(
    "phase_warmup",
    "A warm-up that starts at the critical learning rate instead of zero saves steps.",
    "arXiv 2406.09405",
    f"ReLU nets 64-64-64-64-10 without biases on {SAMPLES} digits with a fifth of the labels random; batches of "
    f"{BATCH} with cross-entropy, or all samples with squared error; a ramp of {WARMUP} steps to 0.25, 1 and 2 times "
    "the critical rate, the same batches with both starts; two forward passes count as a step",
    measure,
    tuple(CASES),
    judge,
    {
        "critical": "critical learning rate",
        "target": "target",
        "paid": "the search, in steps",
        "sooner": "steps by which the target is reached sooner",
        "expected": "to save by equal sums of learning rates",
        "saved": "steps saved to the loss at the ramp's end",
        "later": "to the loss after twice as many steps",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
