"""The page and the figures of a run."""

from thalweg.report.page import render as render
from thalweg.report.page import write_report as write_report

__all__ = ["render", "write_report"]
