"""Gauss-Newton products against J' H J written out, for every layout, loss and convention."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cases
from operator_suite import OperatorSuite
from reference import dense
from reference import gauss_newton as textbook
from thalweg.errors import InvalidInput, NotDifferentiable
from thalweg.operators import hessian
from thalweg.operators.gauss_newton import gauss_newton
from thalweg.problem import Problem

LAYOUTS = ("linearised", "forward", "rebuilt")
SPLIT = [name for name in cases.CASES if name != "dict_batches"]
"""Cases whose loss takes the model's output."""


def whole_data(case):
    """Inputs and targets of all samples."""
    if isinstance(case.data, cases.Samples):
        return case.data.x, case.data.y
    if isinstance(case.data, list):
        return tuple(torch.cat(parts) for parts in zip(*case.data))
    return case.data


def reference(case):
    x, y = whole_data(case)
    return textbook.gauss_newton(case.model, lambda m: m(x), lambda z: case.loss(z, y))


@pytest.fixture(scope="module")
def references():
    built = {name: cases.make(name) for name in SPLIT}
    return {name: (case, reference(case)) for name, case in built.items()}


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SPLIT)
def test_against_the_dense_matrix(references, untouched, name, layout):
    case, matrix = references[name]
    problem = case.problem()
    w, block = problem.initial, torch.randn(problem.dimension, 3, dtype=torch.float64)
    kept = w.clone()
    with untouched(case.model):
        operator = gauss_newton(problem, w, layout=layout)
        out = operator.matmat(block)
    assert operator.layout_used == operator.record["asked"] == layout
    assert torch.equal(w, kept)
    assert relative(out, matrix @ block) <= 1e-12


@pytest.mark.parametrize("name", SPLIT)
def test_positive_semidefinite(references, name):
    case, _ = references[name]
    found = gauss_newton(case.problem()).dense()
    assert relative(found, found.T) < 1e-12
    values = torch.linalg.eigvalsh((found + found.T) / 2)
    assert float(values.min()) >= -1e-13 * float(values.max())
    assert float(values.max()) > 0
    assert float(torch.linalg.eigvalsh(dense.hessian(case.model, case.whole)).min()) < 0, "the Hessian would pass, too"


class GaussNewtonSuite(OperatorSuite):
    layout = "linearised"
    case = "mlp_ce"

    def make(self):
        return gauss_newton(cases.make(self.case).problem(), layout=self.layout)

    def dense(self):
        return reference(cases.make(self.case))


class TestLinearised(GaussNewtonSuite):
    pass


class TestWithUnusedParameters(GaussNewtonSuite):
    case = "unused"


class TestForward(GaussNewtonSuite):
    layout = "forward"
    case = "attention"


class TestRebuilt(GaussNewtonSuite):
    layout = "rebuilt"
    case = "mlp_mse"


class TestAutoOnRaggedBatches(GaussNewtonSuite):
    layout = "auto"
    case = "ragged"


class TestFloat32(GaussNewtonSuite):
    tolerance = 2e-5

    def make(self):
        return gauss_newton(cases.make(self.case).problem(dtype=torch.float32))


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


CLASS_WEIGHTS = torch.tensor([0.2, 3.0, 1.0, 0.5], dtype=torch.float64)
INDICES = torch.tensor([0, 3, 1, 1, 2, 0, 3, 2, 1])
IGNORING = INDICES.clone()
IGNORING[[0, 4, 8]] = 3


def probabilities():
    return torch.softmax(double(9, 4), 1)


LOSSES = {
    "plain": (nn.CrossEntropyLoss(), lambda: INDICES),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.2), lambda: INDICES),
    "weights": (nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), lambda: INDICES),
    "weights, smoothed": (nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.2), lambda: INDICES),
    "ignored": (nn.CrossEntropyLoss(ignore_index=3), lambda: IGNORING),
    "everything": (
        nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.3, ignore_index=3),
        lambda: IGNORING,
    ),
    "probabilities": (nn.CrossEntropyLoss(), probabilities),
    "probabilities, everything": (nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.3), probabilities),
    "function": (F.cross_entropy, lambda: INDICES),
    "partial": (
        partial(partial(F.cross_entropy, weight=CLASS_WEIGHTS), label_smoothing=0.1, ignore_index=3),
        lambda: IGNORING,
    ),
    "mse": (nn.MSELoss(), lambda: double(9, 4)),
    "mse function": (F.mse_loss, lambda: double(9, 4)),
    "half mse, summed": (lambda z, y: (z - y).square().sum() / (2 * len(z)), lambda: double(9, 4)),
    "bce": (nn.BCEWithLogitsLoss(), lambda: torch.rand(9, 4, dtype=torch.float64)),
    "huber": (nn.HuberLoss(delta=0.5), lambda: double(9, 4)),
    "entropic": (lambda z, y: (z.logsumexp(1) - (z * y).sum(1)).mean(), probabilities),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("layout", ["linearised", "forward"])
