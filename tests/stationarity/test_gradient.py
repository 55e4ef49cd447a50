"""The gradient level: against sums over pairs, in simulations with a known gradient, and on networks."""

import itertools
import math

import numpy as np
import pytest
import torch

import thalweg as tw
from reference import gradient_level as naive
from thalweg.errors import InvalidInput, NonFinite
from thalweg.operators.data_parallel import DataParallelProblem
from thalweg.runs.gradient_draws import Draws
from thalweg.runs.gradient_moments import inner_products, moments
from thalweg.stationarity.gradient import gradient_level
from thalweg.stationarity.gradient_fit import fit_noise

FIELDS = ("unbiased", "biased", "noise", "standard_error", "noise_square")


def net(width: int = 8, dropout: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(5, width),
        torch.nn.BatchNorm1d(width),
        torch.nn.ReLU(),
        torch.nn.Dropout(dropout),
        torch.nn.Linear(width, 3),
    )


def problem_of(model: torch.nn.Module, n: int = 90, **options) -> tw.Problem:
    stream = torch.Generator().manual_seed(2)
    x, y = torch.randn(n, 5, generator=stream), torch.randint(0, 3, (n,), generator=stream)
    return tw.Problem(model, torch.nn.CrossEntropyLoss(), (x, y), check=False, **options)


def by_hand(problem: tw.Problem, n: int, size: int, seed: int, mode: str, decay: float = 0.0) -> list[torch.Tensor]:
    """Gradients of the same mini-batches, by backward on a copy of the model."""
    draws = Draws(problem, size, seed, mode)
    x, y = problem._batches.data
    found = []
    for i in range(n):
        model = net(problem.model[0].out_features)
        model.load_state_dict(problem.model.state_dict())
        model.train(mode == "train").to(problem.dtype)
        at = draws.indices(i)
        torch.nn.functional.cross_entropy(model(x[at].to(problem.dtype)), y[at]).backward()
        found.append(torch.cat([(p.grad + decay * p.detach()).reshape(-1) for p in model.parameters()]))
    return found


class TestAgainstSumsOverPairs:
    @pytest.mark.parametrize("mode", ["train", "eval"])
    @pytest.mark.parametrize("decay", [0.0, 0.1])
    def test_whole_and_tensors(self, mode, decay):
        problem = problem_of(net(), dtype=torch.float64)
        level = gradient_level(problem, batches=6, batch_size=20, seed=4, mode=mode, decay=decay)
        gradients = by_hand(problem, 6, 20, 4, mode, decay)
        expected = naive.level(gradients)
        for name in FIELDS:
            assert getattr(level.whole, name) == pytest.approx(expected[name], rel=1e-9)
        for name, part in problem.layout.slices():
            own = naive.level([g[part] for g in gradients])
            for key in ("unbiased", "noise", "standard_error"):
                assert getattr(level.tensors[name], key) == pytest.approx(own[key], rel=1e-7, abs=1e-15)
        plain = naive.level(by_hand(problem, 6, 20, 4, mode))
        assert level.plain.unbiased == pytest.approx(plain["unbiased"], rel=1e-9)
        assert level.plain.standard_error == pytest.approx(plain["standard_error"], rel=1e-9)
        assert sum(one.unbiased for one in level.tensors.values()) == pytest.approx(level.unbiased, rel=1e-9)
        assert level.noise_scale == pytest.approx(20 * level.noise / level.unbiased) or level.unbiased <= 0

    def test_groups_and_decay_by_name(self):
        problem = problem_of(net(), dtype=torch.float64)
        level = gradient_level(
            problem, batches=5, batch_size=20, decay={"*.weight": 0.2}, groups={"ends": ["0.weight", "4.bias"]}
        )
        full = torch.zeros(problem.dimension, dtype=torch.float64)
        full[problem.layout.indices("*.weight")] = 0.2
        same = gradient_level(problem, batches=5, batch_size=20, decay=full)
        third = gradient_level(problem, batches=5, batch_size=20, penalty=lambda w: 0.5 * (full * w * w).sum())
        assert level.unbiased == pytest.approx(same.unbiased, rel=1e-12)
        assert level.unbiased == pytest.approx(third.unbiased, rel=1e-12)
        ends = level.tensors["0.weight"].unbiased + level.tensors["4.bias"].unbiased
        assert level.groups["ends"].unbiased == pytest.approx(ends, rel=1e-9)

    def test_second_pass_and_sketch(self):
        problem = problem_of(net(600))
        options = {"batches": 24, "batch_size": 16, "decay": 0.01, "scale_invariant_groups": None}
        exact = gradient_level(problem, keep="gradients", **options)
        twice = gradient_level(problem, keep="second pass", **options)
        short = gradient_level(problem, keep="sketch", **options)
        assert exact.cost.numbers == problem.dimension > 1.25 * short.cost.numbers
        assert (exact.cost.gradients, twice.cost.gradients) == (24, 48)
        for other in (twice, short):
            for name in ("unbiased", "biased", "noise"):
                assert getattr(other, name) == pytest.approx(getattr(exact, name), rel=1e-5)
            assert other.whole.noise_square == pytest.approx(exact.whole.noise_square, rel=0.05)
        assert twice.standard_error == pytest.approx(exact.standard_error, rel=1e-5)
        assert short.standard_error == pytest.approx(exact.standard_error, rel=0.1)


