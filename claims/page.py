"""Write docs/claims.md from results/*.json; ``--check`` only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "claims.md"
HEAD = """# Claims, tested

What papers say that thalweg builds on, each run again here: one script in `claims/` per claim, over several seeds, with
a verdict. *Holds*: as stated, in every run. *Holds in kind*: the effect is there, not in every run or not in full.
*Not reproduced*: not seen here, which may be due to our setting. This page is made by `python claims/page.py` from what
the scripts saved.
"""


def section(record: dict[str, Any]) -> str:
    """Format one claim."""
    units = record["units"]
    head = ["case", "seed", *units.values()]
    rows = [[row["case"], str(row["seed"]), *[f"{row[key]:.3g}" for key in units]] for row in record["rows"]]
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join(
        [
            f"## {record['statement']}",
            "",
            f"**{record['verdict'].capitalize()}**: {record['why']}.",
            "",
            f"{record['setting']}. Source: {record['source']}. `python claims/{record['name']}.py --save`, "
            f"{record['seconds']} s, {record['date']}, {versions}.",
            "",
            *lines,
        ]
    )


def page() -> str:
    """Format the whole page."""
    found = sorted((Path(__file__).parent / "results").glob("*.json"))
    return "\n\n".join([HEAD.strip(), *[section(json.loads(path.read_text())) for path in found]]) + "\n"


def main() -> int:
    """Write the page, or with ``--check`` return 1 if it is not what it would be."""
    text = page()
    if "--check" in sys.argv[1:]:
        return int(not PAGE.exists() or PAGE.read_text() != text)
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
