"""Which rule has which law."""

from __future__ import annotations

from thalweg.errors import InvalidInput, explain
from thalweg.flows.laws import Law, PlainLaw, SquaresLaw
from thalweg.flows.momentum import AdamLaw, BufferLaw
from thalweg.rules import Adam, GradientDescent, HeavyBall, Nesterov, RMSProp, Rule


def law_of(rule: Rule) -> Law:
    """Return the law of ``rule``.

    Raises:
        InvalidInput: The rule is unknown, or averages squares over no time or for ever.

    Example:
        >>> import torch
        >>> law_of(GradientDescent(lr=0.5)).metric({"step": torch.tensor(1)}).item()
        2.0
    """
    if isinstance(rule, (RMSProp, Adam)) and not 0 < rule.beta2 < 1:
        raise InvalidInput(
            explain(f"beta2 is {rule.beta2}", "the flow of an average needs 0 < beta2 < 1", "Use a value such as 0.9")
        )
    if isinstance(rule, GradientDescent):
        return PlainLaw(rule)
    if isinstance(rule, RMSProp):
        return SquaresLaw(rule)
    if isinstance(rule, (HeavyBall, Nesterov)):
        return BufferLaw(rule)
    if isinstance(rule, Adam):
        return AdamLaw(rule)
    raise InvalidInput(
        explain(
            f"No central flow is known for {rule.name}",
            "its stability and its averages have not been derived",
            "Use gradient descent, heavy ball, Nesterov, RMSProp, scalar RMSProp or Adam",
        )
    )
