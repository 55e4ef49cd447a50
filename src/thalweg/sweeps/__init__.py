"""Many runs: a plan of cells, a ledger that survives, and many runs as one program."""

from thalweg.sweeps.batched import Curves as Curves
from thalweg.sweeps.batched import train_stack as train_stack
from thalweg.sweeps.batched_lanczos import RowEigenvalues as RowEigenvalues
from thalweg.sweeps.batched_lanczos import top_eigenvalues as top_eigenvalues
from thalweg.sweeps.cells import Cell as Cell
from thalweg.sweeps.ledger import Record as Record
from thalweg.sweeps.merge import merge as merge
from thalweg.sweeps.plan import Plan as Plan
from thalweg.sweeps.plan import plan as plan
from thalweg.sweeps.run_polled import Polled as Polled
from thalweg.sweeps.run_result import Sweep as Sweep
from thalweg.sweeps.run_result import open_sweep as open_sweep
from thalweg.sweeps.stack import Stack as Stack
from thalweg.sweeps.sweep import sweep as sweep

__all__ = [
    "Cell",
    "Curves",
    "Plan",
    "Polled",
    "Record",
    "RowEigenvalues",
    "Stack",
    "Sweep",
    "merge",
    "open_sweep",
    "plan",
    "sweep",
    "top_eigenvalues",
    "train_stack",
]
