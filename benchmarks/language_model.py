"""A model of GPT-2's shape and full vocabulary on a small machine: top eigenvalue, critical sharpness, one product.

Random weights, 50,257 tokens of vocabulary, float32. Every job runs in a process of its own, after one small forward
and backward pass that loads the libraries; peak memory is the kernel's high-water mark during the job, less what was
resident before it, model and data included. Eigenvectors of all sides are judged by the same fresh product of ours.
hessian-eigenthings, which has to be told a number of steps, is given MORE of them than ours needed products, in
hindsight. No process gets more than ten minutes of CPU time. Single products are taken of four times as many samples.

    python benchmarks/language_model.py            6 layers of 512, about ten minutes
    python benchmarks/language_model.py --quick    one layer of 32, under a minute
    python benchmarks/language_model.py --save     also writes results/language_model.json and language_model.md
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import arguments, clock, header, machine, math_attention, save, table
from _jobs import gpt2
from memory import highest, resident_now
from torch import Tensor, nn

from thalweg.operators import hessian
from thalweg.problem import Problem
from thalweg.spectra.critical import critical_sharpness
from thalweg.spectra.lanczos import Lanczos, top_eigenpairs

Record = dict[str, Any]
FULL: Record = {"samples": 2, "tokens": 128, "layers": 6, "width": 512}
QUICK: Record = {"samples": 2, "tokens": 32, "layers": 1, "width": 32}
BUDGET = {False: 10_000_000_000, True: 1_000_000_000}
"""Bytes that our plan is allowed beyond model and data; by ``quick``."""
TOL = 1e-2
"""Relative residual of the eigenpair: its value is then right to about 1e-4."""
LIMIT = 600.0
"""Seconds of CPU time after which a process is stopped."""
MORE = 5
"""Steps that the peer has beyond our number of products: it starts from another vector."""
HINDSIGHT = "hessian-eigenthings lanczos"


def _eigen(problem: Problem, steps: int | None) -> Record:
    """Plan, then solve as planned; planning counts."""
    plan = problem.plan("eigenpairs", budget=BUDGET[problem.dimension < 10**7])
    cut = plan.apply()
    with hessian(cut, layout=plan.layout) as operator:
        found = top_eigenpairs(operator, 1, method=Lanczos(basis=plan.basis, tol=TOL), strict=False)
    about = {name: getattr(plan, name) for name in ("peak_bytes", "batch_size", "chunk", "layout", "basis", "seconds")}
    return _pair(float(found.values[0]), found.vectors[:, 0], found.products) | {"plan": about, "stop": found.stop.name}


def _eigen_peer(problem: Problem, steps: int | None) -> Record:
    from hessian_eigenthings import lanczos

    found = lanczos(_eigenthings(problem), k=1, which="LA", seed=0, max_iter=steps, reorthogonalize=True)
    return _pair(float(found.eigenvalues[0]), found.eigenvectors[0], found.iterations)


def _pair(value: float, vector: Tensor, products: int) -> Record:
    return {"value": value, "vector": vector, "products": products}


def _critical(problem: Problem, steps: int | None) -> Record:
    """Along the first step of Adam, the signs of the gradient."""
    plan = problem.plan("critical_sharpness", budget=BUDGET[problem.dimension < 10**7])
    cut = plan.apply()
    found = critical_sharpness(cut, direction=cut.gradient(cut.initial).sign_(), strict=False)
    return {
        "value": found.value,
        "interval": found.interval,
        "evaluations": found.evaluations,
        "gradients": 1,
        "stop": found.stop.name,
        "plan": {"peak_bytes": plan.peak_bytes, "batch_size": plan.batch_size, "chunk": plan.chunk},
    }


def _whole(problem: Problem) -> Any:
    """Tokens of all samples."""
    return next(iter(_one_batch(problem).batches()))[0]["input_ids"]


def _one_batch(problem: Problem) -> Problem:
    return problem.recut(problem._batches.samples)  # type: ignore[arg-type]


def _ours(layout: str) -> Callable[[Problem], Callable[[Tensor], Tensor]]:
    return lambda problem: hessian(_one_batch(problem), layout=layout).matvec  # type: ignore[arg-type]


def _all_logits(problem: Problem) -> Callable[[Tensor], Tensor]:
    """Our product of the loss that the model brings, which makes every logit at once."""

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        ids = batch["input_ids"]
        return model(input_ids=ids, labels=ids, use_cache=False).loss, ids.shape[0] * (ids.shape[1] - 1)

    return _ours("linearised")(problem.with_loss(_BatchLoss(loss)))


class _BatchLoss:
    """Mark a function as a loss of model and batch."""

    __thalweg_batch_loss__ = True

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return self.function(model, batch)  # type: ignore[no-any-return]


def _eigenthings(problem: Problem) -> Any:
    from hessian_eigenthings import HessianOperator
    from hessian_eigenthings.loss_fns import hf_lm_loss

    ids = _whole(problem)
    return HessianOperator(problem.model, [{"input_ids": ids, "labels": ids, "use_cache": False}], hf_lm_loss())


def _curvlinops(problem: Problem) -> Callable[[Tensor], Tensor]:
    from curvlinops import HessianLinearOperator

    class Logits(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, ids: Tensor) -> Tensor:
            logits: Tensor = self.network(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
            return logits

    model, ids = Logits(problem.model), _whole(problem)
    operator = HessianLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(ids, ids[:, 1:].flatten())],
        check_deterministic=False,
        progressbar=False,
    )

    def product(v: Tensor) -> Tensor:
        with math_attention():
            return operator @ v

    return product


PRODUCTS: dict[str, Callable[[Problem], Callable[[Tensor], Tensor]]] = {
    "thalweg linearised, logits in chunks": _ours("linearised"),
    "thalweg double_backward, logits in chunks": _ours("double_backward"),
    "thalweg linearised, all logits": _all_logits,
    "hessian-eigenthings": lambda problem: _eigenthings(problem).matvec,
    "curvlinops": _curvlinops,
}
SMALL = ("thalweg linearised, logits in chunks", "thalweg linearised, all logits", "hessian-eigenthings")
"""Those of the quick run."""
SOLVERS: dict[str, Callable[[Problem, int | None], Record]] = {"thalweg, planned": _eigen, HINDSIGHT: _eigen_peer}


def child(task: Record) -> None:
    """Do one job and print what it took, after a line with what was resident before."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(task["threads"])
    problem = gpt2(**task["shape"])
    ids = problem.recut(1).subset([0])._batches
    few = next(iter(ids))["input_ids"][:, :8]
    problem.model(input_ids=few, labels=few).loss.backward()
    problem.model.zero_grad(set_to_none=True)
    w = problem.initial
    del w
    before = resident_now()
    print(json.dumps({"before": before, "parameters": problem.dimension}), flush=True)
    start = clock()
    if task["kind"] == "product":
        v = torch.randn(problem.dimension, generator=torch.Generator().manual_seed(1))
        product = PRODUCTS[task["name"]](problem)
        made = clock()
        out = product(v)
        end = clock()
        found: Record = {"first": end - start, "product": end - made, "sum": float(v.double() @ out.double())}
    else:
        found = (SOLVERS[task["name"]] if task["kind"] == "eigen" else _critical)(problem, task["steps"])
        end = clock()
    found |= {"peak": highest() - before, "seconds": end - start}
    vector = found.pop("vector", None)
    if vector is not None:
        length = vector.double().norm()  # sums of so many numbers lose digits in float32
        image = hessian(problem, layout="double_backward").matvec(vector).double() / length
        vector = vector.double() / length
        value = float(vector @ image)
        found |= {"rayleigh": value, "residual": float((image - value * vector).norm()) / abs(value)}
    print(json.dumps(found), flush=True)


