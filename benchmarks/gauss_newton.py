"""Time Gauss-Newton products, and measure what they hold in memory with the full vocabulary of GPT-2.

Everything is timed in one run and interleaved; times are compared within a round, so a slow minute of a shared machine
hits all sides. Memory is the peak of a fresh process, one for each side. Prints Markdown tables, and ends with an error
if *ours* is wrong anywhere. A peer that is not installed is a row that says so.

    python benchmarks/gauss_newton.py            about four minutes of CPU time
    python benchmarks/gauss_newton.py --quick    under a minute
    python benchmarks/gauss_newton.py --save     also writes results/gauss_newton.json and .md
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # BLAS reads it once, at import

import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from _cases import Case, cnn, mlp, small_mlp, transformer
from _common import Spread, arguments, header, interleave, machine, math_attention, ratios, save, table
from _products import gradient
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.operators import hessian
from thalweg.operators.gauss_newton import gauss_newton
from thalweg.problem import Problem
from thalweg.problem.heads import language_model_loss

LIMIT = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Largest relative error of our products before this script fails."""
Record = dict[str, Any]
Product = Callable[[Tensor], Tensor]


def reference(case: Case, v: Tensor) -> Tensor:
    """``J' H J v`` in float64 by plain torch: the backward pass differentiated by its input, the loss by the output."""
    exact = case.to(torch.float64)
    parts = [
        part.view_as(p) for part, p in zip(v.double().split([p.numel() for p in exact.parameters]), exact.parameters)
    ]
    with math_attention():
        z = exact.model(exact.x)
    u = torch.zeros_like(z).requires_grad_()
    pulled = torch.autograd.grad(z, exact.parameters, u, create_graph=True)
    (t,) = torch.autograd.grad(pulled, u, parts, retain_graph=True)
    free = z.detach().requires_grad_()
    (slope,) = torch.autograd.grad(exact.loss(free, exact.y), free, create_graph=True)
    (bent,) = torch.autograd.grad(slope, free, t)
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(z, exact.parameters, bent)])


def _curvlinops(case: Case) -> Product:
    from curvlinops import GGNLinearOperator

    operator = GGNLinearOperator(
        case.model, case.loss, case.parameters, [(case.x, case.y)], check_deterministic=False, progressbar=False
    )

    def product(v: Tensor) -> Tensor:
        with math_attention():
            return operator @ v

    return product


OURS = ("linearised", "forward", "rebuilt")
SIDES: dict[str, Callable[[Case], Product]] = {
    **{f"thalweg {name}": (lambda case, name=name: gauss_newton(case.problem, layout=name).matvec) for name in OURS},
    "curvlinops GGN": _curvlinops,
}


def products(case: Case, rounds: int) -> Record:
    """Time one product of every side in units of one gradient; the Hessian's stands beside them."""
    v = torch.randn(case.size, dtype=case.dtype, generator=torch.Generator().manual_seed(1))
    right = reference(case, v)
    jobs: dict[str, Any] = {"gradient": partial(gradient, case)}
    jobs["Hessian, linearised"] = partial(hessian(case.problem, layout="linearised").matvec, v)
    rows: dict[str, Record] = {"Hessian, linearised": {}}
    for name, make in SIDES.items():
        try:
            product = make(case)
            rows[name] = {"error": float((product(v).double() - right).norm() / right.norm())}
        except Exception as failure:  # a peer that is absent or fails is a row of the table
            rows[name] = {"failed": _reason(failure)}
            continue
        jobs[name] = partial(product, v)
    times = interleave(jobs, rounds)
    for name, row in rows.items():
        if name in times:
            row["seconds"] = times[name]
            row["gradients"] = asdict(Spread.of(ratios(times[name], times["gradient"])))
            row["against_ours"] = asdict(Spread.of(ratios(times[name], times["thalweg linearised"])))
    return {"case": case.title, "gradient_seconds": times["gradient"], "rows": rows}


