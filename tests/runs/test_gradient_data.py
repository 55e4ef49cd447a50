"""Probes of a loop whose data comes from a DataLoader: by index, without bias, without a trace."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import thalweg as tw
from thalweg.errors import EmptyData, InvalidInput
from thalweg.runs.gradient_data import SampledProblem
from thalweg.runs.gradient_draws import Draws
from thalweg.runs.gradient_probe import GradientProbe
from thalweg.runs.gradient_streams import own_stream, streams_in
from thalweg.runs.recorder import Recorder
from thalweg.stationarity.gradient import gradient_level
from thalweg.stationarity.observables import Observables
from thalweg.stationarity.scale_free import scale_invariant


def net(dropout: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 6),
        torch.nn.BatchNorm1d(6),
        torch.nn.ReLU(),
        torch.nn.Dropout(dropout),
        torch.nn.Linear(6, 3),
    )


def tensors(n: int = 80):
    stream = torch.Generator().manual_seed(2)
    return torch.randn(n, 4, generator=stream), torch.randint(0, 3, (n,), generator=stream)


class Augmented(Dataset):
    """Draws from every kind of stream there is, and notes what it does in attributes of its own."""

    def __init__(self, n: int = 80) -> None:
        self.x, self.y = tensors(n)
        self.own = torch.Generator().manual_seed(3)
        self.transforms = [np.random.default_rng(4), {"old": np.random.RandomState(5), "plain": random.Random(6)}]
        self.read, self.handle = 0, None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int):
        self.read += 1
        self.handle = self.handle or object()
        assert 0 <= i < len(self.x)
        shift = torch.rand(()) + random.random() + np.random.rand() + torch.rand((), generator=self.own)  # noqa: NPY002
        shift = shift + self.transforms[0].random() + self.transforms[1]["old"].rand()
        shift = shift + self.transforms[1]["plain"].random()
        return self.x[i] + 0.3 * (shift - 3.5), self.y[i]

    def state(self):
        own = [self.own.get_state().tolist(), self.transforms[0].bit_generator.state]
        return [
            *own,
            self.transforms[1]["old"].get_state()[1].tolist(),
            self.transforms[1]["plain"].getstate(),
            self.read,
            self.handle,
        ]


class Words(Dataset):
    """Sequences of different lengths, as dicts."""

    def __init__(self, n: int = 60) -> None:
        stream = torch.Generator().manual_seed(7)
        lengths = torch.randint(3, 9, (n,), generator=stream).tolist()
        self.rows = [torch.randint(1, 11, (k,), generator=stream) for k in lengths]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int):
        return {"ids": self.rows[i], "name": f"line {i}"}


def padded(samples):
    ids = torch.nn.utils.rnn.pad_sequence([one["ids"] for one in samples], batch_first=True)
    return {"ids": ids, "names": [one["name"] for one in samples]}


class Language(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Embedding(11, 8)
        self.out = torch.nn.Linear(8, 11)

    def forward(self, ids):
        return self.out(self.inner(ids))


def next_word(model, batch):
    ids = batch["ids"]
    assert len(batch["names"]) == len(ids)
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0)


class TestAgainstTensors:
    def pair(self, **options):
        x, y = tensors()
        loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True, **options)
        model = net(0.3)
        loss = torch.nn.CrossEntropyLoss()
        plain = tw.Problem(model, loss, (x, y), dtype=torch.float64, check=False)
        return plain, SampledProblem(model, loss, loader, dtype=torch.float64)

    @pytest.mark.parametrize("mode", ["train", "eval"])
    def test_the_same_level(self, mode):
        plain, drawn = self.pair()
        options = {"batches": 7, "seed": 5, "mode": mode, "decay": 0.1}
        one = gradient_level(plain, batch_size=16, **options)
        two = gradient_level(drawn, **options)
        assert two.batch_size == 16  # of the loader
        for name in ("unbiased", "biased", "noise", "standard_error", "noise_square"):
            assert getattr(one.whole, name) == pytest.approx(getattr(two.whole, name), rel=1e-10)
        assert one.loss == pytest.approx(two.loss, rel=1e-10)
        found = scale_invariant(drawn, mode=mode).groups
        assert one.scale_free.groups.keys() == two.scale_free.groups.keys() == found.keys()

    def test_the_same_probe(self):
        plain, drawn = self.pair()
        probe = GradientProbe(batch_size=16, batches=5, modes=("train", "eval"))
        assert probe.probe(plain, seed=3) == pytest.approx(probe.probe(drawn, seed=3), rel=1e-10)

    def test_a_loss_of_model_and_batch_with_or_without_a_count(self):
        plain, drawn = self.pair()
        loader = DataLoader(TensorDataset(*tensors()), batch_size=16)
        expected = gradient_level(plain, batches=4, batch_size=16)

        def alone(model, batch):
            return F.cross_entropy(model(batch[0]), batch[1])

        def counted(model, batch):
            return F.cross_entropy(model(batch[0]), batch[1]), len(batch[1])

        for loss in (alone, counted):
            problem = SampledProblem(drawn.model, loss, loader, dtype=torch.float64)
            assert gradient_level(problem, batches=4).unbiased == pytest.approx(expected.unbiased, rel=1e-10)

    def test_a_dataset_that_reads_many_at_once_and_a_list_of_samples(self):
        plain, drawn = self.pair()
        x, y = tensors()
        expected = gradient_level(plain, batches=4, batch_size=16).unbiased
        many = Subset(TensorDataset(x, y), range(80))
        assert hasattr(many, "__getitems__")
        for data in (many, list(zip(x, y))):
            problem = SampledProblem(drawn.model, torch.nn.CrossEntropyLoss(), data, dtype=torch.float64)
            assert problem.batch_size is None
            assert gradient_level(problem, batches=4, batch_size=16).unbiased == pytest.approx(expected, rel=1e-10)

    def test_part_of_the_data(self):
        chosen = torch.arange(10, 50, 2)
        x, y = tensors()
        loader = DataLoader(TensorDataset(x, y), batch_size=8, sampler=SubsetRandomSampler(chosen.tolist()))
        model, loss = net(), torch.nn.CrossEntropyLoss()
        drawn = SampledProblem(model, loss, loader, dtype=torch.float64)
        plain = tw.Problem(model, loss, (x[chosen], y[chosen]), dtype=torch.float64, check=False)
        assert drawn.samples == 20
        expected = gradient_level(plain, batches=4, batch_size=8).unbiased
        assert gradient_level(drawn, batches=4).unbiased == pytest.approx(expected, rel=1e-10)

    def test_a_subset_is_an_ordinary_problem(self):
        plain, drawn = self.pair()
        plain.model.eval()
        at = torch.arange(3, 40)
        one, two = plain.subset(at), drawn.subset(at)
        assert type(two) is tw.Problem
        assert two.samples == 37
        assert float(one.value(one.initial)) == pytest.approx(float(two.value(two.initial)), rel=1e-12)

    def test_the_mean_over_seeds_is_the_gradient_of_all_data(self):
        words = Words()
        loader = DataLoader(words, batch_size=6, collate_fn=padded)

        def sequences(model, batch):  # of each sequence its mean, so that the mean over samples is plain
            ids = batch["ids"]
            terms = F.cross_entropy(model(ids[:, :-1]).transpose(1, 2), ids[:, 1:], ignore_index=0, reduction="none")
            kept = ids[:, 1:] != 0
            return ((terms * kept).sum(1) / kept.sum(1)).mean(), len(ids)

        drawn = SampledProblem(Language(), sequences, loader, dtype=torch.float64)
        whole = drawn.subset(torch.arange(60))
        truth = float(whole.gradient(whole.initial).square().sum())
        options = {"batches": 4, "scale_invariant_groups": None}
        found = [gradient_level(drawn, seed=seed, **options) for seed in range(80)]
        values = np.array([one.unbiased for one in found])
        assert abs(values.mean() - truth) < 3 * values.std() / math.sqrt(len(values))
        assert np.mean([one.biased for one in found]) > truth + 10 * values.std() / math.sqrt(len(values))


class TestAugmentation:
    def test_it_differs_between_mini_batches_and_repeats_with_the_seed(self):
        problem = SampledProblem(net(), F.cross_entropy, DataLoader(Augmented(), batch_size=80))
        options = {"batches": 4, "mode": "eval", "scale_invariant_groups": None}
        one, same, other = (gradient_level(problem, seed=seed, **options) for seed in (1, 1, 2))
        assert one.unbiased == same.unbiased != other.unbiased
        assert one.noise > 1e-6  # every mini-batch holds all samples: this is augmentation alone

    @pytest.mark.parametrize("wrap", [lambda d: d, lambda d: Subset(d, range(80)), lambda d: ConcatDataset([d])])
    def test_nothing_of_the_data_changes(self, wrap, untouched):
        data, model = Augmented(), net(0.4)
        loader = DataLoader(wrap(data), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(0))
        before, place = data.state(), loader.generator.get_state()
        with untouched(model):
            problem = SampledProblem(model, F.cross_entropy, loader)
            gradient_level(problem, batches=3)
            problem.subset(torch.arange(5))
        assert data.state() == before
        assert torch.equal(loader.generator.get_state(), place)

    def test_an_error_puts_streams_back_too(self, untouched):
        class Late(Augmented):
            def __getitem__(self, i):
                found = super().__getitem__(i)
                if i == 79:
                    raise OSError("truncated file")
                return found

        data, model = Late(), net()
        problem = SampledProblem(model, F.cross_entropy, DataLoader(data, batch_size=70))
        before = data.state()
        with untouched(model), pytest.raises(InvalidInput, match=r"(?s)Reading the samples .* OSError: truncated file"):
            gradient_level(problem, batches=16)
        assert data.state() == before

    def test_streams_are_found(self):
        data = Augmented()
        found = streams_in(data, lambda rows: (data, rows), data.__getitem__)
        assert [type(one).__name__ for one in found] == ["Generator", "Generator", "RandomState", "Random"]
        before = data.state()
        with own_stream(3, torch.device("cpu"), found):
            one = data[0]
            data.read, data.handle = 0, None
        assert data.state() == before
        with own_stream(3, torch.device("cpu"), found):
            assert torch.equal(one[0], data[0][0])
        with own_stream(4, torch.device("cpu"), found):
            assert not torch.equal(one[0], data[0][0])


class TestInALoopOfTheUsers:
    def loop(self, folder, probed: bool):
        torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002
        model, data = net(0.3), Augmented()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        loader = DataLoader(data, batch_size=16, shuffle=True)
        probe, look = GradientProbe(batch_size=16, batches=4, every=3), Observables(every=3, samples=20, size=4)
        with Recorder(folder, model, optimizer, every=3) as recorder:
            problem = SampledProblem(model, F.cross_entropy, loader) if probed else None
            for _ in range(2):
                for x, y in loader:  # probes come while it is in the middle of an epoch
                    if problem is not None:
                        probe.record(recorder, problem)
                        look.record(recorder, problem)
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()
                    recorder.step(loss=loss)
        return recorder.run, model, optimizer, data

    def test_it_is_filed_and_nothing_is_disturbed(self, tmp_path):
        run, model, optimizer, data = self.loop(tmp_path / "a", True)
        plain, other, theirs, same = self.loop(tmp_path / "b", False)
        assert run.data["gradient_unbiased"].dropna("step").step.values.tolist() == [0, 3, 6, 9]
        assert "function_sketch_0" in run.data
        assert np.array_equal(run.data["loss"].values, plain.data["loss"].values, equal_nan=True)
        assert data.state()[:-1] == same.state()[:-1]
        for a, b in zip(model.state_dict().values(), other.state_dict().values()):
            assert torch.equal(a, b)
        for a, b in zip(optimizer.state_dict()["state"].values(), theirs.state_dict()["state"].values()):
            assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])

    def test_the_loader_is_not_iterated_and_no_worker_starts(self, monkeypatch):
        loader = DataLoader(Words(), batch_size=6, collate_fn=padded, shuffle=True, num_workers=2)
        monkeypatch.setattr(DataLoader, "__iter__", lambda self: pytest.fail("the loader was iterated"))
        monkeypatch.setattr(type(loader.sampler), "__iter__", lambda self: pytest.fail("the sampler was asked"))
        found = GradientProbe(batch_size=6, batches=4).probe(SampledProblem(Language(), next_word, loader))
        assert found["gradient_biased"] > 0

    def test_samples_are_drawn_independently_from_all(self):
        draws = Draws(SampledProblem(Language(), next_word, DataLoader(Words(), 6, collate_fn=padded)), 20, 0, "train")
        drawn = [set(draws.indices(i).tolist()) for i in range(300)]
        assert set.union(*drawn) == set(range(60))
        overlap = np.mean([len(a & b) for a, b in itertools.pairwise(drawn)])
        assert overlap == pytest.approx(20 / 3, abs=0.5)


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(*tensors(8))


class Endless(Dataset):
    def __getitem__(self, i: int):
        return torch.zeros(4), 0


class TestWhatItSays:
    def refused(self, match, data, loss=F.cross_entropy, model=None, error=InvalidInput, **options):
        with pytest.raises(error, match="(?s)" + match):
            SampledProblem(model or net(), loss, data, **options)

    def test_iterable_style(self):
        match = r"iterable-style \(Stream\).*are not independent.*islice"
        self.refused(match, Stream())
        self.refused(match, DataLoader(Stream(), batch_size=4))
        self.refused("iterable-style", iter([1, 2]))
        kept = list(itertools.islice(Stream(), 8))  # what it says to do
        assert SampledProblem(net(), F.cross_entropy, kept).samples == 8

    def test_data_without_a_length_or_samples(self):
        self.refused(r"The Dataset \(Endless\) has no length.*Give it __len__", Endless())
        self.refused("holds no sample", [], error=EmptyData)
        self.refused(r"a tuple.*tensors go to Problem", tensors())
        self.refused("a dict.*by index", {"x": tensors()[0]})

    def test_loaders_of_another_kind(self):
        data = TensorDataset(*tensors())
        self.refused("batch_size=None.*samples or whole batches", DataLoader(data, batch_size=None))
        weighted = DataLoader(data, batch_size=4, sampler=WeightedRandomSampler([1.0] * 80, 80))
        self.refused("by weight.*weighted mean.*loader.dataset", weighted)

    def test_a_collate_function_that_does_not_fit(self):
        self.refused(
            r"Collating by default_collate the samples 0, 1, 2, 3, \.\.\. raised .*"
            r"a sample is a dict of ids: \(\d,\) int64, name: str.*Pass collate=, as your loader has it",
            DataLoader(Words(), batch_size=6),
            next_word,
            Language(),
        )
        problem = SampledProblem(Language(), next_word, Words(), collate=padded)
        assert gradient_level(problem, batches=3, batch_size=5).biased > 0

    def test_a_loss_that_does_not_fit(self):
        loader = DataLoader(Words(), batch_size=6, collate_fn=padded)
        self.refused(r"A batch is a dict, not a pair.*loss\(model, batch\)", loader, F.cross_entropy, Language())
        wrong = DataLoader(TensorDataset(torch.zeros(9, 5), torch.zeros(9).long()), batch_size=3)
        self.refused(r"first mini-batch raised RuntimeError.*a list of \(3, 5\) float32, \(3,\) int64", wrong)

    def test_what_needs_all_data(self):
        problem = SampledProblem(net(), F.cross_entropy, Augmented())
        assert repr(problem) == "SampledProblem(Sequential, 63 parameters, 80 samples by index, torch.float32, cpu)"
        with pytest.raises(InvalidInput, match="The mean over all data was asked for"):
            problem.value(problem.initial)
        with pytest.raises(InvalidInput, match=r"(?i)it holds no batches"):
            problem.recut(4)
        with pytest.raises(InvalidInput, match="The data has 80 samples"):
            GradientProbe(batch_size=81).probe(problem)

    def test_a_problem_on_a_loader_points_here(self):
        loader = tw.Problem(net().eval(), F.cross_entropy, DataLoader(TensorDataset(*tensors()), batch_size=8))
        with pytest.raises(InvalidInput, match=r"SampledProblem\(model, loss, loader\)"):
            gradient_level(loader, batch_size=4)
