"""Whether training has settled, and on what: gradient levels, windows, invariant measures (arXiv 2110.06256)."""
