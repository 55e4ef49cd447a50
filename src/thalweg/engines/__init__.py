"""Where work runs: processes of this machine, a Ray cluster, or any other `concurrent.futures.Executor`."""

from thalweg.engines.choice import as_engine as as_engine
from thalweg.engines.local import LocalEngine as LocalEngine
from thalweg.engines.outcome import TimedOut as TimedOut
from thalweg.engines.outcome import WorkerLost as WorkerLost
from thalweg.engines.ray import RayEngine as RayEngine

__all__ = ["LocalEngine", "RayEngine", "TimedOut", "WorkerLost", "as_engine"]
