import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from thalweg import Problem, rules
from thalweg.errors import InvalidInput, NonFinite, NotConverged, NotDeterministic
from thalweg.optim.search import RateStop, critical_learning_rate
from thalweg.optim.virtual import virtual_update

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True, maximize=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "foreach": lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True),
}


def quadratic(seed=0, samples=12, dtype=torch.float64):
    stream = torch.Generator().manual_seed(seed)
    model = nn.Linear(4, 1, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 4, generator=stream))
    x = torch.randn(samples, 4, generator=stream, dtype=dtype) * torch.tensor([3.0, 1.0, 0.5, 0.2], dtype=dtype)
    y = torch.randn(samples, 1, generator=stream, dtype=dtype)
    return Problem(model, nn.MSELoss(), (x, y)), 2 * x.T @ x / samples


def network(seed=0, dropout=0.0, norm=False):
    torch.manual_seed(seed)
    layers = [nn.Linear(5, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)]
    return nn.Sequential(*layers), (torch.randn(20, 5), torch.randint(0, 3, (20,)))


def exact(H, g, d):
    return float(2 * d @ g / (d @ H @ d))


@pytest.mark.parametrize("seed", range(4))
def test_gradient_descent_on_a_quadratic(seed):
    problem, H = quadratic(seed)
    g = problem.gradient(problem.initial)
    truth = exact(H, g, g)
    found = critical_learning_rate(problem, torch.optim.SGD(problem.model.parameters(), lr=1.0))
    low, high = found.bracket
    assert low < truth <= high == found.learning_rate == found.initial
    after = float(problem.value(problem.initial - high * g))
    assert found.loss < after <= 1.1 * found.loss
    assert found.stop is RateStop.FOUND
    assert found.gradients == 1
    assert found.evaluations == len(found.points) + 1
    fine = critical_learning_rate(problem, rules.GradientDescent(lr=1.0), tol=1e-4, start=5.0)
    assert float(fine) == pytest.approx(truth, rel=1e-4)
    assert fine.bracket[1] / fine.bracket[0] < 1 + 1.1e-4


@pytest.mark.parametrize("delta", [1.0, 0.1, 0.001, 0.0])
def test_delta_bounds_the_rise(delta):
    problem, H = quadratic(1)
    g = problem.gradient(problem.initial)
    found = critical_learning_rate(problem, rules.GradientDescent(lr=1.0), delta=delta)
    rise = dict(found.points)[found.learning_rate] / found.loss
    assert 0 < rise <= delta or found.bracket[1] / found.bracket[0] <= 1 + 2**-8
    assert found.bracket[0] <= exact(H, g, g) <= found.bracket[1]


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_the_direction_of_adamw_has_the_decay(decay):
    problem, H = quadratic(2)
    w = problem.initial
    g = problem.gradient(w)
    optimizer = torch.optim.AdamW(problem.model.parameters(), lr=1.0, eps=0.0, weight_decay=decay)
    d = g.sign() + decay * w  # the first step of Adam is the sign
    found = critical_learning_rate(problem, optimizer, tol=1e-4)
    assert float(found) == pytest.approx(exact(H, g, d), rel=1e-4)
    rule = rules.AdamW(lr=1.0, eps=0.0, weight_decay=decay)
    assert float(critical_learning_rate(problem, rule, tol=1e-4)) == pytest.approx(float(found), rel=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_tried_step_is_the_step_to_the_bit_and_changes_nothing(name):
    model, (x, y) = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(3):  # state is there
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    problem = Problem(model, nn.CrossEntropyLoss(), (x, y))
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]))
    versions = [p._version for p in model.parameters()]
    force = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    tried = virtual_update(problem, optimizer, gradient=force).step(0.1)
    now = (model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()])
    assert same(before, now)
    assert versions == [p._version for p in model.parameters()]
    optimizer.step()
    assert torch.equal(tried, problem.initial)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def everything(model, optimizer):
    return copy.deepcopy(
        (
            dict(model.state_dict()),
            optimizer.state_dict(),
            [p.grad for p in model.parameters()],
            [m.training for m in model.modules()],
            torch.get_rng_state(),
            list(np.random.get_state()[1]),  # noqa: NPY002
        )
    )


