"""Train the runs whose regimes are known, and keep their curves in ``regime_runs.npz``.

python tests/phases/make_regime_runs.py [KIND ...] [--seeds 4 5 6 7 8 --file fresh.npz]

Each kind is trained on several seeds at once: weights are stacked, so one backward pass serves all rows. Losses are
kept at every step as rounded logarithms (error 0.1 %), which a compressed file holds in about half a byte a step.
"""

import argparse
import math
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

FILE = Path(__file__).with_name("regime_runs.npz")
SEEDS = 4
QUANTUM = 2e-3
"""Losses are kept to this in their natural logarithm."""
CUTOFF = 1e5


@dataclass(frozen=True)
class Kind:
    """How to make one kind of run; ``c`` is the learning rate times the first sharpness."""

    c: float
    steps: int
    rule: str = "gd"
    beta: float = 0.9
    labels: str = "random"
    loss: str = "mse"
    depth: int = 4
    width: int = 64
    batch: int | None = None
    points: int = 90
    critical: bool = False  # c counts in units of the one-step critical value rather than of 1 / sharpness
    lr: float | None = None  # given outright, where the first sharpness says nothing
    drop: tuple[int, float] | None = None  # from this step on the rate is multiplied by this
    late: int = 0  # so many further measurements, evenly over the second half


KINDS = {
    "random_c4": Kind(4, 20000),
    "random_c8": Kind(8, 9000),
    "true": Kind(2, 3000, labels="true"),
    "catapult": Kind(1.25, 600, labels="true", critical=True),
    "reduction": Kind(0.6, 300, labels="true", depth=8, critical=True),
    "heavy_ball": Kind(1, 4000, rule="heavy"),
    "nesterov": Kind(2.5, 8000, rule="nesterov"),
    "ema": Kind(4, 4000, rule="ema"),
    "sgd": Kind(8, 20000, batch=30, late=30),
    "sgd_true": Kind(2, 5000, batch=30, labels="true"),
    "cross_entropy": Kind(1, 6000, labels="true", loss="ce"),
    "drop": Kind(8, 9000, drop=(6000, 0.25)),
    "diverged": Kind(100, 40, labels="true"),
    "adam": Kind(1, 3000, rule="adam", lr=1e-3),
    "short": Kind(4, 25, points=5),
}


def data(kind: Kind, seeds: list[int], count: int = 300) -> tuple[Tensor, Tensor]:
    """Return inputs ``(N, 64)`` and one-hot targets ``(S, N, 10)``."""
    found = load_digits()
    x = torch.from_numpy(found.data[:count])
    x = (x - x.mean(1, keepdim=True)) / x.std(1, unbiased=False, keepdim=True)
    rows = []
    for seed in seeds:
        true = torch.from_numpy(found.target[:count])
        drawn = torch.randint(0, 10, (count,), generator=torch.Generator().manual_seed(1000 + seed))
        rows.append(torch.nn.functional.one_hot(true if kind.labels == "true" else drawn, 10))
    return x, torch.stack(rows).double()


def start(kind: Kind, seeds: list[int]) -> list[Tensor]:
    """Return stacked weights: variance 2 / fan-in, 1 / fan-in in the last layer, no bias."""
    sizes = [64, *[kind.width] * (kind.depth - 1), 10]
    layers = []
    for i, (fan, out) in enumerate(pairwise(sizes)):
        gain = 1.0 if i == kind.depth - 1 else 2.0
        draws = [torch.Generator().manual_seed(100 * seed + i) for seed in seeds]
        layers.append(torch.stack([torch.randn(fan, out, generator=g, dtype=torch.float64) for g in draws]))
        layers[-1] *= math.sqrt(gain / fan)
    return layers


