"""One process on its own: the operators' common tests, what is refused without a group, and the parts alone."""

import gc
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import cases
from leaving import gloo_threads, threads_end
from operator_suite import OperatorSuite
from reference import dense
from thalweg._vectors import Layout
from thalweg.errors import DistributedError, InvalidInput, ThalwegWarning
from thalweg.operators import hessian
from thalweg.operators.data_parallel import data_parallel
from thalweg.operators.gathering import Cut, Gather, Scatter
from thalweg.operators.pieces import Pieces
from thalweg.operators.processes import Processes, digest, fingerprint, leave_group
from thalweg.operators.sharded import ShardedProblem
from thalweg.operators.sharded_hessian import gathered
from thalweg.operators.skeleton import skeleton
from thalweg.problem import Problem
from thalweg.spectra import top_eigenpairs


@pytest.fixture
def group():
    """A group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def with_given_samples(name="mlp_ce"):
    case = cases.make(name)
    return case, (case.model, case.loss, case.data)


class GroupSuite(OperatorSuite):
    @pytest.fixture(autouse=True)
    def _group(self, group):
        return

    def dense(self):
        case = cases.make("mlp_ce")
        return dense.hessian(case.model, case.whole)


class TestDataParallel(GroupSuite):
    def make(self):
        return data_parallel(cases.make("mlp_ce").problem()).hessian()


class TestGathered(GroupSuite):
    def make(self):
        return gathered(ShardedProblem(*with_given_samples()[1], batch_size=5).hessian())


class TestShardedOnOneProcess(GroupSuite):
    """A piece is the whole there, so nothing needs gathering."""

    def make(self):
        return ShardedProblem(*with_given_samples()[1]).hessian(layout="linearised")


class TestShardedByDifferences(GroupSuite):
    tolerance = 1e-8

    def make(self):
        return ShardedProblem(*with_given_samples()[1]).hessian(layout="difference")


class TestWithoutAGroup:
    @pytest.mark.parametrize("build", ["problem", "operator", "sharded"])
    def test_it_says_what_to_do(self, build):
        case, arguments = with_given_samples()
        builders = {
            "problem": lambda: data_parallel(case.problem()),
            "operator": lambda: data_parallel(hessian(case.problem()), samples=9),
            "sharded": lambda: ShardedProblem(*arguments),
        }
        with pytest.raises(DistributedError, match=r"No process group is initialised.*torchrun.*init_process_group"):
            builders[build]()

    def test_it_is_an_error_of_the_usual_kinds(self):
        assert issubclass(DistributedError, RuntimeError)


@pytest.mark.usefixtures("group")
class TestOneProcess:
    def test_a_data_parallel_problem_is_the_problem(self):
        case = cases.make("ignored")
        problem, shared = case.problem(), data_parallel(case.problem())
        w = problem.initial + 0.1
        assert shared.samples == problem.samples
        assert shared.share == 1.0
        assert torch.equal(shared.value(w), problem.value(w))
        assert torch.equal(shared.gradient(w), problem.gradient(w))
        assert torch.equal(shared.initial, problem.initial)
        assert (shared.dimension, shared.dtype, shared.layout) == (problem.dimension, problem.dtype, problem.layout)
        assert "1 processes" in repr(shared)

    def test_parts_cannot_be_taken_for_the_whole(self):
        shared = data_parallel(cases.make("mlp_ce").problem())
        with pytest.raises(AttributeError, match=r"only the samples of this process.*\.lift"):
            shared.batches()
        with pytest.raises(AttributeError, match="no attribute 'anything'"):
            _ = shared.anything
        with pytest.raises(AttributeError):
            hessian(shared)

    def test_half_precision_is_added_up_in_single(self):
        case = cases.make("mlp_ce")
        shared = data_parallel(case.problem(dtype=torch.bfloat16))
        value, gradient = shared.value_and_gradient(shared.initial)
        assert value.dtype == gradient.dtype == torch.bfloat16
        assert torch.equal(gradient, case.problem(dtype=torch.bfloat16).gradient(shared.initial))

    def test_leaving_the_block_frees_the_graph(self):
        with data_parallel(cases.make("mlp_ce").problem()).hessian() as operator:
            assert operator.inner.layout_used == "linearised"
        assert operator.inner.layout_used == "double_backward"

    def test_the_model_is_untouched(self, untouched):
        case, arguments = with_given_samples("batch_norm_eval")
        with untouched(case.model):
            problem = ShardedProblem(*arguments)
            operator = problem.hessian()
            operator.matvec(problem.initial)
            data_parallel(case.problem()).hessian().matvec(problem.initial)

    @pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU])
    def test_recurrent_layers_read_their_list_of_weights(self, recurrent):
        class Last(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = recurrent(3, 4, num_layers=2, batch_first=True)

            def forward(self, x):
                return self.body(x)[0][:, -1]

        model, x, y = Last().double(), torch.randn(5, 3, 3).double(), torch.randn(5, 4).double()
        plain = hessian(Problem(model, nn.MSELoss(), (x, y)))
        problem = ShardedProblem(model, nn.MSELoss(), (x, y))
        v = torch.randn(problem.dimension, dtype=torch.float64)
        expected = plain.matvec(v)
        assert float((problem.hessian().matvec(v) - expected).norm()) < 1e-12 * float(expected.norm())

    def test_single_precision_and_mixed_dtypes(self):
        x, y = torch.randn(6, 3), torch.randn(6, 2).double()

        class Mixed(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2).double()

            def forward(self, x):
                return self.second(torch.tanh(self.first(x)).double())

        model = Mixed()
        problem = ShardedProblem(model, nn.MSELoss(), (x, y))
        expected = hessian(Problem(model, nn.MSELoss(), (x, y)))
        v = torch.randn(problem.dimension, dtype=torch.float64)
        assert problem.dtype == torch.float64
        assert torch.allclose(problem.hessian().matvec(v), expected.matvec(v), rtol=1e-5, atol=1e-6)

    def test_numbers_without_dimension(self):
        class Scaled(nn.Module):
            def __init__(self, learn):
                super().__init__()
                self.body = nn.Linear(3, 2)
                self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=learn)

            def forward(self, x):
                return self.scale * self.body(x).square()

        model, data = Scaled(learn=False).double(), (torch.randn(5, 3).double(), torch.randn(5, 2).double())
        problem = ShardedProblem(model, nn.MSELoss(), data)
        v = torch.randn(problem.dimension, dtype=torch.float64)
        expected = hessian(Problem(model, nn.MSELoss(), data)).matvec(v)
        assert torch.allclose(problem.hessian().matvec(v), expected, rtol=1e-12)
        with pytest.raises(InvalidInput, match=r"'scale' has no dimension.*shape \(1,\)"):
            ShardedProblem(Scaled(learn=True).double(), nn.MSELoss(), data)

    def test_solvers_run_on_both(self):
        case, arguments = with_given_samples()
        expected = torch.linalg.eigvalsh(dense.hessian(case.model, case.whole)).flip(0)[:2]
        for operator in (ShardedProblem(*arguments).hessian(), data_parallel(case.problem()).hessian()):
            assert torch.allclose(top_eigenpairs(operator, k=2).values, expected, atol=1e-12)

    def test_gathering_is_its_own_transposes_derivative(self):
        cut = Cut(3, 1, 0, None)
        x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
        for function in (Gather, Scatter):
            assert torch.autograd.gradcheck(lambda t, f=function: f.apply(t, cut).square(), (x,))
            assert torch.autograd.gradgradcheck(lambda t, f=function: f.apply(t, cut).square(), (x,))


class Fake(Processes):
    """A process that knows its number, and no other."""

    def __init__(self, rank, count):
        self.rank, self.count = rank, count


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_pieces_are_cut_as_torch_cuts_them(count):
    layout = Layout(("a", "b", "c"), (torch.Size([5, 2]), torch.Size([3]), torch.Size([1, 4])))
    whole = torch.arange(float(layout.size))
    expected = [
        torch.cat(
            [t.chunk(count)[rank].reshape(-1) for t in layout.split(whole) if rank < len(t.chunk(count))] or [whole[:0]]
        )
        for rank in range(count)
    ]
    for rank in range(count):
        pieces = Pieces(layout, Fake(rank, count))
        assert torch.equal(pieces.piece(whole), expected[rank])
        assert pieces.length == len(expected[rank])
        assert pieces.size == layout.size
    assert sum(map(len, expected)) == layout.size


def test_fingerprints_see_every_bit_and_the_order():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool):
        t = (torch.randn(70) > 0) if dtype == torch.bool else (100 * torch.randn(70)).to(dtype)
        assert fingerprint(t) == fingerprint(t.clone())
        assert fingerprint(t) != fingerprint(t.flip(0))
    x = torch.randn(1 << 20, dtype=torch.float64).repeat(2)[: (1 << 20) + 7]
    y = x.clone()
    y[-1] = torch.nextafter(y[-1], y[-1] + 1)
    assert fingerprint(x) != fingerprint(y)
    swapped = x.clone()
    swapped[[3, (1 << 20) + 5]] = x[[(1 << 20) + 5, 3]]
    assert fingerprint(x) != fingerprint(swapped)
    assert fingerprint(torch.tensor([0.0])) != fingerprint(torch.tensor([-0.0]))
    assert fingerprint(torch.zeros(0)) == 0
    assert (
        digest([("a", torch.zeros(2, 3))]) != digest([("a", torch.zeros(3, 2))]) != digest([("b", torch.zeros(3, 2))])
    )


def test_a_skeleton_shares_what_the_model_shares_and_keeps_the_users_hooks():
    case = cases.make("tied")
    calls = []
    case.model.mix.register_forward_hook(lambda *_: calls.append(1))

    class Values:
        pieces = None

    numbers = {id(p): n for n, p in enumerate(case.model.parameters())}
    copy = skeleton(case.model, numbers, Values())
    assert type(copy) is type(case.model)
    assert copy.head.weight is copy.embed.weight
    assert copy.head.weight.isnan().all()
    assert [n for n, _ in copy.named_parameters()] == [n for n, _ in case.model.named_parameters()]
    assert not case.model.head.weight.isnan().any()
    copy.mix(torch.zeros(1, 3, dtype=torch.float64))
    assert calls == [1]


def begin():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted as Linux lists them")
class TestLeaving:
    """A thread of gloo that outlives Python can abort the process: none may be left."""

    def product(self):
        problem = ShardedProblem(*with_given_samples()[1], batch_size=5)
        return problem.hessian().matvec(torch.ones(problem.space.length, dtype=torch.float64))

    def cut(self):
        case = cases.make("mlp_ce")
        problem = ShardedProblem(fully_shard(case.model), case.loss, case.data, batch_size=5)
        problem.hessian().matvec(torch.ones(problem.space.length, dtype=torch.float64))
        return problem

    def test_no_thread_is_left(self):
        before = gloo_threads()
        begin()
        self.product()
        self.cut()
        assert gloo_threads() > before
        leave_group()
        assert not dist.is_initialized()
        assert threads_end(before)

    def test_what_still_holds_the_group_is_told(self):
        before = gloo_threads()
        begin()
        problem = self.cut()
        with pytest.warns(ThalwegWarning, match=r"still held.*Delete what was built on it"):
            leave_group()
        assert not dist.is_initialized()
        del problem
        gc.collect()
        assert threads_end(before)

    def test_without_a_group(self):
        with pytest.raises(DistributedError, match="No process group is initialised"):
            leave_group()
