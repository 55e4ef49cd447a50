"""Third derivatives: against dense ones, against each other, and refused where they mean nothing."""

import pytest
import torch
from torch import nn

import cases
from reference import dense
from thalweg.errors import InvalidInput, NotDifferentiable
from thalweg.operators import third_methods
from thalweg.operators.packing import pairs, smat, svec
from thalweg.operators.penalty import penalty
from thalweg.operators.third import third_derivative
from thalweg.operators.third_check import LONG_STEPS, default_step, examine
from thalweg.problem import Problem

METHODS = ["exact", "products", "gradients"]
KINKED = ("cnn", "encoder_layer")
"""Max pooling, and torch's default activation: smooth between kinks, so the rows there are compared all the same."""


def directions(problem, k=3, orthonormal=False):
    U = torch.randn(problem.dimension, k, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return torch.linalg.qr(U)[0] if orthonormal else U


def dense_change(case, U, v, step=1e-5):
    """``svec`` of the change of ``U' H U`` along ``v``: a central difference of dense Hessians."""
    parameters = dense.chosen(case.model)
    kept = [p.data.clone() for p in parameters]
    parts = v.split([p.numel() for p in parameters])
    found = []
    for sign in (1, -1):
        for p, start, part in zip(parameters, kept, parts):
            p.data = start + sign * step * part.view(p.shape)
        found.append(U.T @ dense.hessian(case.model, case.whole) @ U)
    for p, start in zip(parameters, kept):
        p.data = start
    return svec(found[0] - found[1]) / (2 * step)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", cases.CASES)
def test_all_methods_against_dense_hessians(untouched, name):
    case = cases.make(name)
    problem = case.problem()
    U = directions(problem)
    probe = torch.randn(problem.dimension, dtype=torch.float64)
    expected = dense_change(case, U, probe / probe.norm())
    with untouched(case.model):
        found = {m: third_derivative(problem, None, U, method=m, verify=name not in KINKED) for m in METHODS}
    rows = found["exact"].rows
    error = float((rows @ probe / probe.norm() - expected).norm()) / float(rows.norm())
    assert error < 1e-7, "limited by the reference"
    assert relative(found["products"].rows, found["exact"].rows) < 1e-8
    assert relative(found["gradients"].rows, found["exact"].rows) < 1e-5
    for result in found.values():
        assert result.rows.shape == (6, problem.dimension)
        assert (result.disagreement is None) == (name in KINKED)
        assert result.disagreement is None or result.disagreement < 1e-5


@pytest.mark.parametrize("norm", ["layer", "group", "batch_train", "batch_eval", "rms", "instance"])
@pytest.mark.parametrize("method", METHODS)
def test_norms(norm, method):
    """Fused kernels of some have silently wrong third derivatives; ours are those of the formula written by hand."""
    layers = {
        "layer": nn.LayerNorm(6),
        "group": nn.GroupNorm(2, 6),
        "batch_train": nn.BatchNorm1d(6),
        "batch_eval": nn.BatchNorm1d(6).eval(),
        "rms": nn.RMSNorm(6),
        "instance": nn.Sequential(nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2), nn.Flatten()),
    }
    model = nn.Sequential(nn.Linear(3, 6), layers[norm], nn.Tanh(), nn.Linear(6, 2)).double()
    x, y = torch.randn(8, 3).double(), torch.randn(8, 2).double()
    problem = Problem(model, nn.MSELoss(), (x, y))
    U, w = directions(problem, 2), problem.initial
    shapes = [p.shape for p in model.parameters()]

    def by_hand(at):
        parts = [p.view(s) for p, s in zip(at.split([s.numel() for s in shapes]), shapes)]
        h = x @ parts[0].T + parts[1]
        eps = 1e-5 if norm != "rms" else torch.finfo(torch.float64).eps
        if norm in ("layer", "rms"):
            centred = h - h.mean(1, keepdim=True) if norm == "layer" else h
            h = centred / (centred.square().mean(1, keepdim=True) + eps).sqrt()
        elif norm in ("group", "instance"):
            g = h.view(8, 2, 3)
            g = g - g.mean(2, keepdim=True)
            h = (g / (g.square().mean(2, keepdim=True) + eps).sqrt()).reshape(8, 6)
        elif norm == "batch_train":
            h = (h - h.mean(0)) / ((h - h.mean(0)).square().mean(0) + eps).sqrt()
        else:
            h = h / (1 + eps) ** 0.5
        rest = parts[2:]
        if norm != "instance":
            h, rest = h * rest[0], rest[1:]
        if norm not in ("instance", "rms"):
            h, rest = h + rest[0], rest[1:]
        return (torch.tanh(h) @ rest[0].T + rest[1] - y).square().mean()

    assert float(by_hand(w)) == pytest.approx(float(problem.value(w)), rel=1e-12)
    hessian = torch.func.hessian(by_hand)
    expected = torch.stack(
        [torch.func.grad(lambda at, i=i, j=j: U[:, i] @ hessian(at) @ U[:, j])(w) for i, j in pairs(2)]
    )
    expected[1] *= 2**0.5
    found = third_derivative(problem, w, U, method=method)
    assert relative(found.rows, expected) < {"exact": 1e-11, "products": 1e-8, "gradients": 1e-5}[method]


