"""The curvature that a plan names, as an operator; and whether there is any."""

from __future__ import annotations

import torch
from torch import nn

from thalweg import _rng
from thalweg.cli.plan import Plan
from thalweg.cli.subject import Subject
from thalweg.errors import InvalidInput, NotDifferentiable, explain
from thalweg.operators import Operator, hessian
from thalweg.problem import Problem
from thalweg.rules import effective_hessian

NAMES = {"hessian": "Hessian", "gauss-newton": "Gauss-Newton matrix", "fisher": "empirical Fisher matrix"}
SHOWN = 4
STRAIGHT = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Threshold, nn.Hardtanh, nn.Hardshrink, nn.Softshrink),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
"""Modules that are linear between their kinks: their second derivative is zero, and at the kinks there is none."""
HINGES = (nn.L1Loss, nn.HingeEmbeddingLoss, nn.MarginRankingLoss, nn.MultiMarginLoss, nn.TripletMarginLoss)
"""Losses of the same kind."""


def curvature_of(subject: Subject, plan: Plan) -> Operator:
    """Build the operator on the weights as they are.

    Raises:
        NotDifferentiable: An operation has no second derivative.
    """
    problem, w = subject.problem, subject.w
    if plan.operator == "gauss-newton":
        from thalweg.operators.gauss_newton import gauss_newton

        return gauss_newton(problem, w)
    if plan.operator == "fisher":
        from thalweg.operators.fisher import empirical_fisher

        return empirical_fisher(problem, w)
    return hessian(problem, w, layout=plan.layout)


def as_the_rule_sees(subject: Subject, plan: Plan, curvature: Operator) -> Operator:
    """Return ``curvature`` as it is, or preconditioned if the plan says so.

    Raises:
        InvalidInput: The preconditioner is asked for, and not known.
    """
    if not plan.preconditioned:
        return curvature
    if subject.rule is None or subject.state is None:
        found = "no update rule is known" if subject.rule is None else f"{subject.rule.name}'s state is not on disk"
        raise InvalidInput(
            explain(
                f"--preconditioned was asked for, and {found} here",
                "the preconditioner is part of that state, which a run keeps for its start and its last saved step",
                "Leave --preconditioned out, or take --step 0 or the last step of a run",
            )
        )
    return effective_hessian(subject.rule, subject.state, curvature)


def comparable(subject: Subject, plan: Plan) -> bool:
    """Whether the eigenvalues are those that the threshold of the rule is for."""
    rule, state = subject.rule, subject.state
    if rule is None or state is None or plan.operator != "hessian":
        return False
    plain = rule.preconditioner(state) is None and (rule.decoupled or not rule.decay)
    return plan.preconditioned or plain


def refuse_nothing(operator: Operator, subject: Subject, plan: Plan) -> None:
    """Raise NotDifferentiable where the operator is zero, at the price of one product.

    A random vector lies in the null space of another matrix with probability zero.
    """
    stream = _rng.generator(plan.seed, "is there curvature")
    probe = torch.randn(operator.size, generator=stream).to(operator.device, operator.dtype)
    if bool((operator.matvec(probe) != 0).any()):
        return
    straight = straight_parts(subject.problem) or "a loss such as L1Loss and activations such as ReLU"
    raise NotDifferentiable(
        explain(
            f"The {NAMES[plan.operator]} at {subject.source} is zero: there is no second derivative to measure",
            f"the loss is linear between kinks in every weight, with {straight}",
            "Take a smooth loss (MSELoss, HuberLoss, CrossEntropyLoss) or smooth activations (GELU, Softplus, Tanh)",
        )
    )


def straight_parts(problem: Problem) -> str:
    """Name what in the model and the loss is linear between kinks; empty where nothing is known to be.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
        >>> straight_parts(Problem(model, nn.L1Loss(), (torch.zeros(2, 1), torch.zeros(2, 1))))
        '1 (ReLU) and L1Loss'
    """
    found = [f"{name} ({type(m).__name__})" for name, m in problem.model.named_modules() if isinstance(m, STRAIGHT)]
    if len(found) > SHOWN:
        found = [*found[:SHOWN], f"{len(found) - SHOWN} more modules"]
    loss = problem._function.loss
    found += [type(loss).__name__] if isinstance(loss, HINGES) else []
    return " and ".join(part for part in (", ".join(found[:-1]), *found[-1:]) if part)
