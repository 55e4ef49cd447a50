"""Alice against the naive float64 transcription, and the properties that follow from her formulas."""

import math

import numpy as np
import pytest
import torch

from reference import alice as naive
from thalweg.errors import InvalidInput
from thalweg.optim.alice import Alice
from thalweg.optim.alice_settings import warm_steps

STEPS = 30
CONFIGURATIONS = {
    "default": {},
    "glass only": {"hess_comp": "zero", "quick_steps": 0},
    "abs": {"grad_glass": False, "quick_steps": 1},
    "rms": {"hess_comp": "rms", "grad_glass": False, "quick_steps": 0},
    "rms and glass": {"hess_comp": "rms", "quick_steps": 2},
    "abs and glass, every step": {"quick_steps": 0},
    "sgdm": {"limit_method": "sgdm", "lr_min": 2e-3, "lr_max": 0.5, "quick_steps": 1},
    "fixed": {"limit_method": "fixed", "lr_min": 1e-4, "lr_max": 5e-3},
    "opened": {"lr_max": 10.0, "quick_steps": 0},
    "lower bound": {"lr_min": 4e-3, "lr_max": 0.05},
    "L1": {"w1": 0.05, "lr_max": 0.3},
    "L2": {"w2": 0.1, "lr_max": 0.3, "hess_comp": "rms"},
    "both": {"w1": 0.02, "w2": 0.3, "quick_steps": 2, "lr_max": 0.3},
    "phi": {"phi": 0.7, "lr_max": 0.1},
    "omega": {"omega": 0.4, "lr_max": 0.1},
    "phi and omega": {"phi": 1.5, "omega": 1.7, "quick_steps": 0},
    "phi is omega": {"phi": 1.0, "omega": 1.0},
    "absolute bounds": {"scale_bounds_with_lr": False, "lr_min": 1e-4, "lr_max": 0.02},
    "other averages": {"betas": (0.5, 0.9), "quick_steps": 1, "lr_max": 0.1},
}


def decayed(t, lr, decay):
    return lr * (1.0 if not decay or t < 12 else 0.3 if t < 22 else 0.05)


def problem(name, n):
    """The same gradient for numpy vectors (float64) and for torch (any dtype, by its own graph)."""
    if name == "quadratic":
        matrix, vector = naive.quadratic(n)
        return (
            lambda w: matrix @ w - vector,
            lambda w: 0.5 * w @ torch.as_tensor(matrix, dtype=w.dtype) @ w - torch.as_tensor(vector, dtype=w.dtype) @ w,
        )
    q, b, c = naive.relu_sum(n, 300)

    def gradient(w):
        return (c * (q @ w - b > 0)) @ q + w / 10

    def loss(w):
        here = torch.relu(torch.as_tensor(q, dtype=w.dtype) @ w - torch.as_tensor(b, dtype=w.dtype))
        return torch.as_tensor(c, dtype=w.dtype) @ here + w @ w / 20

    return gradient, loss


def run_both(name, options, dtype, decay, foreach=False, n=24, **extra):
    rng = np.random.default_rng(7)
    start, z = rng.standard_normal(n), rng.choice([-1.0, 1.0], size=(STEPS + 1, n))
    start = start.astype(np.float32).astype(np.float64)
    options = {"lr": 5e-3, **options}
    beta1, beta2 = options.get("betas", (0.9, 0.999))
    settings = {key: value for key, value in options.items() if key != "betas"}
    reference = naive.Reference(start, naive.Settings(beta1=beta1, beta2=beta2, **settings))
    gradient, loss = problem(name, n)
    a, b = (torch.nn.Parameter(torch.tensor(s, dtype=dtype)) for s in (start[:10].reshape(2, 5), start[10:]))

    def drawn(parameter, step, index):
        row = torch.tensor(z[step])
        return row[:10].reshape(2, 5) if index == 0 else row[10:]

    optimizer = Alice([a, b], **options, signs=drawn, foreach=foreach, **extra)
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        value = loss(torch.cat([a.reshape(-1), b]))
        value.backward()
        return value

    def together(key):
        return torch.cat([optimizer.state[p][key].reshape(-1) for p in (a, b)]).double().numpy()

    for t in range(1, STEPS + 1):
        lr = decayed(t, options["lr"], decay)
        optimizer.param_groups[0]["lr"] = lr
        reference.step(gradient, z[t], lr)
        optimizer.step(closure)
        mu = torch.cat([a.detach().reshape(-1), b.detach()]).double().numpy()
        reach = optimizer.state[a]["reach"]
        yield t, reference, calls, mu, mu - reach * together("descent"), together, optimizer


