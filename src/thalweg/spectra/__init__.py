"""From operators to numbers: eigenvalues with residuals."""

from thalweg.spectra.critical import CriticalSharpness as CriticalSharpness
from thalweg.spectra.critical import critical_sharpness as critical_sharpness
from thalweg.spectra.critical import relative_critical_sharpness as relative_critical_sharpness
from thalweg.spectra.crossing import CrossingStop as CrossingStop
from thalweg.spectra.density import Density as Density
from thalweg.spectra.density import spectral_density as spectral_density
from thalweg.spectra.diagonal import diagonal as diagonal
from thalweg.spectra.directional import DirectionalSharpness as DirectionalSharpness
from thalweg.spectra.directional import batch_sharpness as batch_sharpness
from thalweg.spectra.directional import directional_sharpness as directional_sharpness
from thalweg.spectra.directional import sharpness_from_cosine as sharpness_from_cosine
from thalweg.spectra.directional import sharpness_from_updates as sharpness_from_updates
from thalweg.spectra.estimate import Estimate as Estimate
from thalweg.spectra.estimate import EstimateStop as EstimateStop
from thalweg.spectra.frobenius import frobenius_norm as frobenius_norm
from thalweg.spectra.lanczos import Lanczos as Lanczos
from thalweg.spectra.lanczos import top_eigenpairs as top_eigenpairs
from thalweg.spectra.layer_table import LayerTable as LayerTable
from thalweg.spectra.layers import layerwise as layerwise
from thalweg.spectra.lobpcg import LOBPCG as LOBPCG
from thalweg.spectra.results import Eigenpairs as Eigenpairs
from thalweg.spectra.results import Stop as Stop
from thalweg.spectra.trace import trace as trace
from thalweg.spectra.tracker import EigenTracker as EigenTracker
from thalweg.spectra.tracker import TrackEvent as TrackEvent

__all__ = [
    "LOBPCG",
    "CriticalSharpness",
    "CrossingStop",
    "Density",
    "DirectionalSharpness",
    "EigenTracker",
    "Eigenpairs",
    "Estimate",
    "EstimateStop",
    "Lanczos",
    "LayerTable",
    "Stop",
    "TrackEvent",
    "batch_sharpness",
    "critical_sharpness",
    "diagonal",
    "directional_sharpness",
    "frobenius_norm",
    "layerwise",
    "relative_critical_sharpness",
    "sharpness_from_cosine",
    "sharpness_from_updates",
    "spectral_density",
    "top_eigenpairs",
    "trace",
]
