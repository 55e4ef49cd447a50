"""Count products per step that leading eigenpairs cost along a run at the edge of stability.

Every method sees the same operators, step by step, and brings its pairs to the same true residual,
``|A v - theta v| <= 1e-3 theta_1``. Cold methods start from random vectors at each step (at every tenth step, to save
time); warm ones go on from what they had. Products are counted by our operator, so they vary with no machine.

    python benchmarks/tracking.py            about ten minutes
    python benchmarks/tracking.py --quick    one case, under a minute
    python benchmarks/tracking.py --save     also writes results/tracking.json and .md
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _common import arguments, header, machine, save, table
from scipy.sparse.linalg import eigsh, lobpcg
from torch import Tensor

import thalweg as tw
from thalweg.operators import Operator
from thalweg.problem.data import DataConfig, load_data, loss_for
from thalweg.problem.zoo import ModelConfig, build_model
from thalweg.rules import effective_hessian

TOL = 1e-3
COLD_EVERY = 10


@dataclass(frozen=True)
class Case:
    """A run: its rule, where the recording begins, and whether it sees mini-batches."""

    name: str
    rule: Any
    begin: int
    batch: int | None = None
    loss: str = "mse"


CASES = (
    Case("gradient descent", tw.rules.GradientDescent(lr=0.14), 380),
    Case("heavy ball 0.9", tw.rules.HeavyBall(lr=0.24, momentum=0.9), 300),
    Case("RMSProp", tw.rules.RMSProp(lr=5e-4, beta2=0.99, bias_correction=True), 200),
    Case("mini-batches of 256", tw.rules.GradientDescent(lr=0.14), 380, batch=256),
    Case("cross-entropy", tw.rules.GradientDescent(lr=0.6), 40, loss="cross_entropy"),
)


def points(case: Case, steps: int) -> Iterator[tuple[Any, Tensor, Operator]]:
    """Yield weights and effective Hessians of ``steps`` successive steps."""
    data = load_data(DataConfig())
    model = build_model(ModelConfig(name="mlp", depth=4, width=64, activation="tanh", init_scale=0.45), data, 0)
    problem = tw.Problem(model, loss_for(case.loss, data), data.pair())
    w, stream = problem.initial, torch.Generator().manual_seed(0)
    state = case.rule.init(w)
    for t in range(case.begin + steps):
        part = problem
        if case.batch:
            part = problem.subset(torch.randperm(problem.samples, generator=stream)[: case.batch])
        g = part.gradient(w)
        if t >= case.begin:
            used = case.rule.update(state, g, w)
            with tw.hessian(problem, w, layout="linearised") as curvature:
                yield w.clone(), case.rule.stability_threshold(t), effective_hessian(case.rule, used, curvature)
        w, state = case.rule.advance(w, state, g)


Method = Callable[[Operator, Tensor, int], Tensor]
"""Return k eigenvectors as columns."""


def arpack(operator: Operator, w: Tensor, k: int) -> Tensor:
    """SciPy's eigsh from a random vector."""
    _, vectors = eigsh(operator.to_scipy(), k, which="LA", tol=TOL, v0=np.random.default_rng(0).standard_normal(len(w)))
    return torch.from_numpy(vectors[:, ::-1].copy())


