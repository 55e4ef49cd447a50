import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from thalweg import Problem, hessian, rules
from thalweg.errors import InvalidInput, NonFinite
from thalweg.optim.gi_adam import gi_adam_
from thalweg.optim.search import RateStop
from thalweg.phases.rates import Warmup, first_step


def quadratic(seed=0):
    stream = torch.Generator().manual_seed(seed)
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 4, generator=stream, dtype=torch.float64))
    x = torch.randn(12, 4, generator=stream, dtype=torch.float64) * torch.tensor([3.0, 1.0, 0.5, 0.2])
    return Problem(model, nn.MSELoss(), (x, torch.randn(12, 1, generator=stream, dtype=torch.float64)))


def parts(problem):
    w = problem.initial
    return w, problem.gradient(w), hessian(problem, w).dense()


@pytest.mark.parametrize("seed", range(3))
def test_a_quadratic_is_known_exactly(seed):
    problem = quadratic(seed)
    _, g, H = parts(problem)
    top = float(torch.linalg.eigvalsh(H)[-1])
    truth = float(2 * g @ g / (g @ H @ g))
    report = first_step(problem, rules.GradientDescent(lr=0.5 * truth), tol=1e-4)
    assert report.sharpness == pytest.approx(top, rel=1e-6)
    assert report.local_limit == pytest.approx(2 / top, rel=1e-6)
    assert report.directional == pytest.approx(float(g @ H @ g / (g @ g)), rel=1e-9)
    assert report.quadratic == pytest.approx(truth, rel=1e-9)
    assert report.learning_rate == pytest.approx(truth, rel=1e-4)
    assert report.c1 == pytest.approx(top * truth, rel=1e-4)
    assert report.anharmonicity == pytest.approx(1, rel=1e-4)
    assert report.anharmonicity == pytest.approx(report.c1 * report.directional / (2 * report.sharpness))
    assert report.residual < 1e-3 * top
    assert report.warmup is Warmup.NOT_NEEDED
    assert report.start == report.target == 0.5 * truth
    assert "about the same" in report.describe()
    assert "needs no warm-up" in report.describe()


def test_divergence_of_a_quadratic():
    """In T steps the loss multiplies by (1 - eta lambda)^(2 T) along the sharpest direction."""
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    problem = Problem(model, nn.MSELoss(), (x, 0 * x))  # L = 5 w^2, lambda = 10
    report = first_step(problem, rules.GradientDescent(lr=0.3), steps=6)
    assert report.cutoff == pytest.approx(5e5)
    truth = (1 + (report.cutoff / 5) ** (1 / 12)) / 10
    low, high = report.divergence_bracket
    assert low <= truth <= high <= low * 2**0.1
    assert report.divergence == pytest.approx(math.sqrt(low * high))
    assert report.warmup is Warmup.OPTIONAL
    assert "catapult" in report.describe()
    assert len(report.runs) * 6 >= report.forwards - report.search_forwards > 0
    own = first_step(problem, rules.GradientDescent(lr=0.3), steps=6, cutoff=50.0)
    assert own.divergence < report.divergence
    assert first_step(problem, rules.GradientDescent(lr=1.0)).warmup is Warmup.NEEDED


def test_what_a_warm_up_saves():
    problem = quadratic(0)
    _, g, H = parts(problem)
    critical = float(2 * g @ g / (g @ H @ g))
    report = first_step(problem, rules.GradientDescent(lr=1.0), target=10 * critical, warmup_steps=1000)
    assert report.warmup is Warmup.NEEDED
    assert report.start == report.learning_rate
    assert report.saved_share == pytest.approx(0.1, rel=0.02)
    assert report.saved == pytest.approx(1000 * report.saved_share - report.search_forwards / 2)
    assert f"{report.saved:.3g} of 1000 steps" in report.describe()
    assert first_step(problem, rules.GradientDescent(lr=1.0)).saved is None


