"""The edge against dense eigenvalues, and against rules and torch optimizers that are run on either side of it."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from thalweg import rules
from thalweg.errors import InvalidInput, NotConverged
from thalweg.problem import Problem
from thalweg.rules.direction import update_direction
from thalweg.rules.edge import edge
from thalweg.spectra import Lanczos

N = 7


class Quadratic(nn.Module):
    """``w'Aw / 2`` with the weights in two parameters, 5 and 2 entries."""

    def __init__(self, curvature):
        super().__init__()
        self.body = nn.Parameter(1e-3 * torch.randn(5, dtype=torch.float64))
        self.head = nn.Parameter(1e-3 * torch.randn(2, dtype=torch.float64))
        self.curvature = curvature

    def forward(self):
        w = torch.cat([self.body, self.head])
        return w @ self.curvature @ w / 2


def value(model, batch):
    return model(), len(batch)


def quadratic():
    root = torch.randn(N, N, dtype=torch.float64)
    model = Quadratic(root @ root.T / N + torch.eye(N, dtype=torch.float64) / 2)
    return model, Problem(model, value, [torch.zeros(1)])


def settled(rule, w):
    """A state late in a run: bias corrections done, second moments of different sizes."""
    state = rule.update(rule.init(w), torch.ones_like(w), w)
    state["step"] = torch.tensor(10**6)
    if "nu" in state:
        state["nu"] = torch.rand_like(state["nu"]) + 0.1
    return state


def grows(rule, state, curvature, steps=6000):
    """Run the rule on the quadratic with its second moment held fixed."""
    w = torch.randn(N, dtype=torch.float64)
    w /= w.norm()
    frozen = {key: state[key] for key in ("nu", "step") if key in state and "nu" in state}
    size = torch.zeros(())
    for _ in range(steps):
        gradient = curvature @ w
        state = {**rule.update(state, gradient, w), **frozen}
        w = rule.step(w, state, gradient)
        size = w.norm()
        if size > 1e4:
            return True
        if size < 1e-4:
            return False
    pytest.fail(f"neither grew nor shrank: {size}")


RULES = [
    rules.GradientDescent(lr=0.05),
    rules.GradientDescent(lr=0.05, weight_decay=0.7),
    rules.HeavyBall(lr=0.05),
    rules.HeavyBall(lr=0.05, momentum=0.5, weight_decay=0.7),
    rules.HeavyBall(lr=0.05, momentum=0.9, dampening=0.9),
    rules.Nesterov(lr=0.05),
    rules.Nesterov(lr=0.05, momentum=0.6, weight_decay=0.7),
    rules.ScalarRMSProp(lr=0.05),
    rules.RMSProp(lr=0.05, weight_decay=0.4),
    rules.RMSProp(lr=0.05, bias_correction=True),
    rules.Adam(lr=0.05),
    rules.Adam(lr=0.05, beta1=0.5, weight_decay=0.4),
    rules.AdamW(lr=0.05, weight_decay=0.7),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.describe())
def test_rules_are_stable_up_to_the_largest_stable_rate(rule):
    model, problem = quadratic()
    state = settled(rule, problem.initial)
    found = edge(problem, rule, state=state)
    diagonal = rule.preconditioner(state)
    root = torch.ones(N, dtype=torch.float64) if diagonal is None else diagonal.expand(N).rsqrt()
    decay = 0.0 if rule.decoupled else rule.decay
    dense = root[:, None] * (model.curvature + decay * torch.eye(N, dtype=torch.float64)) * root
    assert found.sharpness == pytest.approx(torch.linalg.eigvalsh(dense)[-1].item(), rel=1e-9)
    assert found.threshold == rule.stability_threshold(10**6)
    for factor in (0.98, 1.02):
        other = dataclasses.replace(rule, lr=factor * found.largest_stable_lr)
        there = edge(problem, other, state=state)
        assert (there.distance < 0) == (factor > 1)
        if not rule.decoupled:
            assert there.distance == pytest.approx(1 - factor)
        assert grows(other, dict(state), model.curvature) == (factor > 1)


def adam_state(optimizer, model, nu):
    """As if 1e14 steps had been taken: with beta2 = 1 - 1e-12, neither bias nor second moment moves any more."""
    places = {"body": slice(0, 5), "head": slice(5, 7)}
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(1e14),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": nu[places[name]].clone(),
        }


def rmsprop_state(optimizer, model, nu):
    adam_state(optimizer, model, nu)
    for entry in optimizer.state.values():
        entry["square_avg"] = entry.pop("exp_avg_sq")


