"""Products to a trace within 5 and 1 per cent, by ours and by others, whether the quoted errors are true, and density.

Every estimator gets the same matrices: Hessians in float64, assembled by plain torch, of which the trace is known.
Ours are told the error that is wanted, and stop by themselves. The others are told a number of products. Theirs is
found with the answer in hand, as the fewest (in steps of a fifth) whose root mean square error over all seeds is small
enough, and so is ours once more for comparison: "hindsight". Of plain sampling it follows from the error of 40 means of
ten. PyHessian stops when the mean changes by less than its tolerance. The error is the root mean square over seeds,
relative to the trace.

    python benchmarks/estimates.py            about a minute
    python benchmarks/estimates.py --quick    seconds
    python benchmarks/estimates.py --save     also writes results/estimates.json and .md
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from _cases import Case, digits, mlp, small_mlp, trained, transformer
from _common import arguments, clock, default_dtype, header, machine, math_attention, save, table
from _solvers import Truth
from torch import Tensor, nn

import thalweg as tw
from thalweg.errors import ThalwegError
from thalweg.operators import from_dense
from thalweg.spectra.density import spectral_density
from thalweg.spectra.trace import TraceMethod, trace

TARGETS = (0.05, 0.01)
METHODS: tuple[TraceMethod, ...] = ("xtrace", "hutch++", "hutchinson")
LADDER = sorted({6 * round(30 * 1.2**i / 6) for i in range(20)})
"""Numbers of products to try: multiples of two and three, as deflating estimators need."""

Estimator = Callable[[Tensor, int, int], tuple[float, float | None]]
"""Matrix, products and seed to a trace and its quoted standard error."""


def ours(method: TraceMethod, matrix: Tensor, products: int, seed: int) -> tuple[float, float | None]:
    """Through a fixed number of products."""
    found = trace(from_dense(matrix), method=method, max_products=products, seed=seed)
    return float(found.value), float(found.standard_error)


def curvlinops(name: str, matrix: Tensor, products: int, seed: int) -> tuple[float, float | None]:
    """Fixed number of products; no error is quoted."""
    import curvlinops as peer

    function = {"hutchinson": "hutchinson_trace", "hutch++": "hutchpp_trace", "xtrace": "xtrace"}[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return float(getattr(peer, function)(matrix, products)), None


def eigenthings(name: str, matrix: Tensor, products: int, seed: int) -> tuple[float, float | None]:
    """Fixed number of products, and the standard error that comes with it."""
    from hessian_eigenthings.algorithms.trace import trace as peer

    found = peer(_Plain(matrix), num_matvecs=products, method=name, seed=seed)  # type: ignore[arg-type]
    return found.estimate, found.stderr


class _Plain:
    """What hessian-eigenthings asks of an operator."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.size, self.dtype, self.device = matrix, len(matrix), matrix.dtype, matrix.device

    def matvec(self, v: Tensor) -> Tensor:
        return self.matrix @ v


FIXED: dict[str, Estimator] = {
    **{f"thalweg {method}": partial(ours, method) for method in METHODS},
    **{f"curvlinops {method}": partial(curvlinops, method) for method in METHODS},
    **{f"hessian-eigenthings {method}": partial(eigenthings, method) for method in ("hutch++", "hutchinson")},
}


def targeted(matrix: Tensor, method: TraceMethod, target: float, seeds: int) -> dict[str, Any]:
    """Ours, told the error."""
    truth = float(matrix.trace())
    operator = from_dense(matrix)
    found = [trace(operator, method=method, target=target, seed=seed, strict=False) for seed in range(seeds)]
    slack = 1e-12 * abs(truth)  # the reference has rounding, too
    inside = [bool(low - slack <= truth <= high + slack) for low, high in (estimate.interval() for estimate in found)]
    return {
        "estimator": f"thalweg {method}, told the error",
        "target": target,
        "products": statistics.median(estimate.products for estimate in found),
        "most": max(estimate.products for estimate in found),
        "error": _root_mean_square([float(e.value) / truth - 1 for e in found]),
        "quoted": _root_mean_square([float(e.standard_error) / truth for e in found]),
        "inside": statistics.mean(inside),
        "exact": sum(estimate.stop.name == "EXACT" for estimate in found),
        "hindsight": False,
    }


