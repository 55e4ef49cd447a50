"""From operators to numbers: eigenvalues with residuals."""

from thalweg.spectra.lanczos import Lanczos as Lanczos
from thalweg.spectra.lanczos import top_eigenpairs as top_eigenpairs
from thalweg.spectra.results import Eigenpairs as Eigenpairs
from thalweg.spectra.results import Stop as Stop

__all__ = ["Eigenpairs", "Lanczos", "Stop", "top_eigenpairs"]