@pytest.mark.parametrize("training", [True, False])
def test_buffers_mode_random_state_and_hooks_are_left_alone(training):
    model, batch = network(norm=True, dropout=0.5)
    model.train(training)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    called = []
    optimizer.register_step_pre_hook(lambda *a: called.append("pre"))
    optimizer.register_step_post_hook(lambda *a: called.append("post"))
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()
    scheduler.step()
    before, calls = everything(model, optimizer), len(called)
    first = critical_learning_rate((model, nn.CrossEntropyLoss(), batch), optimizer)
    assert same(list(before), list(everything(model, optimizer)))
    assert len(called) == calls
    again = critical_learning_rate((model, nn.CrossEntropyLoss(), batch), optimizer)
    assert again.points == first.points, "the same masks at every evaluation"
    torch.rand(1)
    other = critical_learning_rate((model, nn.CrossEntropyLoss(), batch), optimizer)
    assert (other.loss != first.loss) is training, "the masks are those that the model would draw next"


def test_dropout_in_a_problem_is_refused():
    model, batch = network(dropout=0.5)
    with pytest.raises(NotDeterministic, match="Dropout is live"):
        Problem(model, nn.CrossEntropyLoss(), batch)


def test_a_graph_that_waits_for_backward_survives():
    model, (x, y) = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = nn.functional.cross_entropy(model(x), y)
    critical_learning_rate((model, nn.CrossEntropyLoss(), (x, y)), optimizer)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_groups_scale_together():
    problem, _ = quadratic(3)
    other = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    model = nn.Sequential(problem.model, nn.Flatten())
    model.register_parameter("shift", other)
    x, y = next(problem.batches())[0]
    two = Problem(model, lambda model, batch: (((model(batch[0]) + model.shift - batch[1]) ** 2).mean(), 12), (x, y))
    optimizer = torch.optim.SGD(
        [{"params": [other], "lr": 0.3}, {"params": problem.model.parameters(), "lr": 0.1, "weight_decay": 0.2}]
    )
    found = critical_learning_rate(two, optimizer, tol=1e-4)
    g = two.gradient(two.initial)
    order = [name.split(".")[-1] for name in two.layout.names]
    d = torch.cat(
        [
            3 * g[place] if name == "shift" else g[place] + 0.2 * two.initial[place]
            for name, (_, place) in zip(order, two.layout.slices())
        ]
    )
    from thalweg import hessian

    assert float(found) == pytest.approx(exact(hessian(two).dense(), g, d), rel=1e-4)
    assert found.rates == pytest.approx((3 * float(found), float(found)))


def test_a_schedule_that_starts_at_zero_and_rates_in_tensors():
    problem, _ = quadratic(0)
    parameters = list(problem.model.parameters())
    plain = critical_learning_rate(problem, torch.optim.Adam(parameters, lr=0.1))
    zero = torch.optim.Adam(parameters, lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(zero, lambda t: t / 10)
    assert zero.param_groups[0]["lr"] == 0
    assert critical_learning_rate(problem, zero).points == plain.points
    tensor = torch.optim.Adam(parameters, lr=torch.tensor(0.1, dtype=torch.float64), foreach=False)
    assert float(critical_learning_rate(problem, tensor)) == pytest.approx(float(plain))
    assert float(tensor.param_groups[0]["lr"]) == pytest.approx(0.1)


def test_gradients_left_behind_are_the_ones_that_count():
    problem, H = quadratic(4)
    w, g = problem.initial, problem.gradient(problem.initial)
    problem.model.weight.grad = (0.1 * g).reshape(1, 4)  # as after clipping
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    found = critical_learning_rate(problem, optimizer, gradient="grad", tol=1e-4)
    assert float(found) == pytest.approx(10 * exact(H, g, g), rel=1e-4)
    assert found.gradients == 0
    given = critical_learning_rate(problem, optimizer, w, gradient=0.1 * g, tol=1e-4)
    assert given.points == found.points
    problem.model.weight.grad = None
    with pytest.raises(InvalidInput, match="backward"):
        critical_learning_rate(problem, optimizer, gradient="grad")


def test_a_start_that_already_rises_says_so():
    problem, _ = quadratic(0)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    found = critical_learning_rate(problem, optimizer, start=50.0)
    assert found.stop is RateStop.RISES_AT_START
    assert found.learning_rate == found.initial == 50.0
    assert found.bracket == (0.0, 50.0)
    assert found.evaluations == 2
    assert "smaller start" in found.stop.value


def test_no_rise_gives_a_tenth_of_the_target():
    problem, H = quadratic(0)
    g = problem.gradient(problem.initial)
    target = 0.5 * exact(H, g, g)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=target)
    for tol in (None, 1e-3):
        found = critical_learning_rate(problem, optimizer, target=target, tol=tol)
        assert found.stop is RateStop.NO_RISE
        assert found.learning_rate == math.inf
        assert found.initial == pytest.approx(target / 10)
        assert found.bracket[1] == math.inf
        assert max(eta for eta, _ in found.points) <= target
    assert "tenth" in type(found).__doc__


