"""Leading eigenpairs at equal certified residual: thalweg against the libraries people use, k = 1, 5, 20.

Three networks of thalweg's zoo, each small enough that its whole Hessian is diagonalised as the reference. Every
solver runs at a setting that its user knows beforehand: the residual where it takes one, else a rule that its own
report can end. What comes back is certified by fresh products of plain torch, and only answers that are right count.
Prints Markdown tables and which targets hold; ends with an error if *ours* is wrong anywhere.

    python benchmarks/spectra.py            about ten minutes of CPU time
    python benchmarks/spectra.py --quick    about a minute
    python benchmarks/spectra.py --save     also writes results/spectra.json, spectra.md and spectra_short.md
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # BLAS under SciPy reads it once, at import

import sys
import warnings
from dataclasses import asdict
from functools import partial
from typing import Any

from _cases import Case, digits, text, trained
from _common import Spread, arguments, header, interleave, machine, ratios, save, table
from _solvers import (
    Outcome,
    Pairs,
    Solver,
    Truth,
    arpack_curvlinops,
    arpack_ours,
    eigenthings,
    eigenthings_trusted,
    pyhessian_power,
    try_setting,
)

import thalweg as tw
from thalweg.problem.data import Data
from thalweg.problem.zoo.build import ModelConfig, build_model

TOLERANCES = (1e-3, 1e-6)
"""Relative residuals: what a sharpness plot needs, and what leaves no doubt."""
TARGET = 3.0
HOPELESS = 10.0
"""A solver this many times slower than ours at one k is left out at the next."""
OURS = "thalweg"
Record = dict[str, Any]


def zoo(quick: bool) -> list[Case]:
    """The three networks, trained by Adam until eigenvalues stand out, in float64."""
    images, labels = digits(200 if quick else 1000)
    rows, following = text(rows=4 if quick else 8, time=16 if quick else 32, tokens=40)
    image = Data("digits", images.view(-1, 1, 8, 8), labels, 10, "classification", "scanned digits")
    tokens = Data("text", rows, following, 40, "tokens", "characters of help pages")
    width = 8 if quick else 32
    configs = {
        "MLP": (ModelConfig("mlp", depth=3, width=width), image),
        "CNN": (ModelConfig("cnn", depth=4, width=width // 2, activation="gelu"), image),
        "transformer": (
            ModelConfig("transformer", depth=1 if quick else 2, width=width // 2 if quick else 12, heads=2,
                        activation="gelu"),
            tokens,
        ),
    }  # fmt: skip
    found = []
    for name, (config, data) in configs.items():
        model = build_model(config, data).double()
        x, y = data.pair()
        few = min(len(x), 128) if name == "CNN" else len(x)
        found.append(trained(f"{name} {config.depth}x{config.width}", model, x[:few], y[:few]))
    return found


def _ours(check: bool, case: Case, k: int, tol: float) -> Pairs:
    with tw.hessian(case.problem) as operator:
        method = None if check else tw.Lanczos(check_multiplicity=False)
        found = tw.top_eigenpairs(operator, k, tol=tol, method=method, strict=False)
    return Pairs(found.values, found.vectors, found.products)


def _eigenthings_rule(case: Case, k: int, tol: float) -> Pairs:
    """A generous number of steps in one go."""
    return eigenthings(case, k, min(5 * k + 20, case.size), tol)


def same(k: int, tol: float) -> list[float]:
    """The tolerance itself is the setting."""
    return [tol]


PEERS = (
    Solver("curvlinops + SciPy eigsh", arpack_curvlinops, same),
    Solver("hessian-eigenthings, steps doubled", eigenthings_trusted, same),
    Solver("hessian-eigenthings, 5 k + 20 steps", _eigenthings_rule, same),
    Solver("PyHessian, value to tol^2", lambda case, k, tol: pyhessian_power(case, k, tol**2), same),
)
OWN = (
    Solver(OURS, partial(_ours, True), same),
    Solver("thalweg, no look for copies", partial(_ours, False), same),
    Solver("SciPy eigsh on thalweg's operator", partial(arpack_ours, False), same),
)


def compare(case: Case, k: int, tol: float, rounds: int, truth: Truth, left_out: set[str]) -> Record:
    """Run everything once to see what is right, then time what is, interleaved."""
    rows: dict[str, Record] = {}
    jobs: dict[str, Any] = {}
    limit = 0.0
    for solver in (*OWN, *PEERS):
        if k == 1 and solver.name == OWN[1].name:
            continue
        if solver.name in left_out:
            rows[solver.name] = {"failed": f"left out: over {HOPELESS:g} times ours at smaller k"}
            continue
        try:
            outcome: Outcome = try_setting(solver, case, k, tol, tol, truth)
        except Exception as failure:  # a peer that is absent or fails is a row of the table
            absent = isinstance(failure, ModuleNotFoundError)
            rows[solver.name] = {"failed": "not installed" if absent else f"raises {type(failure).__name__}"}
            continue
        rows[solver.name] = asdict(outcome)
        limit = limit or 30 * max(outcome.seconds, 0.05)
        if solver.name == OURS or outcome.seconds < limit:
            jobs[solver.name] = partial(solver.solve, case, k, tol)
    times = interleave(jobs, rounds)
    for name, row in rows.items():
        if name in times:
            row["times"] = times[name]
            row["against_ours"] = asdict(Spread.of(ratios(times[name], times[OURS])))
        elif "failed" not in row:  # many times slower than ours: the one run will do
            row["against_ours"] = asdict(Spread.of([row["seconds"] / Spread.of(times[OURS]).median]))
    peers = {s.name for s in PEERS}
    right = {name: row["against_ours"]["median"] for name, row in rows.items() if name in peers and row.get("right")}
    best = min(right, key=lambda name: right[name]) if right else None
    return {
        "case": case.title, "k": k, "tolerance": tol, "rows": rows, "values": truth.values[:k].tolist(),
        "truth": truth.method, "fastest_peer": best, "ratio": right.get(best) if best else None,
    }  # fmt: skip


def too_slow(record: Record) -> set[str]:
    """Solvers that need not be tried on more pairs of the same case."""
    found = {name: row["against_ours"]["median"] for name, row in record["rows"].items() if "against_ours" in row}
    return {name for name, ratio in found.items() if ratio > HOPELESS}


def show(record: Record) -> str:
    """Format one case, k and tolerance."""
    rows = []
    for name, row in record["rows"].items():
        if "failed" in row:
            rows.append([name, row["failed"], "", "", "", "", ""])
            continue
        ms = Spread.of(row.get("times", [row["seconds"]])).median * 1e3
        ratio = Spread(**row["against_ours"]).show()
        errors = [f"{row['error']:.0e}", f"{row['residual']:.0e}", "yes" if row["right"] else "**no**"]
        rows.append([name, str(row["products"]), f"{ms:.0f}", ratio, *errors])
    head = ["solver", "products", "ms", "time / ours [quartiles]", "value error", "certified residual", "right"]
    title = f"### Top {record['k']} to a relative residual of {record['tolerance']:.0e}: {record['case']}"
    values = record["values"]
    return f"{title}\n\nFrom {values[0]:.4g} down to {values[-1]:.4g} ({record['truth']}).\n\n" + table(head, rows)


def short(records: list[Record]) -> str:
    """One line per case: ours, the fastest right peer, and whether the target holds."""
    rows = []
    for one in records:
        ours, best = one["rows"][OURS], one["fastest_peer"]
        peer = one["rows"][best] if best else None
        held = peer is None or one["ratio"] >= TARGET
        rows.append([
            one["case"].split(",")[0], str(one["k"]), f"{one['tolerance']:.0e}", str(ours["products"]),
            f"{Spread.of(ours['times']).median * 1e3:.0f}", best or "none is right",
            str(peer["products"]) if peer else "",
            f"{one['ratio']:.2f}" if peer else "", "yes" if held else "**no**",
        ])  # fmt: skip
    head = ["case", "k", "residual", "our products", "our ms", "fastest right peer", "its products", "its time / ours",
            f"at least {TARGET:g}"]  # fmt: skip
    held = sum(row[-1] == "yes" for row in rows)
    wins = sum(one["ratio"] is None or one["ratio"] > 1 for one in records)
    return (
        table(head, rows)
        + f"\n\nAt least {TARGET:g} times as fast as every peer that is right: {held} of {len(rows)}; faster: {wins}."
    )


def main() -> int:
    """Measure, print, save, and return 1 if a result of ours is wrong."""
    options = arguments(__doc__ or "", "spectra")
    warnings.filterwarnings("ignore", category=UserWarning)  # torch and peers warn about kept graphs at each call
    about = machine()
    print(f"## Leading eigenpairs at equal certified residual\n\n{header(about)}\n")
    records: list[Record] = []
    parts = []
    for case in zoo(options.quick):
        truth = Truth(case, 20)
        slow: set[str] = set()
        for k in (1, 5) if options.quick else (1, 5, 20):
            left_out = set(slow) if k > 5 else set[str]()
            for tol in TOLERANCES:
                records.append(compare(case, k, tol, 3 if options.quick else 5, truth, left_out))
                slow |= too_slow(records[-1])
                parts.append(show(records[-1]))
                print(parts[-1] + "\n", flush=True)
    summary = short(records)
    print(summary)
    if options.save:
        record = {"machine": about, "quick": options.quick, "spectra": records}
        save(options.out, "spectra", record, "\n\n".join([header(about), summary, *parts]))
        (options.out / "spectra_short.md").write_text(header(about) + "\n\n" + summary + "\n")
    bad = [f"{one['case']}, top {one['k']}: {one['rows'][OURS]}" for one in records if not one["rows"][OURS]["right"]]
    for line in bad:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
