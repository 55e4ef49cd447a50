"""Trajectories of checkpoints: a run's own, and those that other people saved, in the formats they use."""

from thalweg.runs.sources.opening import trajectory as trajectory
from thalweg.runs.sources.sequence import Trajectory as Trajectory
from thalweg.runs.sources.stored import TensorInfo as TensorInfo

__all__ = ["TensorInfo", "Trajectory", "trajectory"]
