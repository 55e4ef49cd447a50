"""Time Hessian products and leading eigenpairs against the libraries that people use, and check who is right.

Everything is measured in one run and interleaved; times are compared within a round, so a slow minute of a shared
machine hits all sides. Prints Markdown tables, and ends with an error if *ours* is wrong anywhere. Peers that are not
installed are named and skipped (see README.md here for how to install them without losing your torch).

    python benchmarks/hvp.py            about eight minutes of CPU time
    python benchmarks/hvp.py --quick    under a minute
    python benchmarks/hvp.py --save     also writes results/hvp.json, hvp.md and summary.md
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # BLAS under SciPy reads it once, at import

import sys
import warnings
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from _cases import Case, cases, small_mlp
from _common import Spread, arguments, header, interleave, machine, ratios, save, table
from _products import MAKERS, gradient, reference, whole
from _reading import show_correctness, summary
from _solvers import OURS, SOLVERS, Outcome, Solver, Truth, calibrate, try_setting

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Relative residual that every eigensolver must reach."""
LIMIT = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Largest error of our exact products before this script fails."""
Record = dict[str, Any]


def products(case: Case, rounds: int) -> Record:
    """Time one product of every maker in units of one gradient."""
    v = torch.randn(case.size, dtype=case.dtype, generator=torch.Generator().manual_seed(1))
    right = reference(case, v)
    jobs: dict[str, Any] = {"gradient": partial(gradient, case)}
    rows: dict[str, Record] = {}
    for maker in MAKERS:
        try:
            product = maker.make(case, whole(case))
            error = float((product(v).double() - right).norm() / right.norm())
        except Exception as failure:  # a peer that is absent or fails is a row of the table
            rows[maker.name] = {"failed": _reason(failure)}
            continue
        rows[maker.name] = {"error": error}
        jobs[maker.name] = partial(product, v)
    times = interleave(jobs, rounds)
    for name, row in rows.items():
        if "failed" not in row:
            row["seconds"] = times[name]
            row["gradients"] = asdict(Spread.of(ratios(times[name], times["gradient"])))
    return {"case": case.title, "gradient_seconds": times["gradient"], "rows": rows}


def show_products(record: Record) -> str:
    """Format one case."""
    rows = []
    for name, row in record["rows"].items():
        if "failed" in row:
            rows.append([name, row["failed"], "", ""])
        else:
            cost = Spread(**row["gradients"])
            ms = Spread.of(row["seconds"]).median * 1e3
            rows.append([name, cost.show(), f"{ms:.2f}", f"{row['error']:.0e}"])
    unit_ms = Spread.of(record["gradient_seconds"]).median * 1e3
    head = ["product", "gradients [quartiles]", "ms", "relative error"]
    title = f"### One product: {record['case']}\n\nOne gradient by plain torch: {unit_ms:.2f} ms.\n\n"
    return title + table(head, rows)


def correctness() -> Record:
    """Relative errors of products in small float64 networks with what users meet every day."""
    plain = small_mlp()
    ragged = list(zip(plain.x.split(256), plain.y.split(256)))
    silu, layer = small_mlp("SiLU", act=torch.nn.SiLU), small_mlp("LayerNorm", norm=torch.nn.LayerNorm)
    group = small_mlp("GroupNorm", norm=partial(torch.nn.GroupNorm, 2))
    columns: dict[str, dict[str, str]] = {}
    for title, case, batches in (
        (f"batches of {', '.join(str(len(x)) for x, _ in ragged)}", plain, ragged),
        ("SiLU activation", silu, whole(silu)),
        ("LayerNorm", layer, whole(layer)),
        ("GroupNorm", group, whole(group)),
    ):
        v = torch.randn(case.size, dtype=case.dtype, generator=torch.Generator().manual_seed(2))
        right = reference(case, v)
        column = columns.setdefault(title, {})
        for maker in MAKERS:
            try:
                error = float((maker.make(case, batches)(v).double() - right).norm() / right.norm())
                column[maker.name] = f"{error:.0e}"
            except Exception as failure:
                column[maker.name] = _reason(failure)
    return columns


def eigenpairs(case: Case, k: int, rounds: int, patience: float, truth: Truth) -> Record:
    """Bring every solver to the same residual, then time them all, operator construction included."""
    tol = TOLERANCE[case.dtype]
    rows: dict[str, Record] = {}
    jobs: dict[str, Any] = {"gradient": partial(gradient, case)}
    for solver in SOLVERS:
        if solver.only_k not in (None, k):
            continue
        try:
            runs: list[tuple[str, Outcome]] = [(solver.name, calibrate(solver, case, k, tol, truth, patience))]
            if solver.default:
                runs.append((f"{solver.name}, default settings", try_setting(solver, case, k, None, tol, truth)))
        except Exception as failure:
            rows[solver.name] = {"failed": _reason(failure)}
            continue
        for name, outcome in runs:
            mark = {"shown": _shown(solver, outcome), "hindsight": solver.hindsight and outcome.setting is not None}
            rows[name] = asdict(outcome) | mark
            if name == OURS or (outcome.right and outcome.seconds < patience / 2):
                jobs[name] = partial(solver.solve, case, k, outcome.setting)
    times = interleave(jobs, rounds)
    for name, row in rows.items():
        if name in times:
            row["times"] = times[name]
            row["gradients"] = asdict(Spread.of(ratios(times[name], times["gradient"])))
            row["against_ours"] = asdict(Spread.of(ratios(times[name], times[OURS])))
        elif row.get("right"):  # many times slower than ours: the one run will do
            row["against_ours"] = asdict(Spread.of([row["seconds"] / Spread.of(times[OURS]).median]))
    return {
        "case": case.title,
        "k": k,
        "tolerance": tol,
        "values": truth.values[:k].tolist(),
        "truth": truth.method,
        "rows": rows,
    }


def show_eigenpairs(record: Record) -> str:
    """Format one case and one k."""
    rows = []
    for name, row in record["rows"].items():
        if "failed" in row:
            rows.append([name, row["failed"], "", "", "", "", ""])
            continue
        against = Spread(**row["against_ours"]).show() if "against_ours" in row else ""
        ms = Spread.of(row["times"] if "times" in row else [row["seconds"]]).median * 1e3
        numbers = [str(row["products"]), f"{ms:.0f}", against, f"{row['error']:.0e}", f"{row['residual']:.0e}"]
        rows.append([name, row["shown"], *numbers, "yes" if row["right"] else "**no**"])
    head = ["solver", "setting", "products", "ms", "time / ours [quartiles]", "value error", "true residual", "right"]
    rows = [row + [""] * (len(head) - len(row)) for row in rows]
    values = ", ".join(f"{v:.4g}" for v in record["values"])
    title = f"### Top {record['k']} to a relative residual of {record['tolerance']:.0e}: {record['case']}"
    return f"{title}\n\nTrue values ({record['truth']}): {values}.\n\n" + table(head, rows)


def wrong(record: Record) -> list[str]:
    """Name our results that miss their tolerance."""
    found = []
    for one in record["products"]:
        dtype = torch.float64 if "float64" in one["case"] else torch.float32
        for name in ("thalweg linearised", "thalweg double_backward", "thalweg forward_reverse"):
            row = one["rows"][name]
            if "failed" in row or not row["error"] <= LIMIT[dtype]:
                found.append(f"{one['case']}: {name}: {row}")
    for one in record["eigenpairs"]:
        row = one["rows"][OURS]
        if not row.get("right"):
            found.append(f"{one['case']}, top {one['k']}: {row}")
    return found


def _shown(solver: Solver, outcome: Outcome) -> str:
    if outcome.setting is None:
        return solver.default
    text = solver.text.format(outcome.setting)
    if solver.hindsight:
        return f"{text}, hindsight" if outcome.right else f"{text}, gave up"
    return text


def _reason(failure: Exception) -> str:
    return "not installed" if isinstance(failure, ModuleNotFoundError) else f"raises {type(failure).__name__}"


def main() -> int:
    """Measure, print, save, and return 1 if a result of ours is wrong."""
    options = arguments(__doc__ or "", "hvp")
    warnings.filterwarnings("ignore", category=UserWarning)  # torch and peers warn about kept graphs at each call
    about = machine()
    print(f"## Hessian products and leading eigenpairs\n\n{header(about)}\n")
    record: Record = {"machine": about, "quick": options.quick, "products": [], "eigenpairs": []}
    text = []

    def emit(section: str) -> None:
        text.append(section)
        print(section + "\n", flush=True)

    rounds, patience = (5, 1.0) if options.quick else (21, 4.0)
    every = cases(options.quick)
    for case in every:
        record["products"].append(products(case, rounds))
        emit(show_products(record["products"][-1]))
    record["correctness"] = correctness()
    emit(show_correctness(record["correctness"]))
    for case in every:
        truth = Truth(case)
        for k in (1, 5):
            record["eigenpairs"].append(eigenpairs(case, k, 3 if options.quick else 5, patience, truth))
            emit(show_eigenpairs(record["eigenpairs"][-1]))
    short = summary(record)
    print(short)
    if options.save:
        save(options.out, "hvp", record, "\n\n".join([header(about), *text]))
        (options.out / "summary.md").write_text(header(about) + "\n\n" + short + "\n")
    bad = wrong(record)
    for line in bad:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
