"""What is differentiated: model, loss and data as a function of one flat vector."""

from thalweg.problem.heads import language_model_loss as language_model_loss
from thalweg.problem.linear_cross_entropy import linear_cross_entropy as linear_cross_entropy
from thalweg.problem.losses import batch_loss as batch_loss
from thalweg.problem.plan import Plan as Plan
from thalweg.problem.problem import Problem as Problem

__all__ = [
    "Plan",
    "Problem",
    "batch_loss",
    "language_model_loss",
    "linear_cross_entropy",
]
