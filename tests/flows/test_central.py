"""The central flow on toys with closed forms, its invariants, and its forecast of real training."""

import numpy as np
import pytest
import torch
from toys import digits, of_weights, two_valleys, valley

from thalweg.errors import InvalidInput, NonFinite, NotConverged, NotDifferentiable
from thalweg.flows.central import CentralMap
from thalweg.flows.forecast import central_flow
from thalweg.flows.midpoint import Midpoint
from thalweg.flows.process import Discrete
from thalweg.flows.reference import CentralReference, Euler
from thalweg.flows.registry import law_of
from thalweg.flows.settings import Settings
from thalweg.flows.stable import StableFlow
from thalweg.rules import Adam, Constant, GradientDescent, HeavyBall, Nesterov, RMSProp, ScalarRMSProp, Warmup


def begin(kind, problem, rule, *settings):
    return kind(problem, law_of(rule), problem.initial, rule.init(problem.initial), *settings)


@pytest.mark.parametrize(("kind", "settings"), [(CentralMap, Settings()), (CentralReference, Euler(substeps=4))])
def test_one_valley_stays_at_the_limit_with_the_variance_of_the_closed_form(kind, settings):
    eta, e = 0.3, 0.01
    flow = begin(kind, valley(e=e, z=0.0, start=(0.0, 6.5)), GradientDescent(lr=eta), settings)
    frames = [flow.step() for _ in range(80)]
    last = frames[-1]
    assert float(flow.w[1]) == pytest.approx(2 / eta, rel=1e-4), "y rises to 2 / eta and stays"
    assert last.values["total_variance"] == pytest.approx(2 * e, rel=2e-3), "sigma^2 = -2 h'"
    assert float(last.eigenvalues[0]) == pytest.approx(2.0, abs=1e-3)
    assert abs(last.values["loss"] - frames[-2].values["loss"]) < 1e-7, "the loss along the flow stands still"


@pytest.mark.parametrize(
    "rule",
    [
        GradientDescent(lr=0.3),
        HeavyBall(lr=0.3, momentum=0.5),
        HeavyBall(lr=0.3, momentum=0.5, dampening=0.5),
        Nesterov(lr=0.3, momentum=0.5),
    ],
)
def test_one_valley_and_the_rule_itself_agree_on_limit_and_variance(rule):
    """In the tilted valley: y rises to the rule's threshold, and the variance is -2 h' = 2 e, with momentum too."""
    e, limit = 0.01, rule.stability_threshold()
    flow = begin(CentralMap, valley(e=e, z=0.0, start=(0.0, limit - 0.1)), rule)
    frames = [flow.step() for _ in range(200)]
    assert float(flow.w[1]) == pytest.approx(limit, rel=1e-3)
    assert frames[-1].values["total_variance"] == pytest.approx(2 * e, rel=5e-3)

    problem = valley(e=e, start=(0.05, limit - 1.0))
    truth = begin(Discrete, problem, rule)
    assert truth.step().values["loss"] == pytest.approx(float(problem.value(problem.initial)))
    points, w, state = [], problem.initial, rule.init(problem.initial)
    for _ in range(8_000):  # by hand: the closed form of the gradient is far quicker
        x, y = w.tolist()
        w, state = rule.advance(w, state, torch.tensor([y * x + 1.5 * x * x - e, 0.5 * x * x - e]).double())
        points.append((x, y))
    late = np.array(points[4000:])
    assert late[:, 1].mean() == pytest.approx(limit, rel=2e-2)
    assert late[:, 0].var() == pytest.approx(2 * e, rel=3e-2)


def test_the_midpoint_process_removes_what_has_period_two():
    """On a quadratic: the slow mode stays, the mode with multiplier -0.9 shrinks by (1 - 0.9)^2 / (4 x 0.9)."""
    problem = of_weights(lambda w: 0.5 * (0.1 * w[0] ** 2 + 1.9 * w[1] ** 2), 1.0, 1.0)
    rule = GradientDescent(lr=1.0)
    middle, truth = begin(Midpoint, problem, rule), begin(Discrete, problem, rule)
    pairs = [(middle.step().w, truth.step().w) for _ in range(12)]
    assert torch.equal(*pairs[0])
    for m, w in pairs[1:]:
        assert float(m[0] / w[0]) == pytest.approx((1 / 0.9 + 2 + 0.9) / 4)
        assert float(m[1] / w[1]) == pytest.approx((-1 / 0.9 + 2 - 0.9) / 4)
    other = begin(Midpoint, problem, rule)
    other.load_state_dict(middle.state_dict())
    for _ in range(3):
        assert torch.equal(other.step().w, middle.step().w)