def alone(task: Record, limit: float) -> Record:
    """Run `child` in a process of its own, for at most ``limit`` seconds of CPU time."""
    command = [sys.executable, __file__, json.dumps(task)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        mark, used = 0, 0.0
        while process.poll() is None and used < limit:
            mark, used = max(mark, _mark(process.pid)), _used(process.pid)
            time.sleep(0.25)
        stopped = process.poll() is None
        if stopped:
            process.kill()
        text, errors = process.communicate()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    row: Record = {key: value for line in lines for key, value in line.items()}
    if stopped:
        return row | {"failed": f"stopped after {limit:.0f} s of CPU time", "peak": mark - row.get("before", 0)}
    if process.returncode or len(lines) < 2:
        last = errors.strip().splitlines()[-1:] or ["no output"]
        return row | {"failed": f"ends with {process.returncode}: {last[0][:90]}"}
    return row


def _mark(pid: int) -> int:
    """High-water mark of a process, in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _used(pid: int) -> float:
    """CPU seconds of all threads of a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def show_products(rows: Record, shape: Record) -> str:
    """Format single products."""
    ours = next(iter(rows.values()))
    lines = []
    for name, row in rows.items():
        if "failed" in row:
            lines.append([name, *[""] * 2, row["failed"], ""])
            continue
        difference = abs(row["sum"] / ours["sum"] - 1)
        lines.append(
            [name, f"{row['peak'] / 1e9:.2f}", f"{row['first']:.1f}", f"{row['product']:.1f}", f"{difference:.0e}"]
        )
    tokens = 4 * shape["samples"] * (shape["tokens"] - 1)
    title = f"One product of the mean over {tokens} tokens, whose logits are {tokens * 50_257 * 4 / 1e9:.2f} GB:\n\n"
    return title + table(["product", "peak GB", "first, s", "of which product, s", "v'Hv differs by"], lines)


def show_jobs(rows: Record, critical: Record) -> str:
    """Format the eigenvalue of each side, and the critical sharpness."""
    lines = []
    for name, row in rows.items():
        peak = f"{row['peak'] / 1e9:.2f}" if "peak" in row else ""
        planned = f"{row['plan']['peak_bytes'] / 1e9:.2f}" if "plan" in row else ""
        if "failed" in row:
            lines.append([f"top eigenvalue: {name}", row["failed"], "", "", peak, planned, ""])
            continue
        numbers = [f"{row['rayleigh']:.4f}", f"{row['residual']:.0e}", f"{row['products']} products"]
        lines.append([f"top eigenvalue: {name}", *numbers, peak, planned, f"{row['seconds']:.0f}"])
    if "failed" in critical:
        lines.append(["critical sharpness: thalweg", critical["failed"], *[""] * 5])
    else:
        low, high = critical["interval"]
        cost = f"{critical['evaluations']} forward passes, {critical['gradients']} gradient"
        planned = f"{critical['plan']['peak_bytes'] / 1e9:.2f}"
        seen = f"between {low:.4g} and {high:.4g}"
        numbers = [f"{critical['value']:.4g}", seen, cost, f"{critical['peak'] / 1e9:.2f}", planned]
        lines.append(["critical sharpness along Adam's first step: thalweg", *numbers, f"{critical['seconds']:.0f}"])
    head = ["job", "value", "relative residual", "cost", "peak GB", "planned GB", "seconds, planning included"]
    return table(head, lines)


def title(shape: Record, rows: Record) -> str:
    """Say what the model is."""
    size = next(row["parameters"] for row in rows.values() if "parameters" in row)
    tokens = shape["samples"] * (shape["tokens"] - 1)
    return (
        f"### GPT-2's shape: {shape['layers']} layers of {shape['width']}, {size:,} parameters, {tokens} predicted "
        f"tokens\n\nOne vector of the parameters is {size * 4 / 1e9:.3f} GB. Peaks are beyond model "
        "and data."
    )


def wrong(record: Record) -> list[str]:
    """Name our results that are not what they must be."""
    found = []
    ours = record["eigen"]["thalweg, planned"]
    if "failed" in ours or not ours["residual"] <= 1.5 * TOL or ours["peak"] > 1.2 * ours["plan"]["peak_bytes"]:
        found.append(f"top eigenvalue: {ours}")
    critical = record["critical"]
    if "failed" in critical or not critical["interval"][0] <= critical["value"] <= critical["interval"][1]:
        found.append(f"critical sharpness: {critical}")
    first = next(iter(record["products"].values())).get("sum")
    for name, row in record["products"].items():
        if name.startswith("thalweg") and (first is None or "failed" in row or abs(row["sum"] / first - 1) > 1e-3):
            found.append(f"product: {name}: {row}")
    return found


def main() -> int:
    """Measure, print, save; 1 if a result of ours is wrong or takes more than 20 % above its plan."""
    options = arguments(__doc__ or "", "language_model")
    shape = QUICK if options.quick else FULL
    about = machine()
    base = {"shape": shape, "threads": options.threads, "steps": None}
    print(header(about), file=sys.stderr, flush=True)

    def run(kind: str, name: str, **more: Any) -> Record:
        row = alone(base | {"kind": kind, "name": name} | more, LIMIT)
        print(f"{kind}, {name}: {row}", file=sys.stderr, flush=True)
        return row

    record: Record = {"machine": about, "quick": options.quick, "shape": shape}
    record["eigen"] = {"thalweg, planned": (ours := run("eigen", "thalweg, planned"))}
    record["eigen"][HINDSIGHT] = run("eigen", HINDSIGHT, steps=ours.get("products", 20) + MORE)
    record["critical"] = run("critical", "thalweg")
    products = [name for name in PRODUCTS if not options.quick or name in SMALL]
    wide = shape | {"samples": 4 * shape["samples"]}
    record["products"] = {name: run("product", name, shape=wide) for name in products}
    head = title(shape, record["products"])
    parts = [
        header(about),
        head,
        show_jobs(record["eigen"], record["critical"]),
        show_products(record["products"], shape),
    ]
    text = "\n\n".join(parts)
    print(text)
    if options.save:
        save(options.out, "language_model", record, text)
    bad = wrong(record)
    for line in bad:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        child(json.loads(sys.argv[1]))
        sys.exit(0)
    sys.exit(main())
