"""What a block-permutation test of two windows costs: all permutations as matrix products, against one at a time.

Two windows of 500 snapshots in 64 dimensions, 499 permutations. The plain way computes the same statistic of the pooled
distances anew for every permutation, from NumPy's fancy indexing. Both see the same permutations' number and data; the
p-values need not be equal, the statistics are.

    python benchmarks/block_test.py            some seconds
    python benchmarks/block_test.py --quick    fewer permutations
    python benchmarks/block_test.py --save     also writes results/block_test.json and .md
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys

import numpy as np
from _common import Spread, arguments, header, interleave, machine, ratios, save, table
from scipy.spatial.distance import cdist

from thalweg.stationarity import block_test
from thalweg.stationarity.two_sample_statistics import STATISTICS

SNAPSHOTS, DIMENSIONS, BLOCK = 500, 64, 10


def plain(a: np.ndarray, b: np.ndarray, permutations: int) -> tuple[float, float]:
    """Energy distance and p-value by a loop over permutations of blocks."""
    z = np.concatenate([a, b])
    z = (z - z.mean(0)) / z.std(0)
    n, distances = len(a), cdist(z, z)
    rng = np.random.default_rng(0)
    blocks = np.arange(len(z)).reshape(-1, BLOCK)

    def energy(first: np.ndarray, second: np.ndarray) -> float:
        across = distances[np.ix_(first, second)].mean()
        within = distances[np.ix_(first, first)].mean() + distances[np.ix_(second, second)].mean()
        return float(2 * across - within)

    seen = energy(np.arange(n), np.arange(n, len(z)))
    count = 1
    for _ in range(permutations):
        order = blocks[rng.permutation(len(blocks))].reshape(-1)
        count += energy(order[:n], order[n:]) >= seen
    return seen, count / (permutations + 1)


def main() -> int:
    """Time both ways; 1 if the statistics differ."""
    options = arguments(__doc__ or "", "block_test")
    permutations = 49 if options.quick else 499
    a, b = np.random.default_rng(0).standard_normal((2, SNAPSHOTS, DIMENSIONS))
    jobs = {
        name: lambda name=name: block_test(a, b, statistic=name, permutations=permutations, block=BLOCK)
        for name in STATISTICS
    }
    times = interleave({**jobs, "plain": lambda: plain(a, b, permutations)}, rounds=3)
    ours, theirs = jobs["energy"](), plain(a, b, permutations)
    rows = [
        [name, f"{Spread.of(times[name]).median:.3f}", f"{Spread.of(ratios(times['plain'], times[name])).median:.0f}x"]
        for name in jobs
    ]
    rows.append(["energy, plain loop", f"{Spread.of(times['plain']).median:.3f}", "1x"])
    size = f"two windows of {SNAPSHOTS} snapshots in {DIMENSIONS} dimensions"
    same = f"Energy statistic: {ours.statistic:.12g} here, {theirs[0]:.12g} by the loop"
    text = "\n\n".join(
        [
            header(about := machine()),
            f"{permutations} permutations of blocks of {BLOCK}, {size}.",
            table(["statistic", "s", "times faster than the plain energy"], rows),
            f"{same}; p {ours.p:.3f} and {theirs[1]:.3f}.",
        ]
    )
    print(text)
    if options.save:
        save(options.out, "block_test", {"machine": about, "permutations": permutations, "seconds": times}, text)
    return int(abs(ours.statistic - theirs[0]) > 1e-9 * abs(theirs[0]))


if __name__ == "__main__":
    sys.exit(main())
