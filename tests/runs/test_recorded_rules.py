"""A rule comes back from the manifest of its run."""

import json

import pytest

from thalweg import rules
from thalweg.runs.manifest import plain
from thalweg.runs.rules import recorded_rule


@pytest.mark.parametrize(
    "rule",
    [
        rules.GradientDescent(lr=0.3, weight_decay=1e-3),
        rules.Nesterov(lr=rules.Warmup(steps=5, then=rules.Cosine(0.2, 40))),
        rules.AdamW(lr=1e-3, beta2=0.95),
        rules.ScalarRMSProp(lr=0.02, bias_correction=True),
    ],
)
def test_every_rule_of_ours_survives_the_manifest(rule):
    assert recorded_rule(json.loads(json.dumps(plain(rule)))) == rule


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"type": "Mine", "lr": 0.1},
        {"type": "Constant", "lr": 0.1},
        {"type": "GradientDescent", "lr": {"type": "Mine"}},
        {"type": "GradientDescent", "lr": -1.0},
        {"type": "effective_hessian"},
    ],
)
def test_what_is_not_ours_is_unknown(record):
    assert recorded_rule(record) is None