def test_nan_counts_as_risen_and_jumps_end():
    problem, _ = quadratic(0)
    x, y = next(problem.batches())[0]

    def cliff(out, goal):
        value = 1e-3 * ((out - goal) ** 2).mean() - 1  # negative, and NaN far out
        return value * math.nan if out.abs().max() > 20 else value

    wall = Problem(problem.model, cliff, (x, y))
    w, g = wall.initial, wall.gradient(wall.initial)
    found = critical_learning_rate(wall, torch.optim.SGD(problem.model.parameters(), lr=0.1))
    low, high = found.bracket
    assert wall.value(w - low * g) <= wall.value(w)
    assert bool(wall.value(w - high * g).isnan()) or wall.value(w - high * g) > wall.value(w)
    assert found.stop is RateStop.FOUND


def test_bad_input_is_told():
    problem, _ = quadratic(0)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    w = problem.initial
    with pytest.raises(NonFinite, match="not finite"):
        critical_learning_rate(problem, rules.GradientDescent(lr=0.1), w * math.nan)
    with pytest.raises(InvalidInput, match="does not move"):
        critical_learning_rate(problem, optimizer, gradient=torch.zeros(4))
    with pytest.raises(InvalidInput, match="closure"):
        critical_learning_rate(problem, torch.optim.LBFGS(problem.model.parameters()))
    with pytest.raises(InvalidInput, match="none of the problem's"):
        critical_learning_rate(problem, torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1))
    with pytest.raises(InvalidInput, match="how weights are updated"):
        critical_learning_rate(problem, "adam")
    with pytest.raises(InvalidInput, match="holds its own"):
        critical_learning_rate(problem, optimizer, state={"step": torch.tensor(0)})
    with pytest.raises(InvalidInput, match="evaluated at other weights"):
        critical_learning_rate(problem.model, optimizer)
    for wrong in ({"start": -1.0}, {"delta": -0.1}, {"tol": 2.0}, {"max_evaluations": 1}, {"target": 0.0}):
        with pytest.raises(InvalidInput, match="Correct the argument"):
            critical_learning_rate(problem, optimizer, **wrong)
    with pytest.raises(NotConverged, match="between") as caught:
        critical_learning_rate(problem, optimizer, max_evaluations=11, delta=1e-4, start=0.02)
    assert caught.value.result.stop is RateStop.BUDGET
    assert caught.value.result.evaluations <= 11


def test_momentum_before_the_step_is_part_of_it():
    problem, H = quadratic(5)
    w, g = problem.initial, problem.gradient(problem.initial)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1, momentum=0.9)
    optimizer.state[problem.model.weight]["momentum_buffer"] = torch.full((1, 4), 0.3, dtype=torch.float64)
    found = critical_learning_rate(problem, optimizer, w, tol=1e-4)
    assert float(found) == pytest.approx(exact(H, g, g + 0.27), rel=1e-4)


def test_double_precision_of_a_float_model():
    model, batch = network()
    problem = Problem(model, nn.CrossEntropyLoss(), batch, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()
    wide = critical_learning_rate(problem, optimizer, tol=1e-4)
    single = critical_learning_rate((model, nn.CrossEntropyLoss(), batch), optimizer, tol=1e-2)
    assert float(single) == pytest.approx(float(wide), rel=2e-2)
    assert wide.noise < 1e-6 * single.noise


def test_it_prints_and_draws():
    problem, _ = quadratic(0)
    found = critical_learning_rate(problem, rules.GradientDescent(lr=1.0), target=10.0)
    assert "evaluations=" in repr(found)
    assert len(found.plot().data) == 1
    assert "Critical learning rate" in found.plot().layout.title.text
