"""Differential equations for the path that an optimiser takes on average, oscillation included."""

from thalweg.flows.central import Settings as Settings
from thalweg.flows.forecast import central_flow as central_flow
from thalweg.flows.reference import Euler as Euler
from thalweg.flows.result import Comparison as Comparison
from thalweg.flows.result import FlowResult as FlowResult

__all__ = ["Comparison", "Euler", "FlowResult", "Settings", "central_flow"]