class TestSimulated:
    """Gradients with a known mean; 400 to 2000 probes each."""

    @staticmethod
    def sample(stream, n, gradient, heavy, scale):
        noise = (
            stream.standard_t(3, (n, len(gradient))) / math.sqrt(3)
            if heavy
            else stream.standard_normal((n, len(gradient)))
        )
        return torch.from_numpy(gradient + noise * scale)

    @pytest.mark.parametrize("heavy", [False, True])
    @pytest.mark.parametrize(("n", "probes"), [(8, 1000), (16, 1000), (64, 500)])
    def test_unbiased_and_covered(self, n, probes, heavy):
        stream = np.random.default_rng([n, heavy])
        gradient, scale = np.linspace(0.2, 1.0, 30), np.geomspace(0.5, 4.0, 30)
        truth = float(gradient @ gradient)
        found = [moments(inner_products(self.sample(stream, n, gradient, heavy, scale))) for _ in range(probes)]
        values = np.array([one.unbiased for one in found])
        inside = np.mean([one.interval[0] <= truth <= one.interval[1] for one in found])
        assert abs(values.mean() - truth) < 3 * values.std() / math.sqrt(probes)
        assert np.mean([one.biased for one in found]) > truth + 0.8 * float(scale @ scale) / n * (
            1 if not heavy else 0.9
        )
        assert 0.93 <= inside <= 0.99

    @pytest.mark.parametrize("n", [16, 64])
    def test_level_and_power_of_the_test_of_zero(self, n):
        stream = np.random.default_rng(n)
        scale = np.geomspace(0.5, 2.0, 40)
        zero = [moments(inner_products(self.sample(stream, n, np.zeros(40), False, scale))) for _ in range(800)]
        assert 0.02 < np.mean([one.p < 0.05 for one in zero]) < 0.09
        square = np.mean([one.detectable for one in zero])
        gradient = np.full(40, math.sqrt(square / 40))
        found = [moments(inner_products(self.sample(stream, n, gradient, False, scale))) for _ in range(400)]
        assert 0.65 < np.mean([one.p < 0.05 for one in found]) < 0.95

    def test_noise_scale_and_its_square(self):
        stream = np.random.default_rng(1)
        scale = np.geomspace(0.5, 2.0, 40)
        found = [moments(inner_products(self.sample(stream, 32, np.zeros(40), False, scale))) for _ in range(300)]
        assert np.mean([one.noise for one in found]) == pytest.approx(float(scale @ scale), rel=0.02)
        assert np.mean([one.noise_square for one in found]) == pytest.approx(float((scale**4).sum()), rel=0.06)


