"""The page and the figures of a run."""

from thalweg.report.figures import accuracy_figure as accuracy_figure
from thalweg.report.figures import cost_figure as cost_figure
from thalweg.report.figures import gradient_figure as gradient_figure
from thalweg.report.figures import loss_figure as loss_figure
from thalweg.report.figures import oscillation_figure as oscillation_figure
from thalweg.report.figures import spectrum_figure as spectrum_figure
from thalweg.report.figures import travel_figure as travel_figure
from thalweg.report.page import render as render
from thalweg.report.page import write_report as write_report

__all__ = [
    "accuracy_figure",
    "cost_figure",
    "gradient_figure",
    "loss_figure",
    "oscillation_figure",
    "render",
    "spectrum_figure",
    "travel_figure",
    "write_report",
]
