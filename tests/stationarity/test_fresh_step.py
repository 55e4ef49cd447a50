"""A fresh update, taken back: nothing is left behind, and epochs are the unit where samples are not replaced."""

import copy

import numpy as np
import pytest
import torch

import thalweg as tw
from thalweg.errors import InvalidInput
from thalweg.stationarity.fresh_step import FreshStep, fresh_change, fresh_steps, restored


def live(optimizer):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1)
    )
    made = optimizer(model.parameters())
    x = torch.randn(32, 3)

    def update():
        made.zero_grad(set_to_none=True)
        batch = x[torch.randint(0, 32, (8,))]
        model(batch).square().mean().backward()
        made.step()

    def evaluate():
        model.eval()
        with torch.no_grad():
            value = float(model(x).square().mean())
        model.train()
        return value

    return model, made, update, evaluate


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
}


def picture(model, optimizer):
    return copy.deepcopy(
        (model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()], torch.get_rng_state(),
         np.random.get_state()[1].tolist(), [m.training for m in model.modules()])  # noqa: NPY002
    )  # fmt: skip


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


@pytest.mark.parametrize("warm", [0, 5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_everything_is_put_back_bit_for_bit(name, warm):
    model, optimizer, update, evaluate = live(OPTIMIZERS[name])
    for _ in range(warm):
        update()
    before = picture(model, optimizer)
    weights = [p.data_ptr() for p in model.parameters()]
    change = fresh_change(model, optimizer, update, evaluate, draws=3)
    assert change != 0
    assert same(before, picture(model, optimizer))
    assert weights == [p.data_ptr() for p in model.parameters()]
    update()  # and training goes on as it would have
    after = picture(model, optimizer)
    model, optimizer, update, evaluate = live(OPTIMIZERS[name])
    for _ in range(warm + 1):
        update()
    assert same(after, picture(model, optimizer))


def test_it_is_put_back_after_an_exception():
    model, optimizer, update, _ = live(OPTIMIZERS["adamw"])
    update()
    before = picture(model, optimizer)

    def fail():
        with restored(model, optimizer):
            update()
            optimizer.param_groups[0]["lr"] = 9.0
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()
    assert same(before, picture(model, optimizer))


def test_momentum_is_part_of_the_state():
    """At a turning point momentum carries the loss up, where plain descent from the same weights would lower it."""
    weight = torch.nn.Parameter(torch.tensor([0.1]))
    model = torch.nn.Module()
    model.weight = weight
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)

    def update():
        weight.grad = weight.detach().clone()
        optimizer.step()

    def evaluate():
        return float(weight.detach().square().sum())

    assert fresh_change(model, optimizer, update, evaluate) < 0
    weight.grad = torch.tensor([-5.0])  # speed away from the minimum
    optimizer.step()
    assert fresh_change(model, optimizer, update, evaluate) > 0


def problem():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    y = x.sum(1, keepdim=True) + torch.randn(40, 1, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    return tw.Problem(torch.nn.Linear(3, 1), torch.nn.MSELoss(), (x, y))


def test_it_is_taken_at_starts_of_epochs():
    measure = FreshStep(period=12, batch_size=8)  # epochs of five steps: every 15
    rule = tw.rules.HeavyBall(lr=0.05)
    run = tw.train(problem(), rule, 60, batch_size=8, measures=[measure], seed=3)
    found = run.data["fresh_change"].dropna("step")
    assert (found.step.to_numpy() + 1).tolist() == [15, 30, 45, 60]
    plain = tw.train(problem(), rule, 60, batch_size=8, seed=3)
    np.testing.assert_array_equal(plain.data["loss"], run.data["loss"])


def test_with_full_batches_it_is_the_next_change():
    run = tw.train(problem(), tw.rules.HeavyBall(lr=0.05), 30, measures=[FreshStep(period=10)])
    loss = run.data["loss"].to_numpy()
    found = run.data["fresh_change"].dropna("step")
    for step, change in zip(found.step.to_numpy(), found.to_numpy()):
        if step + 2 < len(loss):
            assert change == pytest.approx(loss[step + 2] - loss[step + 1], abs=1e-6)


def test_the_mean_change():
    noise = np.random.default_rng(0).standard_normal(300)
    assert fresh_steps(noise - noise.mean()).says == "no mean change"
    assert "rises" in fresh_steps(noise + 2).says
    assert fresh_steps(np.zeros(10)).z == 0
    with pytest.raises(InvalidInput, match="Draws is 0"):
        fresh_change(torch.nn.Linear(1, 1), None, lambda: None, lambda: 0.0, draws=0)
