"""Every layout on every case against the dense Hessian, and the choice between the layouts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cases
from operator_suite import OperatorSuite
from reference import dense
from thalweg.errors import InvalidInput, NotDifferentiable
from thalweg.operators import hessian
from thalweg.problem import Problem

LAYOUTS = ("linearised", "double_backward", "forward_reverse", "difference")
FUSED_NORMS = ("encoder_layer", "layer_norm", "batch_norm_train")
"""With a mean-reduced MSE torch 2.13 differentiates these wrongly in forward-over-reverse mode."""


@pytest.fixture(scope="module")
def references():
    built = {name: cases.make(name) for name in cases.CASES}
    return {name: (case, dense.hessian(case.model, case.whole)) for name, case in built.items()}


@pytest.mark.parametrize("name", cases.CASES)
def test_the_reference_itself_agrees_with_differences(references, name):
    case, matrix = references[name]
    assert float((dense.hessian_by_differences(case.model, case.whole) - matrix).norm() / matrix.norm()) < 1e-7


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", cases.CASES)
def test_against_the_dense_hessian(references, untouched, name, layout):
    case, matrix = references[name]
    problem = case.problem()
    w, block = problem.initial, torch.randn(problem.dimension, 3, dtype=torch.float64)
    kept = w.clone()
    with untouched(case.model):
        operator = hessian(problem, w, layout=layout)
        assert operator.layout_used == operator.record["used"] == layout
        try:
            out = operator.matmat(block)
        except NotDifferentiable as error:
            assert layout == "forward_reverse"
            assert name in FUSED_NORMS
            assert "fused norm" in error.args[0]  # noqa: PT017  (a fixed torch would be as good)
            return
    assert torch.equal(w, kept)
    tolerance = 1e-6 if layout == "difference" else 1e-12
    assert float((out - matrix @ block).norm()) <= tolerance * float((matrix @ block).norm())


class HessianSuite(OperatorSuite):
    layout = "linearised"
    case = "mlp_ce"

    def make(self):
        return hessian(cases.make(self.case).problem(), layout=self.layout)

    def dense(self):
        case = cases.make(self.case)
        return dense.hessian(case.model, case.whole)


class TestLinearised(HessianSuite):
    pass


class TestLinearisedWithUnusedParameters(HessianSuite):
    case = "unused"


class TestDoubleBackward(HessianSuite):
    layout = "double_backward"


class TestForwardReverse(HessianSuite):
    layout = "forward_reverse"


class TestForwardReverseVectorised(HessianSuite):
    layout = "forward_reverse"
    case = "mlp_mse"


class TestDifference(HessianSuite):
    layout = "difference"
    tolerance = 1e-8


class TestAuto(HessianSuite):
    layout = "auto"
    case = "ragged"


class TestFloat32(HessianSuite):
    tolerance = 2e-5

    def make(self):
        return hessian(cases.make(self.case).problem(dtype=torch.float32), layout="auto")


@given(
    cut=st.lists(st.integers(1, 10), max_size=4, unique=True).map(sorted),
    order=st.permutations(range(11)),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=25)
def test_products_do_not_depend_on_split_or_order(cut, order, seed):
    case = cases.make("mlp_mse")
    (x, y), order = case.data, list(order)
    pieces = [slice(a, b) for a, b in zip([0, *cut], [*cut, 11])]
    batches = [(x[order][piece], y[order][piece]) for piece in pieces]
    v = torch.randn(case.problem().dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    whole = hessian(case.problem(batch_size=None)).matvec(v)
    split = hessian(Problem(case.model, case.loss, batches)).matvec(v)
    assert float((split - whole).norm()) <= 1e-12 * float(whole.norm())


def test_w_is_copied_and_other_points_are_other_hessians():
    case = cases.make("mlp_ce")
    problem = case.problem()
    w = problem.initial
    for layout in LAYOUTS:
        operator, v = hessian(problem, w, layout=layout), torch.randn_like(w)
        first = operator.matvec(v)
        w += 1
        assert torch.equal(operator.matvec(v), first), layout
        w -= 1
        elsewhere = hessian(problem, w + 1, layout=layout).matvec(v)
        assert not torch.allclose(elsewhere, first, rtol=1e-3), layout


def test_parts_of_the_parameters():
    case = cases.make("mlp_ce")
    whole, part = case.problem(), case.problem(parameters="0.*")
    rows = whole.layout.indices("0.*")
    expected = dense.hessian(case.model, case.whole)[rows][:, rows]
    assert torch.allclose(hessian(part).dense(), expected, atol=1e-14)
    assert torch.allclose(hessian(whole).restrict(whole.layout, "0.*").dense(), expected, atol=1e-14)


class TestChoice:
    def test_auto_keeps_the_graph_where_it_fits(self):
        operator = hessian(cases.make("ragged").problem())
        assert operator.record["asked"] == "auto"
        assert operator.layout_used == "linearised"
        assert 0 < operator.record["graph_bytes"] < operator.record["allowed_bytes"]

    @pytest.mark.parametrize("limit", [0, 100])
    def test_auto_gives_way_where_it_does_not(self, limit):
        case = cases.make("ragged")
        problem = case.problem()
        for _ in range(2):  # the second time from memory of the first
            operator = hessian(problem, memory_limit=limit)
            assert operator.layout_used == "double_backward"
            assert operator.record["graph_bytes"] > limit
            assert "more memory" in operator.record["why"]
            assert torch.allclose(operator.dense(), dense.hessian(case.model, case.whole), atol=1e-14)

    def test_more_memory_later_is_used(self):
        problem = cases.make("ragged").problem()
        assert hessian(problem, memory_limit=0).layout_used == "double_backward"
        assert hessian(problem, memory_limit=1 << 20).layout_used == "linearised"

    def test_asking_for_the_graph_keeps_it_whatever_its_size(self):
        operator = hessian(cases.make("mlp_mse").problem(), layout="linearised", memory_limit=0)
        assert operator.layout_used == "linearised"

    def test_a_part_of_the_data_is_measured_anew(self):
        problem = cases.make("mlp_mse").problem()
        hessian(problem)
        part = problem.subset(slice(0, 2))
        assert hessian(part).record["graph_bytes"] < hessian(problem).record["graph_bytes"]

    def test_close_frees_the_graph_and_products_go_on(self):
        problem = cases.make("ragged").problem()
        v = torch.randn(problem.dimension, dtype=torch.float64)
        with hessian(problem) as operator:
            kept = operator.matvec(v)
            graphs = operator._layout.graphs
            assert graphs
        assert operator.layout_used == operator.record["used"] == "double_backward"
        assert torch.allclose(operator.matvec(v), kept, rtol=1e-12)

    def test_unknown_layouts_and_wrong_points_are_refused(self):
        problem = cases.make("mlp_mse").problem()
        with pytest.raises(InvalidInput, match="Choose among"):
            hessian(problem, layout="hvp")
        with pytest.raises(InvalidInput, match="shape"):
            hessian(problem, torch.zeros(3))


class TestAmbientState:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_under_no_grad(self, layout):
        problem = cases.make("mlp_ce").problem()
        v = torch.randn(problem.dimension, dtype=torch.float64)
        expected = hessian(problem, layout=layout).matvec(v)
        with torch.no_grad():
            assert torch.equal(hessian(problem, layout=layout).matvec(v), expected)

    def test_a_vector_with_history_leaves_no_graph(self):
        problem = cases.make("mlp_ce").problem()
        v = torch.randn(problem.dimension, dtype=torch.float64, requires_grad=True)
        w = problem.initial.requires_grad_()
        for layout in LAYOUTS:
            operator = hessian(problem, w, layout=layout)
            assert not operator.matvec(v).requires_grad, layout
            assert not operator.matmat(v.unsqueeze(1)).requires_grad, layout


class Once(torch.autograd.Function):
    """A square whose backward cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class OnceModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, x):
        return Once.apply(self.linear(x))