def hindsight(matrix: Tensor, name: str, target: float, seeds: int) -> dict[str, Any]:
    """The fewest products on the ladder with which an estimator's true error is below the target, by bisection."""
    truth, estimator = float(matrix.trace()), FIXED[name]

    @cache
    def at(products: int, count: int = seeds) -> tuple[float, float | None]:
        found = [estimator(matrix, products, seed) for seed in range(count)]
        quoted = [error / truth for _, error in found if error is not None]
        return _root_mean_square([value / truth - 1 for value, _ in found]), _root_mean_square(quoted) or None

    found = {"estimator": name, "target": target, "hindsight": True}
    if name.endswith("hutchinson"):  # samples are independent, so that the error goes as one over the root
        error, quoted = at(10, 40)
        products = math.ceil(10 * (error / target) ** 2)
        quoted = None if quoted is None else quoted * (10 / products) ** 0.5
        return found | {"products": products, "enough": True, "error": target, "quoted": quoted}
    rungs = [m for m in LADDER if m < len(matrix)]
    low, high = -1, 4
    while at(rungs[high])[0] > target and high < len(rungs) - 1:  # from below: large numbers are dear to try
        low, high = high, min(high + 4, len(rungs) - 1)
    enough = at(rungs[high])[0] <= target
    while enough and high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at(rungs[middle])[0] <= target else (middle, high)
    error, quoted = at(rungs[high])
    return found | {"products": rungs[high], "enough": enough, "error": error, "quoted": quoted}


def pyhessian(case: Case, truth: float, target: float, seeds: int) -> dict[str, Any]:
    """Its own rule to stop, at the tolerance that its user would give for this error."""
    import pyhessian as peer

    values, counts = [], []
    with math_attention(), default_dtype(case.dtype), torch.random.fork_rng():
        operator = peer.hessian(case.copy_of_model(), case.loss, data=(case.x, case.y), cuda=False)
        for seed in range(seeds):
            torch.manual_seed(seed)
            samples = operator.trace(maxIter=1000, tol=target)
            counts.append(len(samples))
            values.append(statistics.mean(samples) / truth - 1)
    return {
        "estimator": "PyHessian hutchinson, its own stop",
        "target": target,
        "products": statistics.median(counts),
        "most": max(counts),
        "error": _root_mean_square(values),
        "quoted": None,
        "hindsight": False,
    }


def _root_mean_square(values: list[float]) -> float:
    return float((sum(v * v for v in values) / len(values)) ** 0.5) if values else 0.0


