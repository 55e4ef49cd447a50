"""The gradient level along a run: names, points, random streams, and that training is not disturbed."""

import math

import numpy as np
import pytest
import torch

import thalweg as tw
from thalweg.errors import InvalidInput, NumericalWarning
from thalweg.runs.gradient_probe import GradientProbe, variable
from thalweg.runs.recorder import Recorder


def net(dropout: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 6),
        torch.nn.BatchNorm1d(6),
        torch.nn.ReLU(),
        torch.nn.Dropout(dropout),
        torch.nn.Linear(6, 3),
    )


def data(n: int = 80):
    stream = torch.Generator().manual_seed(2)
    return torch.randn(n, 4, generator=stream), torch.randint(0, 3, (n,), generator=stream)


def problem_of(model: torch.nn.Module) -> tw.Problem:
    return tw.Problem(model, torch.nn.CrossEntropyLoss(), data(), check=False)


def linear() -> tw.Problem:
    torch.manual_seed(0)
    x, _ = data()
    return tw.Problem(torch.nn.Linear(4, 1), torch.nn.MSELoss(), (x, x[:, :1]))


def probed(run: tw.runs.Run, name: str = "gradient_unbiased") -> dict[int, float]:
    row = run.data[name].dropna("step")
    return dict(zip(row.step.values.tolist(), row.values.tolist()))


class TestInTrain:
    def test_full_batches_give_the_gradient_of_all_data(self):
        problem = linear()
        probe = GradientProbe(batch_size=80, batches=2, every=4)
        run = tw.train(problem, tw.rules.GradientDescent(lr=0.05), 10, measures=[probe])
        expected = run.data["gradient_norm"].values ** 2
        found = probed(run)
        assert list(found) == [0, 4, 8, 10]
        assert [found[t] for t in found] == pytest.approx([expected[t] for t in found], rel=1e-5)

    def test_with_the_decay_of_the_rule(self):
        problem = linear()
        rule = tw.rules.GradientDescent(lr=0.05, weight_decay=0.3)
        run = tw.train(problem, rule, 4, measures=[GradientProbe(batch_size=80, batches=2, every=2)])
        w = problem.layout.flatten(run.checkpoint(-1))
        full = problem.gradient(w)
        assert probed(run)[4] == pytest.approx(float((full + 0.3 * w).square().sum()), rel=1e-5)
        assert probed(run, "gradient_plain")[4] == pytest.approx(float(full.square().sum()), rel=1e-5)

    def test_the_run_is_the_same_with_and_without_and_probes_resume(self, tmp_path):
        def train(folder, steps, measures, **options):
            problem = problem_of(net(0.3))
            rule = tw.rules.GradientDescent(lr=0.1)
            return tw.train(problem, rule, steps, folder=folder, batch_size=20, measures=measures, seed=3, **options)

        probe = GradientProbe(batch_size=20, batches=4, every=3, modes=("train", "eval"))
        plain, whole = train(tmp_path / "a", 9, []), train(tmp_path / "b", 9, [probe])
        assert np.array_equal(plain.data["loss"].values, whole.data["loss"].values)
        train(tmp_path / "c", 6, [probe])
        again = train(tmp_path / "c", 9, [probe], resume=True)
        for name in ("gradient_unbiased", "gradient_unbiased_eval", "gradient_noise"):
            assert probed(whole, name) == probed(again, name)
        assert probed(whole) != probed(whole, "gradient_unbiased_eval")

    def test_a_probe_without_a_finite_loss_is_noted(self):
        model = torch.nn.Linear(4, 1)
        x, _ = data()

        def loss(out, y):
            return (out - y).square().mean() * (float("nan") if len(y) == 7 else 1.0)

        problem = tw.Problem(model, loss, (x, x[:, :1]))
        run = tw.train(problem, tw.rules.GradientDescent(lr=0.01), 3, measures=[GradientProbe(batch_size=7, every=3)])
        assert probed(run) == {}
        assert any("mini-batch 0 of the probe" in str(event.text) for event in run.events)


class TestInALoopOfTheUsers:
    def loop(self, tmp_path, probe):
        model = net(0.3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x, y = data()
        torch.manual_seed(5)
        problem = problem_of(model)
        with Recorder(tmp_path, model, optimizer, every=5) as recorder:
            if probe is not None:
                probe.record(recorder, problem)
            for _ in range(10):
                at = torch.randperm(len(x))[:16]
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(x[at]), y[at])
                loss.backward()
                optimizer.step()
                recorder.step(loss=loss)
                if probe is not None:
                    probe.record(recorder, problem)
        return recorder.run, model, optimizer

    def test_it_is_filed_and_nothing_is_disturbed(self, tmp_path):
        probe = GradientProbe(batch_size=16, batches=4, every=5, modes=("train", "eval"))
        run, model, optimizer = self.loop(tmp_path / "a", probe)
        plain, other, theirs = self.loop(tmp_path / "b", None)
        assert list(probed(run)) == [0, 5, 10]
        assert np.array_equal(run.data["loss"].values, plain.data["loss"].values, equal_nan=True)
        for a, b in zip(model.state_dict().values(), other.state_dict().values()):
            assert torch.equal(a, b)
        for a, b in zip(optimizer.state_dict()["state"].values(), theirs.state_dict()["state"].values()):
            assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])

    def test_nan(self, tmp_path):
        model = net()
        with torch.no_grad():
            model[0].weight.fill_(math.nan)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Recorder(tmp_path / "r", model, optimizer) as recorder, pytest.warns(NumericalWarning, match="step 0"):
            assert GradientProbe(batch_size=16).record(recorder, problem_of(model)) is None


def test_scale_free_of_given_groups():
    model = net()
    problem = tw.Problem(model, torch.nn.CrossEntropyLoss(), data(), dtype=torch.float64)
    probe = GradientProbe(batch_size=80, batches=2, groups={"first": ["0.weight"]})
    part, w = problem.layout.slices("0.weight")[0][1], problem.initial
    expected = float(w[part].square().sum() * problem.gradient(w)[part].square().sum())
    assert probe.probe(problem)["gradient_scale_free"] == pytest.approx(expected, rel=1e-9)


def test_settings_are_checked():
    with pytest.raises(InvalidInput, match="from one mini-batch"):
        GradientProbe(batch_size=4, batches=1)
    with pytest.raises(InvalidInput, match="modes"):
        GradientProbe(batch_size=4, modes=("test",))
    with pytest.raises(InvalidInput, match="every"):
        GradientProbe(batch_size=4, every=0)
    assert variable("gradient_noise", "eval") == "gradient_noise_eval"
