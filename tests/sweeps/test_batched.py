"""Stacked runs against runs one after the other: losses, sharpness, divergence, what is shared, what is counted."""

import numpy as np
import pytest
import torch
from torch import nn

from reference.batched import descend
from thalweg.errors import InvalidInput
from thalweg.operators import hessian
from thalweg.problem import Problem
from thalweg.problem.data import DataConfig, load_data
from thalweg.problem.losses import OneHotSquares
from thalweg.problem.zoo import ModelConfig, build_model
from thalweg.spectra import top_eigenpairs
from thalweg.sweeps.batched import train_stack
from thalweg.sweeps.batched_lanczos import top_eigenvalues
from thalweg.sweeps.stack import Stack


def network(activation=nn.Tanh, loss=None) -> Problem:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 2)).double()
    x = torch.randn(20, 4).double()
    return Problem(model, loss or nn.MSELoss(), (x, torch.randn(20, 2).double()))


def starts(problem: Problem, count=2) -> torch.Tensor:
    return problem.initial + 0.3 * torch.randn(count, problem.dimension).double()


INDEX = torch.tensor([0, 0, 0, 0, 1, 1, 1])
RATES = torch.tensor([0.1, 0.5, 1.2, 40.0, 0.2, 0.9, 60.0]).double()


@pytest.mark.parametrize("method", ["mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vmap", "loop"))])
def test_stacked_runs_equal_single_ones(method):
    problem = network()
    W0 = starts(problem)
    found = train_stack(Stack(problem, method=method), W0, RATES, 4, index=INDEX, tol=1e-11, keep_final=True)
    for r, (start, rate) in enumerate(zip(INDEX, RATES)):
        loss, sharpness, last = descend(problem, W0[start], float(rate), 4)
        np.testing.assert_allclose(found.loss[r], loss, rtol=1e-10)
        np.testing.assert_allclose(found.sharpness[r], sharpness, rtol=1e-10)
        if found.diverged[r] < 0:
            torch.testing.assert_close(found.final[r], last, rtol=0, atol=1e-11)
        else:
            assert not loss[found.diverged[r]] <= 1e5
            assert bool(found.final[r].isnan().all())
    assert set(np.flatnonzero(found.diverged >= 0)) == {3, 6}
    assert found.unconverged == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_digits_equal_the_library_s_own_single_runs(name):
    data = load_data(DataConfig(samples=60))
    config = ModelConfig(name, depth=4, width=8 if name == "mlp" else 3, activation="relu", bias=False)
    problems = [
        Problem(build_model(config, data, seed=s), OneHotSquares(10, 20.0), data.pair(), dtype=torch.float64)
        for s in range(2)
    ]
    W0 = torch.stack([p.initial for p in problems])
    stack = Stack(problems[0])
    assert stack.method == name
    top = top_eigenvalues(stack, W0, tol=1e-6)
    index = torch.tensor([0, 0, 1, 1])
    rates = torch.tensor([1.0, 6.0, 3.0, 2000.0]) / top.values[index]
    found = train_stack(stack, W0, rates, 4, index=index, tol=1e-11)
    for r in range(4):
        w = W0[index[r]]
        for t in range(5):
            value, gradient = problems[0].value_and_gradient(w)
            if not float(value) <= 1e5:
                assert found.diverged[r] == t
                break
            assert abs(float(value) / found.loss[r, t] - 1) < 1e-10
            best = top_eigenpairs(hessian(problems[0], w), tol=1e-11).values[0]
            np.testing.assert_allclose(found.sharpness[r, t], float(best), rtol=1e-10, atol=1e-14)
            w = w - rates[r] * gradient


@pytest.mark.slow
@pytest.mark.parametrize("loss", [OneHotSquares(10, 20.0), nn.CrossEntropyLoss()])
def test_warm_measurements_miss_nothing_along_digits_runs(loss):
    """At 1e-3 with guesses from the step before, against 1e-9: over all learning rates, those that catapult too."""
    data = load_data(DataConfig(samples=120))
    config = ModelConfig("mlp", depth=4, width=16, activation="relu", bias=False)
    problem = Problem(build_model(config, data, seed=1), loss, data.pair(), dtype=torch.float64)
    stack = Stack(problem)
    top = top_eigenvalues(stack, problem.initial[None], tol=1e-6)
    rates = 2.0 ** torch.arange(-1, 6, 0.5) / top.values
    rough = train_stack(stack, problem.initial, rates, 10, tol=1e-3)
    fine = train_stack(stack, problem.initial, rates, 10, tol=1e-9)
    both = np.isfinite(rough.sharpness) & np.isfinite(fine.sharpness)
    assert both.sum() > 100
    np.testing.assert_allclose(rough.sharpness[both], fine.sharpness[both], rtol=1e-3, atol=1e-9)
    assert rough.products < 0.7 * fine.products


