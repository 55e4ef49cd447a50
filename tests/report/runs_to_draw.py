"""Made-up runs with known shapes, to hold words and figures against."""

import numpy as np
import xarray as xr


def dataset(steps, sharpness, *, threshold=20.0, loss=None, every=1, state="finished", k=2, planned=None):
    """A run's data with a given sharpness per step."""
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
    data = {name: ("step", column) for name, column in variables.items()}
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


def manifest(**changes):
    base = {
        "name": "made up",
        "rule": "gradient descent, learning rate 0.1",
        "steps": 600,
        "state": "finished",
        "config": {"data": {"name": "digits"}, "model": {"name": "mlp"}},
        "problem": {"parameters": 1234, "samples": 99},
        "seeds": {"run": 0},
        "fingerprints": {"model": "ab" * 16},
        "packages": {"thalweg": "0.1.0", "torch": "2.13.0"},
        "machine": {"cores": 2},
        "created": "2026-01-01T00:00:00+00:00",
        "error": "",
    }
    return base | changes