def losses(kind: Kind, weights: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Return the loss of each row, ``(S,)``; ``x`` is ``(S, B, 64)``."""
    h = x
    for layer in weights[:-1]:
        h = torch.relu(torch.bmm(h, layer))
    f = torch.bmm(h, weights[-1])
    if kind.loss == "mse":
        return 0.5 * (f - y).square().mean((1, 2))
    return -(y * torch.log_softmax(f, -1)).sum(-1).mean(1)


def flat(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.reshape(len(part), -1) for part in parts], 1)


def unflat(v: Tensor, like: list[Tensor]) -> list[Tensor]:
    pieces = v.split([part[0].numel() for part in like], 1)
    return [piece.reshape(part.shape) for piece, part in zip(pieces, like)]


def sharpness(kind, weights, x, y, root=None, begin=None, tol=1e-3, most=80):
    """Return the largest eigenvalue of each row's Hessian by Lanczos, and its vector; ``root`` is P^-1/2."""
    live = [w.detach().requires_grad_() for w in weights]
    gradient = flat(torch.autograd.grad(losses(kind, live, x, y).sum(), live, create_graph=True))
    rows, size = gradient.shape
    noise = torch.randn(rows, size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    q = noise / noise.norm(dim=1, keepdim=True)
    if begin is not None:
        q = begin + 0.05 * q
    q = q / q.norm(dim=1, keepdim=True)
    scale = 1.0 if root is None else root
    basis, alpha, beta = [q], [], []
    for k in range(most):
        (product,) = [flat(torch.autograd.grad((gradient * (scale * q)).sum(), live, retain_graph=True))]
        z = scale * product
        alpha.append((z * q).sum(1))
        stacked = torch.stack(basis, 1)
        for _ in range(2):
            z = z - torch.einsum("skp,sk->sp", stacked, torch.einsum("skp,sp->sk", stacked, z))
        beta.append(z.norm(dim=1))
        if k >= 4 and (k % 3 == 0 or k == most - 1):
            off = torch.stack(beta[:-1], 1)
            T = torch.diag_embed(torch.stack(alpha, 1)) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
            values, vectors = torch.linalg.eigh(T)
            residual = beta[-1] * vectors[:, -1, -1].abs()
            if bool((residual <= tol * values[:, -1].abs()).all()) or k == most - 1:
                return values[:, -1], torch.einsum("skp,sk->sp", stacked, vectors[:, :, -1])
        q = z / beta[-1][:, None].clamp_min(1e-300)
        basis.append(q)
    raise AssertionError


def critical(kind: Kind, weights, x, y, top: Tensor) -> Tensor:
    """Return ``c`` at which one step of descent stops lowering the loss, ``(S,)``, by doubling and bisection."""
    live = [w.detach().requires_grad_() for w in weights]
    first = losses(kind, live, x, y)
    g = torch.autograd.grad(first.sum(), live)
    low, high = torch.ones_like(top), torch.full_like(top, 2.0)

    def rises(c: Tensor) -> Tensor:
        return losses(kind, [w - (c / top)[:, None, None] * p for w, p in zip(weights, g)], x, y) > first

    for _ in range(12):
        up = rises(high)
        low, high = torch.where(up, low, high), torch.where(up, high, 2 * high)
    for _ in range(12):
        middle = (low * high).sqrt()
        up = rises(middle)
        low, high = torch.where(up, low, middle), torch.where(up, middle, high)
    return high


def batch_sharpness(kind, weights, x, y, size, draws=12, seed=0) -> Tensor:
    """Return the mean over batches of g'Hg / g'g, ``(S,)``."""
    generator, found = torch.Generator().manual_seed(seed), []
    for _ in range(draws):
        index = torch.randperm(x.shape[1], generator=generator)[:size]
        live = [w.detach().requires_grad_() for w in weights]
        g = flat(torch.autograd.grad(losses(kind, live, x[:, index], y[:, index]).sum(), live, create_graph=True))
        fixed = g.detach()
        product = flat(torch.autograd.grad((g * fixed).sum(), live))
        found.append((product * fixed).sum(1) / (fixed * fixed).sum(1))
    return torch.stack(found).mean(0)


def make(kind: Kind, seeds: list[int], steps: int | None = None) -> dict[str, np.ndarray]:
    """Train the rows of ``seeds``, and return loss ``(S, T+1)``, sharpness ``(S, K)``, rates ``(S, T+1)``, steps."""
    total = kind.steps if steps is None else steps
    x0, y = data(kind, seeds)
    x = x0.expand(len(seeds), *x0.shape)
    weights = start(kind, seeds)
    top, vector = sharpness(kind, weights, x, y, tol=1e-7)
    factor = critical(kind, weights, x, y, top) if kind.critical else torch.ones_like(top)
    eta0 = kind.c * factor / top if kind.lr is None else torch.full_like(top, kind.lr)
    grid = np.unique(np.round(np.expm1(np.linspace(0, np.log1p(kind.steps), kind.points))).astype(int))
    if kind.drop is not None:
        after = np.round(np.expm1(np.linspace(0, np.log1p(kind.steps - kind.drop[0]), kind.points // 2)))
        grid = np.unique([*grid, *(kind.drop[0] + after.astype(int))])
    grid = np.unique([*grid, *np.linspace(kind.steps // 2, kind.steps, kind.late).astype(int)])
    measured = set(grid.tolist())
    m = [torch.zeros_like(w) for w in weights]
    v = [torch.zeros_like(w) for w in weights]
    curve, eigen, batchy, rates, times = [], [], [], [], []
    order = [torch.Generator().manual_seed(50 + seed) for seed in seeds]
    perm, at, begin = None, 0, vector
    gone = torch.zeros(len(seeds), dtype=torch.bool)
    for t in range(total + 1):
        eta = eta0 * (kind.drop[1] if kind.drop is not None and t >= kind.drop[0] else 1.0)
        live = [w.detach().requires_grad_() for w in weights]
        xb, yb = x, y
        if kind.batch is not None:
            if perm is None or at + kind.batch > x.shape[1]:
                perm, at = torch.stack([torch.randperm(x.shape[1], generator=g) for g in order]), 0
            chosen = perm[:, at : at + kind.batch]
            at += kind.batch
            xb, yb = x0[chosen], y[torch.arange(len(seeds))[:, None], chosen]
        here = losses(kind, live, xb, yb)
        gradient = torch.autograd.grad(here.sum(), live)
        gone |= ~(here.detach() < CUTOFF)  # a row that has diverged may come to rest as a dead network
        full = torch.where(gone, torch.inf, here.detach())
        curve.append(full)
        rates.append(eta)
        new_m, new_v = m, v
        root = None
        if kind.rule in ("heavy", "nesterov"):
            new_m = [kind.beta * a + b for a, b in zip(m, gradient)]
        elif kind.rule == "ema":
            new_m = [b if t == 0 else kind.beta * a + (1 - kind.beta) * b for a, b in zip(m, gradient)]
        elif kind.rule == "adam":
            new_m = [0.9 * a + 0.1 * b for a, b in zip(m, gradient)]
            new_v = [0.999 * a + 0.001 * b * b for a, b in zip(v, gradient)]
            P = [(1 - 0.9 ** (t + 1)) * ((a / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8) for a in new_v]
            root = flat(P).rsqrt()
        if t in measured:
            alive = ~gone
            safe = [torch.where(alive[:, None, None], w, w0) for w, w0 in zip(weights, start(kind, seeds))]
            value, begin = sharpness(kind, safe, x, y, root=root, begin=begin)
            eigen.append(torch.where(alive, value, torch.nan))
            times.append(t)
            if kind.batch is not None:
                batchy.append(batch_sharpness(kind, weights, x, y, kind.batch, seed=t))
        e = eta[:, None, None]
        if kind.rule == "gd":
            weights = [w - e * g for w, g in zip(weights, gradient)]
        elif kind.rule == "nesterov":
            weights = [w - e * (g + kind.beta * a) for w, g, a in zip(weights, gradient, new_m)]
        elif kind.rule == "adam":
            weights = [w - e * a / p for w, a, p in zip(weights, new_m, P)]
        else:
            weights = [w - e * a for w, a in zip(weights, new_m)]
        m, v = new_m, new_v
    out = {
        "loss": torch.stack(curve, 1).numpy(),
        "sharpness": torch.stack(eigen, 1).numpy(),
        "steps": np.array(times),
        "lr": eta0.numpy(),
    }
    if batchy:
        out["batch_sharpness"] = torch.stack(batchy, 1).numpy()
    return out


def pack(curves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Round for storing: differences of rounded log-losses, float32 for the rest."""
    loss = np.where(curves["loss"] < 1e30, curves["loss"], 1e30)  # not finite is stored as this
    logs = np.round(np.log(np.maximum(loss, 1e-30)) / QUANTUM).astype(np.int64)
    change = np.diff(logs, axis=1)
    small = {"first": logs[:, 0], "change": change.astype(np.int16 if np.abs(change).max() < 2**15 else np.int32)}
    return small | {
        name: value.astype(np.int32 if name == "steps" else np.float32)
        for name, value in curves.items()
        if name != "loss"
    }


def unpack(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Undo `pack`, to its rounding."""
    logs = stored["first"][:, None] + np.cumsum(stored["change"].astype(np.int64), axis=1)
    loss = np.exp(QUANTUM * np.concatenate([stored["first"][:, None], logs], axis=1))
    loss[loss > 1e29] = np.inf
    rest = {name: value.astype(np.float64) for name, value in stored.items() if name not in ("first", "change")}
    return rest | {"loss": loss, "steps": stored["steps"].astype(int)}


def main(arguments: list[str]) -> None:
    """Make the kinds named, all by default, and replace them in the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="KIND")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(SEEDS)))
    parser.add_argument("--file", type=Path, default=FILE)
    told = parser.parse_args(arguments)
    stored = dict(np.load(told.file, allow_pickle=False)) if told.file.is_file() else {}
    for name in told.names or list(KINDS):
        began = time.process_time()
        curves = make(KINDS[name], told.seeds)
        stored = {key: value for key, value in stored.items() if key.split("/")[0] != name}
        stored |= {f"{name}/{key}": value for key, value in pack(curves).items()}
        np.savez_compressed(told.file, **stored)
        lr, lam, loss = curves["lr"], curves["sharpness"], curves["loss"]
        print(f"{name:14s} {time.process_time() - began:6.1f} s  {told.file.stat().st_size / 1e3:.0f} kB")
        for s in range(len(told.seeds)):
            some = np.array2string(lam[s, :: max(1, lam.shape[1] // 12)] * lr[s], precision=2, max_line_width=200)
            print(
                f"   loss {loss[s, 0]:.3g} -> {loss[s, -1]:.3g}; eta lambda {some} end {lam[s, -1] * lr[s]:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
