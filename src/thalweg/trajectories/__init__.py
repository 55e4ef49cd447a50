"""The geometry of the whole path of the weights: inner products of its increments, and everything that follows."""

from thalweg.trajectories.freezing import freezing_test as freezing_test
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
from thalweg.trajectories.grid import map_grid as map_grid
from thalweg.trajectories.hallmarks import Thresholds as Thresholds
from thalweg.trajectories.hallmarks import hallmarks as hallmarks
from thalweg.trajectories.interpolation import barrier as barrier
from thalweg.trajectories.interpolation import path_loss as path_loss
from thalweg.trajectories.map import TrajectoryMap as TrajectoryMap
from thalweg.trajectories.map import trajectory_map as trajectory_map
from thalweg.trajectories.nulls import Decay as Decay
from thalweg.trajectories.oscillation import oscillation as oscillation
from thalweg.trajectories.products import NonFiniteWeights as NonFiniteWeights
from thalweg.trajectories.recorded_sketches import recorded_bursts as recorded_bursts
from thalweg.trajectories.recorded_sketches import recorded_sketches as recorded_sketches
from thalweg.trajectories.resident import checkpoint_reads as checkpoint_reads
from thalweg.trajectories.sketch import Sketcher as Sketcher
from thalweg.trajectories.stored import open_map as open_map
from thalweg.trajectories.stored import save_map as save_map

__all__ = [
    "Decay",
    "GramPlan",
    "GramTask",
    "Grams",
    "NonFiniteWeights",
    "Sketcher",
    "Thresholds",
    "TrajectoryMap",
    "barrier",
    "checkpoint_reads",
    "combine",
    "extend",
    "freezing_test",
    "gram_plan",
    "grams",
    "hallmarks",
    "map_grid",
    "open_grams",
    "open_map",
    "oscillation",
    "path_loss",
    "recorded_bursts",
    "recorded_sketches",
    "run_task",
    "save_map",
    "tasks",
    "trajectory_map",
]
