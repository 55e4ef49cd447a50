"""Observables along a run, the promise of a step, and forks."""

import numpy as np
import pytest
import torch

import thalweg as tw
from thalweg.errors import InvalidInput
from thalweg.runs.recorder import Recorder
from thalweg.stationarity.assess import assess
from thalweg.stationarity.forks import between, forks
from thalweg.stationarity.logs import history
from thalweg.stationarity.observables import Observables, Promise


def net(outputs=3, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, outputs)
    )


@pytest.fixture
def classified():
    x = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
    return tw.Problem(net().eval(), torch.nn.CrossEntropyLoss(), (x, torch.arange(90) % 3))


def test_values_against_plain_torch(classified):
    found = Observables(samples=90, size=16).look(classified)
    x, y = classified._batches.subset(torch.arange(90)).recut(90).__iter__().__next__()
    with torch.no_grad():
        logits = classified.model(x)
    assert found["evaluation_loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, y)), rel=1e-5)
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert found["entropy"] == pytest.approx(float(entropy), rel=1e-5)
    norms = [float(p.detach().norm()) for p in classified.model.parameters()]
    assert found["tensor_norms"] == pytest.approx(norms, rel=1e-6)
    assert found["function_sketch"].shape == found["weight_sketch"].shape == (16,)


def test_sketches_keep_distances(classified):
    wide = Observables(size=64)
    a = classified.initial
    b = a + 0.3 * torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    apart = wide.look(classified, a)["weight_sketch"] - wide.look(classified, b)["weight_sketch"]
    assert np.linalg.norm(apart) == pytest.approx(float((a - b).norm()), rel=0.3)


def test_directions_do_not_see_scale(classified):
    names = [n for n in classified.layout.names if n == "0.weight"]
    measure = Observables(size=8, directions={"first": names})
    w = classified.initial
    pieces = dict(zip(classified.layout.names, classified.layout.split(w.clone())))
    scaled = torch.cat([(2 * p if n in names else p).reshape(-1) for n, p in pieces.items()])
    one, two = measure.look(classified, w), measure.look(classified, scaled)
    np.testing.assert_allclose(one["direction_sketch"], two["direction_sketch"], atol=1e-6)
    assert not np.allclose(one["weight_sketch"], two["weight_sketch"])
    with pytest.raises(InvalidInput, match="Group 'g' names 'nope'"):
        Observables(directions={"g": ["nope"]}).look(classified)


def test_nothing_is_changed(classified):
    classified.model.train()
    before = {k: v.clone() for k, v in classified.model.state_dict().items()}
    stream = torch.get_rng_state()
    Observables().look(classified)
    assert all(torch.equal(v, before[k]) for k, v in classified.model.state_dict().items())
    assert torch.equal(stream, torch.get_rng_state())
    assert classified.model.training
    assert not classified.model._forward_hooks


def test_through_a_recorder(classified, tmp_path):
    model, observe = classified.model, Observables(every=5, size=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(90, 4), torch.arange(90) % 3
    with Recorder(tmp_path / "r", model, optimizer, every=50) as recorder:
        observe.record(recorder, classified)
        for _ in range(20):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            recorder.step(loss=loss)
            observe.record(recorder, classified)
    known = history(tmp_path / "r")
    assert known.observables["weight_sketch"].values.shape == (5, 4)
    assert known.observables["entropy"].steps.tolist() == [0, 5, 10, 15, 20]
    assert len(known.loss) == 20
    assert assess(tmp_path / "r").kind == "undecided"


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_the_promise_of_a_step(decay):
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = tw.Problem(torch.nn.Linear(3, 1).double(), torch.nn.MSELoss(), (x, x.sum(1, keepdim=True)))
    rule = tw.rules.HeavyBall(lr=0.05, weight_decay=decay)
    run = tw.train(problem, rule, 30, measures=[Promise(every=1, curvature=True)], checkpoint_every=1)
    data = run.data
    penalty = np.array(
        [decay / 2 * sum(float(v.square().sum()) for v in run.checkpoint(t).values()) for t in range(31)]
    )
    fall = -np.diff(data["loss"].to_numpy() + penalty)
    kept = (data["promised_descent"] - data["curvature_descent"]).to_numpy()[:-1]
    np.testing.assert_allclose(kept, fall, atol=1e-12)  # a quadratic: second order is all there is


def test_fresh_batches_promise_the_same_on_average():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = tw.Problem(torch.nn.Linear(3, 1).double(), torch.nn.MSELoss(), (x, x.sin().sum(1, keepdim=True)))
    rule = tw.rules.GradientDescent(lr=0.05)
    noisy = tw.train(problem, rule, 3, measures=[Promise(every=1, batch_size=10, batches=100)]).data["promised_descent"]
    exact = tw.train(problem, rule, 3, measures=[Promise(every=1)]).data["promised_descent"]
    np.testing.assert_allclose(noisy[:3], exact[:3], rtol=0.3)


def test_forks_that_agree_and_forks_that_do_not(tmp_path):
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    y = x.sin().sum(1, keepdim=True) + torch.randn(64, 1, generator=torch.Generator().manual_seed(1))
    problem = tw.Problem(torch.nn.Linear(3, 1), torch.nn.MSELoss(), (x, y))
    rule = tw.rules.HeavyBall(lr=0.05)
    run = tw.train(problem, rule, 100, batch_size=8, folder=tmp_path / "r")
    settled = forks(problem, rule, tmp_path / "r", 120, batch_size=8, measures=[Observables(every=4, size=4)])
    assert settled.start == 100
    assert settled.agree("loss") is not False
    assert settled.series["weight_sketch"].shape == (4, 15, 4)
    assert settled.plot().data[0].x[0] == 160
    # two valleys behind a wall: w^2 is what the loss sees, and the sign never changes
    assert between(np.random.default_rng(0).standard_normal((4, 200)) + np.array([[3], [-3], [3], [-3]])) > 1.05
    again = forks(problem, rule, run, 120, batch_size=8, copies=2)
    np.testing.assert_array_equal(again.series["loss"], settled.series["loss"][:2])
    with pytest.raises(InvalidInput, match="nothing to fork"):
        forks(problem, rule, run, 400, batch_size=None)
