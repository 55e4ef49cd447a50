"""The direction in which an optimizer moves next."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from thalweg.problem.problem import Problem
from thalweg.rules.base import State
from thalweg.rules.live import Source, main_part, parts


def update_direction(
    problem: Problem,
    source: Source,
    w: Tensor | None = None,
    state: State | None = None,
    *,
    gradient: Tensor | None = None,
) -> Tensor:
    r"""Return ``d`` with ``w' = w - \eta d``: momentum, preconditioner and weight decay included.

    With parameter groups of different rates ``\eta`` is that of the group with most parameters, as in
    `thalweg.rules.edge.edge`, and ``d`` holds the others' ratio to it. Nothing is changed; the optimizer does not step.

    Args:
        problem: Model, loss and data.
        source: A rule, or a live torch optimizer on ``problem.model``.
        w: The point, shape ``(P,)``; default ``problem.initial``.
        state: The rule's state before the update; default its initial one.
        gradient: What the update takes in, shape ``(P,)``; default the gradient over all data at ``w``.

    Returns:
        A vector of shape ``(P,)``, in units of weight / learning rate.

    Raises:
        InvalidInput: As `thalweg.rules.live.parts`.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> problem = Problem(model, torch.nn.MSELoss(), (x, 0 * x))
        >>> adam = torch.optim.Adam(model.parameters(), lr=0.1)
        >>> round(abs(update_direction(problem, adam).item()), 6)  # the first step of Adam has size lr
        1.0
    """
    point = problem.initial if w is None else w.detach().to(problem.device, problem.dtype)
    slope = problem.gradient(point) if gradient is None else gradient.detach().to(problem.device, problem.dtype)
    problem.layout.split(slope)  # checks the shape
    everything = parts(problem, source, point, state)
    reference = main_part(everything).rate
    direction = torch.empty_like(point)
    for part in everything:
        here, force = point[part.place], slope[part.place]
        after = part.rule.update(part.state, force, here)
        # A step of unit rate from zero is the move itself: nothing is lost by subtracting weights.
        unit = replace(part.rule, lr=1.0)
        coupled = 0.0 if unit.decoupled else unit.decay
        move = -unit.step(torch.zeros_like(here), after, force.add(here, alpha=coupled))
        if unit.decoupled:
            move = move.add(here, alpha=unit.decay)
        ratio = part.rate / reference if reference else 1.0
        direction[part.place] = move * ratio
    return direction