class Lobpcg:
    """SciPy's LOBPCG, cold or from its last vectors; it takes an absolute tolerance, so it is given the scale."""

    def __init__(self, warm: bool) -> None:
        self.warm, self.block, self.scale = warm, None, None

    def __call__(self, operator: Operator, w: Tensor, k: int) -> Tensor:
        if self.scale is None:
            self.scale = float(tw.top_eigenpairs(operator, 1).values[0])
        start = self.block if self.warm and self.block is not None else None
        if start is None:
            start = np.random.default_rng(0).standard_normal((len(w), k)).astype(np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values, block = lobpcg(operator.to_scipy(), start, tol=0.95 * TOL * self.scale, maxiter=200, largest=True)
        order = np.argsort(-values)
        self.block, self.scale = block[:, order], float(values.max())
        return torch.from_numpy(self.block.copy())


def lanczos(operator: Operator, w: Tensor, k: int) -> Tensor:
    """Our own thick-restart Lanczos from a random vector."""
    return tw.top_eigenpairs(operator, k, method=tw.Lanczos(tol=TOL, check_multiplicity=False)).vectors


class Tracker:
    """Our tracker: with the weights, without, or from the last vectors alone."""

    def __init__(self, k: int, knows: bool = True, history: int = 6) -> None:
        self.tracker, self.knows = tw.EigenTracker(k, tol=TOL, history=history), knows

    def __call__(self, operator: Operator, w: Tensor, k: int) -> Tensor:
        return self.tracker.update(operator, w=w if self.knows else None).vectors


def methods(k: int) -> dict[str, tuple[Any, bool]]:
    """Every method by name, and whether it starts cold."""
    return {
        "ARPACK, cold": (arpack, True),
        "LOBPCG, cold": (Lobpcg(warm=False), True),
        "LOBPCG, warm": (Lobpcg(warm=True), False),
        "our Lanczos, cold": (lanczos, True),
        "our tracker, last vectors": (Tracker(k, history=1), False),
        "our tracker, without weights": (Tracker(k, knows=False), False),
        "our tracker": (Tracker(k), False),
    }


def measure(case: Case, k: int, steps: int) -> dict[str, Any]:
    """Run every method along the case."""
    every = methods(k)
    counts: dict[str, list[int]] = {name: [] for name in every}
    residuals: dict[str, list[float]] = {name: [] for name in every}
    errors: dict[str, list[float]] = {name: [] for name in every}
    above = []
    for t, (w, limit, operator) in enumerate(points(case, steps)):
        truth = None
        if t % COLD_EVERY == 0:
            truth = tw.top_eigenpairs(operator, k, method=tw.Lanczos(tol=2e-5)).values.double()
            above.append(float(truth[0]) / limit)
        for name, (method, cold) in every.items():
            if cold and t % COLD_EVERY:
                continue
            before = operator.products if not hasattr(operator, "inner") else operator.inner.products
            vectors = method(operator, w, k).to(operator.dtype)
            after = operator.products if not hasattr(operator, "inner") else operator.inner.products
            if t:  # every method starts cold at the first
                counts[name].append(after - before)
            if truth is None:
                continue
            images = operator.matmat(vectors)
            rho = (vectors * images).sum(0) / (vectors * vectors).sum(0)
            residuals[name].append(float((images - vectors * rho).norm(dim=0).max() / rho.abs().max()))
            found = rho.double().sort(descending=True).values
            errors[name].append(float(((found - truth).abs() / truth[0]).max()))
    return {
        "case": case.name,
        "k": k,
        "steps": steps,
        "sharpness_over_threshold": float(np.median(above)),
        "rows": {
            name: {
                "mean": float(np.mean(counts[name])),
                "median": float(np.median(counts[name])),
                "max": int(max(counts[name])),
                "residual": max(residuals[name]),
                "error": max(errors[name]),
                "missed": sum(e > 5e-3 for e in errors[name]),
                "checked": len(errors[name]),
            }
            for name in every
        },
    }


def main() -> int:
    """Measure, print, save; return 1 if our tracker missed its residual."""
    options = arguments(__doc__ or "", "tracking")
    about = machine()
    jobs = [(CASES[0], 4)] if options.quick else [(CASES[0], 1), (CASES[0], 2), *((case, 4) for case in CASES)]
    found = [measure(case, k, 40 if options.quick else 300) for case, k in jobs]
    names = list(methods(1))
    head = ["run", "k", "sharpness / threshold", *names]
    rows = [
        [one["case"], str(one["k"]), f"{one['sharpness_over_threshold']:.2f}"]
        + [
            f"{one['rows'][n]['mean']:.1f}"
            + (
                f" (missed {one['rows'][n]['missed']} of {one['rows'][n]['checked']})"
                if one["rows"][n]["missed"]
                else ""
            )
            for n in names
        ]
        for one in found
    ]
    text = (
        f"{header(about)}\n\n### Products per step along {found[0]['steps']} steps (mean)\n\n{table(head, rows)}\n\n"
        f"Largest true residual of our tracker, checked at every {COLD_EVERY}th step: "
        f"{max(one['rows']['our tracker']['residual'] for one in found):.1e}. An answer counts as missed where an "
        "eigenvalue is off by more than 0.5 % of the largest."
    )
    print(text)
    if options.save:
        save(options.out, "tracking", {"quick": options.quick, "machine": about, "cases": found}, text)
    return int(any(one["rows"]["our tracker"]["residual"] > 1.1 * TOL for one in found))


if __name__ == "__main__":
    sys.exit(main())
