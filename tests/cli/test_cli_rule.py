import dataclasses
import typing

import pytest

from thalweg import rules
from thalweg.cli.rule import (
    CLASSES,
    USUAL_RATES,
    RuleConfig,
    RuleName,
    ScheduleConfig,
    build_rule,
    resolve_rule,
)
from thalweg.errors import InvalidInput


def test_every_name_has_a_class_and_a_usual_rate():
    names = set(typing.get_args(RuleName))
    assert names == set(CLASSES) == set(USUAL_RATES)


@pytest.mark.parametrize("name", typing.get_args(RuleName))
def test_left_out_settings_take_the_rules_own_defaults(name):
    rule = build_rule(RuleConfig(name, lr=0.3), steps=10)
    assert type(rule).__name__ == CLASSES[name]
    assert rule == type(rule)(lr=0.3)


@pytest.mark.parametrize("name", typing.get_args(RuleName))
def test_every_field_of_the_rule_can_be_set(name):
    kind = getattr(rules, CLASSES[name])
    values = {
        "momentum": 0.7,
        "dampening": 0.1,
        "beta1": 0.8,
        "beta2": 0.95,
        "eps": 1e-4,
        "weight_decay": 0.2,
    }
    values |= {"bias_correction": True}
    own = [f.name for f in dataclasses.fields(kind) if f.name != "lr"]
    rule = build_rule(RuleConfig(name, lr=0.3, **{k: values[k] for k in own}), steps=10)
    assert {k: getattr(rule, k) for k in own} == {k: values[k] for k in own}


def test_a_setting_of_another_rule_is_refused():
    with pytest.raises(InvalidInput, match="'gd' has no such setting") as caught:
        build_rule(RuleConfig("gd", momentum=0.9), steps=10)
    assert "rule.momentum" in str(caught.value)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ScheduleConfig(), {0: 0.4, 9: 0.4}),
        (ScheduleConfig("cosine"), {0: 0.4, 5: 0.2, 10: 0.0}),
        (ScheduleConfig("cosine", steps=20, floor=0.2), {0: 0.4, 10: 0.3, 20: 0.2}),
        (ScheduleConfig("step", gamma=0.5, every=4), {3: 0.4, 4: 0.2, 8: 0.1}),
        (ScheduleConfig("warmup", warmup_steps=4), {0: 0.0, 2: 0.2, 4: 0.4, 9: 0.4}),
        (ScheduleConfig("warmup", warmup_steps=4, warmup_start=0.2), {0: 0.2, 2: 0.3, 4: 0.4}),
        (ScheduleConfig("cosine", warmup_steps=2), {0: 0.0, 1: 0.2, 2: 0.4, 6: 0.2, 10: 0.0}),
    ],
)
def test_schedules_give_their_learning_rates(schedule, expected):
    rule = build_rule(RuleConfig("gd", lr=0.4, schedule=schedule), steps=10)
    assert {step: rule.learning_rate_at(step) for step in expected} == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("schedule", "word"),
    [
        (ScheduleConfig("step", gamma=0.5), "rule.schedule.every is not set"),
        (ScheduleConfig("warmup"), "rule.schedule.warmup_steps is not set"),
        (ScheduleConfig("constant", warmup_start=0.1), "rule.schedule.warmup_steps is not set"),
        (ScheduleConfig("constant", floor=0.1), "'constant' has no such setting"),
        (ScheduleConfig("cosine", gamma=0.1), "'cosine' has no such setting"),
    ],
)
def test_schedules_refuse_what_does_not_fit(schedule, word):
    with pytest.raises(InvalidInput, match=word):
        build_rule(RuleConfig("gd", lr=0.4, schedule=schedule), steps=10)


def test_resolving_fills_in_what_depends_on_the_rest_and_is_stable():
    config = RuleConfig("adam", schedule=ScheduleConfig("cosine", warmup_steps=10))
    resolved = resolve_rule(config, steps=100)
    assert (resolved.lr, resolved.schedule.steps) == (USUAL_RATES["adam"], 90)
    assert resolve_rule(resolved, steps=500) == resolved
