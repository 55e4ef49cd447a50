"""The freezing test: what stays, what goes on, and that controls are what they say."""

import math

import pytest
import torch
from torch import nn

from thalweg.errors import InvalidInput
from thalweg.trajectories.freezing import _masks, _names, freezing_test
from thalweg.trajectories.freezing_loop import Training


def net():
    return nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3))


def data(count=96, seed=0):
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=stream)
    return x, x[:, :3].argmax(1)


def sgd(weights):
    return torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.05)


def halving(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)


def job(**options):
    torch.manual_seed(0)
    settings = {
        "model": net(),
        "data": data(),
        "held_out": None,
        "optimizer": sgd,
        "scheduler": halving,
        "batch_size": 16,
        "loss": nn.functional.cross_entropy,
        "score": None,
    }
    return Training(**(settings | options))


def weights(run):
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


def test_a_run_goes_on_from_its_state_bit_for_bit():
    work = job()
    run = work.begin()
    for epoch in range(2):
        run.epoch(0, epoch)
    again = work.begin(run.state())
    assert again.rate == run.rate == pytest.approx(0.025)
    run.epoch(0, 2)
    again.epoch(0, 2)
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])


def test_frozen_weights_stay_and_the_others_keep_momentum_schedule_and_statistics():
    work = job()
    run = work.begin()
    run.epoch(0, 0)
    again = work.begin(run.state())
    masks = dict.fromkeys(("1.weight", "1.bias"))
    momentum = again._optimizer.state[again._named["1.weight"]]["momentum_buffer"].clone()
    assert momentum.norm() > 0
    again.freeze(masks)
    assert torch.equal(again._optimizer.state[again._named["1.weight"]]["momentum_buffer"], momentum)
    assert len(again._optimizer.state) == 2
    before, mean = weights(again), again.model[1].running_mean.clone()
    again.epoch(0, 1)
    after = weights(again)
    for name in before:
        assert torch.equal(before[name], after[name]) == (name not in masks)
    assert not torch.equal(mean, again.model[1].running_mean)
    assert again.rate == pytest.approx(0.025)
    assert again.trainable == 48


def test_the_first_step_after_freezing_is_that_of_the_full_run():
    """The gradient is the same and momentum is kept, so survivors move as if nothing were frozen."""
    work = job(batch_size=96)
    run = work.begin()
    run.epoch(0, 0)
    again = work.begin(run.state())
    again.freeze(dict.fromkeys(("1.weight", "1.bias")))
    run.epoch(0, 1)
    again.epoch(0, 1)
    for name in ("1.weight", "1.bias"):
        assert torch.equal(weights(run)[name], weights(again)[name])
    assert not torch.equal(weights(run)["0.weight"], weights(again)["0.weight"])


def test_random_elements_are_as_many_and_nothing_else_moves():
    work = job()
    masks = _masks(work.model, ("1.weight", "1.bias"), set(), "random", 5)
    assert sum(int(mask.sum()) for mask in masks.values()) == 48
    assert not set(masks) & {"1.weight", "1.bias"}
    run = work.begin()
    run.freeze(masks)
    before = weights(run)
    run.epoch(0, 0)
    for name, now in weights(run).items():
        moved = now != before[name]
        if name in masks:
            assert moved[masks[name]].all()
            assert not moved[~masks[name]].any()
        else:
            assert not moved.any()
    other = _masks(work.model, ("1.weight", "1.bias"), set(), "random", 6)
    assert any(not torch.equal(masks[name], other.get(name, ~masks[name])) for name in masks)


def test_the_whole_test_has_every_variant_and_controls_and_counts():
    state = torch.random.get_rng_state()
    found = freezing_test(
        net, data(), sgd, epochs=6, freeze_at=[3, 5], test=data(300, 1), batch_size=16, scheduler=halving
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert found.parameters == 6 * 24 + 24 + 48 + 75
    assert found.kept == ("1.weight", "1.bias")
    assert found.share == pytest.approx(1 - 48 / found.parameters)
    assert {(run.variant, run.epoch) for run in found.runs} == {
        (variant, epoch) for variant in ("kept", "random", "classifier", "stopped") for epoch in (0, 3, 5)
    }
    assert found.at(3, "classifier").trainable == 48 + 75
    assert found.at(3, "random").trainable == 48
    assert (found.at(3, "stopped").loss, found.at(3, "stopped").score) == found.history[3]
    assert found.history[-1] == (found.full.loss, found.full.score)
    assert found.lost(3) == pytest.approx(found.full.score - found.at(3).score)
    assert len(found.map.steps) == 7
    assert found.map.steps[-1] == 36
    assert found.map.learning_rate.tolist() == pytest.approx([0.1 * 0.5**e for e in range(7)])
    assert 0 < found.similarity.omega_off < found.similarity.omega < 1
    # forward 6 x 24 + 24 x 3, back to activations 24 x 3, weight gradients of both layers; 2 flops each, 16 samples
    assert found.full.cost.flops == 2 * 16 * (144 + 72 + 72 + 144 + 72)
    assert found.at(3).cost.flops == 2 * 16 * (144 + 72 + 72)
    assert found.at(3, "classifier").cost.flops == 2 * 16 * (144 + 72 + 72 + 72)
    assert found.at(3).cost.seconds > 0
    assert "% of the operations" in repr(found)
    assert [trace.name for trace in found.plot().data][-1] == "nothing (stopped)"


def test_training_without_scores_compares_losses():
    x, _ = data()
    found = freezing_test(
        net, (x, x[:, :3]), sgd, epochs=2, freeze_at=[1], loss=nn.functional.mse_loss, controls=(), batch_size=32
    )
    assert math.isnan(found.full.score)
    assert found.lost(1) == pytest.approx(found.at(1).loss - found.full.loss)
    again = freezing_test(
        net, (x, x[:, :3]), sgd, epochs=2, freeze_at=[1], loss=nn.functional.mse_loss, controls=(), batch_size=32
    )
    assert again.at(1).loss == found.at(1).loss


def test_what_cannot_be_done_is_refused():
    plain = nn.Sequential(nn.Linear(6, 3))
    with pytest.raises(InvalidInput, match="Nothing stays"):
        _names(plain, None, None)
    with pytest.raises(InvalidInput, match="Everything stays"):
        _names(plain, "*", None)
    with pytest.raises(InvalidInput, match="below the last"):
        freezing_test(net, data(), sgd, epochs=2, freeze_at=[2])
    with pytest.raises(InvalidInput, match="controls"):
        freezing_test(net, data(), sgd, epochs=2, freeze_at=[1], batch_size=8, controls=("nothing",))
    kept, last = _names(net(), "0.*", "3.bias")
    assert kept == ("0.weight", "0.bias")
    assert last == {"3.bias"}
