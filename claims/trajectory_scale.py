"""Claim: directional similarity rises with the size of language models, also at equal decay exposure."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import numpy as np
import torch
from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, run

from thalweg.problem.data import DataConfig, load_data
from thalweg.problem.zoo import ModelConfig, build_model
from thalweg.runs.sources import Trajectory
from thalweg.trajectories.map import TrajectoryMap, trajectory_map
from thalweg.trajectories.nulls import Decay

WIDTHS = (16, 32, 64, 128)
STEPS, EVERY, BATCH, LENGTH, WARMUP = 300, 10, 16, 32, 15
RATE, EXPOSURE = 8e-3, 2.0
FAMILIES = ("own rate", "own rate, equal exposure", "one rate, equal exposure")
CASES = {f"{family}, width {width}": (family, width) for family in FAMILIES for width in WIDTHS}


def rates(peak: float) -> np.ndarray:
    """Return the learning rate of each step: warm-up, then a cosine to a tenth, shape (STEPS,)."""
    steps = np.arange(STEPS)
    cosine = 0.55 + 0.45 * np.cos(np.pi * (steps - WARMUP) / (STEPS - WARMUP))
    return peak * np.where(steps < WARMUP, (steps + 1) / WARMUP, cosine)


def settings(family: str, width: int) -> tuple[float, float]:
    """Return peak rate and decay. Larger models get smaller rates, as families do; exposure is sum of rate x decay."""
    peak = RATE * (WIDTHS[0] / width) ** 0.5 if family.startswith("own") else RATE / 2
    reference = RATE if family == "own rate" else peak
    return peak, EXPOSURE / float(rates(reference).sum())


@cache
def text() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_data(DataConfig(name="text", length=LENGTH))
    return data.inputs, data.targets


@cache
def trained(peak: float, decay: float, width: int, seed: int) -> tuple[TrajectoryMap, float]:
    """Train with AdamW on characters of Python's library; return the map and the loss over the last 30 steps."""
    inputs, targets = text()
    data = load_data(DataConfig(name="text", length=LENGTH, samples=BATCH))
    model = build_model(ModelConfig(name="transformer", depth=2, width=width, heads=4), data, seed=seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=decay)
    stream = torch.Generator().manual_seed(seed)
    points, losses = [], []
    every = rates(peak)
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            points.append({name: p.detach().clone() for name, p in model.named_parameters()})
        if step == STEPS:
            break
        optimizer.param_groups[0]["lr"] = every[step]
        rows = torch.randint(len(inputs), (BATCH,), generator=stream)
        loss = torch.nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    path = Trajectory.from_arrays(points, range(0, STEPS + 1, EVERY))
    null = Decay(decay, coupled=False, learning_rate=every)
    return trajectory_map(path, decay=null), float(np.mean(losses[-30:]))


def measure(case: str, seed: int) -> Numbers:
    """Map one model's training."""
    family, width = CASES[case]
    found, loss = trained(*settings(family, width), width, seed)
    table = found.table()
    return {
        "exposure": float(found.decay.exposure(found.steps)[-1]),
        "omega_off": table["omega_off"].value,
        "null": table["omega_off"].decay,
        "persistence": table["omega_off"].value - table["omega_off"].decay,
        "displacement": table["displacement"].value,
        "loss": loss,
    }


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Rising from width to width in every seed: with the families' own rates, and at equal exposure."""
    seeds = sorted({row["seed"] for row in rows})

    def table(family: str, key: str = "omega_off") -> np.ndarray:
        names = [f"{family}, width {width}" for width in WIDTHS]
        return np.array(
            [[next(r for r in rows if (r["case"], r["seed"]) == (n, s))[key] for n in names] for s in seeds]
        )

    found = {family: table(family) for family in FAMILIES}
    rises = {family: np.diff(values, axis=1) > 0 for family, values in found.items()}
    parts = []
    for family, values in found.items():
        D, null = table(family, "exposure").mean(axis=0), table(family, "null").mean(axis=0)
        parts.append(
            f"with {family} (exposure {D[0]:.2f} to {D[-1]:.2f}) similarity goes from {values[:, 0].mean():.3f} to "
            f"{values[:, -1].mean():.3f} and rises at {rises[family].sum()} of {rises[family].size} steps between "
            f"neighbouring widths (decay null {null[0]:.3f} to {null[-1]:.3f})"
        )
    gain = {family: (values[:, -1] - values[:, 0]).mean() for family, values in found.items()}
    left = [gain[family] / gain[FAMILIES[0]] for family in FAMILIES[1:]]
    above = [np.diff(table(family, "persistence"), axis=1) < 0 for family in FAMILIES]
    why = (
        f"from width {WIDTHS[0]} to {WIDTHS[-1]}: " + "; ".join(parts) + f". At equal exposure {min(left):.0%} to "
        f"{max(left):.0%} of the rise are left, and similarity less that of the decay null falls with width at "
        f"{sum(int(one.sum()) for one in above)} of {sum(one.size for one in above)} steps"
    )
    if all(bool(one.all()) for one in rises.values()):
        return HOLDS, why
    higher = {family: bool((values[:, -1] > values[:, 0]).all()) for family, values in found.items()}
    return (IN_KIND if higher[FAMILIES[0]] and (higher[FAMILIES[1]] or higher[FAMILIES[2]]) else NOT), why


CLAIM = Claim(
    "trajectory_scale",
    "In a family of language models directional similarity rises with size, also at equal decay exposure.",
    "arXiv 2403.07379",
    f"causal transformers of 2 blocks and widths {', '.join(map(str, WIDTHS))} on characters of Python's "
    "library, AdamW, "
    f"{STEPS} steps of {BATCH} x {LENGTH} characters, warm-up and cosine to a tenth, 31 checkpoints; own rate: "
    "in proportion to width^-1/2, one decay; exposure is the sum of rate times decay",
    measure,
    tuple(CASES),
    judge,
    {
        "exposure": "decay exposure D",
        "omega_off": "mean similarity without the diagonal",
        "null": "that of the decay null",
        "persistence": "difference",
        "displacement": "displacement r_T / n_1",
        "loss": "loss over the last 30 steps",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