def test_a_warm_up_does_not_start_where_short_runs_diverge():
    """Below ``2 g'g / g'Hg`` the first step descends, but beyond ``2 / lambda`` the sharpest direction grows."""
    weights = torch.tensor([[0.05, 3.0]], dtype=torch.float64)
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(weights)
    x = torch.tensor([[10.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    problem = Problem(model, nn.MSELoss(), (x, torch.zeros(2, 1, dtype=torch.float64)))  # curvatures 100 and 1
    report = first_step(problem, rules.GradientDescent(lr=1.0), steps=60)
    assert report.divergence < report.learning_rate
    assert report.start == report.divergence_bracket[0]
    assert report.saved_share == report.start
    assert f"start at {report.start:.4g}, not at the critical" in report.describe()


def test_rules_and_optimizers_see_the_same():
    for rule, kind, settings in (
        (rules.GradientDescent(lr=0.01), torch.optim.SGD, {}),
        (rules.HeavyBall(lr=0.01), torch.optim.SGD, {"momentum": 0.9}),
        (rules.Nesterov(lr=0.01), torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (rules.AdamW(lr=0.01, weight_decay=0.1), torch.optim.AdamW, {"weight_decay": 0.1}),
        (rules.Adam(lr=0.01, weight_decay=0.1), torch.optim.Adam, {"weight_decay": 0.1}),
    ):
        problem = quadratic(1)
        optimizer = kind(problem.model.parameters(), lr=0.01, **settings)
        ours, theirs = (first_step(problem, source, steps=2) for source in (rule, optimizer))
        for name in ("sharpness", "local_limit", "quadratic", "learning_rate", "divergence", "target"):
            assert getattr(theirs, name) == pytest.approx(getattr(ours, name), rel=1e-6), (rule.name, name)
        assert theirs.warmup is ours.warmup


def test_adam_by_hand():
    problem = quadratic(2)
    w, g, H = parts(problem)
    d = g / (g.abs() + 1e-8) + 0.3 * w
    report = first_step(problem, rules.AdamW(lr=0.01, weight_decay=0.3), tol=1e-4)
    assert report.quadratic == pytest.approx(float(2 * d @ g / (d @ H @ d)), rel=1e-8)
    assert report.anharmonicity == pytest.approx(1, rel=1e-4)
    P = 0.1 * (g.abs() + 1e-8)
    top = float(torch.linalg.eigvals(H / P[:, None]).real.max())
    assert report.sharpness == pytest.approx(top, rel=1e-5)
    assert report.local_limit == pytest.approx(38 / (top + 19 * 0.3), rel=1e-5)


def test_an_optimizer_without_a_threshold_is_measured_all_the_same():
    problem = quadratic(1)
    report = first_step(problem, torch.optim.Adam(problem.model.parameters(), lr=0.01, amsgrad=True))
    assert math.isnan(report.local_limit)
    assert any("threshold is not known" in note for note in report.notes)
    plain = first_step(problem, torch.optim.Adam(problem.model.parameters(), lr=0.01))
    assert report.learning_rate == pytest.approx(plain.learning_rate, rel=0.03), "alike at the first step"
    assert "not known" in {row[0]: row[1] for row in report.evidence()}["stable on the quadratic"]


def test_gi_adam_starts_larger():
    problem = quadratic(1)
    adam = torch.optim.Adam(problem.model.parameters(), lr=0.01)
    plain = first_step(problem, adam)
    problem.model.weight.grad = problem.gradient(problem.initial).reshape(1, 4)
    gi_adam_(adam)
    informed = first_step(problem, adam)
    assert informed.learning_rate == pytest.approx(plain.learning_rate / math.sqrt(1 - 0.999), rel=0.05)
    assert informed.sharpness == pytest.approx(plain.sharpness * math.sqrt(1 - 0.999), rel=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_and_everything_else_is_left_alone(training):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    model.train(training)
    x, y = torch.randn(20, 5), torch.randint(0, 3, (20,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"], torch.get_rng_state()))
    grads = [p.grad.clone() for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    report = first_step((model, nn.CrossEntropyLoss(), (x, y)), optimizer, steps=3)
    assert report.learning_rate > 0
    after = (model.state_dict(), optimizer.state_dict()["state"], torch.get_rng_state())
    torch.testing.assert_close(before, after, rtol=0, atol=0)
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, model.parameters()))
    assert modes == [m.training for m in model.modules()]


def test_a_step_that_climbs_says_so():
    problem = quadratic(0)
    w, g, _ = parts(problem)
    rule = rules.HeavyBall(lr=0.01)
    state = rule.init(w) | {"step": torch.tensor(3), "momentum": -5 * g}
    report = first_step(problem, rule, w, state)
    assert report.stop is RateStop.RISES_AT_START
    assert "does not descend" in report.describe()
    assert math.isnan(report.anharmonicity)
    assert report.warmup is not Warmup.NOT_NEEDED


def test_a_loss_that_never_rises():
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    x = torch.ones(4, 1, dtype=torch.float64)
    falling = Problem(model, lambda out, y: nn.functional.softplus(-out).mean(), (x, x))
    report = first_step(falling, rules.GradientDescent(lr=0.1))
    assert report.learning_rate == report.divergence == math.inf
    assert report.warmup is Warmup.NOT_NEEDED
    assert "No learning rate up to" in report.describe()
    assert "none seen" in [row[1] for row in report.evidence()]
    assert len(report.plot().data) == 2


def test_without_a_second_derivative_the_search_is_what_there_is():
    problem = quadratic(0)

    class Square(torch.autograd.Function):
        """Its backward hides what it depends on."""

        @staticmethod
        def forward(ctx, x):
            ctx.slope = 2 * x.detach()
            return x**2

        @staticmethod
        def backward(ctx, force):
            return force.detach() * ctx.slope

    bent = Problem(problem.model, lambda out, goal: Square.apply(out - goal).mean(), next(problem.batches())[0])
    report = first_step(bent, rules.GradientDescent(lr=0.1))
    assert math.isnan(report.sharpness)
    assert math.isnan(report.anharmonicity)
    assert any("no curvature" in note for note in report.notes)
    w, g = bent.initial, bent.gradient(bent.initial)
    low, high = report.bracket
    assert bent.value(w - low * g) < bent.value(w) < bent.value(w - high * g)


def test_nothing_can_be_said():
    problem = quadratic(0)
    _, g, H = parts(problem)
    with pytest.raises(NonFinite, match="no learning rate to look for"):
        first_step(problem, rules.GradientDescent(lr=0.1), problem.initial * math.nan)
    still = problem.initial - torch.linalg.solve(H, g)
    flat = Problem(problem.model, lambda out, y: (out * 0).mean(), next(problem.batches())[0])
    with pytest.raises(InvalidInput, match="does not move"):
        first_step(flat, rules.GradientDescent(lr=0.1), still)
    for wrong in ({"steps": 0}, {"target": -1.0}, {"warmup_steps": 0}):
        with pytest.raises(InvalidInput, match="positive"):
            first_step(problem, rules.GradientDescent(lr=0.1), **wrong)


def test_it_prints_and_draws():
    report = first_step(quadratic(0), rules.GradientDescent(lr=0.1))
    assert "anharmonicity=" in repr(report)
    names = [row[0] for row in report.evidence()]
    assert names[-1] == "cost"
    assert "target" in names
    figure = report.plot()
    assert [trace.name for trace in figure.data] == ["after one step", "largest within 10 steps"]
    assert figure.layout.yaxis.type == "log"


def relu_network(depth, width, seed):
    """ReLU, no biases, variance 2 / fan-in (1 / fan-in in the last layer), digits, mean squared error over classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.data)
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, unbiased=False)
    y = nn.functional.one_hot(torch.tensor(data.target), 10).double()
    stream, layers = torch.Generator().manual_seed(seed), []
    sizes = [64] + [width] * (depth - 1) + [10]
    for number, (a, b) in enumerate(itertools.pairwise(sizes), 1):
        layer = nn.Linear(a, b, bias=False).double()
        with torch.no_grad():
            scale = math.sqrt((2 if number < depth else 1) / a)
            layer.weight.copy_(scale * torch.randn(b, a, generator=stream, dtype=torch.float64))
        layers += [layer, nn.ReLU()]
    return Problem(nn.Sequential(*layers[:-1]), lambda o, t: 0.5 * (o - t).square().mean(), (x, y))


@pytest.mark.slow
def test_deep_narrow_networks_are_beyond_the_quadratic():
    """c1 is far above what local curvature says, the more so with depth over width; a dense scan agrees."""
    found = {}
    for depth, width, seeds in ((4, 64, 5), (8, 64, 5), (4, 256, 2)):
        reports = []
        for seed in range(seeds):
            problem = relu_network(depth, width, seed)
            report = first_step(problem, rules.GradientDescent(lr=1.0), steps=1)
            reports.append(report)
            if seed < 1:
                w = problem.initial
                loss, g = problem.value_and_gradient(w)
                rates = 2.0 ** np.arange(-0.5, 7, 0.1) / report.sharpness
                risen = [eta for eta in rates if not problem.value(w - eta * g) <= loss]
                assert risen[0] / 2**0.1 < report.learning_rate * 1.01
                assert report.learning_rate < risen[0] * 1.01
        assert all(2.0 <= r.quadratic_c1 < 2.7 for r in reports), "the quadratic sees nothing of it"
        found[depth, width] = np.array([r.c1 for r in reports])
    for c1 in (found[4, 64], found[8, 64]):
        assert c1.min() > 4
    assert 4 < np.median(found[4, 64]) < 15
    assert 10 < np.median(found[8, 64]) < 60
    assert np.median(found[8, 64]) > np.median(found[4, 64]) > np.median(found[4, 256])
    assert found[4, 256].max() < 4
