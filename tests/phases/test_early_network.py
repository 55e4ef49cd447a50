"""Short runs of networks: initialisation, batches, stacked against one by one against plain loops, refusals."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg.errors import InvalidInput, NonFinite
from thalweg.phases.critical import critical_constants
from thalweg.phases.critical_result import Status
from thalweg.phases.early_copies import batch_indices
from thalweg.phases.early_loop import LoopRuns
from thalweg.phases.early_network import EarlySpec, network_runs
from thalweg.phases.early_stack import StackRuns
from thalweg.problem.data import DataConfig, load_data
from thalweg.sweeps.plan import plan
from thalweg.sweeps.sweep import sweep

ROWS = [(0, 0.7), (1, 2.5), (2, 1.5), (0, 40.0), (1, 100.0), (2, 300.0)]
SMALL = {"samples": 30, "dtype": "float64", "tol": 1e-8, "steps": 4, "cutoff": 2.0}


def layers(runs, copy=0):
    model = runs.copies[copy].train.model
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def test_initialisation_is_that_of_the_paper():
    settings = {"samples": 20, "engine": "loop", "tol": 0.1}  # the sharpness does not matter
    runs = network_runs(4, 256, (0,), **settings)
    first, *middle, last = layers(runs)
    assert all(layer.bias is None for layer in layers(runs))
    for layer in (first, *middle):
        assert abs(float(layer.weight.detach().var()) * layer.in_features / 2 - 1) < 0.03
        assert (
            abs(float(layer.weight.detach().mean()))
            < 4 * float(layer.weight.detach().std()) / layer.weight.numel() ** 0.5
        )
    assert abs(float(last.weight.detach().var()) * last.in_features - 1) < 0.1
    small = layers(network_runs(4, 256, (0,), **settings, init="small_output"))[-1]
    assert torch.allclose(small.weight, last.weight / 16)
    scaled = layers(network_runs(4, 256, (0,), **settings, init="mup"))[-1]
    assert scaled.output_scale == 1 / 16
    assert torch.equal(scaled.weight, last.weight)


def test_a_zero_output_starts_at_the_loss_of_zero():
    runs = network_runs(3, 16, (0, 1), samples=50, init="zero_output")
    assert np.allclose(runs.loss0, 0.05)  # half the mean over ten classes of one squared entry
    assert np.all(runs.sharpness0 > 0)


def test_images_are_standardised_each_on_its_own_and_the_loss_is_a_mean_over_classes():
    data = load_data(DataConfig(samples=30))
    assert torch.allclose(data.inputs.reshape(30, -1).mean(1), torch.zeros(30), atol=1e-6)
    runs = network_runs(2, 8, (3,), **SMALL, engine="loop")
    model = runs.copies[0].train.model.double()
    out = model(data.inputs.double())
    wanted = 0.5 * ((out - F.one_hot(data.targets, 10)) ** 2).mean()
    assert np.isclose(runs.loss0[0], float(wanted.detach()), rtol=1e-12)


def dense_sharpness(model, x, y):
    names, values = zip(*((n, p.detach()) for n, p in model.named_parameters()))
    shapes = [v.shape for v in values]

    def loss(w):
        parts = [p.reshape(s) for p, s in zip(w.split([s.numel() for s in shapes]), shapes)]
        return F.mse_loss(torch.func.functional_call(model, dict(zip(names, parts)), (x,)), y) / 2

    flat = torch.cat([v.reshape(-1) for v in values])
    return float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))[-1])


def naive(model, x, y, rate, batches):
    """Loss and dense sharpness after each step of plain gradient descent."""
    losses, sharpness = [], []
    for index in [None, *batches]:
        if index is not None:
            grads = torch.autograd.grad(F.mse_loss(model(x[index]), y[index]) / 2, list(model.parameters()))
            with torch.no_grad():
                for p, g in zip(model.parameters(), grads):
                    p -= rate * g
        losses.append(float(F.mse_loss(model(x), y) / 2))
        sharpness.append(dense_sharpness(model, x, y))
    return np.array(losses), np.array(sharpness)


def tiny(depth, width, seed):
    torch.manual_seed(seed)
    hidden = [m for _ in range(depth - 2) for m in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), *hidden, nn.Linear(width, 2)).double()


def tiny_data(count=12):
    stream = torch.Generator().manual_seed(5)
    x = torch.randn(count, 3, generator=stream, dtype=torch.float64)
    return x, torch.randn(count, 2, generator=stream, dtype=torch.float64)


def half_mse(output, target):
    return F.mse_loss(output, target) / 2


@pytest.mark.parametrize("engine", ["loop", "stack"])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_any_factory_is_trained_as_a_plain_loop_trains_it(engine, batch_size):
    x, y = tiny_data()
    with torch.random.fork_rng():
        runs = network_runs(
            3, 4, (1, 2), factory=tiny, data=(x, y), loss=half_mse, engine=engine, batch_size=batch_size, steps=5,
            dtype="float64", tol=1e-9,
        )  # fmt: skip
        models = [tiny(3, 4, seed) for seed in (1, 2)]
    assert isinstance(runs, {"loop": LoopRuns, "stack": StackRuns}[engine])
    found = runs.run([(0, 1.3), (1, 2.6)], measure=(1, 2, 5))
    late = runs.sharpness_at([(0, 1.3), (1, 2.6)], [5, 2])
    first = runs.first_losses([(0, 1.3), (1, 2.6)])
    for i, c in ((0, 1.3), (1, 2.6)):
        assert np.isclose(runs.sharpness0[i], dense_sharpness(models[i], x, y), rtol=1e-7)
        order = [slice(None)] * 5 if batch_size is None else batch_indices((1, 2)[i], 12, 5, 5)
        loss, sharpness = naive(models[i], x, y, c / runs.sharpness0[i], order)
        assert np.allclose(found.loss[i], loss, rtol=1e-8)
        assert np.allclose(found.sharpness[i, [0, 1, 2, 5]], sharpness[[0, 1, 2, 5]], rtol=1e-6)
        assert np.isnan(found.sharpness[i, [3, 4]]).all()
        assert np.isclose(late[i], sharpness[(5, 2)[i]], rtol=1e-6)
        assert np.isclose(first[i], loss[1], rtol=1e-9)


@pytest.mark.parametrize(
    ("model", "batch_size"), [("mlp", None), ("mlp", 8), pytest.param("cnn", None, marks=pytest.mark.slow)]
)
def test_stacked_runs_are_those_run_one_by_one(model, batch_size):
    settings = {**SMALL, "batch_size": batch_size, "model": model}
    stacked, single = (network_runs(3, 6, (0, 1, 2), **settings, engine=engine) for engine in ("stack", "loop"))
    assert np.allclose(stacked.loss0, single.loss0, rtol=1e-12)
    assert np.allclose(stacked.sharpness0, single.sharpness0, rtol=1e-9)
    assert np.allclose(stacked.first_losses(ROWS), single.first_losses(ROWS), rtol=1e-9)
    one, other = (runs.run(ROWS, measure=(1, 3)) for runs in (stacked, single))
    trained = one.loss <= 2
    assert np.array_equal(trained, other.loss <= 2)
    assert trained[:3].all()
    gone = [row for row, fine in zip(ROWS, trained.all(axis=1)) if not fine]
    assert gone
    assert np.allclose(one.loss[:3], other.loss[:3], rtol=1e-8)
    assert np.allclose(one.sharpness[:3], other.sharpness[:3], rtol=1e-6, equal_nan=True)
    assert np.allclose(stacked.barrier(ROWS[:3], 11), single.barrier(ROWS[:3], 11), rtol=1e-8)
    for runs in (stacked, single):
        assert np.isinf(runs.barrier(gone, 5)).all()
        assert np.isnan(runs.sharpness_at(gone, [4] * len(gone))).all()
    late = [runs.sharpness_at(ROWS[:3], [0, 2, 4]) for runs in (stacked, single)]
    assert np.allclose(*late, rtol=1e-6)


def test_a_run_that_exceeds_its_ceiling_stops():
    settings = {**SMALL, "cutoff": 1e5}
    for engine in ("stack", "loop"):
        runs = network_runs(3, 6, (0, 1), **settings, engine=engine)
        rows = [(0, 0.7), (1, 2.5)]
        full = runs.run(rows, range(1, 5)).sharpness[:, 1:]
        level = [0.999 * full[0].max(), 1.001 * full[1].max()]
        found = runs.run(rows, range(1, 5), level)
        end = int((full[0] > level[0]).argmax()) + 1
        assert np.isfinite(found.loss[0, : end + 1]).all()
        assert np.isnan(found.loss[0, end + 1 :]).all()
        assert found.sharpness[0, end] > level[0]
        assert np.allclose(found.sharpness[1, 1:], full[1], rtol=1e-6)
        late = runs.sharpness_at(rows, [end, 4], level)
        assert level[0] < late[0] <= full[0, end - 1] * (1 + 1e-6)
        assert np.isclose(late[1], full[1, 3], rtol=1e-6)


@pytest.mark.slow
def test_chaotic_narrow_networks_diverge_where_all_their_runs_say():
    """Draw 1 diverges an octave below where bisection alone ends; draw 6 dies above, and no first step raises it."""
    seeds = (1, 6)
    runs = network_runs(4, 16, seeds, samples=300, dtype="float64")
    found = critical_constants(runs, barrier=False)
    c = 2.0 ** (0.1 * np.arange(71))
    loss = runs.run([(i, one) for i in range(2) for one in c]).loss.reshape(2, len(c), -1)
    gone = ~(loss[:, :, 1:] <= runs.cutoff).all(axis=2)
    rose = gone | (loss[:, :, 1:].max(axis=2) > loss[:, :, 0])
    assert np.allclose(found["c_max"].high, c[gone.argmax(axis=1)])
    assert np.allclose(found["c_loss"].high, c[rose.argmax(axis=1)])
    assert found["c_max"].fallback.all()
    assert not gone[0, gone[0].argmax() :].all()
    assert not rose[1, -1]


def test_the_barrier_is_the_highest_point_of_the_segment():
    x, y = tiny_data()
    with torch.random.fork_rng():
        runs = network_runs(2, 4, (1,), factory=tiny, data=(x, y), loss=half_mse, dtype="float64", steps=3)
        model = tiny(2, 4, 1)
    start = [p.detach().clone() for p in model.parameters()]
    naive(model, x, y, 6.0 / runs.sharpness0[0], [slice(None)] * 3)
    end = [p.detach().clone() for p in model.parameters()]
    heights = []
    for share in np.arange(1, 21) / 20:
        with torch.no_grad():
            for p, a, b in zip(model.parameters(), start, end):
                p.copy_(a + share * (b - a))
            heights.append(float(half_mse(model(x), y)))
    assert np.isclose(runs.barrier([(0, 6.0)], 21)[0], max(heights) / runs.loss0[0], rtol=1e-9)


def test_batches_are_a_permutation_per_epoch_seeded_and_extendable():
    order = batch_indices(3, 11, 4, 6)
    assert order.shape == (6, 4)
    for epoch in range(3):
        assert len(set(order[2 * epoch : 2 * epoch + 2].flatten().tolist())) == 8
    assert torch.equal(order, batch_indices(3, 11, 4, 9)[:6])
    assert not torch.equal(order, batch_indices(4, 11, 4, 6))
    with pytest.raises(InvalidInput, match="Batches of 12"):
        batch_indices(0, 11, 12, 1)


def test_the_demonstration_measures_on_the_batch_that_training_then_skips():
    x, y = tiny_data()
    with torch.random.fork_rng():
        runs = network_runs(
            2, 4, (1,), factory=tiny, data=(x, y), loss=half_mse, protocol="demo", batch_size=5, steps=3,
            dtype="float64",
        )  # fmt: skip
        model, order = tiny(2, 4, 1), batch_indices(1, 12, 5, 6)
    found = runs.run([(0, 1.0)], measure=(1, 2, 3))
    loss, _ = naive(model, x, y, 1.0 / runs.sharpness0[0], order[::2][:3])
    assert np.allclose(found.loss[0], loss, rtol=1e-9)
    own = dense_sharpness(model, x[order[5]], y[order[5]])
    assert 0.5 * own < found.sharpness[0, 3] <= own * (1 + 1e-9)  # power iteration comes from below


def test_loss_and_sharpness_are_measured_on_one_fixed_set():
    runs = network_runs(2, 6, (0, 1), samples=60, measured=20, dtype="float64", engine="auto")
    assert isinstance(runs, LoopRuns)
    first, second = (copy.measured for copy in runs.copies)
    assert first.samples == second.samples == 20
    assert first.fingerprint()["data"] == second.fingerprint()["data"]
    assert runs.copies[0].train.samples == 60
    with pytest.raises(InvalidInput, match="another set"):
        network_runs(2, 6, (0,), samples=60, measured=20, engine="stack")


def test_copies_that_are_no_stack_go_one_by_one():
    def buffered(depth, width, seed):
        model = tiny(depth, width, seed)
        model.register_buffer("own", torch.tensor(float(seed)))
        return model

    class Offset(nn.Module):
        def __init__(self, inner, offset):
            super().__init__()
            self.inner, self.offset = inner, offset

        def forward(self, x):
            return self.inner(x) + self.offset

    x, y = tiny_data()
    with torch.random.fork_rng():
        for factory in (buffered, lambda d, w, s: Offset(tiny(d, w, s), s)):
            made = {"factory": factory, "data": (x, y), "loss": half_mse, "dtype": "float64"}
            assert isinstance(network_runs(2, 4, (0, 1), **made), LoopRuns)
            with pytest.raises(InvalidInput, match="cannot be stacked"):
                network_runs(2, 4, (0, 1), **made, engine="stack")


def test_nothing_of_the_users_is_changed():
    kept = []

    def factory(depth, width, seed):
        kept.append(tiny(depth, width, seed))
        return kept[-1]

    with torch.random.fork_rng():
        before = None
        runs = network_runs(2, 4, (0, 1), factory=factory, data=tiny_data(), loss=half_mse, dtype="float64")
        before = [p.detach().clone() for model in kept for p in model.parameters()]
        state = torch.random.get_rng_state()
        critical_constants(runs, grid_step=0.5)
        assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, (p for model in kept for p in model.parameters())))
    assert all(p.grad is None for model in kept for p in model.parameters())


def failing(depth, width, seed):
    if width == 5:
        raise RuntimeError("no net of width 5")
    return tiny(depth, width, seed)


def test_bad_cells_are_clear_errors():
    for sizes in ((2, 0, (0,)), (0, 4, (0,)), (2, 4, ()), (2, 4, (1, 1))):
        with pytest.raises(InvalidInput, match="at least one layer of one unit"):
            network_runs(*sizes)
    data = {"data": tiny_data(), "loss": half_mse}
    with pytest.raises(InvalidInput, match="width 5, seed 0, raised RuntimeError: no net"):
        network_runs(2, 5, (0,), factory=failing, **data)
    with pytest.raises(InvalidInput, match="returned a int"):
        network_runs(2, 5, (0,), factory=lambda d, w, s: 3, **data)
    with pytest.raises(InvalidInput, match="Pass a factory"):
        network_runs(2, 5, (0,), **data)
    with pytest.raises(InvalidInput, match="there is no loss"):
        network_runs(2, 5, (0,), factory=tiny, data=tiny_data())
    with pytest.raises(InvalidInput, match=r"Settings sample\. Settings are the fields"):
        network_runs(2, 5, (0,), sample=3)
    with pytest.raises(InvalidInput, match="beside a spec"):
        network_runs(2, 5, (0,), spec=EarlySpec(), steps=3)
    for wrong in ({"init": "he"}, {"steps": 0}, {"cutoff": -1.0}, {"protocol": "x"}, {"dtype": "half"}, {"tol": 2.0}):
        with pytest.raises(InvalidInput):
            EarlySpec(**wrong)
    with pytest.raises(InvalidInput, match="batch of its own"):
        network_runs(2, 4, (0,), protocol="demo", engine="stack", samples=20)


@pytest.mark.parametrize("engine", ["loop", "stack"])
def test_nan_at_the_start_and_divergence_at_the_first_step(engine):
    def broken(depth, width, seed):
        model = tiny(depth, width, seed)
        with torch.no_grad():
            model[0].weight.fill_(float("nan"))
        return model

    x, y = tiny_data()
    with torch.random.fork_rng():
        made = {"data": (x, y), "loss": half_mse, "dtype": "float64", "engine": engine}
        with pytest.raises((NonFinite, InvalidInput), match=r"nan|NaN"):
            critical_constants(network_runs(2, 4, (0,), factory=broken, **made))
        runs = network_runs(2, 4, (0,), factory=tiny, **made, cutoff=1e-3)
        found = critical_constants(runs, barrier=False)
        assert found["c_max"].status == (Status.BELOW,)
        assert found["c_max"].low[0] == 0


def measured(cell):
    """A cell of a sweep over widths, some of which fail."""
    runs = network_runs(2, cell["width"], (0,), factory=failing, data=tiny_data(), loss=half_mse, dtype="float64")
    return {"c_loss": float(critical_constants(runs, grid_step=0.5, barrier=False)["c_loss"].value[0])}


def test_a_sweep_goes_on_past_bad_cells(tmp_path):
    with torch.random.fork_rng(), ThreadPoolExecutor(1) as engine:
        done = sweep(measured, plan(width=[0, 4, 5, 6]), tmp_path / "sweep", engine=engine)
    assert sorted(record.cell["width"] for record in done.failed) == [0, 5]
    table = done.table()
    assert np.isfinite(table.c_loss.sel(width=[4, 6])).all()
    assert np.isnan(table.c_loss.sel(width=[0, 5])).all()