def close(found, expected, rtol, floor=0.0):
    """Within ``rtol``, entries below ``floor`` of the largest being compared with that."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * (floor * scale + 1e-300))


def check_float64(name, options, decay):
    for _, reference, calls, mu, nu, state, _ in run_both(name, options, torch.float64, decay):
        close(mu, reference.mu, 1e-9)
        close(nu, reference.nu, 1e-9)
        close(state("mean"), reference.g, 1e-9, 1e-3)
        close(state("square"), reference.s, 1e-9)
        if options.get("hess_comp") != "zero":
            close(state("curvature"), reference.H, 1e-9, 1e-2)
        if options.get("grad_glass", True) and name == "relu":  # on the quadratic the density is round-off
            close(state("glass"), reference.R, 1e-9, 1e-3)
        assert calls == reference.evaluations


every = pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())


class TestTrajectories:
    @every
    def test_float64(self, options):
        check_float64("relu", options, decay=True)

    @every
    @pytest.mark.slow
    @pytest.mark.parametrize("decay", [False, True], ids=["constant", "decayed"])
    @pytest.mark.parametrize("name", ["quadratic", "relu"])
    def test_float64_everywhere(self, name, options, decay):
        check_float64(name, options, decay)

    @every
    @pytest.mark.slow
    def test_float64_foreach(self, options):
        for _, reference, _, mu, nu, _, _ in run_both("relu", options, torch.float64, True, foreach=True):
            close(mu, reference.mu, 1e-9)
            close(nu, reference.nu, 1e-9)

    @every
    @pytest.mark.slow
    def test_float32(self, options):
        """A quadratic's density is round-off in float32 and steers; kinks are measured. Both stay within 2e-4."""
        for name in ("relu", "quadratic"):
            if name == "quadratic" and options.get("grad_glass", True):
                continue
            for _, reference, _, mu, nu, _, _ in run_both(name, options, torch.float32, True):
                close(mu, reference.mu, 2e-4, 0.1)
                close(nu, reference.nu, 2e-4, 0.1)

    @pytest.mark.parametrize("options", [{}, {"limit_method": "fixed"}, {"hess_comp": "rms", "quick_steps": 0}])
    def test_capturable(self, options):
        for _, reference, _, mu, _, _, _ in run_both("relu", options, torch.float64, True, capturable=True):
            close(mu, reference.mu, 1e-6)  # the step, and with it 1/t, is a float32 tensor


@pytest.mark.parametrize(("beta1", "first"), [(0.9, 10), (0.5, 3), (0.99, 101), (0.0, 2)])
def test_first_step_that_moves(beta1, first):
    assert warm_steps(beta1) == first - 1
    assert naive.is_warm(first - 1, beta1)
    assert not naive.is_warm(first, beta1)


class TestClosedForm:
    """The step alone, from averages that are put there."""

    def length(self, g, h, rho, **options):
        settings = {"phi": 1.0, "limit_method": "fixed", "lr_max": 1e9, "scale_bounds_with_lr": False, **options}
        w = torch.nn.Parameter(torch.zeros(len(g), dtype=torch.float64))
        optimizer = Alice([w], betas=(0.0, 0.5), quick_steps=0, **settings)
        w.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()  # creates the state
        state = optimizer.state[w]
        for name, value in (("curvature", h), ("glass", rho)):
            if name in state:
                state[name].copy_(torch.tensor(value, dtype=torch.float64))
        state["step"] += 1
        optimizer.param_groups[0]["batches"] = 1
        for point in optimizer.points(sample=False):
            optimizer.observe(point)
        optimizer.step()
        return -w.detach()

    @pytest.mark.filterwarnings("ignore::thalweg.errors.ThalwegWarning")
    def test_spot_values(self):
        g, h, rho = [1, 1, 1, -0.05, 1e-4, 0], [2, 0, 2, 0.4, 10, 1], [0, 3, 3, 0.01, 1e-3, 1]
        expected = [0.4999999975, 0.698131702905, 0.219584441378, -0.0770492941281, 5.07682650385e-6, 0.0]
        np.testing.assert_allclose(self.length(g, h, rho), expected, rtol=1e-11)
        assert float(self.length([0.5], [0.0], [0.0], lr_max=0.3)) == 0.3

    @pytest.mark.filterwarnings("ignore::thalweg.errors.ThalwegWarning")
    def test_stationarity(self):
        """|g| = h d + (3/2) c (rho d)^(1/2) over nine decades; eps is put out of the way."""
        rng = np.random.default_rng(3)
        g, h, rho = (10 ** rng.uniform(-4.5, 4.5, 2000) for _ in range(3))
        d = self.length(g, h, rho, eps=1e-300, lr_max=1e300).numpy()
        c = math.sqrt(2 / (3 * math.pi))
        residual = np.abs(h * d + 1.5 * c * np.sqrt(rho * d) - g) / g
        assert residual.max() < 1e-12

    @pytest.mark.filterwarnings("ignore::thalweg.errors.ThalwegWarning")
    def test_jensen(self):
        d = float(self.length([1.0], [0.0], [3.0], glass_bound="jensen", eps=1e-300))
        assert 1.5 / math.sqrt(3) * math.sqrt(3 * d) == pytest.approx(1, rel=1e-12)


