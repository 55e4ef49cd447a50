"""A rule or a live torch optimizer as parts: slices of the flat vector that follow one rule with one state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.problem.problem import Problem
from thalweg.rules.base import Rule, State
from thalweg.rules.torch_bridge import rule_of_group, state_under

Source: TypeAlias = "Rule | torch.optim.Optimizer"
"""What says how weights are updated."""


@dataclass(frozen=True)
class Part:
    """Coordinates ``place`` of the flat vector, the rule that they follow, and its state for them.

    Attributes:
        place: Slice of the flat vector.
        names: Parameters in it, for messages.
        rule: With the learning rate as it is now.
        state: After the last update that was taken.
    """

    place: slice
    names: str
    rule: Rule
    state: State

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return int(self.place.stop - self.place.start)

    @property
    def rate(self) -> float:
        """Learning rate of the next update."""
        return self.rule.learning_rate_at(int(self.state["step"]))


def check_live(source: object) -> None:
    """Refuse what is no live torch optimizer, where a rule would have done as well.

    Raises:
        InvalidInput: It is neither.
    """
    if not isinstance(source, torch.optim.Optimizer):
        raise InvalidInput(
            explain(
                f"Got a {type(source).__name__}",
                "it must say how weights are updated",
                "Pass a rule of thalweg.rules or a torch.optim optimizer",
            )
        )


def parts(problem: Problem, source: Source, w: Tensor, state: State | None = None) -> list[Part]:
    """Return how every coordinate of the problem's flat vector is updated.

    Args:
        problem: Says which parameters the flat vector holds.
        source: A rule, or a live optimizer over (at least) those parameters of ``problem.model``.
        w: The point, shape ``(P,)``.
        state: The rule's state; default its initial one. A live optimizer has its own.

    Returns:
        One part for a rule, one part per parameter for a torch optimizer.

    Raises:
        InvalidInput: A state beside a live optimizer, parameters that it does not hold, or one that has no rule here.
    """
    if isinstance(source, Rule):
        held = source.init(w) if state is None else state
        for key, entry in held.items():
            if entry.ndim > 1 or entry.numel() not in (1, problem.dimension):
                raise InvalidInput(
                    explain(
                        f"The state's {key!r} has shape {tuple(entry.shape)}",
                        f"the problem has {problem.dimension} parameters",
                        "Pass the state of a run of this problem",
                    )
                )
        return [Part(slice(0, problem.dimension), "the weights", source, _like(held, w))]
    check_live(source)
    if state is not None:
        raise InvalidInput(
            explain(
                "A state was given beside a live optimizer",
                "the optimizer holds its own",
                "Leave state out, or pass rules.from_torch(optimizer) with that state",
            )
        )
    groups = {id(p): group for group in source.param_groups for p in group["params"]}
    rules = {id(group): rule_of_group(source, group) for group in source.param_groups}
    found = []
    for name, place in problem.layout.slices():
        parameter = problem.model.get_parameter(name)
        if id(parameter) not in groups:
            raise InvalidInput(
                explain(
                    f"The optimizer does not hold the parameter {name!r}",
                    "there is no learning rate for it",
                    "Build both on the same model, and restrict the problem with parameters= to what is trained",
                )
            )
        rule = rules[id(groups[id(parameter)])]
        found.append(Part(place, name, rule, _like(state_under(rule, source, [parameter]), w)))
    return found


def main_part(everything: list[Part]) -> Part:
    """Return a part of the group with most coordinates; its rate and decay are the ones that are quoted."""
    sizes: dict[tuple[float, float], int] = {}
    for part in everything:
        key = (part.rate, part.rule.decay)
        sizes[key] = sizes.get(key, 0) + part.size
    largest = max(sizes, key=lambda key: sizes[key])
    return next(part for part in everything if (part.rate, part.rule.decay) == largest)


def _like(state: State, w: Tensor) -> State:
    """The state in the dtype and on the device of ``w``; counters stay integers."""
    return {k: v.to(w.device, w.dtype) if v.is_floating_point() else v for k, v in state.items()}
