"""The stored runs, ready for `segment`."""

import functools
import importlib.util
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def maker():
    """Return the script that made them, as a module."""
    name = "make_regime_runs"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@functools.cache
def stored(path=HERE / "regime_runs.npz"):
    with np.load(path, allow_pickle=False) as file:
        whole = {key: file[key] for key in file.files}
    names = {key.split("/")[0] for key in whole}
    return {n: maker().unpack({k.split("/")[1]: v for k, v in whole.items() if k.split("/")[0] == n}) for n in names}


RULES = {"heavy": "heavy_ball", "nesterov": "nesterov", "ema": "ema", "adam": "adam"}


def case(name, seed, runs=None):
    """Return the arguments of `segment` for one stored run, or for one row of other ``runs``."""
    curves, kind = (runs or stored())[name], maker().KINDS[name]
    loss, lr = curves["loss"][seed], curves["lr"][seed]
    rates = np.full(len(loss), lr)
    if kind.drop is not None:
        rates[kind.drop[0] :] *= kind.drop[1]
    given = {
        "loss": loss,
        "sharpness": curves["sharpness"][seed],
        "sharpness_steps": curves["steps"],
        "learning_rate": rates,
        "rule": RULES.get(kind.rule, "gd"),
        "samples": 300,
        "batch_size": kind.batch,
    }
    if "batch_sharpness" in curves:
        given["batch_sharpness"] = curves["batch_sharpness"][seed]
    return given
