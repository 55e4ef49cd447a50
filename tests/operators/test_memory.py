"""Products and constructions leave nothing behind; the probes that say so can say otherwise."""

import ctypes
import gc
import os
import resource
import warnings

import pytest
import torch

import cases
from thalweg.operators import hessian
from thalweg.problem import Problem, memory

LAYOUTS = (
    "linearised",
    "double_backward",
    pytest.param("forward_reverse", marks=pytest.mark.slow),
    pytest.param("difference", marks=pytest.mark.slow),
)


def live() -> tuple[int, int]:
    """Number of tensors that Python can reach, and the bytes of their distinct storages."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    return len(tensors), sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def resident() -> int:
    """Bytes of this process in memory: sees what hides from Python's collector.

    Free memory goes back to the system first, or a leak could hide in what earlier tests left free.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    with open("/proc/self/statm") as line:
        return int(line.read().split()[1]) * resource.getpagesize()


def growth(action, probe, repeats=50, warm=10):
    """How much ``probe`` grows over ``repeats`` calls after a warm-up."""
    for _ in range(warm):
        action()
    before = probe()
    for _ in range(repeats):
        action()
    after = probe()
    return after - before if isinstance(after, int) else tuple(b - a for a, b in zip(before, after))


def large_problem() -> Problem:
    """A graph of about 3 MB, so that one that stays behind shows in the resident memory."""
    model = torch.nn.Sequential(torch.nn.Linear(20, 60), torch.nn.Tanh(), torch.nn.Linear(60, 5)).double()
    x, y = torch.randn(2000, 20, dtype=torch.float64), torch.randn(2000, 5, dtype=torch.float64)
    return Problem(model, torch.nn.MSELoss(), (x, y), batch_size=700)


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the memory from /proc")


class TestFiftyProducts:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_no_tensor_stays(self, layout):
        problem = cases.make("mlp_mse").problem()
        operator, v = hessian(problem, layout=layout), problem.initial
        assert growth(lambda: operator.matvec(v), live) == (0, 0)

    @needs_proc
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_no_memory_stays(self, layout):
        problem = large_problem()
        operator, v = hessian(problem, layout=layout), problem.initial
        assert growth(lambda: operator.matvec(v), resident) < 20 << 20


class TestFiftyConstructions:
    """A training loop builds one Hessian per step."""

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_no_tensor_stays(self, layout):
        problem = cases.make("mlp_mse").problem()
        v = problem.initial
        assert growth(lambda: hessian(problem, layout=layout).matvec(v), live) == (0, 0)

    @needs_proc
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_no_memory_stays(self, layout):
        problem = large_problem()
        v = problem.initial
        assert growth(lambda: hessian(problem, layout=layout).matvec(v), resident) < 20 << 20

    @needs_proc
    def test_counting_the_graph_leaves_nothing(self):
        problem = large_problem()

        def construct():
            problem.notes.clear()
            hessian(problem)

        assert growth(construct, resident) < 20 << 20

    def test_close_frees_the_graph_at_once(self):
        problem = large_problem()
        operator = hessian(problem)
        with_graph = live()[1]
        operator.close()
        assert live()[1] < with_graph


class TestTheProbes:
    """Each probe must see a leak when there is one."""

    def test_a_kept_list_of_tensors_is_seen(self):
        kept = []
        tensors, size = growth(lambda: kept.append(torch.zeros(1000)), live)
        assert tensors == 50
        assert size == 50 * 4000

    @needs_proc
    def test_a_graph_that_holds_itself_is_seen(self):
        """The hook returns an output that its own node keeps: a circle outside Python's reach."""
        x = torch.randn(2000, 100, requires_grad=True)

        def leak():
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
                x.exp()

        assert growth(leak, resident) > 30 << 20

    @needs_proc
    def test_operators_that_are_kept_are_seen(self):
        problem, kept = large_problem(), []
        assert growth(lambda: kept.append(hessian(problem)), resident) > 60 << 20


class TestSavedBytes:
    def test_each_storage_counts_once(self):
        x = torch.randn(100, requires_grad=True)
        with memory.SavedBytes() as saved:
            y = x * x  # keeps x twice
        assert saved.bytes == 400
        with memory.SavedBytes() as more:
            (y * x.view(100)).sum()  # keeps y, and x as a view
        assert more.bytes == 800

    def test_derivatives_are_the_same_inside(self):
        x = torch.randn(5, dtype=torch.float64, requires_grad=True)

        def second():
            (g,) = torch.autograd.grad(x.tanh().pow(3).sum(), x, create_graph=True)
            return torch.autograd.grad(g.sum(), x)[0]

        plain = second()
        with memory.SavedBytes():
            counted = second()
        assert torch.equal(plain, counted)

    def test_the_estimate_is_near_what_the_graph_takes(self):
        problem = large_problem()
        estimate = hessian(problem).record["graph_bytes"]
        kept = []
        taken = growth(lambda: kept.append(hessian(problem)), resident, repeats=30) / 30
        assert 0.3 * estimate < taken < 3 * estimate


def test_available_memory_is_a_plausible_number():
    assert 1 << 26 < memory.available(torch.device("cpu")) < 1 << 45
