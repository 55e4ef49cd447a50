"""Gradients of many mini-batches in one go: those of single passes, or single passes."""

import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import thalweg as tw
from thalweg.errors import EmptyData, NonFinite
from thalweg.problem.zoo.transformer import CausalTransformer
from thalweg.runs import gradient_sums
from thalweg.runs.gradient_data import SampledProblem
from thalweg.runs.gradient_draws import Draws
from thalweg.runs.gradient_probe import GradientProbe
from thalweg.runs.gradient_sums import add_up
from thalweg.runs.gradient_together import together

N = 12


def data(n: int = 60):
    stream = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=stream), torch.randint(0, 3, (n,), generator=stream)


def plain() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))


def normed() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU(), torch.nn.Linear(6, 3))


def of_model(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1), len(batch[1])


def tried(problem: tw.Problem, mode: str = "train", batch_size: int = 10):
    """Losses and gradients in one go (None: given up), and those of single passes."""
    draws, w = Draws(problem, batch_size, 3, mode), problem.initial
    rows = torch.zeros(N, problem.dimension, dtype=torch.promote_types(problem.dtype, torch.float32))
    losses = together(draws, w, range(N), rows)
    single = [draws.gradient(w, i) for i in range(N)]
    expected = torch.stack([torch.cat([g.reshape(-1) for g in grads]) for _, grads in single])
    return (
        None if losses is None else (losses, rows),
        torch.tensor([value for value, _ in single], dtype=torch.float64),
        expected,
    )


