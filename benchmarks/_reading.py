"""What the measurements of hvp.py say: one line per competitor, and the claims they support or refute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _common import Spread, table
from _solvers import OURS, OURS_BARE


def claims(record: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Return sentences with numbers, and whether this run bears out that ours is not slower."""
    found = []
    for one in record["products"]:
        if one["case"].startswith("MLP 64-100"):
            cost = Spread(**one["rows"]["thalweg linearised"]["gradients"])
            text = f"a reused product costs {cost.show()} gradients, at most 1.6: {one['case']}"
            found.append((text, cost.median <= 1.6))
    for one in record["eigenpairs"]:
        timed = {name: row for name, row in one["rows"].items() if "against_ours" in row}
        bare = OURS_BARE if OURS_BARE in timed else OURS
        peers = {name: row for name, row in timed.items() if "thalweg" not in name}
        usable = {name: row for name, row in peers.items() if not row["hindsight"]}
        hindsight = {name: row for name, row in peers.items() if row["hindsight"]}
        solvers = {name: row for name, row in timed.items() if name.startswith("SciPy") and name not in peers}
        for what, others, ours in (
            ("another library", usable, OURS),
            ("another library, set in hindsight", hindsight, OURS),
            ("another solver on our operator", solvers, bare),
        ):
            where = f"top {one['k']}, {one['case']}: {what}"
            if not others:
                found.append((f"{where}: none was right", True))
                continue
            cost = {name: row["against_ours"]["median"] for name, row in others.items()}
            name = min(cost, key=cost.__getitem__)
            ratio = cost[name] / timed[ours]["against_ours"]["median"]
            found.append((f"{where}: {ratio:.2f} times {ours} ({name})", ratio >= 1))
    return found


def summary(record: Mapping[str, Any]) -> str:
    """Return two tables with one column per case: cost of a product, and time to the same residual."""
    products = [
        (_short(one["case"]), {n: _product(row) for n, row in one["rows"].items()}) for one in record["products"]
    ]
    solves = [
        (f"{_short(one['case'])}, top {one['k']}", {n: _solve(row) for n, row in one["rows"].items()})
        for one in record["eigenpairs"]
    ]
    return (
        "### One product, in gradients (median)\n\n"
        + _matrix("product", products)
        + "\n\nIn brackets: relative error, where it is above 1e-4.\n\n"
        + "### Time to the same residual, over ours (median)\n\n"
        + _matrix("solver", solves)
        + "\n\n\\* set in hindsight. In brackets: products."
    )


def _matrix(corner: str, columns: list[tuple[str, dict[str, str]]]) -> str:
    names = list(dict.fromkeys(name for _, cells in columns for name in cells))
    rows = [[name, *[cells.get(name, "") for _, cells in columns]] for name in names]
    return table([corner, *[title for title, _ in columns]], rows)


def _short(title: str) -> str:
    return f"{title.split(',')[0]}, f{title.rsplit('float', 1)[1]}"


def _product(row: Mapping[str, Any]) -> str:
    if "failed" in row:
        return str(row["failed"])
    cost = f"{row['gradients']['median']:.2f}"
    return f"{cost} ({row['error']:.0e})" if row["error"] > 1e-4 else cost


def _solve(row: Mapping[str, Any]) -> str:
    if "failed" in row:
        return str(row["failed"])
    if not row["right"]:
        return f"**wrong** ({row['products']})" if "gave up" not in row["shown"] else f"gave up ({row['products']})"
    return f"{row['against_ours']['median']:.2f}{'*' if row['hindsight'] else ''} ({row['products']})"
