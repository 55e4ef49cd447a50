"""What is differentiated: model, loss and data as a function of one flat vector."""

from thalweg.problem.losses import batch_loss as batch_loss
from thalweg.problem.problem import Problem as Problem

__all__ = ["Problem", "batch_loss"]
