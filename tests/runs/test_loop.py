import copy
import random
import sqlite3
from contextlib import closing
from dataclasses import dataclass

import killable
import numpy as np
import pytest
import torch

import thalweg as tw
from thalweg import _rng
from thalweg.errors import InvalidInput, RunFolderError
from thalweg.runs import FullLoss, Measure, open_run, train
from thalweg.runs.metrics import Variable


def reference(problem, rule, steps, batches=None):
    """A naive training loop, one number at a time."""
    w, w0, rows, path, before = problem.initial, problem.initial, [], 0.0, None
    state = rule.init(w)
    for t in range(steps + 1):
        part = problem if batches is None else problem.subset(batches(t))
        loss, g = part.value_and_gradient(w)
        row = {
            "loss": loss.item(),
            "gradient_norm": g.norm().item(),
            "weight_norm": w.norm().item(),
            "distance": (w - w0).norm().item(),
            "path_length": path,
            "learning_rate": rule.learning_rate_at(t),
            "stability_threshold": rule.stability_threshold(t),
            "update_norm": np.nan,
            "update_cosine": np.nan,
        }
        w_next, state = rule.advance(w, state, g)
        if t < steps:
            u = w_next - w
            row["update_norm"] = u.norm().item()
            if before is not None:
                row["update_cosine"] = (u @ before / u.norm() / before.norm()).item()
            path, before, w = path + row["update_norm"], u, w_next
        rows.append(row)
    return {name: [row[name] for row in rows] for name in rows[0]}, w


@pytest.mark.parametrize("rule", killable.RULES.values(), ids=killable.RULES)
def test_every_number_against_a_naive_loop(rule, tmp_path):
    problem = killable.make_problem()
    run = train(problem, rule(), 25, folder=tmp_path / "run")
    expected, w = reference(problem, rule(), 25)
    for name, values in expected.items():
        np.testing.assert_allclose(run.data[name].values, values, rtol=1e-12, atol=1e-14, err_msg=name)
    assert torch.equal(problem.layout.flatten(run.checkpoint(25)), w)
    assert torch.equal(problem.layout.flatten(run.checkpoint(-1)), w)
    assert torch.equal(problem.layout.flatten(run.checkpoint(0)), problem.initial)
    assert run.checkpoints == [0, 25]


def test_mini_batches_against_a_naive_loop(tmp_path):
    """Row t sees the t-th piece of its epoch's permutation; 24 samples in batches of 7 leave 3 for the last."""

    def batches(t):
        epoch, place = divmod(t, 4)
        order = torch.randperm(24, generator=_rng.generator(5, "batches", epoch))
        return order[7 * place : 7 * place + 7]

    problem = killable.make_problem()
    rule = killable.RULES["gd"]()
    options = {"batch_size": 7, "seed": 5, "measures": [FullLoss(every=3)]}
    run = train(problem, rule, 11, folder=tmp_path / "run", **options)
    expected, _ = reference(problem, rule, 11, batches)
    np.testing.assert_allclose(run.data["loss"].values, expected["loss"], rtol=1e-12)
    full = run.data["full_loss"].values
    assert np.isfinite(full).nonzero()[0].tolist() == [0, 3, 6, 9, 11], "the last point is always measured"
    assert full[0] == pytest.approx(problem.value(problem.initial).item(), rel=1e-14)
    assert sorted(len(batches(t)) for t in range(4)) == [3, 7, 7, 7]


