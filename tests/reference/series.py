"""The formulas of time series word by word, in loops: slow, and to be compared with."""

import math

import numpy as np
from scipy.signal import lfilter
from scipy.stats import norm, rankdata


def autocorrelation(x):
    n, mean = len(x), sum(x) / len(x)
    c = [sum((x[t] - mean) * (x[t + k] - mean) for t in range(n - k)) / n for k in range(n)]
    return np.array(c) / c[0]


def integrated_time(x):
    rho = autocorrelation(x)
    tau, k = 1.0, 1
    while k + 1 < len(rho) and rho[k] + rho[k + 1] >= 0:
        tau += 2 * (rho[k] + rho[k + 1])
        k += 2
    return tau


def rhat(x):
    quarters = np.split(np.asarray(x)[len(x) % 4 :], 4)
    n = len(quarters[0])
    within = sum(np.var(q, ddof=1) for q in quarters) / 4
    between = n * np.var([np.mean(q) for q in quarters], ddof=1)
    return math.sqrt(((n - 1) / n * within + between / n) / within)


def scores(x):
    return norm.ppf((rankdata(x) - 3 / 8) / (len(x) + 1 / 4))


def energy(a, b):
    def mean(x, y):
        return sum(math.dist(p, q) for p in x for q in y) / (len(x) * len(y))

    return 2 * mean(a, b) - mean(a, a) - mean(b, b)


def mmd(a, b, width):
    def mean(x, y):
        return sum(math.exp(-(math.dist(p, q) ** 2) / (2 * width**2)) for p in x for q in y) / (len(x) * len(y))

    return mean(a, a) + mean(b, b) - 2 * mean(a, b)


def sliced(a, b, directions):
    return np.mean([np.abs(np.sort(a @ d) - np.sort(b @ d)).mean() for d in directions.T])


def ar1(tau, n, rng, k=None, noise=None):
    """A stationary AR(1) process with this integrated time, of unit variance where its noise has one."""
    burn = int(20 * tau)
    e = (rng.standard_normal if noise is None else noise)((n + burn, k or 1))
    phi = (tau - 1) / (tau + 1)
    x = lfilter([math.sqrt(1 - phi**2)], [1.0, -phi], e, axis=0)
    return x[burn:] if k else x[burn:, 0]