class TestOnNetworks:
    def test_the_mean_over_seeds_is_the_gradient_of_all_data(self):
        problem = problem_of(net(), dtype=torch.float64)
        found = [
            gradient_level(problem, batches=4, batch_size=9, seed=seed, mode="eval", scale_invariant_groups=None)
            for seed in range(120)
        ]
        problem.model.eval()
        truth = float(problem.gradient(problem.initial).square().sum())
        values = np.array([one.unbiased for one in found])
        assert abs(values.mean() - truth) < 3 * values.std() / math.sqrt(len(values))
        assert np.mean([one.biased for one in found]) > truth + 10 * values.std() / math.sqrt(len(values))

    def test_nothing_of_the_model_changes(self, untouched):
        model = net(dropout=0.4)
        model[1].eval()
        model(torch.ones(4, 5)).sum().backward()
        problem = problem_of(model)
        for mode in ("train", "eval", "current"):
            with untouched(model):
                gradient_level(problem, batches=3, batch_size=8, mode=mode)
        draws = Draws(problem, 8, 0, "train")
        with untouched(model), pytest.raises(InvalidInput):
            draws.problem._batch_gradient([], object())
        assert not torch.is_inference_mode_enabled()

    def test_dropout_differs_between_mini_batches_and_repeats_with_the_seed(self):
        problem = problem_of(net(dropout=0.5))
        options = {"batches": 4, "batch_size": 90, "scale_invariant_groups": None}
        one, same = gradient_level(problem, **options), gradient_level(problem, **options)
        assert one.unbiased == same.unbiased
        assert one.noise > 1e-4  # all samples in each mini-batch: this is dropout alone
        assert gradient_level(problem, mode="eval", **options).noise < 1e-9

    def test_mini_batches_cover_the_data_independently(self):
        draws = Draws(problem_of(net()), 30, 0, "train")
        drawn = torch.stack([draws.indices(i) for i in range(300)])
        assert all(len(set(row.tolist())) == 30 for row in drawn[:20])
        counts = torch.bincount(drawn.reshape(-1), minlength=90).double()
        assert float(((counts - 100) ** 2 / 100).sum()) == pytest.approx(90 * (1 - 30 / 90), abs=5 * math.sqrt(180))
        overlap = np.mean([len(set(a.tolist()) & set(b.tolist())) for a, b in itertools.pairwise(drawn)])
        assert overlap == pytest.approx(10, abs=0.6)  # an epoch without replacement would give 0 two times of three

    def test_half_precision_is_added_up_in_float32(self):
        problem = problem_of(net(), dtype=torch.bfloat16)
        _, parts = Draws(problem, 30, 0, "eval").gradient(problem.initial, 0)
        assert {part.dtype for part in parts} == {torch.float32}
        level = gradient_level(problem, batches=4, batch_size=30, mode="eval")
        exact = gradient_level(problem_of(net(), dtype=torch.float64), batches=4, batch_size=30, mode="eval")
        assert level.unbiased == pytest.approx(exact.unbiased, rel=0.05)


