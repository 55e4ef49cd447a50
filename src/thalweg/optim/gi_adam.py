"""Adam that knows the first gradient before its first step."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, NonFinite, explain
from thalweg.rules.adaptive import Adam
from thalweg.rules.base import State


def gi_adam_(optimizer: torch.optim.Adam) -> torch.optim.Adam:
    r"""Set Adam's second moment to ``\nu_0 = g_0^2``, in place: a warm-up without a schedule.

    From ``\nu_0 = 0`` the first ``\hat\nu`` is ``g^2``. From ``\nu_0 = g_0^2``, with torch's bias correction as it is,
    the update is that of an Adam *without* correction of ``\nu`` at the rate ``\eta \sqrt{1 - \beta_2^t}`` (and
    ``\epsilon \sqrt{1 - \beta_2^t}``), exactly. While gradients keep their size it is plain Adam's times that factor,
    which rises from ``\sqrt{1 - \beta_2}`` (0.03 at 0.999) to 1 in some ``1 / (1 - \beta_2)`` steps; the preconditioned
    sharpness of the first step is lower by it. Decoupled decay is not slowed down.

    Call it once, between the first ``loss.backward()`` (scaled gradients unscaled, clipped if you clip) and the first
    ``optimizer.step()``. Coupled decay counts as part of ``g_0``. Parameters without a gradient start as usual.
    ``foreach``, ``fused``, ``capturable`` and ``amsgrad`` keep their form of the state.

    Args:
        optimizer: A new ``torch.optim.Adam`` or ``AdamW``.

    Returns:
        The same optimizer.

    Raises:
        InvalidInput: Another optimizer, a differentiable one, or one that has taken a step; no gradient, or complex or
            sparse ones.
        NonFinite: A gradient is not finite.

    Example:
        >>> parameter = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> adam = torch.optim.Adam([parameter], lr=0.1, betas=(0.9, 0.999))
        >>> parameter.grad = torch.tensor([2.0, -3.0])
        >>> gi_adam_(adam).step()
        >>> [round(w, 5) for w in parameter.tolist()]  # 0.1 sqrt(0.001) instead of 0.1
        [0.99684, 1.00316]

    Source: arXiv 2406.09405 (GI-Adam).
    """
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        raise InvalidInput(
            explain(
                f"The optimizer is a {type(optimizer).__name__}",
                "the second moment of Adam is what is set",
                "Use torch.optim.Adam or AdamW",
            )
        )
    if any(group["differentiable"] for group in optimizer.param_groups):
        raise InvalidInput(
            explain(
                "The optimizer is differentiable",
                "the first gradient would enter its state as a constant",
                "Set the state yourself, with the graph that you need",
            )
        )
    made: dict[Tensor, dict[str, Tensor]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if optimizer.state.get(parameter):
                raise InvalidInput(
                    explain(
                        "The optimizer has taken a step already",
                        "its averages would be lost, and the start is over",
                        "Call gi_adam_ before the first step",
                    )
                )
            if parameter.grad is not None:
                made[parameter] = _state(optimizer, group, parameter)
    if not made:
        raise InvalidInput(
            explain(
                "No parameter has a gradient",
                "the first gradient is what the second moment starts from",
                "Call loss.backward() first",
            )
        )
    for parameter, state in made.items():  # nothing is set where one of them is refused
        optimizer.state[parameter] = state
    return optimizer


def gi_adam_state(rule: Adam, w: Tensor, gradient: Tensor) -> State:
    r"""Return the initial state of a rule of `thalweg.rules` with ``\nu_0 = g_0^2``; see `gi_adam_`.

    Args:
        rule: Adam or AdamW.
        w: The point, shape ``(P,)``.
        gradient: ``g_0`` there, shape ``(P,)``, without decay.

    Returns:
        The state before the first update.

    Raises:
        InvalidInput: The rule has no second moment of this kind.
        NonFinite: The gradient is not finite.

    Example:
        >>> rule, w = Adam(lr=0.1), torch.zeros(2)
        >>> gi_adam_state(rule, w, torch.tensor([2.0, -3.0]))["nu"].tolist()
        [4.0, 9.0]
    """
    if not isinstance(rule, Adam):
        raise InvalidInput(explain(f"The rule is {rule.name}", "its second moment is not Adam's", "Use Adam or AdamW"))
    force = gradient if rule.decoupled else gradient.add(w, alpha=rule.decay)
    return rule.init(w) | {"nu": _square(force)}


def _state(optimizer: torch.optim.Adam, group: dict[str, object], parameter: Tensor) -> dict[str, Tensor]:
    gradient = parameter.grad
    assert gradient is not None  # asked before
    if gradient.is_sparse or parameter.is_complex():
        raise InvalidInput(
            explain(
                f"A parameter of shape {tuple(parameter.shape)} is complex, or its gradient sparse",
                "Adam squares real and imaginary parts on their own, and takes no sparse gradients",
                "Leave it to another optimizer",
            )
        )
    with torch.no_grad():
        force = -gradient if group["maximize"] else gradient
        decay = group["weight_decay"]
        coupled = not (isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False))
        if coupled and decay:
            force = force.add(parameter, alpha=decay)  # type: ignore[arg-type]
        onboard = bool(group["capturable"] or group["fused"])  # where torch keeps its counter
        double = torch.get_default_dtype() == torch.float64 and not group["fused"]
        counter = torch.zeros(
            (), dtype=torch.float64 if double else torch.float32, device=parameter.device if onboard else "cpu"
        )
        moments = {
            "step": counter,
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format).copy_(_square(force)),
        }
        if group["amsgrad"]:
            moments["max_exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return {name: moment.detach() for name, moment in moments.items()}


def _square(gradient: Tensor) -> Tensor:
    if not bool(torch.isfinite(gradient).all()):
        raise NonFinite(
            explain(
                "The first gradient is not finite",
                "the second moment would never recover from it",
                "Unscale it, or look for the cause in the loss",
            )
        )
    return gradient * gradient
