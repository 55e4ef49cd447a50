"""The part of a configuration that names an update rule and its learning-rate schedule."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from thalweg.errors import InvalidInput, explain

if TYPE_CHECKING:
    from thalweg.rules import Rule, Schedule

RuleName = Literal["gd", "heavy_ball", "nesterov", "scalar_rmsprop", "rmsprop", "adam", "adamw"]
ScheduleName = Literal["constant", "cosine", "warmup", "step"]

CLASSES: dict[RuleName, str] = {
    "gd": "GradientDescent",
    "heavy_ball": "HeavyBall",
    "nesterov": "Nesterov",
    "scalar_rmsprop": "ScalarRMSProp",
    "rmsprop": "RMSProp",
    "adam": "Adam",
    "adamw": "AdamW",
}

USUAL_RATES: dict[RuleName, float] = {
    "gd": 0.14,
    "heavy_ball": 0.02,
    "nesterov": 0.02,
    "scalar_rmsprop": 0.01,
    "rmsprop": 1e-3,
    "adam": 1e-3,
    "adamw": 1e-3,
}
"""Learning rates that the default problem trains well with; momentum multiplies steps by 1 / (1 - beta)."""


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes over the run; ``rule.lr`` is its largest value.

    Attributes:
        name: constant; cosine (down to floor); warmup (a line up, then constant); step (times gamma every so
            many steps).
        steps: Length of the cosine in steps (default: what is left of the run).
        floor: Learning rate at the end of the cosine (default 0).
        gamma: Factor of a step schedule, for example 0.1.
        every: Steps between two such factors.
        warmup_steps: Steps of a linear warm-up before any of these schedules.
        warmup_start: Learning rate at the first step of the warm-up (default 0).
    """

    name: ScheduleName = "constant"
    steps: int | None = None
    floor: float | None = None
    gamma: float | None = None
    every: int | None = None
    warmup_steps: int | None = None
    warmup_start: float | None = None


@dataclass(frozen=True)
class RuleConfig:
    """The update rule. What is left out takes the rule's own default.

    Attributes:
        name: The rule: gd (gradient descent), heavy_ball, nesterov, scalar_rmsprop (one adaptive rate for all
            weights), rmsprop, adam, adamw.
        lr: Learning rate (default: 0.14 for gd, 0.02 with momentum, 0.01 for scalar_rmsprop, 0.001 otherwise).
        momentum: Momentum of heavy_ball and nesterov.
        dampening: Dampening of heavy_ball's momentum.
        beta1: Decay of Adam's average gradient.
        beta2: Decay of the average squared gradient.
        eps: What is added to the root of the average squared gradient.
        bias_correction: Whether (scalar_)rmsprop corrects its average for starting at zero.
        weight_decay: Pull of the weights towards zero.
        schedule: How the learning rate changes.
    """

    name: RuleName = "gd"
    lr: float | None = None
    momentum: float | None = None
    dampening: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None
    bias_correction: bool | None = None
    weight_decay: float | None = None
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


def resolve_rule(config: RuleConfig, steps: int) -> RuleConfig:
    """Return ``config`` with the learning rate and the length of a cosine filled in, for a run of ``steps``.

    What a run records is then complete: a later default, or a longer run, does not change its meaning.
    """
    schedule = config.schedule
    if schedule.name == "cosine" and schedule.steps is None:
        schedule = dataclasses.replace(schedule, steps=max(steps - (schedule.warmup_steps or 0), 1))
    lr = config.lr if config.lr is not None else USUAL_RATES[config.name]
    return dataclasses.replace(config, lr=lr, schedule=schedule)


def build_rule(config: RuleConfig, steps: int) -> Rule:
    """Make the rule of a run of ``steps`` steps.

    Args:
        config: The rule and its schedule.
        steps: Steps of the whole run, which a cosine without a length fills.

    Returns:
        A rule of `thalweg.rules`.

    Raises:
        InvalidInput: A setting does not belong to this rule or schedule, is missing, or is out of range.

    Example:
        >>> build_rule(RuleConfig("gd", lr=0.5), steps=10).name
        'gradient descent'
    """
    from thalweg import rules

    kind = getattr(rules, CLASSES[config.name])
    config = resolve_rule(config, steps)
    given = _given(config, but=("name", "lr", "schedule"))
    _refuse_strangers("rule", config.name, given, [f.name for f in dataclasses.fields(kind) if f.init])
    lr: float | Schedule | None = config.lr
    if config.schedule != ScheduleConfig():
        assert config.lr is not None  # resolved above
        lr = _build_schedule(config.schedule, config.lr)
    rule: Rule = kind(lr=lr, **given)
    return rule


def _build_schedule(config: ScheduleConfig, peak: float) -> Schedule:
    from thalweg import rules

    used = {"cosine": ["steps", "floor"], "step": ["gamma", "every"]}.get(config.name, [])
    warmup = ["warmup_steps", "warmup_start"]
    _refuse_strangers("rule.schedule", config.name, _given(config, but=("name",)), used + warmup)
    then: Schedule = rules.Constant(peak)
    if config.name == "cosine":
        then = rules.Cosine(peak=peak, steps=_needed(config, "steps"), floor=config.floor or 0.0)
    elif config.name == "step":
        then = rules.Step(initial=peak, gamma=_needed(config, "gamma"), every=_needed(config, "every"))
    if config.name == "warmup" or config.warmup_start is not None:
        _needed(config, "warmup_steps")
    if not config.warmup_steps:
        return then
    return rules.Warmup(steps=config.warmup_steps, then=then, start=config.warmup_start or 0.0)


def _given(config: Any, but: tuple[str, ...]) -> dict[str, Any]:
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in but}
    return {name: value for name, value in values.items() if value is not None}


def _needed(config: ScheduleConfig, name: str) -> Any:
    value = getattr(config, name)
    if value is None:
        raise InvalidInput(
            explain(
                f"The schedule is {config.name!r}, and rule.schedule.{name} is not set",
                "it has no natural default",
                f"Set rule.schedule.{name} (--rule.schedule.{name})",
            )
        )
    return value


def _refuse_strangers(place: str, chosen: str, given: dict[str, Any], known: list[str]) -> None:
    strangers = [name for name in given if name not in known]
    if strangers:
        settings = ", ".join(known) or "no further settings"
        raise InvalidInput(
            explain(
                f"{place}.{strangers[0]} is set to {given[strangers[0]]!r}",
                f"{chosen!r} has no such setting, and would train without it silently; it has {settings}",
                f"Remove {place}.{strangers[0]}, or choose another {place}.name",
            )
        )
