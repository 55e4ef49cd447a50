"""Passes whose guards are set up once: each the same as one alone, and nothing left behind."""

import pytest
import torch
from torch.nn import functional as F

import thalweg as tw
from thalweg.runs.gradient_draws import Draws
from thalweg.runs.gradient_passes import passes
from thalweg.runs.gradient_probe import GradientProbe
from thalweg.runs.gradient_sums import add_up


class Codebook(torch.nn.Module):
    """Keeps state in buffers in every way there is: written in place, past the version counter, and assigned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(4, 5)
        self.norm = torch.nn.BatchNorm1d(5)
        self.last = torch.nn.Linear(5, 2)
        for name in ("written", "hidden", "assigned"):
            self.register_buffer(name, torch.ones(5))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        out = self.norm(self.first(x)) * self.written.clone() * self.hidden.clone() * self.assigned
        self.written.mul_(1.5)
        self.hidden.data.copy_(self.hidden * 2)
        self.assigned = 0.5 * self.assigned
        self.count += 1
        return self.last(torch.relu(out))


def data(n: int = 60):
    stream = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=stream), torch.randint(0, 2, (n,), generator=stream)


def problem_of(model, **options) -> tw.Problem:
    return tw.Problem(model, F.cross_entropy, data(), check=False, **options)


def alone(problem: tw.Problem, w: torch.Tensor, batch) -> torch.Tensor:
    """The gradient by the problem's own evaluation, which sets up everything anew."""
    leaves = [leaf.requires_grad_() for leaf in problem.layout.split(w.detach().clone())]
    return torch.cat([g.reshape(-1) for g in problem._batch_gradient(leaves, batch)[1]])


