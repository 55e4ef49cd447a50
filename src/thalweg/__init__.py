"""thalweg: record, measure, predict and steer the optimization dynamics of neural networks.

Public names are resolved on first use, so that ``import thalweg`` costs nothing and the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thalweg import errors as errors
    from thalweg import rules as rules
    from thalweg.operators import doctor as doctor
    from thalweg.operators import from_dense as from_dense
    from thalweg.operators import from_function as from_function
    from thalweg.operators import hessian as hessian
    from thalweg.operators import preconditioned as preconditioned
    from thalweg.problem import Problem as Problem
    from thalweg.problem import batch_loss as batch_loss
    from thalweg.report import write_report as write_report
    from thalweg.runs import open_run as open_run
    from thalweg.runs import train as train
    from thalweg.spectra import EigenTracker as EigenTracker
    from thalweg.spectra import Lanczos as Lanczos
    from thalweg.spectra import top_eigenpairs as top_eigenpairs

__version__ = "0.1.0"

_HOME = {
    "EigenTracker": "spectra",
    "Lanczos": "spectra",
    "Problem": "problem",
    "batch_loss": "problem",
    "doctor": "operators",
    "from_dense": "operators",
    "from_function": "operators",
    "hessian": "operators",
    "open_run": "runs",
    "preconditioned": "operators",
    "top_eigenpairs": "spectra",
    "train": "runs",
    "write_report": "report",
}
_MODULES = ("errors", "rules")

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
