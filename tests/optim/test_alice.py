"""Alice against the naive float64 transcription, and the properties that follow from her formulas."""

import math

import numpy as np
import pytest
import torch

from reference import alice as naive
from thalweg.errors import InvalidInput
from thalweg.optim.alice import Alice
from thalweg.optim.alice_settings import warm_steps

STEPS = 30
CONFIGURATIONS = {
    "default": {},
    "glass only": {"hess_comp": "zero", "quick_steps": 0},
    "abs": {"grad_glass": False, "quick_steps": 1},
    "rms": {"hess_comp": "rms", "grad_glass": False, "quick_steps": 0},
    "rms and glass": {"hess_comp": "rms", "quick_steps": 2},
    "abs and glass, every step": {"quick_steps": 0},
    "sgdm": {"limit_method": "sgdm", "lr_min": 2e-3, "lr_max": 0.5, "quick_steps": 1},
    "fixed": {"limit_method": "fixed", "lr_min": 1e-4, "lr_max": 5e-3},
    "opened": {"lr_max": 10.0, "quick_steps": 0},
    "lower bound": {"lr_min": 4e-3, "lr_max": 0.05},
    "L1": {"w1": 0.05, "lr_max": 0.3},
    "L2": {"w2": 0.1, "lr_max": 0.3, "hess_comp": "rms"},
    "both": {"w1": 0.02, "w2": 0.3, "quick_steps": 2, "lr_max": 0.3},
    "phi": {"phi": 0.7, "lr_max": 0.1},
    "omega": {"omega": 0.4, "lr_max": 0.1},
    "phi and omega": {"phi": 1.5, "omega": 1.7, "quick_steps": 0},
    "phi is omega": {"phi": 1.0, "omega": 1.0},
    "absolute bounds": {"scale_bounds_with_lr": False, "lr_min": 1e-4, "lr_max": 0.02},
    "other averages": {"betas": (0.5, 0.9), "quick_steps": 1, "lr_max": 0.1},
}


def decayed(t, lr, decay):
    return lr * (1.0 if not decay or t < 12 else 0.3 if t < 22 else 0.05)


def problem(name, n):
    """The same gradient for numpy vectors (float64) and for torch (any dtype, by its own graph)."""
    if name == "quadratic":
        matrix, vector = naive.quadratic(n)
        return (
            lambda w: matrix @ w - vector,
            lambda w: 0.5 * w @ torch.as_tensor(matrix, dtype=w.dtype) @ w - torch.as_tensor(vector, dtype=w.dtype) @ w,
        )
    q, b, c = naive.relu_sum(n, 300)

    def gradient(w):
        return (c * (q @ w - b > 0)) @ q + w / 10

    def loss(w):
        here = torch.relu(torch.as_tensor(q, dtype=w.dtype) @ w - torch.as_tensor(b, dtype=w.dtype))
        return torch.as_tensor(c, dtype=w.dtype) @ here + w @ w / 20

    return gradient, loss


def run_both(name, options, dtype, decay, foreach=False, n=24, **extra):
    rng = np.random.default_rng(7)
    start, z = rng.standard_normal(n), rng.choice([-1.0, 1.0], size=(STEPS + 1, n))
    start = start.astype(np.float32).astype(np.float64)
    options = {"lr": 5e-3, **options}
    beta1, beta2 = options.get("betas", (0.9, 0.999))
    settings = {key: value for key, value in options.items() if key != "betas"}
    reference = naive.Reference(start, naive.Settings(beta1=beta1, beta2=beta2, **settings))
    gradient, loss = problem(name, n)
    a, b = (torch.nn.Parameter(torch.tensor(s, dtype=dtype)) for s in (start[:10].reshape(2, 5), start[10:]))

    def drawn(parameter, step, index):
        row = torch.tensor(z[step])
        return row[:10].reshape(2, 5) if index == 0 else row[10:]

    optimizer = Alice([a, b], **options, signs=drawn, foreach=foreach, **extra)
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        value = loss(torch.cat([a.reshape(-1), b]))
        value.backward()
        return value

    def together(key):
        return torch.cat([optimizer.state[p][key].reshape(-1) for p in (a, b)]).double().numpy()

    for t in range(1, STEPS + 1):
        lr = decayed(t, options["lr"], decay)
        optimizer.param_groups[0]["lr"] = lr
        reference.step(gradient, z[t], lr)
        optimizer.step(closure)
        mu = torch.cat([a.detach().reshape(-1), b.detach()]).double().numpy()
        reach = optimizer.state[a]["reach"]
        yield t, reference, calls, mu, mu - reach * together("descent"), together, optimizer


def close(found, expected, rtol, floor=0.0):
    """Within ``rtol``, entries below ``floor`` of the largest being compared with that."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * (floor * scale + 1e-300))


@pytest.mark.parametrize("decay", [False, True], ids=["constant", "decayed"])
@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
@pytest.mark.parametrize("name", ["quadratic", "relu"])
def test_trajectory_float64(name, options, decay):
    for _, reference, calls, mu, nu, state, _ in run_both(name, options, torch.float64, decay):
        close(mu, reference.mu, 1e-9)
        close(nu, reference.nu, 1e-9)
        close(state("mean"), reference.g, 1e-9, 1e-3)
        close(state("square"), reference.s, 1e-9)
        if options.get("hess_comp") != "zero":
            close(state("curvature"), reference.H, 1e-9, 1e-2)
        if options.get("grad_glass", True) and name == "relu":  # on the quadratic the density is round-off
            close(state("glass"), reference.R, 1e-9, 1e-3)
        assert calls == reference.evaluations
