"""thalweg: record, measure, predict and steer the optimization dynamics of neural networks."""

from thalweg.problem import Problem as Problem

__version__ = "0.1.0"
