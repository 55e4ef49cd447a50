"""Short runs whose curves are written down, and the definitions of critical constants read off them one by one."""

import numpy as np

from thalweg.phases.early import Cost, EarlyCurves


class Scripted:
    """Curves by functions of (place of the seed, c): what a test wants to be true."""

    def __init__(self, curves, seeds=1, steps=10, barrier=None, cutoff=1e5):
        self.curves, self.steps, self.cutoff = curves, steps, cutoff
        self.seeds = tuple(range(seeds))
        self.loss0, self.sharpness0 = np.ones(seeds), np.full(seeds, 10.0)
        self.cost, self.height = Cost(), barrier
        self.measured, self.ran = set(), set()

    def first_losses(self, rows):
        return np.array([self.curves(i, c)[0][1] for i, c in rows])

    def run(self, rows, measure=(), ceiling=None):
        loss = np.array([self.curves(i, c)[0] for i, c in rows], dtype=float)
        sharpness = np.array([self.curves(i, c)[1] for i, c in rows], dtype=float)
        hidden = [t for t in range(1, self.steps + 1) if t not in set(measure)]
        sharpness[:, hidden] = np.nan
        self.ran.update(rows)
        self.measured.update((row, t) for row in rows for t in measure)
        self.cost = self.cost + Cost(runs=len(rows), solves=len(rows) * len(set(measure)))
        return EarlyCurves(tuple(rows), loss, sharpness)

    def sharpness_at(self, rows, steps, ceiling=None):
        self.cost = self.cost + Cost(solves=len(rows))
        return np.array([self.curves(i, c)[1][t] for (i, c), t in zip(rows, steps)], dtype=float)

    def barrier(self, rows, points=101):
        return np.array([self.height(i, c) for i, c in rows])


def ladder(loss_at, sharp_at, max_at, steps=10):
    """Curves that rise from given thresholds on: at step 1, but for values of ``late``."""

    def curves(i, c):
        loss, sharpness = np.linspace(1, 0.5, steps + 1), np.linspace(10, 5, steps + 1)
        if c >= loss_at[i]:
            loss[1] = 2.0
        if c >= sharp_at[i]:
            sharpness[1] = 11.0
        if c >= max_at[i]:
            loss[-1] = np.inf
        return loss, sharpness

    return curves


def by_definition(runs, step, start=0.0, stop=10.0):
    """``(c_loss, c_sharp, c_max)`` of each seed on the grid, from all its curves."""
    found = []
    for i in range(len(runs.seeds)):
        loss_at = sharp_at = last = np.nan
        for k in range(int((stop - start) / step + 1e-9) + 1):
            c = 2.0 ** round(start + k * step, 12)
            curves = runs.run([(i, c)], range(1, runs.steps + 1))
            loss, sharpness = curves.loss[0], curves.sharpness[0]
            gone = not all(value <= runs.cutoff for value in loss[1:])
            if np.isnan(loss_at) and (gone or max(loss[1:]) > loss[0]):
                loss_at = c
            if np.isnan(sharp_at) and (gone or np.nanmax(sharpness[1:]) > runs.sharpness0[i]):
                sharp_at = c
            if gone:
                break
            last = c
        found.append((loss_at, sharp_at, last))
    return np.array(found)