HELD = 1 - 1e-12

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {}, None),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}, None),
    "dampened, decay": (torch.optim.SGD, {"momentum": 0.8, "dampening": 0.5, "weight_decay": 0.3}, None),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, None),
    "rmsprop": (torch.optim.RMSprop, {"alpha": HELD, "weight_decay": 0.2}, rmsprop_state),
    "adam": (torch.optim.Adam, {"betas": (0.9, HELD)}, adam_state),
    "adam, decay": (torch.optim.Adam, {"betas": (0.6, HELD), "weight_decay": 0.3}, adam_state),
    "adamw": (torch.optim.AdamW, {"betas": (0.9, HELD), "weight_decay": 0.5}, adam_state),
}
GROUPS = {
    "one": lambda m, decay: [{"params": m.parameters()}],
    "rates": lambda m, decay: [{"params": [m.body]}, {"params": [m.head], "lr": 0.3}],
    "no decay": lambda m, decay: [{"params": [m.head], "weight_decay": 0.0}, {"params": [m.body]}],
    "both": lambda m, decay: [{"params": [m.body]}, {"params": [m.head], "lr": 0.02, "weight_decay": 3 * decay + 0.1}],
}


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_live_optimizers_are_stable_up_to_the_largest_stable_rate(name, groups):
    kind, options, prepare = OPTIMIZERS[name]
    model, problem = quadratic()
    nu = torch.rand(N, dtype=torch.float64) + 0.1
    initial = problem.initial
    for factor in (0.98, 1.02):
        problem.load(initial)
        optimizer = kind(GROUPS[groups](model, options.get("weight_decay", 0.0)), lr=0.1, **options)
        if prepare:
            prepare(optimizer, model, nu)
        found = edge(problem, optimizer)
        scale = factor * found.largest_stable_lr / found.learning_rate
        for group in optimizer.param_groups:
            group["lr"] *= scale
        there = edge(problem, optimizer)
        assert (there.distance < 0) == (factor > 1)
        for _ in range(6000):
            optimizer.zero_grad()
            model().backward()
            optimizer.step()
            if not 1e-6 < problem.initial.norm() < 10:
                break
        assert (problem.initial.norm() > 1) == (factor > 1), problem.initial.norm()


def test_published_thresholds_of_live_optimizers():
    model, problem = quadratic()
    momentum = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert edge(problem, momentum).threshold == pytest.approx(3.8 / 0.1)
    adam = torch.optim.Adam(model.parameters(), lr=0.1)
    model().backward()
    adam.step()
    assert edge(problem, adam).threshold == pytest.approx(38 / 0.1)


def test_the_answer_can_be_read():
    model, problem = quadratic()
    top = torch.linalg.eigvalsh(model.curvature)[-1].item()
    found = edge(problem, rules.GradientDescent(lr=1.5 / top), k=3)
    assert found.ratio == pytest.approx(0.75)
    assert found.distance == pytest.approx(0.25)
    assert found.largest_stable_lr == pytest.approx(2 / top)
    assert found.describe().startswith("25% below the edge of stability")
    assert "distance=0.25" in repr(found)
    assert found.eigenpairs.values.shape == (3,)
    assert found.residual <= 1e-6 * top
    assert "edge of stability" in found.plot().to_json()
    beyond = edge(problem, rules.GradientDescent(lr=3 / top))
    assert beyond.describe().startswith("50% beyond")
    with pytest.raises(NotConverged):
        edge(problem, rules.GradientDescent(lr=1.0), method=Lanczos(tol=1e-14, max_products=1))


def test_without_positive_curvature_every_rate_is_stable():
    model, problem = quadratic()
    model.curvature = -model.curvature
    found = edge(problem, rules.GradientDescent(lr=1.0))
    assert found.largest_stable_lr == math.inf
    assert found.describe().startswith("No direction of positive curvature")
    assert found.distance > 1


def test_a_schedule_counts_at_the_next_update():
    _, problem = quadratic()
    rule = rules.GradientDescent(lr=rules.Step(1.0, 0.5, 1))
    state = {"step": torch.tensor(3)}
    assert edge(problem, rule, state=state).threshold == 2 / 0.125
    assert edge(problem, rules.GradientDescent(lr=0.0)).ratio == 0


def test_another_curvature_can_be_given():
    from thalweg.operators import from_dense

    _, problem = quadratic()
    operator = from_dense(torch.diag(torch.arange(N, dtype=torch.float64)))
    assert edge(problem, rules.GradientDescent(lr=1.0), operator=operator).sharpness == pytest.approx(N - 1)