class TestWhatItSays:
    def test_one_mini_batch(self):
        with pytest.raises(InvalidInput, match=r"from one mini-batch\. .*cannot be told from its noise"):
            gradient_level(problem_of(net()), batches=1)

    def test_a_loss_that_is_nan(self, untouched):
        model, (x, y) = net(), problem_of(net())._batches.data
        problem = tw.Problem(model, lambda out, y: (out.sum() - 1e6).log(), (x, y), check=False)
        with untouched(model), pytest.raises(NonFinite, match="The loss is nan on mini-batch 0 of the probe"):
            gradient_level(problem, batches=4)

    def test_a_gradient_that_is_not_finite_though_the_loss_is(self):
        model, (x, _) = torch.nn.Linear(5, 1), problem_of(net())._batches.data
        problem = tw.Problem(model, lambda out, y: (out - out.detach()).sqrt().mean(), (x, x), check=False)
        with pytest.raises(NonFinite, match="The loss is 0, and its gradient not finite, on mini-batch 0"):
            gradient_level(problem, batches=4)

    def test_a_gradient_that_is_zero(self):
        model = net()
        with torch.no_grad():
            model[1].weight.zero_(), model[1].bias.fill_(-1), model[4].bias.copy_(torch.tensor([999.0, 0, 0]))
        stream = torch.Generator().manual_seed(0)
        problem = tw.Problem(
            model,
            torch.nn.CrossEntropyLoss(),
            (torch.randn(40, 5, generator=stream), torch.zeros(40, dtype=torch.long)),
            check=False,
        )
        level = gradient_level(problem, batches=4, batch_size=10)
        assert (level.unbiased, level.biased, level.noise) == (0.0, 0.0, 0.0)
        assert math.isnan(level.z)
        assert "The gradient is exactly zero in all 4 mini-batches" in repr(level)

    def test_all_samples_in_each(self):
        level = gradient_level(problem_of(net()), batches=2, batch_size=90)
        assert "Each mini-batch holds all samples" in level.note
        assert level.unbiased == pytest.approx(level.biased)

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"batch_size": 91}, "the data has 90 samples"),
            ({"batches": 2.5}, "batches is 2.5"),
            ({"mode": "test"}, "mode is 'test'"),
            ({"keep": "all"}, "keep is 'all'"),
            ({"decay": {"conv": 1.0}}, "No parameter matches it"),
            ({"decay": torch.ones(3)}, "decay has shape"),
            ({"groups": {"a": ["nothing"]}}, "names 'nothing'"),
            ({"groups": {"a": []}}, "is empty"),
            ({"penalty": lambda w: w.detach().sum()}, "without a gradient"),
        ],
    )
    def test_bad_input(self, options, text):
        with pytest.raises(InvalidInput, match="(?i)" + text):
            gradient_level(problem_of(net()), **options)

    def test_a_loader_and_a_part_of_the_data(self):
        x, y = problem_of(net())._batches.data
        loader = tw.Problem(net().eval(), torch.nn.CrossEntropyLoss(), [(x, y), (x, y)])
        with pytest.raises(InvalidInput, match="can only be read in its own order"):
            gradient_level(loader, batch_size=4)
        part = DataParallelProblem.__new__(DataParallelProblem)
        with pytest.raises(InvalidInput, match="Pass the Problem on all data on every process"):
            Draws(part, 4, 0, "train")

    def test_words_table_and_figure(self):
        level = gradient_level(problem_of(net()), batches=8, batch_size=20, decay=0.1)
        assert "train mode, 8 mini-batches of 20 out of 90" in repr(level)
        assert "without decay and penalty" in repr(level)
        assert "scale-invariant group" in repr(level)
        assert list(level.table()["name"]) == ["all", *level.groups, *level.tensors]
        assert len(level.plot().data) == 3
        assert len(level.scale_free.plot().data) == 1


class TestPublishedValues:
    SIZES = tuple(640 * 2**k for k in range(10))
    VALUES = (2.68, 2.04, 1.55, 1.16, 0.96, 0.82, 0.76, 0.72, 0.71, 0.70)

    def test_fit(self):
        fit = fit_noise(self.SIZES, self.VALUES)
        assert fit.norm == pytest.approx(0.685, rel=0.01)
        assert fit.noise == pytest.approx(67.5, rel=0.01)
        assert fit.largest_residual < 0.085
        assert fit.bias[0] == pytest.approx(3.9, rel=0.02)
        assert len(fit.plot().data) == 2

    def test_input(self):
        with pytest.raises(InvalidInput, match="three values"):
            fit_noise([1, 2], [1, 2])
        with pytest.raises(NonFinite, match="positive"):
            fit_noise([1, 2, 3], [1, math.nan, 2])
