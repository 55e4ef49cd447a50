"""Claim: with the look-ahead in its right length, the running mean of gradients is the gradient at the centre."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from _common import HOLDS, IN_KIND, NOT, Claim, Numbers, column, run

BETA, STEPS, SIZE = 0.9, 200, 40
CASES = {
    "phi = 0.1, omega = 1": (0.1, 1.0),
    "phi = 0.2, omega = 2": (0.2, 2.0),
    "phi = 0.05, omega = 1": (0.05, 1.0),
    "phi = 0.2, omega = 1": (0.2, 1.0),
    "phi = 1, omega = 1": (1.0, 1.0),
}


def measure(case: str, seed: int) -> Numbers:
    """Largest error of the running mean on a quadratic, without noise, and its variance with noise.

    The centre moves by ``phi delta``, the gradient is taken at ``mu + omega delta``; steps are Adam's.
    """
    phi, omega = CASES[case]
    rng = np.random.default_rng(seed)
    square = rng.normal(size=(SIZE, SIZE))
    hessian, shift = square @ square.T / SIZE, rng.normal(size=SIZE)
    mu = rng.normal(size=SIZE)
    mean = hessian @ mu + shift
    noisy_mu, noisy = mu.copy(), mean.copy()
    second, worst, errors = mean**2, 0.0, []
    for step in range(STEPS):
        move = -0.01 * mean / (np.sqrt(second) + 1e-8)
        at = hessian @ (mu + omega * move) + shift
        second = 0.99 * second + 0.01 * at**2
        mean, mu = BETA * mean + (1 - BETA) * at, mu + phi * move
        truth = hessian @ mu + shift
        worst = max(worst, float(abs(mean - truth).max() / abs(mean).max()))
        noise = rng.normal(size=SIZE)
        noisy_move = -0.01 * np.sign(noisy)
        at = hessian @ (noisy_mu + omega * noisy_move) + shift + noise
        noisy, noisy_mu = BETA * noisy + (1 - BETA) * at, noisy_mu + phi * noisy_move
        if step >= 60:
            errors.append(noisy - (hessian @ noisy_mu + shift))
    return {
        "error": worst,
        "variance": float(np.var(errors)),
        "bias": float(np.abs(np.mean(errors, axis=0)).mean()),
    }


def judge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Round-off where ``phi = (1 - beta) omega``, far above it elsewhere; noise averages as it should."""
    right = [row for row in rows if row["case"] in list(CASES)[:2]]
    wrong = [row for row in rows if row["case"] not in list(CASES)[:2]]
    expected = (1 - BETA) / (1 + BETA)
    variance = column(right, "variance")
    exact = bool((column(right, "error") < 1e-12).all() and (column(wrong, "error") > 1e-4).all())
    near = bool((abs(variance / expected - 1) < 0.2).all())
    why = (
        f"largest error {column(right, 'error').max():.0e} where phi = (1 - beta) omega, "
        f"{column(wrong, 'error').min():.0e} to {column(wrong, 'error').max():.0e} elsewhere; under noise of variance "
        f"1 that of the mean is {variance.min():.4f} to {variance.max():.4f}, in theory {expected:.4f}"
    )
    return (HOLDS if exact and near else IN_KIND if exact else NOT), why


CLAIM = Claim(
    "glass_nesterov",
    "On a quadratic, a centre that moves 1 - beta of the way to where gradients are taken makes their running mean the "
    "exact gradient at the centre, whatever the steps are.",
    "arXiv 2411.16914; proof: the mean of affine gradients is the gradient of the mean",
    "Dense random quadratics of 40 weights, float64, 200 steps as Adam's, beta 0.9",
    measure,
    tuple(CASES),
    judge,
    {"error": "largest relative error", "variance": "variance under noise", "bias": "bias under noise"},
)

if __name__ == "__main__":
    sys.exit(run(CLAIM))