class TestProperties:
    @pytest.mark.parametrize("options", [{}, {"omega": 0.3, "phi": "coupled"}, {"hess_comp": "rms", "lr_max": 0.5}])
    def test_look_ahead_is_exact_on_quadratics(self, options):
        """With phi = (1 - beta1) omega the average of the gradient is the gradient at the centre, whatever the step."""
        matrix, vector = naive.quadratic(20)
        matrix, vector = torch.tensor(matrix), torch.tensor(vector)
        w = torch.nn.Parameter(torch.ones(20, dtype=torch.float64))
        optimizer = Alice([w], lr=0.05, **options)

        def closure():
            optimizer.zero_grad()
            value = 0.5 * w @ matrix @ w - vector @ w
            value.backward()
            return value

        for _ in range(200):
            true = matrix @ w.detach() - vector  # of the centre that this step's average is about, before it moves
            optimizer.step(closure)
            mean = optimizer.state[w]["mean"]
            assert float((mean - true).abs().max() / mean.abs().max()) < 1e-12

    def test_equal_bounds_leave_no_curvature(self):
        """lr_min = lr_max: the trajectory does not depend on the glass or the curvature at all."""
        runs = []
        for options in ({}, {"hess_comp": "rms", "grad_glass": False}, {"hess_comp": "zero"}):
            options = {"lr_min": 5e-3, "lr_max": 5e-3, "quick_steps": 1, **options}
            *_, (_, _, _, mu, _, state, _) = run_both("relu", options, torch.float64, False)
            runs.append(mu)
            adam = 5e-3 * state("mean") / (np.sqrt(state("square")) + 1e-8)
            np.testing.assert_allclose(state("descent"), adam, rtol=1e-12)
        np.testing.assert_allclose(runs[1], runs[0], rtol=1e-14)
        np.testing.assert_allclose(runs[2], runs[0], rtol=1e-14)

    @pytest.mark.parametrize("quick", [0, 1, 3])
    def test_number_of_evaluations(self, quick):
        w = torch.nn.Parameter(torch.ones(3))
        optimizer, calls = Alice([w], quick_steps=quick), 0

        def closure():
            nonlocal calls
            calls += 1
            optimizer.zero_grad()
            (w**2).sum().backward()

        for _ in range(12):
            optimizer.step(closure)
        calls = 0
        for _ in range(24):
            optimizer.step(closure)
        assert calls == 24 * (1 + 2 / (quick + 1))

    def test_the_density_of_a_compound_poisson_gradient(self):
        """Standard normal jumps at rate 40 a unit: density 40 within 3 %, the curvature's variance within 5 %."""
        rng, draws, rate, sigma, slope = np.random.default_rng(0), 200_000, 40.0, 0.5, 2.0
        sums = [rng.standard_normal(draws) * np.sqrt(rng.poisson(rate * sigma, draws)) for _ in range(2)]
        values = {1: slope * sigma + sums[0], -1: -slope * sigma - sums[1], 0: np.zeros(draws)}
        w = torch.nn.Parameter(torch.zeros(draws, dtype=torch.float64))
        optimizer = Alice([w], lr=sigma, quick_steps=0)
        for point in optimizer.points():
            w.grad = torch.tensor(values[point.sign])
            optimizer.observe(point)
        first = next(iter(optimizer._batch.values())).first / (2 * sigma)
        optimizer.step()
        assert float(optimizer.state[w]["glass"].mean()) == pytest.approx(rate, rel=0.03)
        assert float(first.mean()) == pytest.approx(slope, abs=5 * math.sqrt(rate / (2 * sigma) / draws))
        assert float(first.var()) == pytest.approx(rate / (2 * sigma), rel=0.05)