def test_a_diverging_neighbour_changes_nothing():
    problem = network()
    W0 = starts(problem, 1)[0]
    stack = Stack(problem)
    calm = train_stack(stack, W0, [0.1, 0.7], 5, tol=1e-8)
    wild = train_stack(stack, W0, [0.1, 1e200, 0.7, 50.0], 5, tol=1e-8)
    np.testing.assert_allclose(wild.loss[[0, 2]], calm.loss, rtol=1e-12)
    np.testing.assert_allclose(wild.sharpness[[0, 2]], calm.sharpness, rtol=1e-12)
    assert wild.diverged[1] == 1
    assert np.isinf(wild.loss[1, 1:]).all()
    assert np.isnan(wild.sharpness[1, 1:]).all()


@pytest.mark.parametrize("measure", ["all", (), (1, 2)])
def test_divergence_at_the_last_step_is_seen(measure):
    problem = network()
    loss, _, _ = descend(problem, problem.initial, 3.0, 12, cutoff=np.inf, measure=False)
    last = int(np.flatnonzero(loss > 1.5 * loss[0])[0])
    cutoff = (loss[:last].max() + loss[last]) / 2
    steps = [m for m in measure if m <= last] if not isinstance(measure, str) else measure
    found = train_stack(Stack(problem), problem.initial, [3.0], last, measure=steps, cutoff=cutoff)
    assert found.diverged.tolist() == [last]
    assert found.loss[0, last] == pytest.approx(loss[last], rel=1e-10)
    assert np.isnan(found.sharpness[0, last])


def test_a_start_above_the_cutoff_never_trains():
    problem = network()
    found = train_stack(Stack(problem), problem.initial, [0.1, 0.2], 3, cutoff=1e-9)
    assert found.diverged.tolist() == [0, 0]
    assert np.isinf(found.loss[:, 1:]).all()


def test_what_rows_share_is_computed_once():
    problem = network()
    stack, W0 = Stack(problem), starts(problem)
    rates = torch.full((40,), 0.05).double()
    index = torch.arange(40) % 2
    one = train_stack(stack, W0, rates, 1, index=index, measure=())
    assert (one.gradients, one.forwards, one.products) == (2, 40, 0)
    top = top_eigenvalues(stack, W0)
    first = train_stack(stack, W0, rates, 0, index=index)
    assert (first.gradients, first.forwards, first.products) == (0, 2, int(top.products.sum()))
    assert len(np.unique(first.sharpness)) == 2
    values, gradients = stack.value_and_gradient(W0)
    known = {"loss0": values, "gradient0": gradients, "sharpness0": top.values, "guess0": top.guess}
    given = train_stack(stack, W0, rates, 1, index=index, measure=(0,), **known)
    assert (given.gradients, given.forwards, given.products) == (0, 40, 0)
    np.testing.assert_array_equal(given.loss, one.loss)
    np.testing.assert_array_equal(given.sharpness[:, 0], top.values[index])
    measured = train_stack(stack, W0, rates, 2, index=index, measure=(1,))
    assert (measured.gradients, measured.forwards) == (2 + 40, 40)


def test_a_row_stops_where_it_exceeds_its_ceiling():
    problem = network()
    W0 = starts(problem)
    stack = Stack(problem)
    full = train_stack(stack, W0, RATES, 5, index=INDEX, tol=1e-10)
    ceiling = torch.tensor(np.where(np.arange(7) % 2, 1.02, 0.98) * np.nanmax(full.sharpness[:, 1:3], axis=1))
    ceiling[torch.isnan(ceiling)] = 1.0
    found = train_stack(stack, W0, RATES, 5, index=INDEX, tol=1e-10, ceiling=ceiling)
    over = full.sharpness > ceiling[:, None].numpy()
    over[:, 0] = False  # the start is not held to it
    stopped = 0
    for r in range(7):
        end = int(over[r].argmax()) if over[r].any() else 5
        np.testing.assert_allclose(found.loss[r, : end + 1], full.loss[r, : end + 1], rtol=1e-12)
        np.testing.assert_allclose(found.sharpness[r, :end], full.sharpness[r, :end], rtol=1e-9)
        if over[r].any():
            stopped += 1
            assert float(ceiling[r]) < found.sharpness[r, end] <= full.sharpness[r, end] * (1 + 1e-9)
            assert np.isnan(found.loss[r, end + 1 :]).all()
            assert np.isnan(found.sharpness[r, end + 1 :]).all()
            assert found.diverged[r] == -1
        else:
            assert found.diverged[r] == full.diverged[r]
    assert 2 <= stopped < 7
    assert found.unconverged == 0
    assert found.products < full.products


