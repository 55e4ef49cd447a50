"""Scale-invariant groups: found where a norm follows, and a level that rescaling leaves alone."""

import pytest
import torch
from torch import nn

import thalweg as tw
from thalweg.errors import InvalidInput
from thalweg.stationarity.gradient import gradient_level
from thalweg.stationarity.scale_free import scale_invariant


class Residual(nn.Module):
    """A layer with a bias before LayerNorm beside one that adds to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.out = nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.norm(self.inner(x))))


def problem_of(model: nn.Module, inputs: torch.Tensor, **options) -> tw.Problem:
    y = torch.randint(0, 3, (len(inputs),), generator=torch.Generator().manual_seed(3))
    return tw.Problem(model, nn.CrossEntropyLoss(), (inputs, y), check=False, **options)


def batch_norm(eps: float = 1e-5) -> nn.Module:
    torch.manual_seed(1)
    layers: list[nn.Module] = [nn.Linear(6, 12), nn.BatchNorm1d(12, eps=eps), nn.ReLU()]
    layers += [nn.Linear(12, 10, bias=False), nn.BatchNorm1d(10, eps=eps), nn.ReLU(), nn.Linear(10, 3)]
    return nn.Sequential(*layers)


def inputs(n: int = 120) -> torch.Tensor:
    return 3 * torch.randn(n, 6, generator=torch.Generator().manual_seed(2))


class TestFound:
    @pytest.mark.parametrize("shift", [0.0, 0.3])
    def test_before_batch_norm_in_train_mode(self, shift):
        model = batch_norm()
        with torch.no_grad():
            model[1].bias.fill_(shift)
        found = scale_invariant(problem_of(model, inputs()))
        # The affine pair of the first norm passes ReLU and a linear layer on its way to the second norm.
        assert dict(found.groups) == {
            "0.weight": ("0.weight",),
            "3.weight": ("3.weight",),
            "1": ("1.weight", "1.bias"),
        }
        assert max(found.gradient["0.weight"], found.radial["0.weight"]) < 1e-3
        assert found.passes == 4

    def test_nothing_in_eval_mode(self):
        model = batch_norm()
        for _ in range(20):
            model(inputs())
        assert not scale_invariant(problem_of(model, inputs()), mode="eval").groups

    def test_weight_and_bias_together_before_layer_norm(self):
        torch.manual_seed(0)
        assert dict(scale_invariant(problem_of(Residual(), inputs())).groups) == {
            "inner": ("inner.weight", "inner.bias")
        }

    def test_convolutions(self):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(),
            nn.Linear(16, 3),
        )  # fmt: skip
        x = torch.randn(60, 1, 6, 6)
        found = scale_invariant(problem_of(model, x))
        assert "0.weight" in found.groups
        assert "3" in found.groups or "3.weight" in found.groups
        assert "6.weight" not in found.groups

    def test_without_a_norm_there_is_none(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
        problem = problem_of(model, inputs())
        assert not scale_invariant(problem).groups
        level = gradient_level(problem, batches=4, batch_size=20)
        assert "no group of parameters is scale-invariant" in repr(level)

    def test_a_tensor_that_hardly_matters_is_not_taken_for_one(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
        with torch.no_grad():
            model[0].weight.mul_(1e-4)
        problem = problem_of(model, inputs())
        found = scale_invariant(problem)
        assert not found.groups


class TestRescaled:
    @pytest.mark.parametrize("name", ["0.weight", "3.weight"])
    def test_scale_free_stays_and_raw_is_halved(self, name):
        problem = problem_of(batch_norm(1e-7), inputs(), dtype=torch.float64)
        w = problem.initial
        doubled = w.clone()
        doubled[problem.layout.indices(name)] *= 2
        one, two = (gradient_level(problem, at, batches=8, batch_size=30, seed=1, decay=0.0) for at in (w, doubled))
        before, after = one.scale_free.groups[name], two.scale_free.groups[name]
        for key in ("unbiased", "biased", "noise", "standard_error"):
            assert getattr(after, key) == pytest.approx(getattr(before, key), rel=1e-5)
        raw = (two.tensors[name].unbiased / one.tensors[name].unbiased) ** 0.5
        assert raw == pytest.approx(0.5, rel=1e-5)
        assert two.scale_free.unbiased == pytest.approx(one.scale_free.unbiased, rel=1e-5)
        assert two.scale_free.norms[name] == pytest.approx(2 * one.scale_free.norms[name], rel=1e-12)

    def test_the_eps_of_the_norm_is_all_that_it_feels(self):
        problem = problem_of(batch_norm(), inputs(), dtype=torch.float64)
        w = problem.initial
        doubled = w.clone()
        doubled[problem.layout.indices("0.weight")] *= 2
        with torch.no_grad():
            least = float(problem.model[0].double()(inputs().double()).var(0).min())
        problem.model.float()
        one, two = (gradient_level(problem, at, batches=8, batch_size=30) for at in (w, doubled))
        off = abs(two.scale_free.groups["0.weight"].biased / one.scale_free.groups["0.weight"].biased - 1)
        assert off < 4 * 1e-5 / least

    def test_decay_has_no_part_in_it(self):
        problem = problem_of(batch_norm(), inputs())
        with_decay = gradient_level(problem, batches=4, batch_size=30, decay=1.0)
        without = gradient_level(problem, batches=4, batch_size=30)
        assert with_decay.scale_free.unbiased == without.scale_free.unbiased
        assert with_decay.unbiased > without.unbiased

    def test_groups_given_and_found_before(self):
        problem = problem_of(batch_norm(), inputs())
        found = scale_invariant(problem)
        level = gradient_level(problem, batches=4, batch_size=30, scale_invariant_groups=found)
        assert level.cost.checks == 0
        assert set(level.scale_free.groups) == set(found.groups)
        named = gradient_level(problem, batches=4, batch_size=30, scale_invariant_groups={"a": ["0.weight"]})
        assert named.scale_free.groups["a"].unbiased == level.scale_free.groups["0.weight"].unbiased
        with pytest.raises(InvalidInput, match="share a tensor"):
            gradient_level(
                problem, batches=4, batch_size=30, scale_invariant_groups={"a": ["0.weight"], "b": ["0.weight"]}
            )
