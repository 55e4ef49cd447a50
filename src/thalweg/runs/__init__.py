"""Training that is recorded, measured and resumed: the run folder and what writes and reads it."""

from thalweg.runs.folder import RunFolder as RunFolder
from thalweg.runs.gradient_data import SampledProblem as SampledProblem
from thalweg.runs.gradient_probe import GradientProbe as GradientProbe
from thalweg.runs.logs import read_log as read_log
from thalweg.runs.loop import train as train
from thalweg.runs.manifest import Manifest as Manifest
from thalweg.runs.measures import Context as Context
from thalweg.runs.measures import FullLoss as FullLoss
from thalweg.runs.measures import Measure as Measure
from thalweg.runs.meter import Meter as Meter
from thalweg.runs.metrics import Event as Event
from thalweg.runs.metrics import Variable as Variable
from thalweg.runs.run import Run as Run
from thalweg.runs.run import open_run as open_run
from thalweg.runs.spectrum import Spectrum as Spectrum

__all__ = [
    "Context",
    "Event",
    "FullLoss",
    "GradientProbe",
    "Manifest",
    "Measure",
    "Meter",
    "Run",
    "RunFolder",
    "SampledProblem",
    "Spectrum",
    "Variable",
    "open_run",
    "read_log",
    "train",
]
