"""Forecasts with known contents, made of formulas: no network is trained."""

import numpy as np
import torch
import xarray as xr

from thalweg.flows.result import FlowResult

WORDS = {"units": "1", "long_name": "a number"}


def forecast(
    times=400,
    *,
    onset=100,
    rule="GradientDescent",
    lr=0.2,
    lost=0.3,
    bounce=0.0,
    measured=1.1,
    off=0.0,
    without=(),
    mode="map",
    notes=(),
    **attrs,
):
    """A flow that becomes critical at ``onset`` (None: never), whose penalty then takes the part ``lost`` of the slope.

    The loss at the flow is ``exp(-t / 300)`` up to constants; the run oscillates about it with a period of two, with
    the variance that the flow predicts times ``measured``; its smoothed loss is ``1 + off`` times the predicted one.
    """
    t = np.arange(times, dtype=np.float64)
    active = t >= (np.inf if onset is None else onset)
    flow = np.exp(-t / 300)
    fall = flow / 300
    squared = fall / lr / np.where(active, 1 - lost, 1)
    sign = np.where(t % 2 == 0, 1.0, -1.0)
    variance = np.where(active, 0.02 * flow * (1 + bounce * sign), np.nan)
    second = np.where(active, 0.25 * variance, np.nan)
    added = np.nan_to_num(variance + second)
    top = np.where(active, 2.0, 2.0 * np.minimum(1, 0.25 + 0.75 * t / (onset or 2 * times)))
    first = np.where(active, np.sqrt(measured * np.nan_to_num(variance)), 0.0)
    run = (flow + added) * (1 + off) + np.where(active, 0.6 * added * sign, 0.0)
    travelled = 3 * (1 - flow)
    columns = {
        "loss_discrete": run,
        "squared_gradient_discrete": 2 * squared,
        "loss_midpoint": flow * 1.001,
        "loss_central": flow,
        "squared_gradient_central": squared,
        "loss_stable": 0.9 * flow,
        "predicted_loss": flow + added,
        "predicted_squared_gradient": 2 * squared,
        "critical": 2.0 * active,
        "total_variance": added,
        "residual": 0 * t,
        "effective_step": lr + 0 * t,
        "travelled": travelled,
        "distance_central": 0.02 * travelled,
        "distance_stable": 0.3 * travelled,
        "distance_midpoint": 0.01 * travelled,
        "distance_central_midpoint": 0.02 * travelled,
    }
    pairs = {
        "effective_eigenvalues": np.stack([top, np.where(active, 2.0, 0.5 * top)], 1),
        "predicted_variance": np.stack([variance, second], 1),
        "measured_variance": np.stack([np.where(active, first**2, np.nan), measured * second], 1),
    }
    data = xr.Dataset(
        {name: ("time", values, WORDS) for name, values in columns.items() if name not in without}
        | {name: (("time", "eigenvalue"), values, WORDS) for name, values in pairs.items() if name not in without},
        coords={
            "time": ("time", t, {"units": "steps", "long_name": "time"}),
            "eigenvalue": ("eigenvalue", [1, 2], WORDS),
        },
        attrs={"rule": rule, "learning_rate": lr, "weight_decay": 0.0, "smoothing": 20.0} | attrs,
    )
    names = ["discrete", "midpoint", "central", "stable"]
    points = {name: torch.full((5,), float(i)) for i, name in enumerate(names)}
    cost = {name: float(i + 1) for i, name in enumerate(names)}
    return FlowResult(data, mode, points, cost, "All units of time were computed.", tuple(notes))