def test_every_loss(name, layout):
    loss, make = LOSSES[name]
    model, x, y = cases.mlp(3, 5, 4).double(), double(9, 3), make()
    expected = textbook.gauss_newton(model, lambda m: m(x), lambda z: loss(z, y))
    assert relative(gauss_newton(Problem(model, loss, (x, y)), layout=layout).dense(), expected) < 1e-12


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("cut", [[9], [4, 5], [1, 6, 2]])
def test_additive_over_batches(name, cut):
    """Batches are weighted as the mean over all data weights them, whatever counts in each."""
    loss, make = LOSSES[name]
    model, x, y = cases.mlp(3, 5, 4).double(), double(9, 3), make()
    v = double(sum(p.numel() for p in model.parameters()))
    whole = gauss_newton(Problem(model, loss, (x, y))).matvec(v)
    batches = list(zip(x.split(cut), y.split(cut)))
    problem = Problem(model, loss, batches)
    for layout in LAYOUTS:
        assert relative(gauss_newton(problem, layout=layout).matvec(v), whole) < 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_equals_the_hessian_of_a_linear_model(name):
    loss, make = LOSSES[name]
    model, x, y = nn.Linear(3, 4).double(), double(9, 3), make()
    problem = Problem(model, loss, (x, y), batch_size=4)
    assert relative(gauss_newton(problem).dense(), hessian(problem).dense()) < 1e-12


def test_outputs_in_a_tree_and_a_loss_of_all_of_them():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 1)

        def forward(self, x):
            return {"a": torch.tanh(self.a(x)), "rest": (torch.sigmoid(self.b(x)), x)}

    def loss(out, y):
        return (out["a"] * out["rest"][0]).square().mean() + (out["a"] - y).square().mean() + out["rest"][1].sum()

    model, x, y = Two().double(), double(6, 3), double(6, 2)

    def joined(m):
        out = m(x)
        return torch.cat([out["a"], out["rest"][0]], 1)

    expected = textbook.gauss_newton(model, joined, lambda z: loss({"a": z[:, :2], "rest": (z[:, 2:], x)}, y))
    for layout in LAYOUTS:
        assert relative(gauss_newton(Problem(model, loss, (x, y)), layout=layout).dense(), expected) < 1e-12


def test_a_parameter_that_is_an_output_is_not_written_over():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(double(9, 4))

        def forward(self, x):
            return self.logits

    problem = Problem(Table(), nn.CrossEntropyLoss(), (double(9, 1), INDICES))
    for layout in LAYOUTS:
        v = double(36)
        kept = v.clone()
        out = gauss_newton(problem, layout=layout).matvec(v)
        assert torch.equal(v, kept)
        assert torch.allclose(out, hessian(problem).matvec(v), atol=1e-14)


def test_parts_of_the_parameters():
    case = cases.make("mlp_ce")
    whole, part = case.problem(), case.problem(parameters="0.*")
    rows = whole.layout.indices("0.*")
    assert torch.allclose(gauss_newton(part).dense(), reference(case)[rows][:, rows], atol=1e-14)


def test_w_is_copied_and_other_points_are_other_matrices():
    problem = cases.make("mlp_ce").problem()
    w = problem.initial
    for layout in LAYOUTS:
        operator, v = gauss_newton(problem, w, layout=layout), torch.randn_like(w)
        first = operator.matvec(v)
        w += 1
        assert torch.equal(operator.matvec(v), first)
        w -= 1
        assert not torch.allclose(gauss_newton(problem, w + 1, layout=layout).matvec(v), first, rtol=1e-3)


