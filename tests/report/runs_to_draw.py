"""Made-up runs with known shapes, to hold words and figures against."""

import numpy as np
import xarray as xr


def dataset(steps, sharpness, *, threshold=20.0, loss=None, every=1, state="finished", k=2, planned=None, **replaced):
    """A run's data with a given sharpness per step; ``replaced`` are variables by name."""
    t = np.arange(steps + 1)
    rng = np.random.default_rng(0)
    sharpness = np.asarray(sharpness, dtype=float)
    loss = np.exp(-t / max(steps, 1)) if loss is None else np.asarray(loss, dtype=float)
    measured = np.where(t % every == 0, sharpness, np.nan)
    values = np.stack([measured * (1 - 0.1 * i) for i in range(k)], axis=1)
    threshold = np.broadcast_to(np.asarray(threshold, dtype=float), t.shape)
    variables = {
        "loss": loss,
        "gradient_norm": np.ones(steps + 1),
        "weight_norm": 5 + t / 100,
        "distance": np.sqrt(t),
        "path_length": t.astype(float),
        "update_norm": np.ones(steps + 1),
        "update_cosine": np.where(t > 0, np.cos(t), np.nan),
        "learning_rate": 2 / threshold,
        "stability_threshold": threshold,
        "sharpness": measured,
        "eigen_products": np.where(t % every == 0, 9.0, np.nan),
        "seconds_step": 1e-3 + 1e-4 * rng.random(steps + 1),
        "seconds_measure": np.full(steps + 1, 2e-3),
    }
    data = {name: ("step", column) for name, column in (variables | replaced).items()}
    data["eigenvalues"] = (("step", "eigenvalue"), values)
    data["eigen_residuals"] = (("step", "eigenvalue"), 1e-4 * values)
    data["update_projection"] = (("step", "eigenvalue"), np.cos(np.pi * t)[:, None] * values * 0.01)
    attrs = {
        "name": "made up",
        "optimizer": "gradient descent, learning rate 0.1",
        "state": state,
        "steps": planned or steps,
    }
    return xr.Dataset(data, coords={"step": t}, attrs=attrs)


def edge_run(steps=600):
    """Rises from a quarter of the threshold, crosses it at step 300, stays within a few per cent."""
    t = np.arange(steps + 1)
    sharpness = np.where(t < 300, 5 + 15 * t / 300, 20 * (1 + 0.03 * np.sin(t)))
    sharpness[300] = 20.2
    loss = np.exp(-t / 300) * np.where(t < 300, 1.0, 1 + 0.2 * (-1.0) ** t)
    return dataset(steps, sharpness, loss=loss)


def cubic_run(steps=1500, threshold=40.0):
    """The two-variable model of an unstable direction ``x`` that lowers its own sharpness once it is large.

    ``x' = -(1 + 2 y) x`` and ``y' = y + a - b x^2`` with ``y`` the sharpness over the threshold less one: it rises
    steadily, overshoots, is thrown back by the oscillation, and hovers.
    """
    x, y = np.zeros(steps + 1), np.zeros(steps + 1)
    x[0], y[0] = 1e-3, -0.7
    for t in range(steps):
        shrink = max(1 + 2 * y[t], -0.99)
        x[t + 1] = -shrink * x[t] - 1e-3 * np.sign(x[t])
        y[t + 1] = y[t] + 0.002 - 0.02 * min(x[t] ** 2, 20) - 0.05 * max(y[t], 0) * abs(x[t])
    sharpness = threshold * (1 + y)
    update = np.append(np.diff(x), np.nan)
    drift = 0.02
    cosine = np.full(steps + 1, np.nan)
    cosine[1:-1] = (update[1:-1] * update[:-2] + drift**2) / np.sqrt(
        (update[1:-1] ** 2 + drift**2) * (update[:-2] ** 2 + drift**2)
    )
    t = np.arange(steps + 1)
    data = dataset(
        steps,
        sharpness,
        threshold=threshold,
        loss=2 * np.exp(-t / 500) + 0.02 * x**2 + 0.05 * x,
        update_cosine=cosine,
        path_length=np.append(0, np.cumsum(np.hypot(update[:-1], drift))),
        distance=np.hypot(x - x[0], drift * t),
    )
    data["update_projection"][:, 0] = update
    data["update_projection"][:, 1] = 0.3 * update
    data.attrs["rule"] = "GradientDescent"
    return data


def manifest(**changes):
    base = {
        "name": "made up",
        "rule": "gradient descent, learning rate 0.1",
        "steps": 600,
        "state": "finished",
        "config": {"data": {"name": "digits"}, "model": {"name": "mlp"}},
        "loop": loop(),
        "problem": {"parameters": 1234, "samples": 99},
        "seeds": {"run": 0},
        "fingerprints": {"model": "ab" * 16},
        "packages": {"thalweg": "0.1.0", "torch": "2.13.0"},
        "machine": {"cores": 2},
        "created": "2026-01-01T00:00:00+00:00",
        "error": "",
    }
    return base | changes


def loop(rule="GradientDescent", batch_size=None, **spectrum):
    """What the training loop was told."""
    measure = {"type": "Spectrum", "k": 2, "tol": 1e-3, "every": 1, "preconditioned": True, "samples": None}
    return {"rule": {"type": rule, "lr": 0.1}, "batch_size": batch_size, "measures": [measure | spectrum]}


def kinds():
    """One run of every kind, by name."""
    t = np.arange(401)
    warm = 2 / np.clip(0.1 * t / 100, 1e-12, 0.1)
    warm[0] = np.inf
    gap = np.linspace(3, 12, 401)
    gap[100:180] = np.nan
    gap[300] = np.nan
    broken = np.exp(-t / 200)
    broken[250:260] = np.nan
    lost = np.geomspace(1, 1e30, 41)
    lost[-1] = np.nan
    return {
        "edge": edge_run(),
        "model of the edge": cubic_run(),
        "stable": dataset(100, np.linspace(2, 8, 101)),
        "empty start": dataset(0, [3.0]),
        "one step": dataset(1, [3.0, 3.1]),
        "sparse": dataset(50, np.linspace(1, 5, 51), every=7),
        "diverged": dataset(40, np.geomspace(1, 1e9, 41), loss=lost, state="failed", planned=100),
        "bare": edge_run()[["loss", "weight_norm", "distance", "path_length"]],
        "gaps": dataset(400, gap, loss=broken),
        "warm-up": dataset(400, np.full(401, 15.0), threshold=warm),
        "long": dataset(20_000, np.full(20_001, 5.0)),
        "all missing": dataset(30, np.full(31, np.nan), loss=np.full(31, np.nan)),
        "negative": dataset(60, np.linspace(-3, -1, 61), loss=np.linspace(1, -1, 61)),
    }