class TestWithoutSecondDerivative:
    def problem(self):
        return Problem(
            OnceModel().double(), torch.nn.MSELoss(), (torch.randn(5, 3).double(), torch.randn(5, 2).double())
        )

    @pytest.mark.parametrize("layout", ["linearised", "double_backward", "forward_reverse", "auto"])
    def test_the_error_says_the_remedy(self, layout):
        problem = self.problem()
        with pytest.raises(NotDifferentiable, match='layout="difference"'):
            hessian(problem, layout=layout).matvec(problem.initial)

    def test_the_remedy_works(self):
        problem = self.problem()
        v = torch.randn(problem.dimension, dtype=torch.float64)

        def written_out(w):
            weight, bias = w[:6].view(2, 3), w[6:]
            x, y = next(iter(problem.batches()))[0]
            return ((x @ weight.T + bias).square() - y).square().mean()

        expected = torch.autograd.functional.hvp(written_out, problem.initial, v)[1]
        found = hessian(problem, layout="difference").matvec(v)
        assert float((found - expected).norm() / expected.norm()) < 1e-8

    def test_a_loss_that_is_linear_in_the_weights(self):
        problem = Problem(
            torch.nn.Linear(3, 1), lambda out, y: (out * y).mean(), (torch.randn(5, 3), torch.randn(5, 1))
        )
        with pytest.raises(NotDifferentiable, match="Hessian is zero"):
            hessian(problem)
        assert float(hessian(problem, layout="difference").matvec(torch.ones(4)).norm()) < 1e-3

    def test_running_out_of_memory_is_not_called_a_missing_derivative(self):
        from thalweg.operators.layouts import second_derivative

        for message in ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes", "ZeroTensor x"):
            with pytest.raises(RuntimeError, match=message[:12]), second_derivative(passing="ZeroTensor"):
                raise RuntimeError(message)
        with pytest.raises(torch.OutOfMemoryError), second_derivative():
            raise torch.OutOfMemoryError("full")


@pytest.mark.parametrize("name", cases.CASES)
def test_batched_columns_agree_with_the_loop(references, name):
    """What a GPU does with blocks, done on the CPU."""
    from thalweg.operators.layouts import accumulate, linearise

    case, matrix = references[name]
    problem = case.problem()
    block = torch.randn(11, problem.dimension, dtype=torch.float64)
    out = torch.zeros_like(block)
    for batch, weight in problem.batches():
        accumulate(out, linearise(problem, problem.initial, batch), block, weight, batched=True)
    assert float((out - block @ matrix).norm()) <= 1e-12 * float((block @ matrix).norm())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", cases.CASES)
def test_on_a_gpu(references, name, layout):
    case, matrix = references[name]
    if layout == "forward_reverse" and name in FUSED_NORMS:
        pytest.skip("refused; see above")
    problem = case.problem(device="cuda")
    block = torch.randn(problem.dimension, 11, dtype=torch.float64)
    out = hessian(problem, layout=layout).matmat(block.cuda()).cpu()
    tolerance = 1e-6 if layout == "difference" else 1e-11
    assert float((out - matrix @ block).norm()) <= tolerance * float((matrix @ block).norm())
