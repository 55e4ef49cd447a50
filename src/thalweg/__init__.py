"""thalweg: record, measure, predict and steer the optimization dynamics of neural networks.

Public names are resolved on first use, so that ``import thalweg`` costs nothing and the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thalweg import errors as errors
    from thalweg import glass as glass
    from thalweg import optim as optim
    from thalweg import phases as phases
    from thalweg import rules as rules
    from thalweg import stationarity as stationarity
    from thalweg import sweeps as sweeps
    from thalweg.flows.forecast import central_flow as central_flow
    from thalweg.operators.adapters import from_curvlinops as from_curvlinops
    from thalweg.operators.adapters import from_scipy as from_scipy
    from thalweg.operators.adapters import to_curvlinops as to_curvlinops
    from thalweg.operators.base import from_dense as from_dense
    from thalweg.operators.base import from_function as from_function
    from thalweg.operators.data_parallel import data_parallel as data_parallel
    from thalweg.operators.fisher import empirical_fisher as empirical_fisher
    from thalweg.operators.gauss_newton import gauss_newton as gauss_newton
    from thalweg.operators.hessian import hessian as hessian
    from thalweg.operators.preconditioned import preconditioned as preconditioned
    from thalweg.operators.sharded import ShardedProblem as ShardedProblem
    from thalweg.operators.third import third_derivative as third_derivative
    from thalweg.operators.verify import doctor as doctor
    from thalweg.problem.heads import language_model_loss as language_model_loss
    from thalweg.problem.linear_cross_entropy import linear_cross_entropy as linear_cross_entropy
    from thalweg.problem.losses import batch_loss as batch_loss
    from thalweg.problem.problem import Problem as Problem
    from thalweg.report.page import write_report as write_report
    from thalweg.rules.edge import edge as edge
    from thalweg.runs.loop import train as train
    from thalweg.runs.recorder import Recorder as Recorder
    from thalweg.runs.run import open_run as open_run
    from thalweg.runs.sources import trajectory as trajectory
    from thalweg.spectra.critical import critical_sharpness as critical_sharpness
    from thalweg.spectra.critical import relative_critical_sharpness as relative_critical_sharpness
    from thalweg.spectra.density import spectral_density as spectral_density
    from thalweg.spectra.diagonal import diagonal as diagonal
    from thalweg.spectra.directional import batch_sharpness as batch_sharpness
    from thalweg.spectra.directional import directional_sharpness as directional_sharpness
    from thalweg.spectra.directional import sharpness_from_cosine as sharpness_from_cosine
    from thalweg.spectra.directional import sharpness_from_updates as sharpness_from_updates
    from thalweg.spectra.frobenius import frobenius_norm as frobenius_norm
    from thalweg.spectra.lanczos import Lanczos as Lanczos
    from thalweg.spectra.lanczos import top_eigenpairs as top_eigenpairs
    from thalweg.spectra.layers import layerwise as layerwise
    from thalweg.spectra.lobpcg import LOBPCG as LOBPCG
    from thalweg.spectra.trace import trace as trace
    from thalweg.spectra.tracker import EigenTracker as EigenTracker
    from thalweg.trajectories.gram import grams as grams
    from thalweg.trajectories.map import trajectory_map as trajectory_map

__version__ = "0.1.0"

_HOME = {
    "EigenTracker": "spectra",
    "LOBPCG": "spectra",
    "Lanczos": "spectra",
    "Problem": "problem",
    "Recorder": "runs.recorder",
    "ShardedProblem": "operators.sharded",
    "batch_loss": "problem",
    "batch_sharpness": "spectra",
    "central_flow": "flows",
    "critical_sharpness": "spectra",
    "data_parallel": "operators.data_parallel",
    "diagonal": "spectra",
    "directional_sharpness": "spectra",
    "doctor": "operators",
    "edge": "rules",
    "empirical_fisher": "operators",
    "frobenius_norm": "spectra",
    "from_curvlinops": "operators",
    "from_dense": "operators",
    "from_function": "operators",
    "from_scipy": "operators",
    "gauss_newton": "operators",
    "grams": "trajectories",
    "hessian": "operators",
    "language_model_loss": "problem",
    "layerwise": "spectra",
    "linear_cross_entropy": "problem",
    "open_run": "runs",
    "preconditioned": "operators",
    "relative_critical_sharpness": "spectra",
    "sharpness_from_cosine": "spectra",
    "sharpness_from_updates": "spectra",
    "spectral_density": "spectra",
    "third_derivative": "operators",
    "to_curvlinops": "operators",
    "top_eigenpairs": "spectra",
    "trace": "spectra",
    "train": "runs",
    "trajectory": "runs.sources",
    "trajectory_map": "trajectories",
    "write_report": "report",
}
_MODULES = ("errors", "glass", "optim", "phases", "rules", "stationarity", "sweeps")

__all__ = ["__version__", *sorted([*_HOME, *_MODULES])]  # pyright: ignore


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"thalweg.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(f"thalweg.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"thalweg has no public name {name!r}; it has {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
