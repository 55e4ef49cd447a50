"""Where work runs: processes of this machine, a Ray cluster, or any other `concurrent.futures.Executor`."""

from thalweg.engines.local import LocalEngine as LocalEngine
from thalweg.engines.outcome import WorkerLost as WorkerLost

__all__ = ["LocalEngine", "WorkerLost"]