def test_the_dataset_says_what_it_holds(tmp_path):
    vector = Measure.from_function("pair", lambda c: c.w[: 1 + c.step], units="weight", dim="entry", every=2)
    run = train(killable.make_problem(), killable.RULES["heavy"](), 3, folder=tmp_path / "mine", measures=[vector])
    data = run.data
    assert data.step.values.tolist() == [0, 1, 2, 3]
    assert data["pair"].dims == ("step", "entry")
    assert np.isfinite(data["pair"].values).sum(axis=1).tolist() == [1, 0, 3, 4], "padded with NaN"
    for variable in data.data_vars.values():
        assert variable.attrs["units"]
        assert variable.attrs["long_name"]
        assert variable.dtype == np.float64
    expected = {"name": "mine", "rule": "HeavyBall", "steps": 3, "state": "finished", "model": "Sequential"}
    assert {key: data.attrs[key] for key in expected} == expected
    assert "momentum 0.8" in data.attrs["optimizer"]
    data.to_netcdf(tmp_path / "run.nc", engine="scipy")
    manifest = run.manifest
    assert (manifest.steps, manifest.steps_done, manifest.seeds) == (3, 3, {"run": 0})
    assert manifest.packages["torch"] == torch.__version__
    assert manifest.fingerprints == killable.make_problem().fingerprint()
    assert "3 of 3 steps" in repr(run)


def test_checkpoints_at_an_interval_and_at_both_ends(tmp_path):
    run = train(killable.make_problem(), killable.RULES["gd"](), 10, folder=tmp_path / "run", checkpoint_every=4)
    assert run.checkpoints == [0, 4, 8, 10]
    with pytest.raises(InvalidInput, match=r"Step 5 has no checkpoint.*nearest are at 4, 8"):
        run.checkpoint(5)
    assert torch.equal(run.checkpoint(-2)["0.bias"], run.checkpoint(8)["0.bias"])


def test_no_steps_give_one_row(tmp_path):
    run = train(killable.make_problem(), killable.RULES["gd"](), 0, folder=tmp_path / "run")
    assert (run.data.sizes["step"], run.checkpoints, run.steps) == (1, [0], 0)


def test_without_a_folder_the_run_lives_as_long_as_its_handle():
    run = train(killable.make_problem(), killable.RULES["gd"](), 3)
    path = run.path
    assert run.data.sizes["step"] == 4
    del run
    assert not path.exists()


def test_nothing_of_the_users_is_changed(tmp_path):
    problem = killable.make_problem()
    model = problem.model
    before = copy.deepcopy(model.state_dict())
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    train(problem, killable.RULES["adam"](), 3, folder=tmp_path / "run", batch_size=5, measures=[tw.runs.Spectrum()])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002


def test_rows_are_visible_as_soon_as_they_are_written(tmp_path):
    """A second connection sees step t before step t + 1 is evaluated, and the run is known to be running."""
    seen = []

    class Reader:
        def init(self, steps, start=0):
            seen.append((steps, start))

        def step(self, values):
            run = open_run(tmp_path / "run")
            seen.append((values["step"], run.steps, run.state, values["loss"] == run.data["loss"].values[-1]))

        def close(self):
            seen.append("closed")

    train(killable.make_problem(), killable.RULES["gd"](), 2, folder=tmp_path / "run", meter=Reader())
    assert seen == [(2, 0), *((t, t, "running", True) for t in range(3)), "closed"]


