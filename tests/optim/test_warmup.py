import copy
import itertools

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, ExponentialLR, SequentialLR, StepLR

from thalweg import rules
from thalweg.errors import InvalidInput
from thalweg.optim.persistent_catapult import PersistentCatapult
from thalweg.optim.search import RateStop, critical_learning_rate
from thalweg.optim.warmup import CriticalRamp, CriticalWarmup


def optimizer(*rates, kind=torch.optim.SGD):
    return kind([{"params": [nn.Parameter(torch.zeros(i + 2))], "lr": rate} for i, rate in enumerate(rates)], lr=1.0)


def rates_of(opt, scheduler, steps):
    seen = []
    for _ in range(steps):
        seen.append([float(group["lr"]) for group in opt.param_groups])
        opt.step()
        scheduler.step()
    return seen


def test_the_ramp_is_the_formula():
    eta = CriticalRamp(target=0.8, initial=0.2, steps=8)
    assert [eta(t) for t in range(10)] == pytest.approx([min(0.8, 0.2 + 0.1 * t) for t in range(10)])
    assert eta.length == 6
    assert eta(eta.length - 1) < eta.target == eta(eta.length)
    assert eta.saved == pytest.approx(2)
    above = CriticalRamp(target=0.1, initial=0.2, steps=8)
    assert (above(0), above.length, above.saved) == (0.1, 0, 8)
    assert CriticalRamp(target=1.0, initial=0.3, steps=10).length == 7, "no step is added by rounding"
    rule = rules.GradientDescent(lr=eta)
    assert rule.learning_rate_at(3) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "wrong", [(0.0, 0.1, 5), (0.1, 0.0, 5), (0.1, float("nan"), 5), (float("inf"), 0.1, 5), (1, 1, 0)]
)
def test_a_ramp_from_nothing_is_refused(wrong):
    with pytest.raises(InvalidInput, match="ramp"):
        CriticalRamp(*wrong)


def test_each_group_has_its_target():
    opt = optimizer(0.1, 0.8)  # the second is larger, and the one quoted
    seen = rates_of(opt, CriticalWarmup(opt, 0.2, 8), 10)
    ramp = CriticalRamp(0.8, 0.2, 8)
    for t, (first, second) in enumerate(seen):
        assert second == pytest.approx(ramp(t), rel=1e-12)
        assert first == pytest.approx(ramp(t) / 8, rel=1e-12)
    own = optimizer(0.1, 0.8)
    seen = rates_of(own, CriticalWarmup(own, [0.05, 0.8], 8), 10)
    assert [row[1] for row in seen] == pytest.approx([0.8] * 10)
    assert [row[0] for row in seen] == pytest.approx([CriticalRamp(0.1, 0.05, 8)(t) for t in range(10)])
    with pytest.raises(InvalidInput, match="groups"):
        CriticalWarmup(optimizer(0.1, 0.8), [0.05], 8)


def test_it_goes_on_from_its_state():
    opt = optimizer(0.3, 0.8, kind=torch.optim.Adam)
    warmup = CriticalWarmup(opt, 0.2, 8)
    whole = rates_of(opt, warmup, 10)
    first = optimizer(0.3, 0.8, kind=torch.optim.Adam)
    before = CriticalWarmup(first, 0.2, 8)
    half = rates_of(first, before, 4)
    kept = copy.deepcopy((before.state_dict(), first.state_dict()))
    second = optimizer(0.3, 0.8, kind=torch.optim.Adam)
    after = CriticalWarmup(second, 0.7, 3)  # of other numbers, which the state replaces
    after.load_state_dict(kept[0])
    second.load_state_dict(kept[1])
    joined = half + rates_of(second, after, 6)
    for ours, theirs in zip(joined, whole):
        assert ours == pytest.approx(theirs, rel=1e-12)
    resumed = optimizer(0.3, 0.8, kind=torch.optim.Adam)
    resumed.load_state_dict(kept[1])
    again = CriticalWarmup(resumed, 0.2, 8, last_epoch=3)  # as torch's own, which then do a step
    assert again.last_epoch == 4