class TestTheSame:
    @pytest.mark.parametrize("mode", ["train", "eval"])
    @pytest.mark.parametrize("make", [plain, normed])
    @pytest.mark.parametrize("loss", [F.cross_entropy, torch.nn.CrossEntropyLoss(ignore_index=2), of_model])
    def test_networks_and_losses(self, make, loss, mode, untouched):
        model = make()
        problem = tw.Problem(model, loss, data(), dtype=torch.float64, check=False)
        with untouched(model):
            found, losses, expected = tried(problem, mode)
        assert found is not None
        assert torch.allclose(found[0], losses.double(), rtol=1e-12)
        assert torch.allclose(found[1], expected, rtol=1e-11, atol=1e-15)

    def test_a_transformer_on_tokens(self, untouched):
        torch.manual_seed(0)
        model = CausalTransformer(11, 8, 1, 16, 2)
        ids = torch.randint(0, 11, (40, 8))
        problem = tw.Problem(model, F.cross_entropy, (ids, ids.roll(-1, 1)), dtype=torch.float64, check=False)
        with untouched(model):
            found, _, expected = tried(problem, batch_size=4)
        assert found is not None
        assert torch.allclose(found[1], expected, rtol=1e-9, atol=1e-14)

    def test_tied_frozen_and_mixed_parameters(self, untouched):
        class Mixed(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.last = torch.nn.Linear(4, 4).double(), torch.nn.Linear(4, 3)
                self.again = self.first
                self.last.bias.requires_grad_(False)

            def forward(self, x):
                return self.last(self.again(self.first(x.double())).float())

        model = Mixed()
        with untouched(model):
            found, _, expected = tried(tw.Problem(model, F.cross_entropy, data()))
        assert found is not None
        assert torch.allclose(found[1], expected, rtol=1e-5, atol=1e-7)

    def test_some_rows_in_several_goes(self, monkeypatch):
        problem = tw.Problem(plain(), F.cross_entropy, data(), dtype=torch.float64)
        draws, w = Draws(problem, 10, 0, "train"), problem.initial
        rows = torch.full((N, problem.dimension), 7.0, dtype=torch.float64)
        mine = range(1, N, 2)
        assert together(draws, w, range(N), torch.zeros_like(rows)) is not None
        (kept,) = problem.notes.values()
        four = 4 * (3 * kept + 8 * problem.dimension)
        monkeypatch.setattr("thalweg.runs.gradient_together.TOGETHER", four)
        assert together(draws, w, mine, rows).shape == (len(mine),)
        for i in range(N):
            expected = torch.cat([g.reshape(-1) for g in draws.gradient(w, i)[1]])
            assert torch.allclose(
                rows[i], expected if i in mine else torch.full_like(expected, 7.0), rtol=1e-11, atol=1e-15
            )

    def test_a_probe_is_the_same_either_way(self, monkeypatch):
        problem = tw.Problem(normed(), F.cross_entropy, data(), dtype=torch.float64, check=False)
        probe = GradientProbe(batch_size=10, batches=N, modes=("train", "eval"), decay=0.1)
        fast = probe.probe(problem, seed=2)
        assert fast == probe.probe(problem, seed=2)  # bit for bit: the second is not compared with a single pass
        monkeypatch.setattr(gradient_sums, "together", lambda *_: None)
        assert probe.probe(problem, seed=2) == pytest.approx(fast, rel=1e-9)


class Drops(torch.nn.Module):
    """A network that does something in its forward that is not the same for many mini-batches at once."""

    def __init__(self, what) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.what = torch.nn.Linear(4, 3), what
        self.own = np.random.default_rng(0) if what == "own" else None
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        out = self.inner(x)
        if self.what == "dropout":
            out = F.dropout(out, 0.3, training=True)
        elif self.what == "python":
            out = out * (1 + random.random())
        elif self.what == "numpy":
            out = out * (1 + np.random.rand())  # noqa: NPY002
        elif self.what == "own":
            out = out * 1.5
        elif self.what == "values" and out.sum() > 0:
            out = 2 * out
        elif self.what == "buffer":
            self.calls += 1
            out = out * self.calls
        return out


class TestSinglePasses:
    @pytest.mark.parametrize("what", ["dropout", "python", "numpy", "own", "values", "buffer"])
    def test_where_a_forward_would_be_another(self, what, untouched):
        model = Drops(what)
        problem = tw.Problem(model, F.cross_entropy, data(), check=False)
        probe = GradientProbe(batch_size=10, batches=N)
        with untouched(model):
            found, losses, expected = tried(problem)
            assert found is None
            one = probe.probe(problem)
        sums = add_up(Draws(problem, 10, 3, "train"), problem.initial, N)
        assert torch.allclose(sums.losses, losses.double(), rtol=1e-6)
        assert torch.allclose(sums.rows, expected, rtol=1e-4, atol=1e-6)
        assert probe.probe(problem) == one

    def test_hooks_and_convolutions_and_few_are_not_tried(self):
        hooked = plain()
        hooked[0].register_forward_hook(lambda *_: None)
        assert tried(tw.Problem(hooked, F.cross_entropy, data()))[0] is None
        folded = torch.nn.Sequential(torch.nn.Unflatten(1, (1, 4)), torch.nn.Conv1d(1, 2, 2), torch.nn.Flatten())
        assert tried(tw.Problem(folded, F.cross_entropy, data()))[0] is None
        problem = tw.Problem(plain(), F.cross_entropy, data())
        assert together(Draws(problem, 10, 0, "train"), problem.initial, range(3), torch.zeros(3, 51)) is None

    def test_large_passes_are_not_tried(self, monkeypatch):
        monkeypatch.setattr("thalweg.runs.gradient_together.SMALL", 100)
        problem = tw.Problem(plain(), F.cross_entropy, data())
        assert tried(problem)[0] is None
        assert tried(problem)[0] is None

    def test_data_from_a_loader(self):
        problem = SampledProblem(plain(), F.cross_entropy, DataLoader(TensorDataset(*data()), batch_size=10))
        assert tried(problem)[0] is None

    def test_a_difference_from_the_single_pass_is_seen(self, monkeypatch):
        monkeypatch.setattr("thalweg.runs.gradient_together._same", lambda *_: False)
        problem = tw.Problem(plain(), F.cross_entropy, data())
        assert tried(problem)[0] is None
        assert tried(problem)[0] is None  # nor is it tried again


class TestNothingIsLeft:
    def test_attributes_that_a_forward_sets(self, untouched):
        class Notes(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = torch.nn.Linear(4, 3)
                self.history, self.last, self.named = [], None, {}

            def forward(self, x):
                out = self.inner(x)
                self.history.append(out)
                self.named["out"] = self.last = self.fresh = out
                return out

        model = Notes()
        problem = tw.Problem(model, F.cross_entropy, data(), check=False)
        draws, rows = Draws(problem, 10, 0, "train"), torch.zeros(N, problem.dimension)
        draws.at(problem.initial, lambda gradient: gradient(0))  # single passes leave what they always left
        kept = list(model.history), model.last, dict(model.named), model.fresh
        draws.gradient(problem.initial, 0)
        before = vars(model).copy(), list(model.history)
        with untouched(model):
            losses = together(draws, problem.initial, range(N), rows)
        assert losses is not None  # and a fresh attribute, a list and a dict were written while it ran
        assert all(
            type(one) is torch.Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(one)
            for one in [*model.history, model.last, model.fresh, *model.named.values()]
        )
        assert len(model.history) == len(before[1]) + 1  # the single pass that it is compared with
        assert kept[0][0] is model.history[0]

    def test_errors_are_those_of_single_passes(self, untouched):
        model = plain()
        x, y = data()
        x[:, 1] = float("nan")
        with untouched(model), pytest.raises(NonFinite, match="The loss is nan on mini-batch 0 of the probe"):
            GradientProbe(batch_size=10, batches=N).probe(tw.Problem(model, F.cross_entropy, (x, y), check=False))
        some = torch.where(torch.arange(60) < 4, y, -100)
        problem = tw.Problem(plain(), torch.nn.CrossEntropyLoss(), (x, some))
        with untouched(problem.model), pytest.raises(EmptyData, match="has weight 0"):
            GradientProbe(batch_size=10, batches=N).probe(problem)