def test_the_ablated_flow_lets_the_metric_alone_keep_the_limit():
    """The step along the valley is 2/S times the slope: without the penalty all of it, else less half the variance."""
    e, rule = 0.02, ScalarRMSProp(lr=0.25, beta2=0.9, eps=0.0)
    problem = valley(e=e, z=0.0, start=(0.0, 3.0))
    state = rule.init(problem.initial) | {"nu": torch.tensor((0.25 * 3.0 / 2) ** 2, dtype=torch.float64)}
    ends = []
    for ablated in (False, True):
        flow = CentralMap(problem, law_of(rule), problem.initial, state, Settings(ablated=ablated))
        frames = [flow.step() for _ in range(60)]
        S, variance = float(frames[-2].w[1]), frames[-2].values["total_variance"]
        step = float(frames[-1].w[1]) - S
        assert variance > e / 4
        assert step == pytest.approx(2 / S * (e - (0.0 if ablated else variance / 2)), rel=3e-2)
        assert float(frames[-1].eigenvalues[0]) == pytest.approx(2.0, abs=2e-2)
        ends.append(S)
    assert ends[1] > ends[0] + 0.1, "nothing holds the sharpness back"


def test_two_valleys_take_the_projection_of_the_slope():
    eta = 0.3
    slope = torch.tensor([-0.01, 0.004, -0.006], dtype=torch.float64)
    flow = begin(CentralMap, two_valleys(slope, (0.0, 0.0, 6.66, 0.0, 6.66)), GradientDescent(lr=eta))
    frames = [flow.step() for _ in range(60)]
    last = frames[-1]
    root = 2.0**0.5
    expected = -2 * torch.tensor([[slope[0], slope[1] / root], [slope[1] / root, slope[2]]])
    assert float(torch.linalg.eigvalsh(expected)[0]) > 0, "both directions oscillate"
    # Variances are in the metric P = 1 / eta.
    torch.testing.assert_close(last.X * eta, torch.linalg.eigvalsh(expected).flip(0), rtol=5e-3, atol=1e-6)
    axes = last.directions[:2]
    sigma = axes @ torch.diag(last.X) @ axes.T
    torch.testing.assert_close(sigma, expected, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("beta2", [0.5, 0.9, 0.99])
def test_scalar_rmsprop_has_the_variance_of_its_closed_form(beta2):
    eta, e = 0.05, 0.02
    rule = ScalarRMSProp(lr=eta, beta2=beta2, eps=0.0)
    problem = valley(e=e, z=0.0, start=(0.0, 3.0))
    nu = (eta * 3.0 / 2) ** 2 / beta2  # the flow takes in a first gradient of almost nothing
    state = rule.init(problem.initial) | {"nu": torch.tensor(nu, dtype=torch.float64)}
    flow = CentralReference(problem, law_of(rule), problem.initial, state, Euler(substeps=32, refresh="substep"))
    frame = [flow.step() for _ in range(4)][-1]
    S = float(frame.w[1])
    c = (1 - beta2) / beta2
    g = problem.gradient(frame.w)
    dS = torch.tensor([0.0, 1.0], dtype=torch.float64)
    expected = (-2 * float(g @ dS) + c * (S**2 / 2 - 2 * float(g @ g) / eta**2)) / (1 + 2 * c * S**2 / eta**2)
    assert expected > 0
    assert frame.values["total_variance"] == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize(
    ("dtype", "settings", "bound"),
    [(torch.float32, Settings(), 4e-3), (torch.float64, Settings(tolerance=2e-4), 1e-3)],
    ids=["float32, default", "float64, tight"],
)
def test_invariants_along_the_flow_of_a_network(dtype, settings, bound):
    flow = begin(CentralMap, digits(dtype), GradientDescent(lr=0.2), settings)
    frames = [flow.step() for _ in range(200)]
    critical = [f for f in frames if f.X is not None]
    assert len(critical) > 80
    assert max(float(f.eigenvalues[0]) for f in frames) <= 2 + bound
    assert np.diff([f.values["loss"] for f in frames]).max() <= 0, "the loss along the flow of descent never rises"
    for f in critical[::20]:
        gram = f.directions.T @ (f.directions * f.metric.to(f.directions))
        torch.testing.assert_close(gram, torch.eye(len(gram), dtype=dtype), rtol=0, atol=1e-5)
        assert float(f.X.min()) >= 0
        assert f.values["residual"] < 1e-9


def test_before_the_edge_the_map_is_the_rule_itself():
    problem, rule = digits(torch.float64), RMSProp(lr=2e-5, beta2=0.9, weight_decay=1e-3)
    flow, truth = begin(CentralMap, problem, rule), begin(Discrete, problem, rule)
    for _ in range(12):
        flow.step(), truth.step()
    # The map may be some steps ahead within its segment.
    while truth.time < flow.time:
        truth.step()
    torch.testing.assert_close(flow.w, truth.w, rtol=1e-12, atol=1e-14)


def test_end_points_are_those_of_the_time_that_was_asked_for():
    """Segments go on for longer: the first one here for eight units."""
    flow = central_flow(digits(torch.float64), GradientDescent(lr=0.02), 5)
    torch.testing.assert_close(flow.points["central"], flow.points["discrete"], rtol=1e-12, atol=1e-14)


def test_squared_gradients_of_single_weights_average_as_predicted():
    """In the tilted valley the oscillation is along x: its squared gradient averages ``S^2 sigma^2 = S^2 2 e``."""
    e, eta = 0.01, 0.3
    flow = central_flow(valley(e=e, start=(0.05, 6.6)), GradientDescent(lr=eta), 2000)
    late = flow.data.isel(time=slice(800, None))
    assert late["coordinate"].values.tolist() == [0, 1]
    measured = late["squared_gradient_sample_discrete"].sel(coordinate=0).mean()
    predicted = late["predicted_squared_gradient_sample"].sel(coordinate=0).mean()
    assert float(predicted) == pytest.approx((2 / eta) ** 2 * 2 * e, rel=2e-2)
    assert float(measured / predicted) == pytest.approx(1, rel=5e-2)
    total = flow.data["predicted_squared_gradient_sample"].sum("coordinate")
    np.testing.assert_allclose(total, flow.data["predicted_squared_gradient"], rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "bounds"),
    [
        (GradientDescent(lr=0.2), (1e-6, 2e-4, 2e-3)),
        (ScalarRMSProp(lr=0.04, bias_correction=True), (2e-2, 2e-2, 2e-2)),  # Euler averages squares otherwise
    ],
)
def test_the_map_agrees_with_euler_steps_of_the_same_length(rule, bounds):
    """To rounding with derivatives renewed at each step, else to the tolerance that was asked for."""
    problem = digits(torch.float64)
    w, state = problem.initial, rule.init(problem.initial)
    for _ in range(10):
        w, state = rule.advance(w, state, problem.gradient(w))
    euler = CentralReference(problem, law_of(rule), w, state, Euler(substeps=1, third="exact"))
    truth = np.array([euler.step().values["predicted_loss"] for _ in range(120)])
    every = (
        Settings(third="exact", max_interval=1, damped=False, eigen_tol=1e-6),
        Settings(tolerance=2e-4),
        Settings(tolerance=2e-3),
    )
    for settings, bound in zip(every, bounds, strict=True):
        flow = CentralMap(problem, law_of(rule), w, state, settings)
        frames = [flow.step() for _ in range(120)]
        loss = np.array([f.values["predicted_loss"] for f in frames])
        assert np.abs(loss / truth - 1).max() < bound
        assert max(f.values["total_variance"] for f in frames) > 0