def test_it_chains_with_other_schedulers():
    opt = optimizer(0.8)
    chained = ChainedScheduler([CriticalWarmup(opt, 0.2, 8), ExponentialLR(opt, 0.9)])
    seen = rates_of(opt, chained, 12)
    ramp = CriticalRamp(0.8, 0.2, 8)
    assert [row[0] for row in seen] == pytest.approx([ramp(t) * 0.9**t for t in range(12)], rel=1e-12)
    opt = optimizer(0.8)
    warmup = CriticalWarmup(opt, 0.2, 8)
    following = SequentialLR(opt, [warmup, CosineAnnealingLR(opt, 10)], milestones=[warmup.length])
    seen = [row[0] for row in rates_of(opt, following, 17)]
    plain = optimizer(0.8)
    cosine = [row[0] for row in rates_of(plain, CosineAnnealingLR(plain, 10), 11)]
    assert seen[:6] == pytest.approx([ramp(t) for t in range(6)], rel=1e-12)
    assert seen[6:] == pytest.approx(cosine, rel=1e-12)
    opt = optimizer(0.8)
    other = ChainedScheduler([StepLR(opt, 3, 0.5), CriticalWarmup(opt, 0.2, 8)])
    seen = rates_of(opt, other, 12)
    assert [row[0] for row in seen] == pytest.approx([ramp(t) * 0.5 ** (t // 3) for t in range(12)], rel=1e-12)


def test_rates_in_tensors_stay_tensors():
    opt = torch.optim.Adam([nn.Parameter(torch.zeros(3))], lr=torch.tensor(0.8), foreach=False)
    warmup = CriticalWarmup(opt, 0.2, 8)
    seen = rates_of(opt, warmup, 10)
    assert isinstance(opt.param_groups[0]["lr"], torch.Tensor)
    assert [row[0] for row in seen] == pytest.approx([CriticalRamp(0.8, 0.2, 8)(t) for t in range(10)], rel=1e-5)


def line():
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    return model, nn.MSELoss(), (x, 0 * x)  # eta_c = 2 / 10


def test_it_finds_its_own_start():
    model, loss, batch = line()
    opt = torch.optim.SGD(model.parameters(), lr=0.5)
    warmup = CriticalWarmup.found((model, loss, batch), opt, 10, tol=1e-3)
    assert warmup.evidence.stop is RateStop.FOUND
    assert opt.param_groups[0]["lr"] == pytest.approx(0.2, rel=1e-3)
    assert warmup.length == 6
    assert "evidence" not in warmup.state_dict()
    opt = torch.optim.SGD(model.parameters(), lr=0.15)
    warmup = CriticalWarmup.found((model, loss, batch), opt, 10)
    assert warmup.evidence.stop is RateStop.NO_RISE
    assert opt.param_groups[0]["lr"] == pytest.approx(0.015), "a tenth of the target"


def quartic():
    """A valley whose walls flatten along it: f = 0.5 a^2 b^2 with b shrinking when a oscillates."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16, bias=False), nn.Linear(16, 1, bias=False)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=torch.Generator().manual_seed(p.shape[0]))
    x = torch.ones(1, 1, dtype=torch.float64)
    return model, lambda out, y: 0.5 * (out - y).square().mean(), (x, 0 * x)


def train(warmup, opt, model, loss, batch, steps):
    values, rates = [], []
    for _ in range(steps):
        opt.zero_grad()
        value = loss(model(batch[0]), batch[1])
        value.backward()
        values.append(float(value.detach()))
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        warmup.step()
    return values, rates


def make_catapult(target, **settings):
    model, loss, batch = quartic()
    opt = torch.optim.SGD(model.parameters(), lr=target)

    def measure(delta):
        return critical_learning_rate((model, loss, batch), opt, delta=delta)

    def evaluate():
        with torch.no_grad():
            return float(loss(model(batch[0]), batch[1]))

    return PersistentCatapult(opt, measure, evaluate, **settings), opt, model, loss, batch


def test_catapults_raise_the_rate_and_never_lower_it():
    warmup, opt, *rest = make_catapult(10.0)
    assert not warmup.finished
    assert warmup.measured[0][0] == 0
    _, rates = train(warmup, opt, *rest, 40)
    assert all(a <= b for a, b in itertools.pairwise(rates))
    assert len(warmup.measured) > 1
    assert rates[-1] > 1.02 * rates[0]
    assert max(rates) <= 10.0


def test_a_catapult_ends_at_the_target_and_saves_its_state():
    start = make_catapult(10.0)[0].measured[0][1]
    warmup, opt, *rest = make_catapult(1.01 * start)
    train(warmup, opt, *rest, 30)
    assert warmup.finished
    assert opt.param_groups[0]["lr"] == pytest.approx(1.01 * start)
    known = len(warmup.measured)
    train(warmup, opt, *rest, 3)
    assert len(warmup.measured) == known, "no more measuring at the target"
    kept = copy.deepcopy(warmup.state_dict())
    other, opt, *_ = make_catapult(1.01 * start)
    assert not other.finished
    other.load_state_dict(kept)
    assert other.finished
    assert opt.param_groups[0]["lr"] == pytest.approx(1.01 * start)


def test_a_loss_that_does_not_come_back_shrinks_delta():
    opt = optimizer(1.0)
    rising = itertools.count()
    warmup = PersistentCatapult(opt, lambda delta: 0.1 + delta, lambda: float(next(rising)), patience=3)
    for _ in range(7):
        warmup.step()
    assert [(step, delta) for step, _, delta in warmup.measured] == [(0, 0.1), (3, 0.05), (6, 0.025)]
    assert opt.param_groups[0]["lr"] == pytest.approx(0.2), "never lowered"
    for wrong in ({"delta": 0.0}, {"shrink": 1.0}, {"patience": 0}):
        with pytest.raises(InvalidInput, match="Correct"):
            PersistentCatapult(opt, lambda delta: 0.1, lambda: 1.0, **wrong)
