"""From operators to numbers: eigenvalues with residuals."""

from thalweg.spectra.lanczos import Lanczos as Lanczos
from thalweg.spectra.lanczos import top_eigenpairs as top_eigenpairs
from thalweg.spectra.results import Eigenpairs as Eigenpairs
from thalweg.spectra.results import Stop as Stop
from thalweg.spectra.tracker import EigenTracker as EigenTracker
from thalweg.spectra.tracker import TrackEvent as TrackEvent

__all__ = ["EigenTracker", "Eigenpairs", "Lanczos", "Stop", "TrackEvent", "top_eigenpairs"]