class TestChoice:
    def test_auto_keeps_what_fits(self):
        operator = gauss_newton(cases.make("ragged").problem())
        assert operator.layout_used == "linearised"
        assert 0 < operator.record["graph_bytes"] < operator.record["allowed_bytes"]

    def test_auto_gives_way_where_it_does_not_fit(self):
        problem = cases.make("ragged").problem()
        expected = reference(cases.make("ragged"))
        for _ in range(2):  # the second time from memory of the first
            operator = gauss_newton(problem, memory_limit=100)
            assert operator.layout_used == "forward"
            assert "more memory" in operator.record["why"]
            assert relative(operator.dense(), expected) < 1e-12
        assert gauss_newton(problem).layout_used == "linearised"

    def test_without_forward_mode_the_graph_is_rebuilt(self):
        class Cube(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x**3

            @staticmethod
            def backward(ctx, g):
                (x,) = ctx.saved_tensors
                return 3 * x**2 * g

        class Model(nn.Module):
            def __init__(self, cube):
                super().__init__()
                self.linear, self.cube = nn.Linear(3, 2), cube

            def forward(self, x):
                return self.cube(self.linear(x))

        model, x, y = Model(Cube.apply).double(), double(5, 3), double(5, 2)
        operator = gauss_newton(Problem(model, nn.MSELoss(), (x, y)), memory_limit=0)
        assert operator.layout_used == "forward"
        found = operator.dense()
        assert operator.layout_used == "rebuilt"
        assert "forward mode is missing" in operator.record["why"]
        model.cube = lambda x: x**3
        assert relative(found, textbook.gauss_newton(model, lambda m: m(x), lambda z: F.mse_loss(z, y))) < 1e-12

    def test_close_frees_and_products_go_on(self):
        problem = cases.make("ragged").problem()
        v = double(problem.dimension)
        with gauss_newton(problem) as operator:
            first = operator.matvec(v)
        assert operator.layout_used == "rebuilt"
        assert relative(operator.matvec(v), first) < 1e-12


class TestRefusals:
    def problem(self, loss=None, model=None):
        return Problem(model or cases.mlp(3, 4).double(), loss or nn.CrossEntropyLoss(), (double(9, 3), INDICES))

    def test_a_loss_that_calls_the_model(self):
        problem = cases.make("dict_batches").problem()
        with pytest.raises(InvalidInput, match="calls the model itself"):
            gauss_newton(problem)

    def test_a_loss_that_is_linear_in_the_outputs(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.LogSoftmax(1)).double()
        with pytest.raises(NotDifferentiable, match="CrossEntropyLoss of logits"):
            gauss_newton(self.problem(nn.NLLLoss(), model))
        with pytest.raises(NotDifferentiable, match="linear in the outputs"):
            gauss_newton(self.problem(lambda z, y: z[:, 0].mean()))

    def test_names_shapes_and_chunks(self):
        with pytest.raises(InvalidInput, match="Choose among"):
            gauss_newton(self.problem(), layout="double_backward")
        with pytest.raises(InvalidInput, match="shape"):
            gauss_newton(self.problem(), torch.zeros(3))
        with pytest.raises(InvalidInput, match="at least one token"):
            gauss_newton(self.problem(), chunk=0)

    def test_outputs_that_are_hidden(self):
        class Hidden:
            def __init__(self, z):
                self.z = z

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(3, 4)

            def forward(self, x):
                return Hidden(self.linear(x))

        def loss(out, y):
            return F.cross_entropy(out.z, y)

        with pytest.raises(NotDifferentiable, match="dicts of tensors"):
            gauss_newton(self.problem(loss, Model().double()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_under_no_grad_and_autocast(layout):
    problem = cases.make("mlp_ce").problem(dtype=torch.float32)
    v = torch.randn(problem.dimension)
    expected = gauss_newton(problem, layout=layout).matvec(v)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gauss_newton(problem, layout=layout).matvec(v), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SPLIT)
def test_on_a_gpu(references, name, layout):
    case, matrix = references[name]
    block = torch.randn(len(matrix), 3, dtype=torch.float64)
    out = gauss_newton(case.problem(device="cuda"), layout=layout).matmat(block.cuda()).cpu()
    assert relative(out, matrix @ block) <= 1e-11
