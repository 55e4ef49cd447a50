"""Weights follow torch's own denominators; conventions are recognised."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg.errors import EmptyData, InvalidInput
from thalweg.problem.losses import batch_weight, calls_the_model, check_reduction, leading_size

LOGITS, TARGET = torch.randn(6, 4), torch.tensor([0, 1, -100, 3, 2, -100])
CLASSES = torch.tensor([1.0, 2.0, 0.5, 4.0])


@pytest.mark.parametrize(
    ("loss", "target", "weight"),
    [
        (nn.MSELoss(), torch.zeros(6, 2), 6),
        (F.cross_entropy, TARGET, 4),
        (nn.CrossEntropyLoss(), TARGET, 4),
        (nn.CrossEntropyLoss(ignore_index=1), TARGET.clamp(min=0), 5),
        (nn.CrossEntropyLoss(weight=CLASSES), TARGET, 7.5),
        (nn.NLLLoss(weight=CLASSES), TARGET, 7.5),
        (functools.partial(F.cross_entropy, ignore_index=0), TARGET.clamp(min=0), 3),
        (functools.partial(functools.partial(F.nll_loss, ignore_index=7), ignore_index=1), TARGET.clamp(min=0), 5),
        (functools.partial(F.cross_entropy, weight=CLASSES), TARGET, 7.5),
        (nn.CrossEntropyLoss(), torch.full((6, 4), 0.25), 6),
        (nn.CrossEntropyLoss(), torch.zeros(3, 5, dtype=torch.int64), 15),
        (lambda out, y: 0, {"y": torch.zeros(7)}, 7),
    ],
)
def test_weights(loss, target, weight):
    assert batch_weight(loss, LOGITS, target) == weight


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, CLASSES])
def test_weighted_parts_give_torchs_own_mean(weight, smoothing):
    loss = nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing)
    parts = [slice(0, 2), slice(2, 5), slice(5, 6)]
    weights = [batch_weight(loss, LOGITS[p], TARGET[p]) for p in parts]
    values = [loss(LOGITS[p], TARGET[p]) if w else 0.0 for p, w in zip(parts, weights)]
    mean = sum(w * v for w, v in zip(weights, values)) / sum(weights)
    assert torch.allclose(mean, loss(LOGITS, TARGET))


def test_a_target_without_a_first_dimension_is_counted_by_its_input():
    assert batch_weight(nn.MSELoss(), LOGITS, torch.tensor(1.0)) == 6
    with pytest.raises(EmptyData, match="no tensor to count"):
        batch_weight(nn.MSELoss(), "inputs", "targets")


@pytest.mark.parametrize(
    "loss", [nn.MSELoss(reduction="sum"), nn.L1Loss(reduction="none"), functools.partial(F.mse_loss, reduction="sum")]
)
def test_reductions_that_are_no_mean(loss):
    with pytest.raises(InvalidInput, match="reduction"):
        check_reduction(loss)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.KLDivLoss(reduction="batchmean"), F.mse_loss, lambda o, y: o.mean()])
def test_reductions_that_are(loss):
    check_reduction(loss)


class Callable:
    def __call__(self, model, batch):
        return 0

    def method(self, model, batch):
        return 0


def test_calling_conventions():
    def with_options(model, batch, alpha):
        return alpha

    assert calls_the_model(with_options)
    assert calls_the_model(functools.partial(with_options, alpha=1))
    assert calls_the_model(Callable())
    assert calls_the_model(Callable().method)
    assert not calls_the_model(nn.MSELoss())
    assert not calls_the_model(F.mse_loss)
    assert not calls_the_model(lambda output, target: 0)
    assert not calls_the_model(lambda *args: 0)
    assert not calls_the_model(torch.add)


def test_leading_size_of_nested_batches():
    assert leading_size({"a": "text", "b": [torch.zeros(3, 2)]}) == 3
    assert leading_size(torch.tensor(1.0)) is None
    assert leading_size({}) is None