def test_measuring_less_changes_no_loss():
    problem = network()
    W0 = starts(problem)
    stack = Stack(problem)
    full = train_stack(stack, W0, RATES, 5, index=INDEX, tol=1e-10)
    some = train_stack(stack, W0, RATES, 5, index=INDEX, measure={2, 5}, tol=1e-10)
    np.testing.assert_allclose(some.loss, full.loss, rtol=1e-12)
    np.testing.assert_allclose(some.sharpness[:, [2, 5]], full.sharpness[:, [2, 5]], rtol=1e-9)
    assert np.isnan(some.sharpness[:, [0, 1, 3, 4]]).all()
    assert some.products < full.products


@pytest.mark.parametrize("own", [False, True])
def test_batches(own):
    problem = network()
    W0 = starts(problem)
    rates = torch.tensor([0.1, 0.2, 0.1, 0.2]).double()
    index = torch.tensor([0, 0, 1, 1])
    batches = torch.randint(0, 20, (4, 4, 5) if own else (4, 5))
    found = train_stack(Stack(problem), W0, rates, 4, index=index, batches=batches, tol=1e-11)
    for r in range(4):
        mine = batches[:, r] if own else batches
        loss, sharpness, _ = descend(problem, W0[index[r]], float(rates[r]), 4, batches=mine)
        np.testing.assert_allclose(found.loss[r], loss, rtol=1e-10)
        np.testing.assert_allclose(found.sharpness[r], sharpness, rtol=1e-10)


def test_memory_is_cut_into_chunks():
    problem = network()
    W0 = starts(problem)
    tight = Stack(problem, budget=150_000)
    assert tight.rows_that_fit(36) < len(RATES)
    small, large = (train_stack(s, W0, RATES, 4, index=INDEX, keep_final=True) for s in (tight, Stack(problem)))
    np.testing.assert_allclose(small.loss, large.loss, rtol=1e-12)
    np.testing.assert_allclose(small.sharpness, large.sharpness, rtol=1e-10)
    torch.testing.assert_close(small.final, large.final, rtol=0, atol=1e-12, equal_nan=True)
    assert (small.gradients, small.products) == (large.gradients, large.products)


def test_single_precision_that_overflows_is_divergence():
    problem = network(nn.ReLU)
    stack = Stack(problem, dtype=torch.float32)
    found = train_stack(stack, problem.initial.float(), [0.01, 1e30], 3, cutoff=1e30)
    assert found.diverged.tolist() == [-1, 1]
    assert found.loss.dtype == np.float64
    assert not np.isnan(found.loss).any()


def test_curves_can_be_read_and_drawn():
    found = train_stack(Stack(network()), network().initial, [0.1, 0.2, 100.0], 3)
    assert "3 runs, 3 steps" in repr(found)
    assert "1 diverged" in repr(found)
    figure = found.plot()
    assert len(figure.data) == 6
    assert len(train_stack(Stack(network()), network().initial, [0.1], 2, measure=()).plot().data) == 1


BAD = {
    "start": ({"W0": torch.zeros(2, 3)}, "W0 has shape"),
    "rates": ({"lr": [0.1, float("nan")]}, "lr has shape"),
    "rates, none": ({"lr": []}, "lr has shape"),
    "index": ({"index": [0, 9]}, "There are 2 starts"),
    "index, short": ({"index": [0]}, "There are 2 starts"),
    "steps": ({"steps": -1}, "steps is -1"),
    "cutoff": ({"cutoff": float("nan")}, "cutoff nan"),
    "measure": ({"measure": "some"}, "measure 'some'"),
    "measure, late": ({"measure": [3]}, "measure has steps 3 to 3"),
    "batches": ({"batches": [torch.tensor([0])]}, "There are 1 batches"),
    "batches, range": ({"batches": torch.tensor([[0], [99]])}, "batch has shape"),
    "ceiling": ({"ceiling": torch.ones(3)}, "ceiling has shape"),
    "known": ({"loss0": torch.zeros(3)}, "loss0 has shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_refusals(name):
    problem = network()
    wrong, match = BAD[name]
    arguments = {"W0": starts(problem), "lr": [0.1, 0.2], "steps": 2, **wrong}
    with pytest.raises(InvalidInput, match=f"(?i){match}"):
        train_stack(Stack(problem), **arguments)
