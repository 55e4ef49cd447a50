"""The geometry of the whole path of the weights: inner products of its increments, and everything that follows."""

from thalweg.trajectories.gram import Grams as Grams
from thalweg.trajectories.gram import extend as extend
from thalweg.trajectories.gram import grams as grams
from thalweg.trajectories.gram_plan import GramPlan as GramPlan
from thalweg.trajectories.gram_plan import gram_plan as gram_plan
from thalweg.trajectories.gram_result import open_grams as open_grams
from thalweg.trajectories.gram_sums import combine as combine
from thalweg.trajectories.gram_tasks import GramTask as GramTask
from thalweg.trajectories.gram_tasks import run_task as run_task
from thalweg.trajectories.gram_tasks import tasks as tasks
from thalweg.trajectories.hallmarks import Thresholds as Thresholds
from thalweg.trajectories.hallmarks import hallmarks as hallmarks
from thalweg.trajectories.map import TrajectoryMap as TrajectoryMap
from thalweg.trajectories.map import trajectory_map as trajectory_map
from thalweg.trajectories.nulls import Decay as Decay
from thalweg.trajectories.oscillation import oscillation as oscillation
from thalweg.trajectories.products import NonFiniteWeights as NonFiniteWeights
from thalweg.trajectories.resident import checkpoint_reads as checkpoint_reads
from thalweg.trajectories.sketch import Sketcher as Sketcher

__all__ = [
    "Decay",
    "GramPlan",
    "GramTask",
    "Grams",
    "NonFiniteWeights",
    "Sketcher",
    "Thresholds",
    "TrajectoryMap",
    "checkpoint_reads",
    "combine",
    "extend",
    "gram_plan",
    "grams",
    "hallmarks",
    "open_grams",
    "oscillation",
    "run_task",
    "tasks",
    "trajectory_map",
]
