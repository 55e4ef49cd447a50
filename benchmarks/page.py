"""Put the committed tables into docs/benchmarks.md, between its markers; ``--check`` only compares.

The prose of the page is written by hand; between ``<!-- NAME -->`` and ``<!-- end NAME -->`` stands results/NAME.md.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = Path(__file__).parent / "results"


def fill(page: str, folder: Path = RESULTS) -> str:
    """Return ``page`` with each marked block replaced by the file of its name."""

    def block(found: re.Match[str]) -> str:
        name = found[1]
        return f"<!-- {name} -->\n{(folder / f'{name}.md').read_text().strip()}\n<!-- end {name} -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end \1 -->", block, page, flags=re.DOTALL)


def main() -> int:
    """Write the page, or with ``--check`` return 1 if it is not what it would be."""
    before = PAGE.read_text()
    after = fill(before)
    if "--check" in sys.argv[1:]:
        return int(before != after)
    PAGE.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
