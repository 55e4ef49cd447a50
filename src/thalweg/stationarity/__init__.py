"""Whether training has settled, and on what: gradient levels, windows, invariant measures (arXiv 2110.06256)."""

from thalweg.stationarity.assess import assess as assess
from thalweg.stationarity.autocorrelation import autocorrelation as autocorrelation
from thalweg.stationarity.autocorrelation import integrated_time as integrated_time
from thalweg.stationarity.descent import descent_ratio as descent_ratio
from thalweg.stationarity.doubling import Doubling as Doubling
from thalweg.stationarity.doubling import doubling as doubling
from thalweg.stationarity.forks import forks as forks
from thalweg.stationarity.fresh_step import FreshStep as FreshStep
from thalweg.stationarity.fresh_step import fresh_change as fresh_change
from thalweg.stationarity.fresh_step import restored as restored
from thalweg.stationarity.gradient import gradient_level as gradient_level
from thalweg.stationarity.gradient_fit import NoiseFit as NoiseFit
from thalweg.stationarity.gradient_fit import fit_noise as fit_noise
from thalweg.stationarity.gradient_result import GradientLevel as GradientLevel
from thalweg.stationarity.holm import holm as holm
from thalweg.stationarity.measures import EmpiricalMeasure as EmpiricalMeasure
from thalweg.stationarity.measures import empirical_measure as empirical_measure
from thalweg.stationarity.measures import invariance_bound as invariance_bound
from thalweg.stationarity.measures import invariance_residual as invariance_residual
from thalweg.stationarity.observables import Observables as Observables
from thalweg.stationarity.observables import Promise as Promise
from thalweg.stationarity.scale_free import ScaleFree as ScaleFree
from thalweg.stationarity.series import Mean as Mean
from thalweg.stationarity.series import RHat as RHat
from thalweg.stationarity.series import effective_size as effective_size
from thalweg.stationarity.series import geweke as geweke
from thalweg.stationarity.series import split_rhat as split_rhat
from thalweg.stationarity.series import time_average as time_average
from thalweg.stationarity.trend import trend as trend
from thalweg.stationarity.two_sample import BlockTest as BlockTest
from thalweg.stationarity.two_sample import block_test as block_test
from thalweg.stationarity.verdict import Verdict as Verdict
from thalweg.stationarity.windows import segments as segments

__all__ = [
    "BlockTest",
    "Doubling",
    "EmpiricalMeasure",
    "FreshStep",
    "GradientLevel",
    "Mean",
    "NoiseFit",
    "Observables",
    "Promise",
    "RHat",
    "ScaleFree",
    "Verdict",
    "assess",
    "autocorrelation",
    "block_test",
    "descent_ratio",
    "doubling",
    "effective_size",
    "empirical_measure",
    "fit_noise",
    "forks",
    "fresh_change",
    "geweke",
    "gradient_level",
    "holm",
    "integrated_time",
    "invariance_bound",
    "invariance_residual",
    "restored",
    "segments",
    "split_rhat",
    "time_average",
    "trend",
]
