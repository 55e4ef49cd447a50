"""Claim: which curvature terms matter depends on the architecture."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, column, run
from _glass import BATCH, cases, network, split

from thalweg.glass.change import SMOOTH
from thalweg.glass.look import look

NETWORKS = (
    "ReLU MLP",
    "ReLU CNN",
    "ReLU ResNet",
    "ReLU transformer",
    "GELU MLP",
    "GELU ViT",
    "GELU transformer",
)


def measure(case: str, seed: int) -> Numbers:
    """Share of weights in layers where glass matters at Adam's update, and both parts of the loss change along it."""
    name, steps = split(case)
    found = network(name, seed, steps)
    seen = look(found.problem, update=found.optimizer, batches=8, batch_size=BATCH, lengths=(1.0,), seed=seed)
    assert seen.change is not None
    sizes = np.array([row.parameters for row in seen.density.layers])
    kinds = np.array([layer.curvature for layer in seen.layers])
    e = seen.change.expected
    return {
        "glass": float(sizes[kinds == "glass"].sum() / sizes.sum()),
        "hessian": float(sizes[kinds == "Hessian"].sum() / sizes.sum()),
        "along": float(e.glass[0] / abs(e.hessian[0])),
        "power": e.power,
        "deviation": float(seen.change.size[0] / abs(e.hessian[0])),
    }


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Glass in networks of ReLU and not in those of GELU."""
    relu = [row for row in rows if row["case"].startswith("ReLU")]
    gelu = [row for row in rows if row["case"].startswith("GELU")]
    start = [row for row in relu if ", 0 steps" in row["case"]]
    glass, none = column(start, "glass"), column(gelu, "glass")
    later = column([row for row in relu if ", 0 steps" not in row["case"]], "glass")
    kinked = [row for row in relu if row["power"] <= SMOOTH]
    why = (
        f"at Adam's update glass matters for {glass.min():.0%} to {glass.max():.0%} of the weights of ReLU networks at "
        f"the start, {later.min():.0%} to {later.max():.0%} after training, {none.max():.0%} of those of GELU; along "
        f"the update itself the glass part is {column(kinked, 'along').min():.2g} to "
        f"{column(kinked, 'along').max():.2g} of the Hessian's in the {len(kinked)} of {len(relu)} runs of ReLU "
        f"networks whose kinks show along it (power {SMOOTH:g} or less; elsewhere it is a remainder of smooth "
        f"curvature). Mean share of the weights where glass matters, and where the Hessian does: {_by_network(rows)}"
    )
    if glass.min() > 0.5 and later.min() > 0.5 and none.max() < 0.05:
        return HOLDS, why
    return (IN_KIND if glass.mean() > 0.5 and none.max() < 0.05 else NOT), why


def _by_network(rows: list[dict[str, Any]]) -> str:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(split(row["case"])[0], []).append(row)
    return "; ".join(
        f"{name} {column(part, 'glass').mean():.0%}, {column(part, 'hessian').mean():.0%}"
        for name, part in found.items()
    )


CLAIM = Claim(
    "glass_terms",
    "Which curvature terms matter depends on the architecture: glass in ReLU networks, the Hessian in smooth ones.",
    "arXiv 2411.16914",
    "Cross-entropy on digits, for transformers on the next character of text in sequences of 32; batches of 64, "
    "Adam's next update of 1e-3; at the start and after 60 steps",
    measure,
    cases(*NETWORKS),
    judge,
    {
        "glass": "weights where glass matters",
        "hessian": "where the Hessian does",
        "along": "glass / Hessian part, along the update",
        "power": "power along it",
        "deviation": "deviation / Hessian part",
    },
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
