"""A live ``torch.optim`` object as a rule, and its state in the rule's form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.rules.adaptive import Adam, AdamW, RMSProp
from thalweg.rules.base import Rule, State
from thalweg.rules.descent import GradientDescent, HeavyBall, Nesterov


def from_torch(optimizer: torch.optim.Optimizer) -> Rule:
    """Return the rule that ``optimizer`` follows, with its learning rate as it is now.

    Args:
        optimizer: SGD (with momentum, dampening, Nesterov), RMSprop, Adam or AdamW.

    Returns:
        A rule whose steps equal the optimizer's.

    Raises:
        InvalidInput: Another optimizer, an option without counterpart, or groups with different settings.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(2))
        >>> from_torch(torch.optim.SGD([parameter], lr=0.1, momentum=0.9))
        HeavyBall(lr=0.1, momentum=0.9, dampening=0.0, weight_decay=0.0)
    """
    return rule_of_group(optimizer, _common_options(optimizer))


def rule_of_group(optimizer: torch.optim.Optimizer, options: dict[str, Any]) -> Rule:
    """Return the rule that ``optimizer`` follows for the parameters of one group, given as its ``options``.

    Raises:
        InvalidInput: Another optimizer, or an option without counterpart.
    """
    kind = type(optimizer).__name__
    _refuse(kind, options, "maximize", "amsgrad", "centered")
    lr, decay = float(options["lr"]), float(options.get("weight_decay", 0.0))
    if isinstance(optimizer, torch.optim.SGD):
        beta, dampening = float(options["momentum"]), float(options["dampening"])
        if beta == 0:
            return GradientDescent(lr=lr, weight_decay=decay)
        if options["nesterov"]:
            return Nesterov(lr=lr, momentum=beta, weight_decay=decay)
        return HeavyBall(lr=lr, momentum=beta, dampening=dampening, weight_decay=decay)
    if isinstance(optimizer, torch.optim.RMSprop):
        _refuse(kind, options, "momentum")
        return RMSProp(lr=lr, beta2=float(options["alpha"]), eps=float(options["eps"]), weight_decay=decay)
    if isinstance(optimizer, torch.optim.Adam):  # AdamW is a subclass of Adam
        beta1, beta2 = (float(b) for b in options["betas"])
        decoupled = isinstance(optimizer, torch.optim.AdamW) or options.get("decoupled_weight_decay", False)
        rule = AdamW if decoupled else Adam
        return rule(lr=lr, beta1=beta1, beta2=beta2, eps=float(options["eps"]), weight_decay=decay)
    if isinstance(optimizer, torch.optim.AdamW):
        beta1, beta2 = (float(b) for b in options["betas"])
        return AdamW(lr=lr, beta1=beta1, beta2=beta2, eps=float(options["eps"]), weight_decay=decay)
    raise InvalidInput(
        explain(
            f"The optimizer is a {kind}",
            "its stability threshold is not known to thalweg",
            "Use SGD, RMSprop, Adam or AdamW, or write a Rule",
        )
    )


def state_from_torch(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> State:
    """Return the optimizer's state in the form of its rule.

    Args:
        optimizer: As for `from_torch`.
        parameters: The parameters in the order of the flat vector (``Problem.layout``).

    Returns:
        A state for ``from_torch(optimizer)``; the initial one before the first step.

    Raises:
        InvalidInput: Parameters have taken different numbers of steps.
    """
    return state_under(from_torch(optimizer), optimizer, parameters)


def state_under(rule: Rule, optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> State:
    """Return the state of some ``parameters`` of ``optimizer``, which follow ``rule``; see `state_from_torch`."""
    held = list(parameters)
    w = torch.cat([p.detach().reshape(-1) for p in held])
    state = rule.init(w)
    entries = [optimizer.state.get(p, {}) for p in held]
    if not any(entries):
        return state

    def gather(key: str) -> Tensor:
        parts = [torch.zeros_like(p) if entry.get(key) is None else entry[key] for p, entry in zip(held, entries)]
        return torch.cat([part.detach().reshape(-1) for part in parts])

    names = {
        "momentum": "momentum_buffer",
        "mu": "exp_avg",
        "nu": "exp_avg_sq" if isinstance(rule, Adam) else "square_avg",
    }
    for ours, theirs in names.items():
        if ours in state:
            state[ours] = gather(theirs)
    steps = {int(entry["step"]) for entry in entries if "step" in entry}
    if len(steps) > 1:
        raise InvalidInput(
            explain(
                f"Parameters have taken {sorted(steps)} steps",
                "a rule counts one step for all weights",
                "Restrict the problem to parameters that are trained together",
            )
        )
    # SGD keeps no counter; a momentum buffer only says that at least one step was taken.
    state["step"] = torch.tensor(steps.pop() if steps else 1, dtype=torch.int64)
    return state


def _common_options(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    groups = [{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in optimizer.param_groups]
    for group in groups[1:]:
        for key, value in group.items():
            if value != groups[0][key]:
                raise InvalidInput(
                    explain(
                        f"Parameter groups differ in {key}: {groups[0][key]} and {value}",
                        "a rule has one setting for all weights",
                        "Analyse one group at a time with Problem(parameters=...)",
                    )
                )
    return groups[0]


def _refuse(kind: str, options: dict[str, Any], *names: str) -> None:
    for name in names:
        if options.get(name):
            raise InvalidInput(
                explain(
                    f"{kind} has {name}={options[name]}",
                    "this rule has no such option here",
                    f"Switch {name} off",
                )
            )