def show_products(record: Record) -> str:
    """Format one case."""
    rows = []
    for name, row in record["rows"].items():
        if "failed" in row:
            rows.append([name, row["failed"], "", "", ""])
            continue
        cost, against = Spread(**row["gradients"]).show(), Spread(**row["against_ours"]).show()
        ms, error = Spread.of(row["seconds"]).median * 1e3, row.get("error")
        rows.append([name, cost, against, f"{ms:.2f}", "another matrix" if error is None else f"{error:.0e}"])
    unit = Spread.of(record["gradient_seconds"]).median * 1e3
    head = ["product", "gradients [quartiles]", "time / thalweg linearised", "ms", "relative error"]
    return f"### One product: {record['case']}\n\nOne gradient by plain torch: {unit:.2f} ms.\n\n" + table(head, rows)


class _NextToken(nn.Module):
    """Logits of every token that predicts one, as rows: how a peer takes a language model."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> Tensor:
        return self.network(input_ids=tokens, use_cache=False).logits[:, :-1].flatten(0, 1)


def language_model(quick: bool) -> tuple[nn.Module, Tensor]:
    """GPT-2's shape with random weights and its full vocabulary."""
    from transformers import GPT2Config, GPT2LMHeadModel, logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    width, layers, rows = (32, 1, 2) if quick else (128, 4, 8)
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=4, n_positions=128, attn_implementation="eager")
    return GPT2LMHeadModel(config).eval(), torch.randint(config.vocab_size, (rows, 128))


def _whole_logits(model: nn.Module, tokens: Tensor, layout: str) -> Product:
    problem = Problem(_NextToken(model), _flat_loss, [(tokens, tokens[:, 1:])], check=False)
    return gauss_newton(problem, layout=layout).matvec  # type: ignore[arg-type]


def _flat_loss(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y.flatten())


def _chunked(model: nn.Module, tokens: Tensor, layout: str) -> Product:
    problem = Problem(model, language_model_loss(), [{"input_ids": tokens}], check=False)
    return gauss_newton(problem, layout=layout).matvec  # type: ignore[arg-type]


def _peer(model: nn.Module, tokens: Tensor) -> Product:
    from curvlinops import GGNLinearOperator

    data = [(tokens, tokens[:, 1:].flatten())]
    wrapped = _NextToken(model)
    operator = GGNLinearOperator(
        wrapped, nn.CrossEntropyLoss(), list(wrapped.parameters()), data, check_deterministic=False
    )

    def product(v: Tensor) -> Tensor:
        with math_attention():
            return operator @ v

    return product


def _hessian(model: nn.Module, tokens: Tensor) -> Product:
    problem = Problem(model, language_model_loss(), [{"input_ids": tokens}], check=False)
    return hessian(problem, layout="linearised").matvec


LANGUAGE: dict[str, Callable[[nn.Module, Tensor], Product]] = {
    "thalweg linearised, chunked head": partial(_chunked, layout="linearised"),
    "thalweg forward, chunked head": partial(_chunked, layout="forward"),
    "thalweg linearised, all logits": partial(_whole_logits, layout="linearised"),
    "curvlinops GGN": _peer,
    "Hessian, linearised, chunked head": _hessian,
}