def test_the_configuration_is_kept(tmp_path):
    @dataclass
    class Config:
        lr: float = 0.3
        shape: tuple = (3, 6)
        path: object = tmp_path
        dtype: object = torch.float64

    run = train(killable.make_problem(), killable.RULES["gd"](), 1, folder=tmp_path / "run", config=Config())
    expected = {"type": "Config", "lr": 0.3, "shape": [3, 6], "path": str(tmp_path), "dtype": "torch.float64"}
    assert run.manifest.config == expected


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    problem, rule = killable.make_problem(), killable.RULES["gd"]()
    train(problem, rule, 4, folder=tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"already holds a run.*--resume.*--out.*--replace"):
        train(problem, rule, 2, folder=tmp_path / "run")
    assert open_run(tmp_path / "run").steps == 4
    assert train(problem, rule, 2, folder=tmp_path / "run", replace=True).data.sizes["step"] == 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": -1}, "number of steps is -1"),
        ({"steps": 1.5}, r"number of steps is 1\.5"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"save_every": -1}, "save_every is -1"),
        ({"batch_size": 25}, "mini-batch size is 25.*has 24 samples"),
        ({"batch_size": 0}, "mini-batch size is 0"),
        ({"resume": True, "replace": True}, "together with replace"),
        ({"resume": True, "folder": None}, "without a folder"),
        ({"measures": [FullLoss(), FullLoss()]}, "name 'full_loss' is taken twice"),
        ({"measures": [Measure.from_function("loss", lambda c: 0.0)]}, "Both the training loop and the measure 'loss'"),
        ({"measures": [Measure.from_function("a/b", lambda c: 0.0)]}, "slash"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_made(options, named, tmp_path):
    settings = {"steps": 3, "folder": tmp_path / "run"} | options
    with pytest.raises(InvalidInput, match=named):
        train(killable.make_problem(), killable.RULES["gd"](), **settings)
    assert not (tmp_path / "run").exists()


class Remembering:
    """Any object with the protocol will do; this one sums what it saw."""

    name, every = "sums", 2
    variables = {"sum": Variable("loss", "sum of losses seen"), "extra": Variable("1", "left out at times")}

    def __init__(self):
        self.total = torch.zeros((), dtype=torch.float64)

    def measure(self, context):
        if context.step == 0:
            self.total = torch.zeros((), dtype=torch.float64)
        self.total = self.total + context.loss
        assert context.state["step"] == context.step + 1, "the state as this step's update uses it"
        assert (context.update is None) == (context.step == 9)
        if context.step == 4:
            context.note("four", "was here")
        return {"sum": self.total.item()}

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state):
        self.total = state["total"]


def test_a_measure_of_the_users_own(tmp_path):
    problem, rule = killable.make_problem(), killable.RULES["gd"]()
    measure = Remembering()
    for folder in ("one", "two"):  # the second run begins anew
        run = train(problem, rule, 9, folder=tmp_path / folder, measures=[measure])
        data = run.data
        seen = [0, 2, 4, 6, 8, 9]
        np.testing.assert_allclose(data["sum"].values[seen], np.cumsum(data["loss"].values[seen]), rtol=1e-14)
        assert np.isnan(data["sum"].values[[1, 3, 5, 7]]).all()
        assert np.isnan(data["extra"].values).all()
    assert [(event.step, event.kind, event.text) for event in run.events] == [(4, "four", "was here")]


@pytest.mark.parametrize(
    ("value", "dim", "named"),
    [([1.0, 2.0], None, "announced as one number a step"), (1.0, "entry", "vector along 'entry'")],
)
def test_a_measure_that_returns_another_shape(value, dim, named, tmp_path):
    measure = Measure.from_function("odd", lambda c: value, dim=dim)
    with pytest.raises(InvalidInput, match=named):
        train(killable.make_problem(), killable.RULES["gd"](), 3, folder=tmp_path / "run", measures=[measure])


def test_a_measure_that_returns_what_it_did_not_announce(tmp_path):
    measure = Remembering()
    measure.measure = lambda context: {"other": 1.0}
    with pytest.raises(InvalidInput, match="returned 'other'"):
        train(killable.make_problem(), killable.RULES["gd"](), 3, folder=tmp_path / "run", measures=[measure])


def test_exact_bits_are_stored(tmp_path):
    """What a step computed is what the file holds, to the last bit; infinity and NaN included."""
    values = [0.1 + 0.2, 5e-324, float("inf"), float("nan"), -0.0]
    measure = Measure.from_function("odd", lambda c: values[c.step])
    run = train(killable.make_problem(), killable.RULES["gd"](), 4, folder=tmp_path / "run", measures=[measure])
    np.testing.assert_array_equal(run.data["odd"].values, values)
    with closing(sqlite3.connect(tmp_path / "run" / "metrics.sqlite")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",), "a finished run is one plain file"