class TestOptions:
    def run(self, steps=40, **options):
        torch.manual_seed(0)
        q, b = torch.randn(200, 6, dtype=torch.float64), torch.randn(200, dtype=torch.float64)
        w = torch.nn.Parameter(torch.ones(6, dtype=torch.float64))
        optimizer = Alice([w], lr=0.02, **options)

        def closure():
            optimizer.zero_grad()
            value = torch.relu(q @ w - b).mean() + w @ w / 2
            value.backward()
            return value

        losses = [float(optimizer.step(closure).detach()) for _ in range(steps)]
        return w, optimizer, losses

    @pytest.mark.parametrize(
        "options",
        [
            {"hess_comp": "hutchinson"},
            {"hess_comp": "rms_deleaked"},
            {"glass_bound": "jensen"},
            {"count_samples": True},
            {"sigma": 1e-3},
            {"sample_every": 5},
            {"weight_decay": 0.1},
            {"phi": "coupled", "omega": 0.5},
        ],
        ids=str,
    )
    def test_they_descend(self, options):
        _, _, losses = self.run(lr_max=0.2, **options)
        assert losses[-1] < losses[0]

    def test_measuring_only(self):
        w, optimizer, _ = self.run(move=False)
        assert torch.equal(w.detach(), torch.ones(6, dtype=torch.float64))
        assert float(optimizer.state[w]["glass"].min()) > 0

    def test_signed_diagonal_of_a_quadratic(self):
        """z times (H z) averages to the diagonal, of which |H z| is none."""
        diagonal = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
        w = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer = Alice([w], hess_comp="hutchinson", quick_steps=0, move=False)
        for _ in range(10):
            for point in optimizer.points():
                w.grad = diagonal * w.detach()
                optimizer.observe(point)
            optimizer.step()
        torch.testing.assert_close(optimizer.state[w]["curvature"], diagonal)

    def test_decay_is_decoupled(self):
        plain, *_ = self.run(1, betas=(0.0, 0.999), move=True)
        w, *_ = self.run(2, betas=(0.0, 0.999), weight_decay=0.5)
        other, *_ = self.run(2, betas=(0.0, 0.999))
        torch.testing.assert_close(w.detach() - other.detach(), -0.02 * 0.5 * plain.detach())

    def test_report(self):
        _, optimizer, _ = self.run(lr_max=0.1)
        group = optimizer.report().groups[0]
        assert group.coordinates == 6
        assert group.upper + group.lower + group.interior == pytest.approx(1)
        assert group.density == pytest.approx(
            float(optimizer.state[optimizer.param_groups[0]["params"][0]]["glass"].mean())
        )
        assert 0 < group.glass_share < 1
        assert group.predicted == pytest.approx(group.linear - group.hessian - group.glass)
        assert "interior" in repr(optimizer.report())
        assert len(optimizer.report().plot().data) == 3

    def test_report_at_closed_and_open_bounds(self):
        closed = self.run(lr_max=1e-6, lr_min=1e-7)[1].report().groups[0]
        opened = self.run(lr_max=1e6)[1].report().groups[0]
        assert closed.upper == 1
        assert opened.interior == 1
        # At the free minimum the decrease is (d/6)(2|g| + h d).
        _, optimizer, _ = self.run(lr_max=1e6)
        state = next(iter(optimizer.state.values()))
        d = state["descent"].abs()
        expected = float((d / 6 * (2 * state["mean"].abs() + state["curvature"] * d)).sum())
        assert opened.predicted == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1.0}, "lr is"),
        ({"betas": (1.0, 0.9)}, "betas"),
        ({"quick_steps": -1}, "quick_steps"),
        ({"betas": (0.9, 0.5), "quick_steps": 3}, "quick_steps"),
        ({"eps": 0.0}, "eps"),
        ({"omega": 0.0}, "omega"),
        ({"phi": 2.5}, "phi"),
        ({"phi": "other"}, "phi"),
        ({"lr_min": 1.0, "lr_max": 0.5}, "lr_max"),
        ({"limit_method": "none"}, "limit_method"),
        ({"hess_comp": "full"}, "hess_comp"),
        ({"hess_comp": "zero", "grad_glass": False}, "grad_glass"),
        ({"sigma": 0.0}, "sigma"),
        ({"foreach": True, "capturable": True}, "foreach"),
        ({"differentiable": True}, "differentiable"),
    ],
    ids=str,
)
def test_wrong_settings(options, words):
    with pytest.raises(InvalidInput, match=words):
        Alice([torch.nn.Parameter(torch.ones(2))], **options)
