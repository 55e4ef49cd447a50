"""Two probes of a program whose bytes are affine say what any size takes."""

import pytest
import torch

from thalweg.problem import Problem
from thalweg.problem.probes import Growth, Probe, first_samples, grow, misfit, probe, segments


def made(size, *events, kept=0, seconds=1.0):
    return Probe(size, {"record": list(events)}, kept, {"record": seconds})


def mlp(samples=64, **options):
    model = torch.nn.Sequential(torch.nn.Linear(6, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3))
    data = torch.randn(samples, 6), torch.randint(3, (samples,))
    return Problem(model, torch.nn.CrossEntropyLoss(), data, **options)


class TestGrowth:
    def test_another_operation_may_be_the_worst_at_another_size(self):
        """The first probes peak in ``a``, which does not grow; from 11 samples on ``b`` is worse."""
        growth = Growth([made(1, ("a", 100), ("b", 10)), made(2, ("a", 100), ("b", 20))])
        assert [growth.bytes("record", b) for b in (1, 2, 5, 10, 20)] == [100, 100, 100, 100, 200]

    def test_one_probe_bounds(self):
        assert Growth([made(1, ("a", 100))]).bytes("record", 3) == 300

    def test_below_the_largest_probe_the_neighbours_count(self):
        """A buffer grows until it is full; then it does not."""
        growth = Growth([made(b, ("a", min(10 * b, 35)), kept=min(b, 3)) for b in (1, 2, 4, 8)])
        assert [growth.bytes("record", b) for b in (1, 2, 3, 4, 8, 100)] == [10, 20, 28, 35, 35, 35]
        assert [growth.kept(b) for b in (1, 2, 4, 8)] == [1, 2, 3, 3]

    def test_a_longer_loop_is_one_stretch(self):
        short = made(1, ("in", 5), ("mm", 50), ("out", 10))
        long = made(2, ("in", 6), ("mm", 51), ("mm", 52), ("mm", 51), ("out", 20))
        assert segments(short.events["record"], long.events["record"]) == [(5, 6), (50, 52), (0, 0)]

    def test_sizes_between_probes_are_interpolated_in_time(self):
        growth = Growth(
            [made(1, ("a", 1), seconds=1.0), made(2, ("a", 1), seconds=2.0), made(4, ("a", 1), seconds=3.0)]
        )
        assert [growth.seconds("record", b) for b in (1, 2, 3, 4, 8)] == pytest.approx([1, 2, 2.5, 3, 5])

    def test_misfit_is_relative_to_the_last_probe(self):
        probes = [made(1, ("a", 10)), made(2, ("a", 20)), made(4, ("a", 50))]
        assert misfit(Growth(probes)) == pytest.approx(40 / 50 - 1)
        assert misfit(Growth(probes[:2])) is None


class TestProbing:
    @pytest.mark.parametrize("order", ["value", "gradient", "product"])
    def test_small_probes_say_what_a_large_batch_takes(self, order):
        problem = mlp(4096)
        growth = grow(problem, problem.initial, order, allowed=100_000, largest=4096)
        assert growth.probes[-1].size < 1000
        whole = probe(problem, problem.initial, first_samples(problem, 4096), order)
        assert growth.peak(4096) == pytest.approx(whole.peak, rel=0.01)
        assert growth.kept(4096) == pytest.approx(whole.kept, rel=0.01)

    def test_no_probe_is_expected_to_take_more_than_allowed(self):
        problem = mlp(4096)
        least = probe(problem, problem.initial, first_samples(problem, 1), "product").peak
        growth = grow(problem, problem.initial, "product", allowed=2 * least, largest=4096)
        assert all(one.peak <= 2 * least for one in growth.probes)
        assert len(grow(problem, problem.initial, "product", allowed=1, largest=4096).probes) == 1

    def test_batches_of_a_loader_are_cut(self):
        problem = mlp()
        loader = [batch for batch, _ in problem.recut(16).batches()]
        listed = Problem(problem.model, torch.nn.CrossEntropyLoss(), [tuple(batch) for batch in loader])
        assert len(first_samples(listed, 3)[0]) == 3

    def test_nothing_of_the_users_changes(self):
        problem = mlp()
        before, state = problem.initial, torch.get_rng_state()
        grow(problem, problem.initial, "product", allowed=10**9, largest=64)
        assert torch.equal(problem.initial, before)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(p.grad is None for p in problem.model.parameters())
