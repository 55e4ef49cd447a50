"""The estimates of a gradient level written as the sums that define them, pair by pair; slow."""

import itertools
import math


def dot(a, b):
    return float((a.double() * b.double()).sum())


def unbiased(gradients):
    pairs = [dot(a, b) for a, b in itertools.permutations(gradients, 2)]
    return sum(pairs) / len(pairs)


def level(gradients):
    """Return U, A, V, the jackknife error of U, and T2."""
    n = len(gradients)
    mean = sum(g.double() for g in gradients) / n
    left = [unbiased(gradients[:i] + gradients[i + 1 :]) for i in range(n)] if n > 2 else []
    centre = sum(left) / n if left else math.nan
    deviations = [g.double() - mean for g in gradients]
    return {
        "unbiased": unbiased(gradients),
        "biased": dot(mean, mean),
        "noise": sum(dot(d, d) for d in deviations) / (n - 1),
        "standard_error": math.sqrt((n - 1) / n * sum((u - centre) ** 2 for u in left)) if left else math.nan,
        "noise_square": sum(dot(a, b) ** 2 for a, b in itertools.permutations(deviations, 2)) / (n * (n - 1)),
    }
