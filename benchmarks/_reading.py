"""What the measurements of hvp.py say: one line per competitor, and the claims they support or refute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _common import Spread, table
from _solvers import OURS, OURS_BARE


def claims(record: Mapping[str, Any]) -> str:
    """Return a list of what was hoped for, in how many cases it held, and where it did not."""
    lines = []
    for one in record["products"]:
        if one["case"].startswith("MLP 64-100"):
            cost = Spread(**one["rows"]["thalweg linearised"]["gradients"])
            floor = Spread(**one["rows"]["plain torch, kept graph"]["gradients"])
            holds = "holds" if cost.median <= 1.6 else "**does not hold**"
            text = f"a reused product costs at most 1.6 gradients: {cost.show()}, plain torch {floor.show()}"
            lines.append(f"- {holds}: {text}: {_short(one['case'])}")
    for k in (1, 5):
        for what in ("library", "library set in hindsight", "solver on our operator"):
            found = [_fastest(one, what) for one in record["eigenpairs"] if one["k"] == k]
            missed = [text for ratio, text in found if ratio < 1]
            ratios = sorted(ratio for ratio, _ in found if ratio < float("inf"))
            span = f" (the fastest right one takes {ratios[0]:.2f} to {ratios[-1]:.2f} times ours)" if ratios else ""
            head = f"top {k}: no other {what} is faster and right: holds in {len(found) - len(missed)} of {len(found)}"
            lines.append(f"- {head}{span}" + (f"; not in {'; '.join(missed)}" if missed else ""))
    return "\n".join(lines)


def _fastest(one: Mapping[str, Any], what: str) -> tuple[float, str]:
    """The smallest time of a right competitor of this kind over ours, infinity if none was right, and which it is.

    Solvers on our operator do not look for repeated eigenvalues, and are compared with ours when it does not either,
    unless it then misses some.
    """
    timed = {name: row for name, row in one["rows"].items() if "against_ours" in row}
    ours = OURS_BARE if what == "solver on our operator" and OURS_BARE in timed else OURS

    def belongs(name: str, row: Mapping[str, Any]) -> bool:
        if what == "solver on our operator":
            return name.startswith("SciPy eigsh on thalweg")
        return "thalweg" not in name and row["hindsight"] == (what == "library set in hindsight")

    cost = {name: row["against_ours"]["median"] for name, row in timed.items() if belongs(name, row)}
    if not cost:
        return float("inf"), ""
    name = min(cost, key=cost.__getitem__)
    ratio = cost[name] / timed[ours]["against_ours"]["median"]
    return ratio, f"{_short(one['case'])}: {name} takes {ratio:.2f} times {ours}"


def show_correctness(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Format relative errors of products side by side."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [[name, *[column[name] for column in columns.values()]] for name in names]
    return "### Relative error of a product: MLP 64-24-10, float64\n\n" + table(["product", *columns], rows)


def summary(record: Mapping[str, Any]) -> str:
    """Return one line per case: cost of a product, and time to the same residual; errors; claims."""
    products = [(_short(one["case"]), {n: _product(r) for n, r in one["rows"].items()}) for one in record["products"]]
    solves = [
        (f"{_short(one['case'])}, top {one['k']}", {n: _solve(row, one["tolerance"]) for n, row in one["rows"].items()})
        for one in record["eigenpairs"]
    ]
    return "\n\n".join(
        [
            "### One product, in gradients (median)",
            _matrix("case", products),
            "In brackets: relative error, where it is above 1e-4.",
            show_correctness(record["correctness"]),
            "### Time to the same residual, over ours (median)",
            _matrix("case", solves),
            "\\* set in hindsight. Bold: not right, and by how much. In brackets: products.",
            "### What was hoped for, and what held",
            claims(record),
        ]
    )


def _matrix(corner: str, lines: list[tuple[str, dict[str, str]]]) -> str:
    """Format one line per case, one column per competitor."""
    names = list(dict.fromkeys(name for _, cells in lines for name in cells))
    return table([corner, *names], [[title, *[cells.get(name, "") for name in names]] for title, cells in lines])


def _short(title: str) -> str:
    return f"{title.split(',')[0]}, f{title.rsplit('float', 1)[1]}"


def _product(row: Mapping[str, Any]) -> str:
    if "failed" in row:
        return str(row["failed"])
    cost = f"{row['gradients']['median']:.2f}"
    return f"{cost} ({row['error']:.0e})" if row["error"] > 1e-4 else cost


def _solve(row: Mapping[str, Any], tol: float) -> str:
    if "failed" in row:
        return str(row["failed"])
    if not row["right"]:
        missed = f"value off {row['error']:.0e}" if row["error"] > 10 * tol else f"residual {row['residual']:.0e}"
        return f"**{missed}** ({row['products']})"
    return f"{row['against_ours']['median']:.2f}{'*' if row['hindsight'] else ''} ({row['products']})"
