"""Differential equations for the path that an optimiser takes on average, oscillation included."""

from thalweg.flows.forecast import central_flow as central_flow
from thalweg.flows.reference import Euler as Euler
from thalweg.flows.result import Comparison as Comparison
from thalweg.flows.result import FlowResult as FlowResult
from thalweg.flows.settings import FlowSettings as FlowSettings
from thalweg.flows.settings import Settings as Settings
from thalweg.flows.stationary import Stationary as Stationary
from thalweg.flows.stationary import stationary_preconditioner as stationary_preconditioner

__all__ = [
    "Comparison",
    "Euler",
    "FlowResult",
    "FlowSettings",
    "Settings",
    "Stationary",
    "central_flow",
    "stationary_preconditioner",
]