def attempt(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a peer; one that is missing, or fails, is a row that says so."""
    try:
        return work()
    except ThalwegError:
        raise
    except Exception as error:
        missing = isinstance(error, ImportError)
        return {"estimator": name, "failure": "not installed" if missing else f"fails: {type(error).__name__}: {error}"}


def traces(case: Case, matrix: Tensor, seeds: int, targets: Sequence[float]) -> list[dict[str, Any]]:
    """All estimators at all targets."""
    rows = []
    for target in targets:
        rows += [targeted(matrix, method, target, seeds) for method in METHODS]
        rows += [attempt(name, partial(hindsight, matrix, name, target, seeds)) for name in FIXED]
        rows.append(attempt("PyHessian", partial(pyhessian, case, float(matrix.trace()), target, seeds)))
        print(f"  {case.name}: {target:.0%} done", file=sys.stderr)
    return rows


def show(row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    if "failure" in row:
        return [row["estimator"], "-", row["failure"][:40], "", "", ""]
    products = f"{row['products']:,.0f}"
    if row["hindsight"]:
        products = f"{products} (hindsight)" if row["enough"] else f"more than {products}"
    elif row["most"] != row["products"]:
        products += f" (at most {row['most']:,})"
    return [
        row["estimator"],
        f"{row['target']:.0%}",
        products,
        f"{row['error']:.2%}",
        "none" if row["quoted"] is None else f"{row['quoted']:.2%}",
        f"{row['inside']:.0%}" if "inside" in row else "",
    ]


def _our_density(case: Case) -> tuple[float, float | None, int]:
    with tw.hessian(case.problem) as operator:
        found = spectral_density(operator, probes=10, steps=40)
    first = found.moment(1)
    return case.size * float(first.value), case.size * float(first.standard_error), found.products


def _eigenthings_density(case: Case) -> tuple[float, float | None, int]:
    from hessian_eigenthings import HessianOperator
    from hessian_eigenthings.algorithms.spectral_density import spectral_density as peer
    from hessian_eigenthings.loss_fns import supervised_loss

    operator = HessianOperator(case.model, [(case.x, case.y)], supervised_loss(case.loss))
    with math_attention():
        found = peer(operator, num_runs=10, lanczos_steps=40, seed=0)
    mean = (found.raw_eigenvalues * found.raw_weights).sum(dim=1).mean()
    return case.size * float(mean), None, 400


def _pyhessian_density(case: Case) -> tuple[float, float | None, int]:
    import pyhessian as peer

    with math_attention(), default_dtype(case.dtype), torch.random.fork_rng():
        torch.manual_seed(0)
        operator = peer.hessian(case.copy_of_model(), case.loss, data=(case.x, case.y), cuda=False)
        nodes, weights = operator.density(iter=40, n_v=10)
    mean = sum(n * w for row, part in zip(nodes, weights) for n, w in zip(row, part)) / 10
    return case.size * mean, None, 400


DENSITIES = {
    "thalweg": _our_density,
    "hessian-eigenthings": _eigenthings_density,
    "PyHessian": _pyhessian_density,
}


def density(case: Case, rounds: int) -> list[dict[str, Any]]:
    """Seconds of ten probes of 40 steps, median of some rounds, and the trace by the first moment."""

    def work(function: Callable[[Case], tuple[float, float | None, int]]) -> dict[str, Any]:
        seconds = []
        for _ in range(rounds):
            start = clock()
            value, error, products = function(case)
            seconds.append(clock() - start)
        return {"seconds": statistics.median(seconds), "trace": value, "error": error, "products": products}

    return [
        {"case": case.title, "estimator": name} | attempt(name, partial(work, function))
        for name, function in DENSITIES.items()
    ]


def show_density(row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    if "failure" in row:
        return [row["case"], row["estimator"], row["failure"][:40], "", ""]
    error = "" if row["error"] is None else f" ± {row['error']:.2g}"
    return [row["case"], row["estimator"], f"{row['seconds']:.2f}", str(row["products"]), f"{row['trace']:.5g}{error}"]


def wrong(rows: list[dict[str, Any]], seeds: int) -> list[str]:
    """Answers of ours whose error is not what they say."""
    found = []
    for row in rows:
        if "inside" in row and (row["error"] > 2 * row["target"] or row["inside"] < 0.95 - 4 * (0.05 / seeds) ** 0.5):
            found.append(f"{row['estimator']} at {row['target']}: error {row['error']}, inside {row['inside']}")
    return found


def young() -> Case:
    """A network after five steps: an indefinite Hessian with a slowly decaying spectrum."""
    return _digits_mlp(8, 5)


def older() -> Case:
    """One after 200 steps: a few large eigenvalues carry most of the trace."""
    return _digits_mlp(6, 200)


def _digits_mlp(width: int, steps: int) -> Case:
    x, y = digits(300)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10)).double()
    return trained(f"MLP 64-{width}-10 after {steps} steps", model, x, y, steps=steps)


def main() -> int:
    """Measure, print, and fail where an answer of ours is wrong."""
    options = arguments(__doc__ or "", "estimates")
    seeds, targets = (5, TARGETS[:1]) if options.quick else (12, TARGETS)
    cases = [young()] if options.quick else [young(), older()]
    about, record, parts = machine(), [], []
    failures: list[str] = []
    print(header(about))
    for case in cases:
        product = Truth(case).product
        matrix = torch.stack([product(e) for e in torch.eye(case.size, dtype=torch.float64)])
        matrix = (matrix + matrix.T) / 2
        rows = traces(case, matrix, seeds, targets)
        failures += wrong(rows, seeds)
        record.append({"case": case.title, "seeds": seeds, "rows": rows})
        head = ["estimator of the trace", "wanted", "products", "true error", "quoted error", "in 95 % interval"]
        title = f"{case.title}, {seeds} seeds; trace {float(matrix.trace()):.4g}, norm {float(matrix.norm()):.4g}"
        parts.append(f"{title}\n\n{table(head, [show(row) for row in rows])}")
        print(f"\n{parts[-1]}")
    wide = [small_mlp()] if options.quick else [mlp(600).to(torch.float32), transformer().to(torch.float32)]
    densities = [row for case in wide for row in density(case, 1 if options.quick else 3)]
    head = ["density, 10 probes of 40 steps", "by", "seconds", "products", "trace by its first moment"]
    parts.append(table(head, [show_density(row) for row in densities]))
    print(f"\n{parts[-1]}")
    print("\n".join(failures) or "\nThe errors of ours are what they say.")
    if options.save:
        record.append({"densities": densities})
        save(options.out, "estimates", {"machine": about, "results": record}, "\n\n".join(parts))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