@pytest.mark.parametrize("damped", [True, False])
def test_the_flow_itself_does_not_bounce(damped):
    """Where x has an offset, a step of length one at the limit only turns its sign; the flow lets it decay."""
    flow = begin(
        CentralMap, valley(e=0.01, z=0.0, start=(0.05, 6.66)), GradientDescent(lr=0.3), Settings(damped=damped)
    )
    xs = [float(flow.step().w[0]) for _ in range(40)]
    assert (abs(xs[-1] - 0.01 * 0.3 / 2) < 1e-6) is damped
    assert (xs[-1] * xs[-2] < -1e-4) is not damped


def test_a_stable_flow_that_becomes_stiff_ends_alone(monkeypatch):
    problem, rule = valley(start=(0.1, 2.0)), GradientDescent(lr=0.3)
    stiff = begin(StableFlow, problem, rule, 1e-9, 1)
    with pytest.raises(NonFinite, match="stiff"):
        stiff.step()

    def fail(self):
        raise NonFinite("too stiff")

    monkeypatch.setattr(StableFlow, "step", fail)
    flow = central_flow(problem, rule, 3, processes=("central", "stable"))
    assert flow.processes == ("central",)
    assert "too stiff" in flow.notes[0]


def test_a_resumed_flow_has_the_same_bits():
    problem, rule = digits(torch.float64, samples=100), GradientDescent(lr=0.3)
    whole = begin(CentralMap, problem, rule)
    frames = [whole.step() for _ in range(100)]
    part = begin(CentralMap, problem, rule)
    for _ in range(67):
        part.step()
    again = begin(CentralMap, problem, rule)
    again.load_state_dict(part.state_dict())
    rest = [again.step() for _ in range(33)]
    for one, other in zip(frames[67:], rest, strict=True):
        assert one.values == other.values
        assert torch.equal(one.w, other.w)
    assert any(f.X is not None for f in rest)