class TestPasses:
    def batches(self, k: int = 4):
        x, y = data()
        return [(x[10 * i : 10 * i + 10], y[10 * i : 10 * i + 10]) for i in range(k)]

    def together(self, problem, w, batches):
        placed = [problem._place(batch) for batch in batches]
        return passes(problem, w, lambda get: [torch.cat([g.reshape(-1) for g in get(b)[1]]) for b in placed])

    def test_each_finds_buffers_as_the_model_has_them(self, untouched):
        model = Codebook()
        problem = problem_of(model, dtype=torch.float64)
        w = problem.initial
        expected = [alone(problem, w, problem._place(batch)) for batch in self.batches()]
        with untouched(model):
            found = self.together(problem, w, self.batches())
        for a, b in zip(found, expected):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)
        assert torch.equal(model.assigned, torch.ones(5))
        assert isinstance(model.first.weight, torch.nn.Parameter)

    def test_at_another_point(self):
        problem = problem_of(Codebook(), dtype=torch.float64)
        w = problem.initial + 0.1
        expected = [alone(problem, w, problem._place(batch)) for batch in self.batches()]
        for a, b in zip(self.together(problem, w, self.batches()), expected):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)

    def test_parameters_of_mixed_dtypes(self, untouched):
        class Mixed(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.last = torch.nn.Linear(4, 5).double(), torch.nn.Linear(5, 2)

            def forward(self, x):
                return self.last(self.first(x.double()).float())

        model = Mixed()
        problem = problem_of(model)
        expected = [alone(problem, problem.initial, batch) for batch in self.batches()]
        with untouched(model):
            for a, b in zip(self.together(problem, problem.initial, self.batches()), expected):
                assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)

    def test_tied_and_frozen_parameters_and_parameters_in_the_loss(self, untouched):
        class Margin(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("seen", torch.zeros(()))

            def forward(self, out, y):
                self.seen += 1
                return F.cross_entropy(out, y) * self.seen

        first, last = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        last.weight = first.weight
        first.bias.requires_grad_(False)
        model = torch.nn.Sequential(first, torch.nn.Tanh(), last)
        problem = tw.Problem(model, Margin(), data(), check=False)
        expected = [alone(problem, problem.initial, batch) for batch in self.batches()]
        with untouched(model):
            for a, b in zip(self.together(problem, problem.initial, self.batches()), expected):
                assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
        assert model[2].weight is model[0].weight
        assert float(problem._function.loss.seen) == 0

    def test_a_problem_that_evaluates_in_its_own_way(self):
        class Doubled(tw.Problem):
            def _evaluate(self, leaves, batch):
                value, weight = super()._evaluate(leaves, batch)
                return 2 * value, weight

        model = Codebook()
        w = problem_of(model).initial
        one, two = problem_of(model), Doubled(model, F.cross_entropy, data(), check=False)
        for a, b in zip(self.together(one, w, self.batches()), self.together(two, w, self.batches())):
            assert torch.allclose(2 * a, b, rtol=1e-5, atol=1e-7)

    def test_an_error_in_the_middle_leaves_nothing_behind(self, untouched):
        model = Codebook()
        problem = problem_of(model)

        def job(get):
            get(self.batches()[0])
            raise KeyError("stop")

        with untouched(model), pytest.raises(KeyError, match="stop"):
            passes(problem, problem.initial, job)
        with untouched(model), pytest.raises(RuntimeError):
            passes(problem, problem.initial, lambda get: [get(b) for b in [*self.batches(), (torch.ones(3, 9), None)]])
        assert torch.equal(model.assigned, torch.ones(5))


class TestSums:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_whole_is_the_sum_of_its_tensors(self, dtype):
        problem = problem_of(Codebook(), dtype=dtype)
        w = problem.initial
        for keep in ("gradients", "second pass", "sketch"):
            sums = add_up(Draws(problem, 12, 0, "train"), w, 6, d=0.1 * w, keep=keep)
            whole, parts = sums.whole(), [sums.products(t) for t in range(len(sums.sizes))]
            close = {"rtol": 1e-12 if dtype == torch.float64 else 1e-6, "atol": 1e-9}
            assert torch.allclose(whole.gram, sum(one.gram for one in parts), **close)
            assert torch.allclose(whole.inners, sum(one.inners for one in parts), **close)
            assert torch.allclose(whole.pull, sum(one.pull for one in parts), **close)
            assert whole.total == pytest.approx(sum(one.total for one in parts), rel=1e-12)

    def test_products_in_float32_are_those_in_float64(self):
        """More columns than are multiplied at a time, and gradients that nearly cancel."""
        stream = torch.Generator().manual_seed(0)
        x = torch.randn(300, 400, generator=stream)
        y = torch.randn(300, 30, generator=stream)
        model = torch.nn.Sequential(torch.nn.Linear(400, 40), torch.nn.Linear(40, 30))
        narrow = tw.Problem(model, torch.nn.MSELoss(), (x, y))
        exact = tw.Problem(model, torch.nn.MSELoss(), (x, y), dtype=torch.float64)
        probe = GradientProbe(batch_size=10, batches=24)
        found, expected = probe.probe(narrow), probe.probe(exact)
        scale = expected["gradient_noise"] / 24
        for name in ("gradient_unbiased", "gradient_biased", "gradient_noise"):
            assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5 * scale)
        assert found["gradient_standard_error"] == pytest.approx(expected["gradient_standard_error"], rel=1e-4)
        assert found["gradient_z"] == pytest.approx(expected["gradient_z"], rel=1e-4)


def test_the_attention_kernel_is_that_of_training():
    seen = []

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = torch.nn.Linear(4, 4)

        def forward(self, x):
            seen.append(torch.backends.cuda.flash_sdp_enabled())
            q = self.mix(x).view(-1, 1, 2, 2)
            return F.scaled_dot_product_attention(q, q, q).flatten(1)

    x = torch.randn(40, 4)
    problem = tw.Problem(Attention(), torch.nn.MSELoss(), (x, x), dtype=torch.float64)
    w = problem.initial
    here = torch.backends.cuda.flash_sdp_enabled()
    draws = Draws(problem, 10, 0, "train")
    seen.clear()
    found = [draws.gradient(w, i)[1] for i in range(3)]
    assert seen == [here] * 3
    for i, grads in enumerate(found):
        expected = alone(problem, w, draws._batch(i))
        assert torch.allclose(torch.cat([g.reshape(-1) for g in grads]), expected, rtol=1e-10, atol=1e-14)
