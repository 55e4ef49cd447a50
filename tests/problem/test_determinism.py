"""The guard at construction: each kind of randomness is named, and none of the harmless kinds."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import cases
from thalweg.errors import EmptyData, InvalidInput, NotDeterministic
from thalweg.problem import Problem


def data(n=12):
    return torch.randn(n, 3), torch.randn(n, 2)


def linear():
    return nn.Linear(3, 2)


class Draws(Dataset):
    """Augmentation by a source of random numbers."""

    def __init__(self, draw):
        (self.x, self.y), self.draw = data(), draw

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + self.draw(), self.y[i]


SOURCES = {
    "python": lambda: random.random(),
    "numpy": lambda: np.random.rand(),  # noqa: NPY002
    "own numpy generator": np.random.default_rng(3).random,
    "torch": lambda: torch.rand(()),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("through", ["dataset", "loader"])
def test_augmentation(untouched, source, through):
    model, samples = linear(), Draws(SOURCES[source])
    with untouched(model), pytest.raises(NotDeterministic, match="augmentation"):
        Problem(model, nn.MSELoss(), samples if through == "dataset" else DataLoader(samples, batch_size=5))


def test_augmentation_in_workers(untouched):
    model = linear()
    loader = DataLoader(Draws(SOURCES["torch"]), batch_size=6, num_workers=2)
    with untouched(model), pytest.raises(NotDeterministic, match="augmentation"):
        Problem(model, nn.MSELoss(), loader)


def test_quiet_workers_pass(untouched):
    x, y = data()
    model = linear()
    with untouched(model):
        problem = Problem(model, nn.MSELoss(), DataLoader(TensorDataset(x, y), batch_size=5, num_workers=2))
        value = problem.value(problem.initial)
    assert torch.allclose(value, nn.functional.mse_loss(model(x), y))


@pytest.mark.parametrize("own", [False, True])
def test_shuffling_loaders(untouched, own):
    generator = torch.Generator().manual_seed(1) if own else None
    state = generator.get_state() if own else None
    loader = DataLoader(TensorDataset(*data()), batch_size=5, shuffle=True, generator=generator)
    model = linear()
    with untouched(model), pytest.raises(NotDeterministic, match="shuffle=False"):
        Problem(model, nn.MSELoss(), loader)
    if own:
        assert torch.equal(generator.get_state(), state)


def test_a_shuffling_loader_of_one_batch_is_refused_too():
    """The mean over one whole batch is the same in any order, but nothing says that it stays one batch."""
    loader = DataLoader(TensorDataset(*data()), batch_size=12, shuffle=True)
    with pytest.raises(NotDeterministic):
        Problem(linear(), nn.MSELoss(), loader)


def test_without_the_guard_a_shuffling_loader_is_read_once_and_stays_fixed():
    x, y = data(13)
    y[::2] = -100
    loader = DataLoader(TensorDataset(x, y.argmax(1).where(y[:, 0] != -100, -100)), batch_size=4, shuffle=True)
    model = linear()
    problem = Problem(model, nn.CrossEntropyLoss(), loader, check=False)
    values = {float(problem.value(problem.initial)) for _ in range(5)}
    assert len(values) == 1
    whole = torch.cat([b[0] for b, _ in problem.batches()]), torch.cat([b[1] for b, _ in problem.batches()])
    expected = nn.functional.cross_entropy(model(whole[0]), whole[1])
    assert abs(values.pop() - float(expected.detach())) < 1e-6, "the weights belong to the batches that were kept"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.5, 0.02])
def test_live_dropout(dtype, p):
    model = nn.Sequential(nn.Linear(3, 64), nn.Dropout(p), nn.Linear(64, 2)).to(dtype)
    x, y = (t.to(dtype) for t in data(40))
    with pytest.raises(NotDeterministic, match="Dropout is live in 1"):
        Problem(model, nn.MSELoss(), (x, y))
    Problem(model.eval(), nn.MSELoss(), (x, y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_of_a_few_roundings_is_seen(dtype):
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (1 + 8 * torch.finfo(dtype).eps * torch.rand((), dtype=dtype))

    with pytest.raises(NotDeterministic, match="draws random numbers"):
        Problem(Noisy(3, 2).to(dtype), nn.MSELoss(), tuple(t.to(dtype) for t in data()))


def test_state_that_forward_keeps_is_named_as_such():
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x) + 0.1 * self.calls

    with pytest.raises(NotDeterministic, match="state that forward"):
        Problem(Counting(3, 2), nn.MSELoss(), data())


def test_kernels_that_round_differently_each_time_pass():
    class Rounding(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x) * (1 + 1e-6 * (self.calls % 3))

    model = Rounding(3, 2)
    problem = Problem(model, nn.MSELoss(), data())
    assert problem.model.calls >= 2, "the guard evaluated it twice, and let it pass"


def test_batch_statistics_over_several_batches():
    case = cases.make("batch_norm_train")
    with pytest.raises(InvalidInput, match=r"model.eval\(\)"):
        case.problem(batch_size=4)
    assert case.problem(batch_size=4, check=False).batch_count == 2
    assert case.problem().batch_count == 1
    case.model.eval()
    assert case.problem(batch_size=4).batch_count == 2


def test_buffers_that_forward_moves_stay_where_they_are(untouched):
    class Tracking(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.register_buffer("mean", torch.zeros(2))
            self.register_buffer("seen", torch.tensor(0))

        def forward(self, x):
            out = super().forward(x)
            self.mean.mul_(0.9).add_(out.detach().mean(0), alpha=0.1)
            self.seen = self.seen + 1
            return out - self.mean

    model, samples = Tracking(), data()
    with untouched(model):
        problem = Problem(model, nn.MSELoss(), samples, batch_size=5)
        assert torch.equal(problem.value(problem.initial), problem.value(problem.initial))


def test_writing_to_the_batch_is_refused():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2))
    with pytest.raises(InvalidInput, match="its batch in place"):
        Problem(model, nn.MSELoss(), data())


def test_writing_to_the_weights_is_refused():
    class Clamps(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                self.weight.clamp_(-0.1, 0.1)
            return super().forward(x)

    with pytest.raises(InvalidInput, match="writes to weight"):
        Problem(Clamps(3, 2), nn.MSELoss(), data())


def test_a_model_that_diverges_is_no_randomness():
    model = linear()
    model.weight.data.fill_(float("inf"))
    problem = Problem(model, nn.MSELoss(), data())
    assert not torch.isfinite(problem.value(problem.initial))


class TestEmpty:
    def test_batches_without_a_sample(self):
        x, y = data()
        for empty in [(x[:0], y[:0]), {"x": x[:0]}]:
            with pytest.raises(EmptyData, match="Batch 1 holds no sample"):
                Problem(linear(), lambda model, batch: (model(batch[0]).mean(), 1), [(x, y), empty])

    def test_loaders_without_a_batch(self):
        with pytest.raises(EmptyData, match="no sample"):
            Problem(linear(), nn.MSELoss(), [])
        loader = DataLoader(TensorDataset(*data(3)), batch_size=5, drop_last=True)
        with pytest.raises(EmptyData, match="no sample"):
            Problem(linear(), nn.MSELoss(), loader)

    def test_tensors_and_datasets_without_a_sample(self):
        x, y = data()
        for empty in [(x[:0], y[:0]), TensorDataset(x[:0], y[:0]), cases.Samples(x[:0], y[:0])]:
            with pytest.raises(EmptyData, match="no sample"):
                Problem(linear(), nn.MSELoss(), empty)

    def test_counts_that_are_all_zero(self):
        with pytest.raises(EmptyData):
            Problem(linear(), lambda model, batch: (model(batch[0]).mean(), 0), data())


def test_an_evaluation_that_fails_names_the_batch():
    x, y = data()
    with pytest.raises(InvalidInput, match=r"Evaluating batch 1 raised RuntimeError") as error:
        Problem(linear(), nn.MSELoss(), [(x, y), (x[:, :2], y)])
    assert isinstance(error.value.__cause__, RuntimeError)


def test_a_part_of_what_was_not_checked_can_be():
    torch.manual_seed(0)
    x = torch.randn(12, 3)
    noisy = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
    whole = Problem(noisy, torch.nn.MSELoss(), (x, x[:, :1]), check=False)
    assert whole.subset([0, 5]).samples == 2
    with pytest.raises(NotDeterministic):
        whole.subset(slice(0, 6), check=True)
    noisy.eval()
    part = whole.subset(slice(0, 6), check=True)
    assert torch.equal(part.value(part.initial), whole.subset(slice(0, 6)).value(whole.initial))