def test_stable_flow_of_a_quadratic_is_exponential():
    eta, h = 0.1, 3.0
    problem = of_weights(lambda w: 0.5 * h * w[0] ** 2, 2.0)
    rule = GradientDescent(lr=eta)
    flow = StableFlow(problem, law_of(rule), problem.initial, rule.init(problem.initial), 1e-5)
    for t in range(12):
        assert flow.step().w.item() == pytest.approx(2 * np.exp(-eta * h * t), rel=1e-4)
    saved = flow.state_dict()
    other = begin(StableFlow, problem, rule, 1e-5)
    other.load_state_dict(saved)
    assert [flow.step().w.item() for _ in range(5)] == [other.step().w.item() for _ in range(5)]


def test_a_forecast_of_training_at_the_edge():
    """Case B of the reference runs: digits, 30 % random labels, full-batch descent at 0.2."""
    flow = central_flow(digits(), GradientDescent(lr=0.2), 400, processes=("discrete", "central", "stable"))
    found = flow.compare()
    assert found.loss_error < 4e-3
    assert found.loss_error_max < 1.5e-2
    assert found.loss_error < 0.5 * found.loss_error_without, "the oscillation explains most of the gap"
    assert found.distance < 0.02
    assert found.distance < 0.25 * found.stable_distance
    assert 0.8 < found.variance_ratio < 1.25
    assert flow.cost["central"] < 6
    assert flow.data["predicted_loss"].attrs["units"] == "loss"
    figure = flow.plot()
    assert len(figure.data) > 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "samples", "noise", "warm"),
    [
        (ScalarRMSProp(lr=0.04, bias_correction=True), 300, 0.3, 10),
        (RMSProp(lr=5e-4, bias_correction=True), 500, 0.0, 5),
    ],
)
def test_forecasts_of_rules_that_average_squares(rule, samples, noise, warm):
    found = central_flow(digits(samples=samples, noise=noise), rule, 300, warm_start=warm).compare()
    assert found.loss_error < 8e-3
    assert found.distance < 0.05
    assert found.largest_eigenvalue < 2.01


def test_schedules_move_the_limit():
    rule = GradientDescent(lr=Warmup(steps=60, then=Constant(0.25), start=0.05))
    flow = begin(CentralMap, digits(torch.float64, samples=100), rule)
    frames = [flow.step() for _ in range(150)]
    assert max(float(f.eigenvalues[0]) for f in frames) < 2.02
    assert float(frames[-1].metric) == pytest.approx(4.0)


def test_what_cannot_be_forecast_is_refused():
    problem = digits(torch.float64, samples=50)
    with pytest.raises(InvalidInput, match="without momentum only"):
        central_flow(problem, Adam(), 5, mode="reference")
    with pytest.raises(InvalidInput, match="without momentum only"):
        central_flow(problem, HeavyBall(lr=0.1), 5, processes=("central", "stable"))
    with pytest.raises(InvalidInput, match="metric alone"):
        central_flow(problem, GradientDescent(lr=0.1), 5, settings=Settings(ablated=True))
    with pytest.raises(InvalidInput, match="unstable"):
        central_flow(problem, GradientDescent(lr=50.0), 5)
    with pytest.raises(InvalidInput, match="midpoints"):
        central_flow(problem, GradientDescent(lr=0.1), 5, processes=("midpoints",))
    with pytest.raises(InvalidInput, match="mode"):
        central_flow(problem, GradientDescent(lr=0.1), 5, mode="exact")
    relu = digits(torch.float64, samples=100, activation=torch.nn.ReLU)
    with pytest.raises(NotDifferentiable):
        central_flow(relu, GradientDescent(lr=0.3), 300)


def test_a_flow_that_loses_the_limit_says_so_and_keeps_what_it_had():
    """Sharpness that leaps past the limit between two points: no derivative foretells it."""

    def loss(w):
        leap = torch.sigmoid(1e5 * (w[1] - 1.01))  # curvature 1 before, 8 after, the step in between
        return 0.5 * (1 + 7 * leap) * w[0] ** 2 - 0.05 * w[1]

    problem = of_weights(loss, 0.0, 0.0)
    with pytest.raises(NotConverged, match="limit is 2") as caught:
        central_flow(problem, GradientDescent(lr=0.5), 80, processes=("central",))
    kept = caught.value.result
    assert 20 < kept.data.sizes["time"] < 80
    assert "ended at time" in kept.stop