def test_a_restricted_problem_reads_its_part_of_the_optimizer():
    model, _ = quadratic()
    head = Problem(model, value, [torch.zeros(1)], parameters="head")
    optimizer = torch.optim.SGD([{"params": [model.body], "lr": 1.0}, {"params": [model.head], "lr": 0.1}], lr=1.0)
    found = edge(head, optimizer)
    assert found.sharpness == pytest.approx(torch.linalg.eigvalsh(model.curvature[5:, 5:])[-1].item())
    assert found.threshold == 20


def test_nothing_of_the_users_is_changed(untouched):
    model, problem = quadratic()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model().backward()
    optimizer.step()
    before = {id(p): {k: v.clone() for k, v in entry.items()} for p, entry in optimizer.state.items()}
    with untouched(model):
        edge(problem, optimizer)
        update_direction(problem, optimizer)
    for p, entry in optimizer.state.items():
        assert all(torch.equal(v, before[id(p)][k]) for k, v in entry.items())


def test_what_has_no_edge_is_refused():
    model, problem = quadratic()
    weights = list(model.parameters())
    adam = torch.optim.Adam
    for optimizer, words in (
        (adam(weights, lr=0.1), "No update has been taken with a gradient of body"),
        (adam(weights, lr=0.1, amsgrad=True), "amsgrad"),
        (adam(weights, lr=0.1, maximize=True), "maximize"),
        (torch.optim.RMSprop(weights, lr=0.1, centered=True), "centered"),
        (torch.optim.Adagrad(weights), "Adagrad"),
        (torch.optim.SGD([model.body], lr=0.1), "does not hold the parameter 'head'"),
        (torch.optim.SGD([{"params": [model.body], "momentum": 0.5}, {"params": [model.head]}], lr=0.1), "momentum"),
        (torch.optim.SGD([{"params": [model.body]}, {"params": [model.head], "lr": 0.0}], lr=0.1), "of head is 0"),
    ):
        with pytest.raises(InvalidInput, match=words):
            edge(problem, optimizer)
    with pytest.raises(InvalidInput, match="holds its own"):
        edge(problem, torch.optim.SGD(weights, lr=0.1), state={})
    with pytest.raises(InvalidInput, match="how weights are updated"):
        edge(problem, 0.1)
    rule = rules.RMSProp(lr=0.1, eps=0.0)
    state = rule.update(rule.init(problem.initial), torch.zeros(N, dtype=torch.float64), problem.initial)
    with pytest.raises(InvalidInput, match="not positive has no edge"):
        edge(problem, rule, state=state)
    with pytest.raises(InvalidInput, match="Take a step first"):
        edge(problem, rule)
    with pytest.raises(InvalidInput, match="has shape"):
        edge(problem, rule, state={**state, "nu": torch.ones(3)})
    wild = rules.AdamW(lr=10.0, weight_decay=0.5)
    with pytest.raises(InvalidInput, match="decay alone"):
        edge(problem, wild, state=settled(wild, problem.initial))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.describe())
def test_the_direction_is_the_next_update(rule):
    _, problem = quadratic()
    w = torch.randn(N, dtype=torch.float64)
    state = settled(rule, w)
    gradient = problem.gradient(w)
    after, _ = rule.advance(w, state, gradient)
    direction = update_direction(problem, rule, w, state)
    torch.testing.assert_close(w - rule.learning_rate_at(0) * direction, after, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(update_direction(problem, rule, w, state, gradient=gradient), direction)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_direction_is_the_next_step_of_a_live_optimizer(name, groups):
    kind, options, _ = OPTIMIZERS[name]
    options = {**options, **({"betas": (0.9, 0.99)} if "betas" in options else {})}
    model, problem = quadratic()
    optimizer = kind(GROUPS[groups](model, 0.1), lr=0.1, **options)
    for _ in range(3):
        direction, before = update_direction(problem, optimizer), problem.initial
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
        torch.testing.assert_close(before - 0.1 * direction, problem.initial, rtol=1e-9, atol=1e-15)


def test_a_float32_model_and_optimizer():
    model, _ = quadratic()
    narrow = torch.optim.Adam(model.float().parameters(), lr=0.1)
    model.curvature = model.curvature.float()
    model().backward()
    narrow.step()
    rough = edge(Problem(model, value, [torch.zeros(1)]), narrow)
    root = torch.cat([narrow.state[p]["exp_avg_sq"] for p in model.parameters()]).double()
    root = (0.1 * ((root / 1e-3).sqrt() + 1e-8)).rsqrt()
    dense = root[:, None] * model.curvature.double() * root
    assert rough.sharpness == pytest.approx(torch.linalg.eigvalsh(dense)[-1].item(), rel=1e-4)
