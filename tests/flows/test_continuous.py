"""The central flow as a differential equation: closed forms, convergence to the equation, cost, restart."""

import numpy as np
import pytest
import torch
from toys import digits, of_weights, two_valleys, valley

from thalweg import Problem
from thalweg.errors import InvalidInput, NotConverged
from thalweg.flows.continuous import CentralFlow
from thalweg.flows.forecast import central_flow
from thalweg.flows.reference import CentralReference, Euler
from thalweg.flows.registry import law_of
from thalweg.flows.settings import FlowSettings, Settings
from thalweg.rules import Constant, GradientDescent, HeavyBall, RMSProp, ScalarRMSProp, Warmup


def begin(kind, problem, rule, *settings):
    return kind(problem, law_of(rule), problem.initial, rule.init(problem.initial), *settings)


def little(samples=12):
    """MLP 3-8-2 with tanh, and targets that it does not reach."""
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 3, generator=stream, dtype=torch.float64)
    y = torch.randn(samples, 2, generator=stream, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    return Problem(model, torch.nn.MSELoss(), (x, y))


def test_one_valley_begins_to_oscillate_when_it_reaches_the_limit():
    """y rises at the rate eta e; once it is 2 / eta the variance is -2 h' = 2 e, and nothing moves."""
    eta, e = 0.3, 0.01
    flow = begin(CentralFlow, valley(e=e, z=0.0, start=(0.0, 6.5)), GradientDescent(lr=eta))
    frames = [flow.step() for _ in range(80)]
    assert [f.time for f in frames] == list(range(80))
    onset = (2 / eta - 6.5) / (eta * e)
    for f in frames:
        expected = 0.0 if f.time < onset else 2 * e
        if abs(f.time - onset) > 1.5:
            assert f.values["total_variance"] == pytest.approx(expected, rel=5e-3), f.time
            assert float(f.w[1]) == pytest.approx(min(6.5 + eta * e * f.time, 2 / eta), rel=1e-4)
    assert float(frames[-1].eigenvalues[0]) == pytest.approx(2.0, abs=1e-5)
    assert abs(frames[-1].values["loss"] - frames[-10].values["loss"]) < 1e-8


def test_an_offset_across_the_valley_decays_as_in_the_equation():
    flow = begin(CentralFlow, valley(e=0.01, z=0.0, start=(0.05, 6.66)), GradientDescent(lr=0.3))
    rest = 0.01 * 0.3 / 2
    for t in range(20):
        x = float(flow.step().w[0])
        assert x == pytest.approx(rest + (0.05 - rest) * np.exp(-2 * t), abs=1e-4 + 0.03 * np.exp(-2 * t))


def test_two_valleys_take_the_projection_of_the_slope():
    slope = torch.tensor([-0.01, 0.004, -0.006], dtype=torch.float64)
    flow = begin(CentralFlow, two_valleys(slope, (0.0, 0.0, 6.66, 0.0, 6.66)), GradientDescent(lr=0.3))
    last = [flow.step() for _ in range(60)][-1]
    root = 2.0**0.5
    expected = -2 * torch.tensor([[slope[0], slope[1] / root], [slope[1] / root, slope[2]]])
    axes = last.directions[:2]
    torch.testing.assert_close(axes @ torch.diag(last.X) @ axes.T, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("beta2", [0.5, 0.9, 0.99])
def test_scalar_rmsprop_has_the_variance_of_its_closed_form(beta2):
    eta, e = 0.05, 0.02
    rule = ScalarRMSProp(lr=eta, beta2=beta2, eps=0.0)
    problem = valley(e=e, z=0.0, start=(0.0, 3.0))
    nu = (eta * 3.0 / 2) ** 2 / beta2
    state = rule.init(problem.initial) | {"nu": torch.tensor(nu, dtype=torch.float64)}
    flow = CentralFlow(problem, law_of(rule), problem.initial, state)
    frames = [flow.step() for _ in range(40)]
    c = (1 - beta2) / beta2
    dS = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for frame in frames[5::5]:
        S, g = float(frame.w[1]), problem.gradient(frame.w)
        expected = (-2 * float(g @ dS) + c * (S**2 / 2 - 2 * float(g @ g) / eta**2)) / (1 + 2 * c * S**2 / eta**2)
        assert frame.values["total_variance"] == pytest.approx(expected, rel=2e-2)
        assert float(frame.eigenvalues[0]) == pytest.approx(2.0, abs=3e-3)


def test_the_ablated_flow_lets_the_metric_alone_keep_the_limit():
    """Then the speed along the valley is 2 / S times the slope."""
    e, rule = 0.02, ScalarRMSProp(lr=0.25, beta2=0.9, eps=0.0)
    problem = valley(e=e, z=0.0, start=(0.0, 3.0))
    state = rule.init(problem.initial) | {"nu": torch.tensor((0.25 * 3.0 / 2) ** 2, dtype=torch.float64)}
    flow = CentralFlow(problem, law_of(rule), problem.initial, state, FlowSettings(ablated=True))
    frames = [flow.step() for _ in range(50)]
    S = float(frames[-2].w[1])
    assert float(frames[-1].w[1]) - S == pytest.approx(2 / S * e, rel=2e-2)
    assert float(frames[-1].eigenvalues[0]) == pytest.approx(2.0, abs=1e-2)


@pytest.mark.parametrize(
    ("rule", "warm"),
    [
        pytest.param(GradientDescent(lr=0.8), 12, marks=pytest.mark.slow),
        pytest.param(ScalarRMSProp(lr=0.1, beta2=0.9), 10, marks=pytest.mark.slow),
        pytest.param(RMSProp(lr=0.01, beta2=0.9, bias_correction=True, weight_decay=1e-3), 10, marks=pytest.mark.slow),
    ],
)
def test_it_is_what_small_euler_steps_converge_to(rule, warm):
    """Errors of Euler's method fall with its step: a quarter at a fourth of it."""
    problem, time = little(), 15
    w, state = problem.initial, rule.init(problem.initial)
    for _ in range(warm):
        w, state = rule.advance(w, state, problem.gradient(w))
    flow = CentralFlow(problem, law_of(rule), w, state, FlowSettings(accuracy=3e-4))
    truth = [flow.step() for _ in range(time)]
    loss = np.array([f.values["loss"] for f in truth])
    assert sum(f.values["total_variance"] > 0 for f in truth) > time / 3
    errors = []
    for substeps in (4, 16):
        euler = CentralReference(problem, law_of(rule), w, state, Euler(substeps=substeps, refresh="substep"))
        found = np.array([euler.step().values["loss"] for _ in range(time)])
        errors.append(np.abs(found / loss - 1).max())
    assert errors[1] < 0.35 * errors[0]
    assert errors[1] < 5e-3


def test_the_loss_converges_as_the_accuracy_is_raised():
    problem, rule, time = little(), GradientDescent(lr=0.8), 40
    asked = (3e-2, 3e-3, 3e-4)
    runs = []
    for accuracy in asked:
        flow = begin(CentralFlow, problem, rule, FlowSettings(accuracy=accuracy))
        frames = [flow.step() for _ in range(time)]
        runs.append(np.array([f.values["loss"] for f in frames]))
        exact = np.array([float(problem.value(f.w)) for f in frames[::7]])
        assert np.abs(runs[-1][::7] / exact - 1).max() < accuracy / 3, "interpolation is no worse than the steps"
    errors = [np.abs(run / runs[-1] - 1).max() for run in runs[:2]]
    assert errors[0] < asked[0]
    assert errors[1] < asked[1]
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_invariants_and_cost_along_the_flow_of_a_network(dtype):
    flow = begin(CentralFlow, digits(dtype), GradientDescent(lr=0.2))
    frames = [flow.step() for _ in range(60)]
    free = flow.ledger.equivalents / flow.time
    start, spent = flow.time, flow.ledger.equivalents
    frames += [flow.step() for _ in range(140)]
    critical = [f for f in frames if f.X is not None]
    assert len(critical) > 80
    assert max(float(f.eigenvalues[0]) for f in frames) <= 2 + 1e-2
    assert np.diff([f.values["loss"] for f in frames]).max() <= 0, "the loss along the flow of descent never rises"
    for f in critical[::20]:
        gram = f.directions.T @ (f.directions * f.metric.to(f.directions))
        torch.testing.assert_close(gram, torch.eye(len(gram), dtype=dtype), rtol=0, atol=1e-5)
        assert float(f.X.min()) >= 0
        assert f.values["residual"] < 1e-9
    assert free < 2.5
    assert (flow.ledger.equivalents - spent) / (flow.time - start) < 4


@pytest.mark.parametrize(
    "rule",
    [
        GradientDescent(lr=0.8),
        pytest.param(RMSProp(lr=0.01, beta2=0.9, bias_correction=True), marks=pytest.mark.slow),
    ],
)
def test_a_resumed_flow_has_the_same_bits(rule):
    problem, time = little(), 36
    w, state = problem.initial, rule.init(problem.initial)
    for _ in range(10 if "nu" in state else 0):
        w, state = rule.advance(w, state, problem.gradient(w))
    whole = CentralFlow(problem, law_of(rule), w, state)
    frames = [whole.step() for _ in range(time)]
    for cut in (5, 21):
        part = CentralFlow(problem, law_of(rule), w, state)
        for _ in range(cut):
            part.step()
        again = CentralFlow(problem, law_of(rule), w, state)
        again.load_state_dict(part.state_dict())
        rest = [again.step() for _ in range(time - cut)]
        for one, other in zip(frames[cut:], rest, strict=True):
            assert one.values == other.values
            assert torch.equal(one.w, other.w)
    assert any(f.X is not None for f in rest)


def test_schedules_move_the_limit():
    rule = GradientDescent(lr=Warmup(steps=60, then=Constant(0.25), start=0.05))
    flow = begin(CentralFlow, digits(torch.float64, samples=100), rule)
    frames = [flow.step() for _ in range(120)]
    assert max(float(f.eigenvalues[0]) for f in frames) < 2.01
    assert float(frames[-1].metric) == pytest.approx(4.0)


def test_a_forecast_in_flow_mode():
    flow = central_flow(digits(), GradientDescent(lr=0.2), 150, mode="flow", processes=("discrete", "central"))
    found = flow.compare()
    assert flow.mode == "flow"
    assert found.loss_error < 1e-2
    assert found.loss_error < 0.7 * found.loss_error_without
    assert 0.03 < found.distance < 0.08, "the equation is not the rule, whose steps are of length one"
    assert flow.cost["central"] < 3.5


@pytest.mark.slow
def test_a_long_forecast_agrees_with_training_on_average():
    flow = central_flow(digits(), GradientDescent(lr=0.2), 700, mode="flow", processes=("discrete", "central"))
    found = flow.compare()
    assert found.loss_error < 4.5e-3
    assert 0.04 < found.distance < 0.075
    assert found.largest_eigenvalue < 2.01


def test_a_curvature_that_leaps_past_the_limit_is_told():
    def loss(w):
        leap = torch.sigmoid(1e5 * (w[1] - 1.01))
        return 0.5 * (1 + 7 * leap) * w[0] ** 2 - 0.05 * w[1]

    with pytest.raises(NotConverged, match="limit is 2") as caught:
        central_flow(of_weights(loss, 0.0, 0.0), GradientDescent(lr=0.5), 80, mode="flow", processes=("central",))
    assert caught.value.result.data.sizes["time"] > 20


def test_what_the_equation_does_not_cover_is_refused():
    problem = little()
    with pytest.raises(InvalidInput, match="without momentum only"):
        central_flow(problem, HeavyBall(lr=0.1), 5, mode="flow")
    with pytest.raises(InvalidInput, match="FlowSettings"):
        central_flow(problem, GradientDescent(lr=0.1), 5, mode="flow", settings=Settings())
    for settings in ({"accuracy": 0.0}, {"shortest": 2.0}):
        with pytest.raises(InvalidInput, match="shortest"):
            FlowSettings(**settings)
