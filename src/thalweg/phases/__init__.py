"""In which regime a learning rate is: critical constants, phase diagrams, segments of a run (arXiv 2302.12250)."""

from thalweg.phases.catapults import Catapult as Catapult
from thalweg.phases.catapults import find_catapults as find_catapults
from thalweg.phases.critical import critical_constants as critical_constants
from thalweg.phases.critical_result import CriticalConstants as CriticalConstants
from thalweg.phases.diagram import PhaseDiagram as PhaseDiagram
from thalweg.phases.diagram import phase_diagram as phase_diagram
from thalweg.phases.diagram_cells import MeasureCell as MeasureCell
from thalweg.phases.diagram_cells import diagram_of as diagram_of
from thalweg.phases.diagram_cells import phase_plan as phase_plan
from thalweg.phases.diagram_stored import open_diagram as open_diagram
from thalweg.phases.early import EarlyCurves as EarlyCurves
from thalweg.phases.early import EarlyRuns as EarlyRuns
from thalweg.phases.early_network import EarlySpec as EarlySpec
from thalweg.phases.early_network import network_runs as network_runs
from thalweg.phases.fits import isotonic_fit as isotonic_fit
from thalweg.phases.fits import polynomial_fit as polynomial_fit
from thalweg.phases.labels import Phase as Phase
from thalweg.phases.labels import phase_of as phase_of
from thalweg.phases.partition import partition as partition
from thalweg.phases.rates import LearningRateReport as LearningRateReport
from thalweg.phases.rates import first_step as first_step
from thalweg.phases.regimes import segment as segment
from thalweg.phases.regimes_loss import loss_signs as loss_signs
from thalweg.phases.regimes_result import Regimes as Regimes
from thalweg.phases.regimes_result import Segment as Segment
from thalweg.phases.regimes_run import regimes_of as regimes_of
from thalweg.phases.saturation import Saturation as Saturation
from thalweg.phases.saturation import saturation as saturation
from thalweg.phases.thresholds import limit as limit
from thalweg.phases.uv import UVModel as UVModel
from thalweg.phases.uv import uv_path as uv_path
from thalweg.phases.uv_chaos import uv_orbits as uv_orbits
from thalweg.phases.uv_critical import uv_constants as uv_constants
from thalweg.phases.uv_runs import UVRuns as UVRuns

__all__ = [
    "Catapult",
    "CriticalConstants",
    "EarlyCurves",
    "EarlyRuns",
    "EarlySpec",
    "LearningRateReport",
    "MeasureCell",
    "Phase",
    "PhaseDiagram",
    "Regimes",
    "Saturation",
    "Segment",
    "UVModel",
    "UVRuns",
    "critical_constants",
    "diagram_of",
    "find_catapults",
    "first_step",
    "isotonic_fit",
    "limit",
    "loss_signs",
    "network_runs",
    "open_diagram",
    "partition",
    "phase_diagram",
    "phase_of",
    "phase_plan",
    "polynomial_fit",
    "regimes_of",
    "saturation",
    "segment",
    "uv_constants",
    "uv_orbits",
    "uv_path",
]