def alone(name: str, quick: bool) -> None:
    """Run one side in this process and print what it took."""
    model, tokens = language_model(quick)
    size = sum(p.numel() for p in model.parameters())
    v = torch.randn(size, generator=torch.Generator().manual_seed(1))
    with math_attention():  # libraries load what they need before the peak is watched
        model(input_ids=tokens[:1, :8], labels=tokens[:1, :8]).loss.backward()
    model.zero_grad(set_to_none=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    product = LANGUAGE[name](model, tokens)
    out = product(v)
    start = time.process_time()
    product(v)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    probe = torch.randn(size, generator=torch.Generator().manual_seed(2))
    found = {"bytes": peak * 1024, "seconds": seconds, "size": size, "sums": [float(v @ out), float(probe @ out)]}
    print(json.dumps(found | {"logits": (tokens.numel() - len(tokens)) * model.config.vocab_size * 4}))


def memory(quick: bool) -> Record:
    """Run every side in a process of its own."""
    rows: dict[str, Record] = {}
    for name in LANGUAGE:
        command = [sys.executable, __file__, "--alone", name, *(["--quick"] if quick else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            rows[name] = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, json.JSONDecodeError):
            last = done.stderr.strip().splitlines()[-1:] or ["no output"]
            rows[name] = {"failed": f"ends with {done.returncode}: {last[0][:80]}"}
    return rows


def show_memory(rows: Record) -> str:
    """Format what each process held beyond the model."""
    ours = rows["thalweg linearised, chunked head"]
    lines = []
    for name, row in rows.items():
        if "failed" in row:
            lines.append([name, row["failed"], "", "", ""])
            continue
        difference = max(abs(a / b - 1) for a, b in zip(row["sums"], ours["sums"]))
        lines.append(
            [
                name,
                f"{row['bytes'] / 2**20:.0f}",
                f"{row['bytes'] / ours['bytes']:.2f}",
                f"{row['seconds']:.2f}",
                "another matrix" if "Hessian" in name else f"{difference:.0e}",
            ]
        )
    head = ["product", "peak beyond the model, MiB", "/ ours", "seconds", "v'Gv and u'Gv differ by"]
    title = f"### GPT-2's shape, vocabulary 50,257, {ours['size']:,} parameters, float32"
    note = (
        f"All logits at once are {ours['logits'] / 2**20:.0f} MiB, a vector of the parameters is "
        f"{ours['size'] / 2**18:.0f} MiB. Each side in a fresh process, after one small forward and backward pass; "
        "peak of the resident memory."
    )
    return f"{title}\n\n{note}\n\n" + table(head, lines)


def wrong(record: Record) -> list[str]:
    """Name our results that miss their tolerance."""
    found = []
    for one in record["products"]:
        limit = LIMIT[torch.float64 if "float64" in one["case"] else torch.float32]
        for name in OURS:
            row = one["rows"][f"thalweg {name}"]
            if "failed" in row or not row["error"] <= limit:
                found.append(f"{one['case']}: {name}: {row}")
    first = record["memory"]["thalweg linearised, all logits"].get("sums")
    for name, row in record["memory"].items():
        if name.startswith("thalweg") and (
            "failed" in row or first is None or abs(row["sums"][0] / first[0] - 1) > 1e-4
        ):
            found.append(f"language model: {name}: {row}")
    return found


def _reason(failure: Exception) -> str:
    return "not installed" if isinstance(failure, ModuleNotFoundError) else f"raises {type(failure).__name__}"


def main() -> int:
    """Measure, print, save, and return 1 if a result of ours is wrong."""
    warnings.filterwarnings("ignore", category=UserWarning)
    if "--alone" in sys.argv:
        torch.set_num_threads(1)
        alone(sys.argv[sys.argv.index("--alone") + 1], "--quick" in sys.argv)
        return 0
    options = arguments(__doc__ or "", "gauss_newton")
    about = machine()
    print(f"## Gauss-Newton products\n\n{header(about)}\n")
    record: Record = {"machine": about, "quick": options.quick, "products": []}
    text = []

    def emit(section: str) -> None:
        text.append(section)
        print(section + "\n", flush=True)

    exact = [small_mlp()] if options.quick else [mlp(), cnn(), transformer()]
    rounded = [] if options.quick else [case.to(torch.float32) for case in exact]
    for case in [*exact, *rounded]:
        record["products"].append(products(case, 5 if options.quick else 21))
        emit(show_products(record["products"][-1]))
    record["memory"] = memory(options.quick)
    emit(show_memory(record["memory"]))
    if options.save:
        save(options.out, "gauss_newton", record, "\n\n".join([header(about), *text]))
    bad = wrong(record)
    for line in bad:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