@pytest.mark.parametrize("method", METHODS)
def test_it_is_symmetric_in_its_three_directions(method):
    problem = cases.make("mlp_ce").problem()
    U = directions(problem, 3)
    T = smat((third_derivative(problem, None, U, method=method).rows @ U).T)  # T[l, i, j]
    scale = float(T.abs().max())
    for turned in (T.transpose(0, 1), T.transpose(1, 2), T.transpose(0, 2)):
        torch.testing.assert_close(T, turned, rtol=0, atol=scale * (1e-12 if method == "exact" else 1e-5))
    torch.testing.assert_close(third_derivative(problem, None, U, method=method).along(U[:, 1]), T[1])


@pytest.mark.parametrize("method", METHODS)
def test_columns_of_any_length_and_angle(method):
    problem = cases.make("mlp_mse").problem()
    U = directions(problem, 2, orthonormal=True)
    mix = torch.tensor([[1e3, 2e-3], [0.0, 1e-3]], dtype=torch.float64)
    rows = third_derivative(problem, None, U, method="exact").rows
    bent = third_derivative(problem, None, U @ mix, method=method).rows
    for v in torch.randn(3, problem.dimension, dtype=torch.float64):
        expected, found = mix.T @ smat(rows @ v) @ mix, smat(bent @ v)
        scale = mix.norm(dim=0)
        torch.testing.assert_close(found / scale / scale[:, None], expected / scale / scale[:, None], rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_splitting_batches_does_not_matter(method):
    case = cases.make("mlp_mse")
    U = directions(case.problem())
    rows = [third_derivative(case.problem(batch_size=size), None, U, method=method).rows for size in (1, 4, 11)]
    for other in rows[1:]:
        assert relative(other, rows[0]) < (1e-12 if method == "exact" else 1e-6)


class TestSinglePrecision:
    @pytest.mark.parametrize("name", ["mlp_mse", "mlp_ce", "attention", "layer_norm", "tied"])
    def test_accuracy(self, name):
        problem = cases.make(name).problem()
        U = directions(problem, 3, orthonormal=True)
        exact = third_derivative(problem, None, U, method="exact").rows
        single = problem.in_dtype(torch.float32)
        errors = {
            method: relative(third_derivative(single, None, U, method=method).rows.double(), exact)
            for method in METHODS
        }
        assert errors["exact"] < 1e-5
        assert errors["products"] < 1e-3
        assert errors["gradients"] < 5e-2
        chosen = third_derivative(single, None, U)
        assert chosen.rows.dtype == torch.float32
        assert relative(chosen.rows.double(), exact) < 1e-2

    def test_auto_goes_by_what_was_measured(self):
        problem = cases.make("mlp_mse").problem()
        U = directions(problem)
        assert third_derivative(problem, None, U).method == "gradients"
        single = problem.in_dtype(torch.float32)
        assert third_derivative(single, None, U, accuracy=1e-1).method == "gradients"
        assert third_derivative(single, None, U, accuracy=1e-5).method == "exact"
        fresh = problem.in_dtype(torch.float32)
        assert third_derivative(fresh, None, U, verify=False, accuracy=1e-4).method == "exact"


class Counted(Problem):
    """Counts evaluations."""

    seen = 0

    def value_and_gradient(self, w):
        self.seen += 1
        return super().value_and_gradient(w)

    def loss(self, leaves, batch):
        self.recorded = getattr(self, "recorded", 0) + 1
        return super().loss(leaves, batch)


class TestCost:
    def counted(self):
        case = cases.make("mlp_mse")
        return Counted(case.model, case.loss, case.data)

    @pytest.mark.parametrize("k", [1, 2, 4])
    def test_gradients(self, k):
        problem = self.counted()
        m = k * (k + 1) // 2
        U, here = directions(problem, k), problem.gradient(problem.initial)
        problem.seen = 0
        found = third_derivative(problem, None, U, method="gradients", verify=False)
        assert problem.seen == found.gradients == 2 * m + 1
        problem.seen = 0
        found = third_derivative(problem, None, U, method="gradients", gradient=here, verify=False)
        assert problem.seen == found.gradients == 2 * m
        problem.seen = 0
        found = third_derivative(problem, None, U, method="gradients", gradient=here, verify=False, check=True)
        assert problem.seen == found.gradients == 4 * m

    @pytest.mark.parametrize("k", [1, 3])
    def test_linearisations(self, k):
        problem = self.counted()
        m = k * (k + 1) // 2
        U = directions(problem, k)
        problem.recorded = 0
        found = third_derivative(problem, None, U, method="exact", verify=False)
        assert problem.recorded == 1
        assert found.gradients == 1.75 + 1.5 * k + 4 * m
        problem.recorded = 0
        found = third_derivative(problem, None, U, method="products", verify=False)
        assert problem.recorded == 2 * k
        assert found.gradients == 2 * k * (1.75 + 1.5 * k)

    def test_verification_is_paid_once(self):
        problem = self.counted()
        U = directions(problem, 2)
        first, second = (third_derivative(problem, None, U, method="gradients") for _ in range(2))
        assert first.gradients > second.gradients == 7
        assert first.disagreement == second.disagreement < 1e-5

    def test_the_verification_counts_its_gradients(self):
        problem = self.counted()
        problem.seen = 0
        verdict = examine(problem, problem.initial, directions(problem, 2, orthonormal=True))
        assert verdict.cost == problem.seen + 1.75 + 1.5 + 4
        assert examine(problem, problem.initial, directions(problem, 2)).cost == 0


class TestErrorEstimate:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("method", ["products", "gradients"])
    @pytest.mark.parametrize("step", [None, 3e-2])
    def test_it_covers_the_error(self, dtype, method, step):
        problem = cases.make("mlp_ce").problem()
        U = directions(problem, 2, orthonormal=True)
        exact = third_derivative(problem, None, U, method="exact").rows
        found = third_derivative(problem.in_dtype(dtype), None, U, method=method, step=step, check=True)
        error = relative(found.rows.double(), exact)
        assert error <= 2 * found.error
        assert found.error < 0.1

    def test_extrapolation_gains_two_orders(self):
        problem = cases.make("mlp_ce").problem()
        U = directions(problem, 2, orthonormal=True)
        exact = third_derivative(problem, None, U, method="exact")
        for h, gain in ((4e-2, 20), (2e-2, 80)):
            plain = third_derivative(problem, None, U, method="gradients", step=h)
            better = third_derivative(problem, None, U, method="gradients", step=h, check=True)
            assert relative(better.rows, exact.rows) < relative(plain.rows, exact.rows) / gain
        assert third_derivative(problem, None, U, method="exact", check=True).error < 1e-5

    @pytest.mark.parametrize(("method", "dtype"), [(m, d) for m in METHODS[1:] for d in (torch.float32, torch.float64)])
    def test_the_default_step_is_near_the_best(self, method, dtype):
        problem = cases.make("mlp_mse").problem()
        U = directions(problem, 2, orthonormal=True)
        exact = third_derivative(problem, None, U, method="exact").rows
        other = problem.in_dtype(dtype)
        h = default_step(other.initial, method)

        def error(step):
            found = third_derivative(other, None, U, method=method, step=step, verify=False).rows
            return relative(found.double(), exact)

        best = min(error(h * 2.0**power) for power in range(-5, 6))
        assert error(h) < 10 * best


class WrongThird(nn.Module):
    """A cube whose third derivative torch is told wrongly."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(ctx, grad):
            return 2 * ctx.saved_tensors[0].detach() * grad

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.pow(3)

        @staticmethod
        def backward(ctx, grad):
            return 3 * WrongThird.Square.apply(ctx.saved_tensors[0]) * grad

    def forward(self, x):
        return self.Cube.apply(x)


class NoThird(nn.Module):
    """A quartic with a second, but no third derivative."""

    class Last(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return 4 * x.pow(3)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return 12 * ctx.saved_tensors[0].square() * grad

    class Quartic(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.pow(4)

        @staticmethod
        def backward(ctx, grad):
            return NoThird.Last.apply(ctx.saved_tensors[0]) * grad

    def forward(self, x):
        return self.Quartic.apply(x)


def with_activation(activation, width=24, dtype=torch.float64):
    model = nn.Sequential(nn.Linear(4, width), activation, nn.Linear(width, width), activation, nn.Linear(width, 2))
    data = torch.randn(60, 4, dtype=dtype), torch.randn(60, 2, dtype=dtype)
    return Problem(model.to(dtype), nn.MSELoss(), data)


class TestRefusals:
    @pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(), nn.Hardtanh()])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("method", ["auto", *METHODS])
    def test_kinks(self, activation, dtype, method):
        problem = with_activation(activation, dtype=dtype)
        for _ in range(2):
            with pytest.raises(NotDifferentiable, match="kinks"):
                third_derivative(problem, None, directions(problem, 2), method=method)
        found = third_derivative(problem, None, directions(problem, 2), method="exact", verify=False)
        assert torch.isfinite(found.rows).all(), "whoever insists gets the smooth pieces"

    @pytest.mark.parametrize("activation", [nn.GELU(), nn.Tanh(), nn.SiLU(), nn.Softplus()])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_smooth_ones_pass(self, activation, dtype):
        problem = with_activation(activation, dtype=dtype)
        assert third_derivative(problem, None, directions(problem, 2, orthonormal=True)).disagreement < 5e-2

    def test_a_wrong_formula_is_refused_and_avoided(self):
        problem = with_activation(WrongThird(), 6)
        U = directions(problem, 2)
        with pytest.raises(NotDifferentiable, match="disagree with differences"):
            third_derivative(problem, None, U, method="exact")
        auto = third_derivative(problem, None, U)
        assert auto.method == "gradients"
        assert relative(auto.rows, third_derivative(problem, None, U, method="products").rows) < 1e-3
        assert third_derivative(problem, None, U, accuracy=1e-30).method == "products"

    def test_a_missing_third_derivative_is_told_and_avoided(self):
        problem = with_activation(NoThird(), 5)
        U = directions(problem, 2)
        with pytest.raises(NotDifferentiable):
            third_derivative(problem, None, U, method="exact")
        assert third_derivative(problem, None, U).method == "gradients"

    def test_fused_norms_outside_our_reach_are_found_out(self):
        class Native(nn.Module):
            def forward(self, x):
                return torch.native_layer_norm(x, (5,), None, None, 1e-5)[0]

        model = nn.Sequential(nn.Linear(3, 5), Native(), nn.Tanh(), nn.Linear(5, 2)).double()
        problem = Problem(model, nn.MSELoss(), (torch.randn(8, 3).double(), torch.randn(8, 2).double()))
        U = directions(problem, 2)
        with pytest.raises(NotDifferentiable, match="fused norm"):
            third_derivative(problem, None, U, method="exact")
        assert third_derivative(problem, None, U).method == "gradients"

    def test_a_quadratic_loss_has_none_and_is_not_refused(self):
        for dtype in (torch.float32, torch.float64):
            model = nn.Linear(3, 2).to(dtype)
            problem = Problem(model, nn.MSELoss(), (torch.randn(9, 3, dtype=dtype), torch.randn(9, 2, dtype=dtype)))
            for method in METHODS:
                found = third_derivative(problem, None, directions(problem, 2, orthonormal=True), method=method)
                assert float(found.rows.norm()) < (
                    1e-11 if method == "exact" else 1.0 if dtype == torch.float32 else 1e-5
                )

    def test_wrong_input(self):
        problem = cases.make("mlp_mse").problem()
        with pytest.raises(InvalidInput, match="unknown"):
            third_derivative(problem, None, directions(problem), method="forward")
        with pytest.raises(InvalidInput, match="Directions are columns"):
            third_derivative(problem, None, torch.zeros(problem.dimension))
        with pytest.raises(InvalidInput, match="finite and not zero"):
            third_derivative(problem, None, torch.zeros(problem.dimension, 2))
        with pytest.raises(InvalidInput, match="shape"):
            third_derivative(problem, torch.zeros(3), directions(problem))


def test_no_direction():
    problem = cases.make("mlp_mse").problem()
    found = third_derivative(problem, None, torch.zeros(problem.dimension, 0))
    assert found.rows.shape == (0, problem.dimension)
    assert found.gradients == 0


def test_a_result_says_what_it_is():
    problem = cases.make("mlp_mse").problem()
    found = third_derivative(problem, None, directions(problem, 2), check=True)
    assert "method='gradients'" in repr(found)
    assert "error=" in repr(found)
    assert "not verified" in repr(third_derivative(problem.in_dtype(torch.float32), None, found.rows.T, verify=False))
    norms = torch.tensor(found.plot().data[0].z)
    torch.testing.assert_close(norms[0, 0], found.rows[0].norm().float(), check_dtype=False)


def test_long_steps_are_longer_than_the_step_in_use():
    assert default_step(torch.zeros(1, dtype=torch.float64), "gradients") < min(LONG_STEPS)
    assert default_step(1e9 * torch.ones(1, dtype=torch.float64), "gradients") > 1e-4


class TestPenalty:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("rank", [0, 1, 2, 3])
    def test_against_all_pairs(self, method, rank):
        problem = cases.make("mlp_ce").problem()
        U = directions(problem, 3)
        half = torch.randn(3, rank, dtype=torch.float64)
        X = half @ half.T
        rows = third_derivative(problem, None, U, method="exact").rows
        found = penalty(problem, None, U, X, method=method)
        assert found.rank == rank
        torch.testing.assert_close(found.vector, rows.T @ svec(X) / 2, rtol=0, atol=1e-4 * float(rows.norm()))

    def test_cost(self):
        problem = cases.make("mlp_ce").problem()
        U, X = directions(problem, 4), torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0])).double()
        here = problem.gradient(problem.initial)
        assert penalty(problem, None, U, X, method="gradients", gradient=here, verify=False).gradients == 4
        assert penalty(problem, None, U, X, method="exact", verify=False).gradients == 1.75 + 2 * (1.5 + 4)

    def test_a_matrix_that_is_not_positive_is_as_good(self):
        problem = cases.make("mlp_mse").problem()
        U, X = directions(problem, 2), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
        rows = third_derivative(problem, None, U, method="exact").rows
        found = penalty(problem, None, U, X, check=True)
        torch.testing.assert_close(found.vector, rows.T @ svec(X) / 2, rtol=0, atol=1e-5 * float(rows.norm()))
        assert found.error < 1e-4
        assert "rank=2" in repr(found)
        assert len(found.plot().data) == 1

    def test_refusals(self):
        problem = with_activation(nn.ReLU())
        with pytest.raises(NotDifferentiable, match="kinks"):
            penalty(problem, None, directions(problem, 2), torch.eye(2))
        with pytest.raises(InvalidInput, match="X has shape"):
            penalty(problem, None, directions(problem, 2), torch.eye(3))


def test_a_batch_without_samples_that_count_is_skipped():
    """Rows are means over what counts: weights n_b / N, as for every other derivative."""
    problem = cases.make("ignored").problem()
    U = directions(problem, 1)
    rows, _ = third_methods.exact(problem, problem.initial, U / U.norm(), [(0, 0)])
    assert float(rows.norm()) > 0


def test_gradients_at_two_points_at_once_give_the_same_rows():
    problem = cases.make("mlp_ce").problem()
    U, asked = directions(problem, orthonormal=True), []

    def many(W):
        asked.append(len(W))
        return torch.stack([problem.gradient(w) for w in W])

    plain = third_derivative(problem, None, U, method="gradients")
    found = third_derivative(problem, None, U, method="gradients", many=many)
    assert torch.equal(found.rows, plain.rows)
    assert asked == [2] * 6, "three directions, three pairs"
