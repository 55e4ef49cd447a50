"""The verdict: its table, its refusals, processes whose truth is known, and two networks with BatchNorm."""

import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import thalweg as tw
from thalweg.errors import InvalidInput, RunFolderError
from thalweg.runs.gradient_probe import GradientProbe
from thalweg.stationarity.assess import assess
from thalweg.stationarity.verdict import ADVICE, MEANING

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "docs"), str(Path(__file__).parent)]
import make_batchnorm_runs  # noqa: E402
import make_stationarity_table as table  # noqa: E402


def log(n=4000, loss=None, level=1.0, every=20, **others):
    """A settled run with a gradient that stays, unless told otherwise."""
    rng = np.random.default_rng(0)
    probes = np.full(n, np.nan)
    probes[::every] = (level * (1 + 0.1 * rng.standard_normal(n)))[::every]
    settled = 2 + 0.1 * rng.standard_normal(n)
    found = {"step": np.arange(n), "loss": settled if loss is None else loss, "gradient_unbiased": probes}
    return found | {"learning_rate": np.full(n, 0.1)} | others


def falling(n=4000, noise=0.01):
    return 3 * np.exp(-3 * np.arange(n) / n) + noise * np.random.default_rng(1).standard_normal(n)


T = np.arange(4000)
CASES = {
    "invariant regime": log(),
    "stationary point": log(level=np.where(T < 200, 1.0, 0.0)) | {"noise": T * 0.0},
    "settled loss, growing gradient": log(level=1 + T / 1000),
    "settled loss, falling gradient": log(level=np.maximum(4 - T / 1200, 0.2)),
    "still training": log(loss=falling()),
    "unstable": log(loss=-falling()),
}


@pytest.mark.parametrize("kind", CASES)
def test_every_row_of_the_table(kind):
    source = CASES[kind]
    if kind == "stationary point":
        rest = 0.01 * np.random.default_rng(2).standard_normal(4000)
        source["gradient_unbiased"] = np.where(
            np.isnan(source["gradient_unbiased"]), np.nan, source["gradient_unbiased"] + rest
        )
    found = assess(source)
    assert found.kind == kind, found
    assert MEANING[kind] in found.words
    assert found.advice == ADVICE[kind]
    assert found.undecided == ()
    assert found.more_steps is None
    assert kind.upper() in repr(found)


REFUSED = {
    "NaN loss": (log(loss=np.where(T == 3500, np.nan, 2 + np.sin(T))), "1 is NaN or infinite"),
    "infinite loss": (log(loss=np.where(T > 3990, np.inf, 2 + np.sin(T))), "NaN or infinite, the first at index 1991"),
    "one probe": (log(every=3999), "The gradient was probed 1 time in the window. At least 20"),
    "nineteen probes": (log(every=106), "The gradient was probed 19 times in the window"),
    "constant series": (log(loss=np.full(4000, 2.5)), "Every value of loss in the window is 2.5"),
    "ten snapshots": (log(n=20, every=1), "the window has 10 snapshots"),
    "no gradients": ({k: v for k, v in log().items() if k != "gradient_unbiased"}, "The log holds no gradient level"),
    "no floor": (log(level=np.where(T < 2000, np.nan, 1.0)), "There is no gradient level from the start"),
    "moving rate": (log(learning_rate=np.cos(T / 4000)), "held for 1 snapshot"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    source, message = REFUSED[case]
    found = assess(source)
    assert found.kind == "undecided"
    assert any(message in x.reason for x in found.undecided), found
    assert "There is no verdict" in found.words
    assert found.plot().data


def test_a_rate_change_inside_a_window():
    source = log(learning_rate=np.where(T < 3000, 0.1, 0.01))
    found = assess(source, window=(2000, 3900))
    assert found.kind == "undecided"
    assert "learning rate goes from 0.1 to 0.01 at step 3,000, inside the window" in found.undecided[0].reason
    assert found.loss is None
    assert assess(source, window=(1000, 2999)).kind == "invariant regime"
    assert assess(source).window.start == 3500  # half of what the last rate held for
    assert assess(source, segment=0).window.stop == 2999


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.1, 0.5])
def test_bent_curves_fall(noise):
    assert assess(log(loss=falling(noise=noise))).kind == "still training"


def test_a_falling_loss_without_gradients_is_said_and_no_verdict():
    found = assess({"loss": falling()})
    assert found.kind == "undecided"
    assert "still falling" in found.words
    assert found.advice == ADVICE["still training"]
    assert "cannot be said" in found.undecided[0].reason


def test_the_steps_that_are_missing():
    found = assess(log(n=80, every=1))
    assert found.more_steps == pytest.approx(2 * (50 - 40), abs=3)
    few = assess(log(every=150))
    assert few.more_steps == pytest.approx(2 * (20 * 150 - 2000), rel=0.01)


def test_noisy_levels_say_how_many_steps_would_tell():
    rng = np.random.default_rng(4)
    level = np.where(T < 40, 1.0, 0.0) + 0.6 * rng.standard_normal(4000)
    found = assess(log() | {"gradient_unbiased": np.where(T % 40 == 0, level, np.nan)}, floor=0.05)
    assert found.kind == "undecided"
    assert found.more_steps > 4000


def test_telescoped_means_are_no_evidence():
    for seed in range(10):
        walk = np.tanh(np.random.default_rng(seed).standard_normal(4000).cumsum() / 60)
        found = assess(log(loss=walk))
        assert abs(np.diff(walk[2000:]).mean()) < 2 / 1999  # small, as for any bounded series
        assert found.kind in ("undecided", "still training", "unstable")
        assert "telescop" not in repr(found)


def test_deeper_observables_are_told_apart():
    rng = np.random.default_rng(5)
    still = rng.standard_normal((4000, 3))
    walk = rng.standard_normal((4000, 3)).cumsum(0)
    data = xr.Dataset(
        {name: ("step", values) for name, values in log().items() if name != "step"}
        | {"function_sketch": (("step", "a"), still), "weight_sketch": (("step", "b"), walk)},
        coords={"step": T},
    )
    found = assess(data)
    assert found.kind == "invariant regime"
    assert "Settled, too: what the network computes." in found.words
    assert "Not decided in this window: the weights themselves." in found.words
    assert list(found.observables) == ["function_sketch", "weight_sketch"]
    assert set(found.adjusted) >= {"loss", "function_sketch"}


def test_tables_from_elsewhere(tmp_path):
    columns = log() | {f"weight_sketch_{i}": np.random.default_rng(i).standard_normal(4000) for i in range(3)}
    names = ["global_step", "train/loss", *list(columns)[2:]]
    rows = zip(*columns.values())
    text = "\n".join(",".join("" if np.isnan(x) else f"{x:.8g}" for x in row) for row in rows)
    path = tmp_path / "log.csv"
    path.write_text(",".join(names) + "\n" + text + "\n")
    found = assess(path)
    assert found.kind == "invariant regime"
    assert found.observables["weight_sketch"].state == "settled"
    assert "guessed" in found.notes[0]
    with pytest.raises(InvalidInput, match="no column"):
        assess(path, columns={"loss": "nll"})


def test_a_recorded_run(tmp_path):
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    problem = tw.Problem(torch.nn.Linear(3, 1), torch.nn.MSELoss(), (x, x.sin().sum(1, keepdim=True)))
    probe = GradientProbe(batch_size=8, every=10, batches=4)
    run = tw.train(
        problem, tw.rules.GradientDescent(lr=0.1), 600, batch_size=8, measures=[probe], folder=tmp_path / "r"
    )
    found = assess(run)
    assert found.kind == assess(tmp_path / "r").kind
    assert found.loss.state == "settled"
    assert found.level.probes == 32  # every 10 steps from 280 to 599, 40 whole epochs
    assert abs(found.descent.ratio) < 1  # plain descent promises eta |grad|^2
    with pytest.raises(RunFolderError):
        assess(tmp_path)


def test_bad_arguments():
    for settings_ in ({"skip": 1.0}, {"floor": 0.0}, {"permutations": 9}):
        with pytest.raises(InvalidInput, match="Correct the argument"):
            assess(log(), **settings_)
    with pytest.raises(InvalidInput, match="no segment 3"):
        assess(log(), segment=3)
    with pytest.raises(InvalidInput, match="Give a first and a last step"):
        assess(log(), window=(5000, 6000))
    for source in (3, {"step": [1]}, xr.Dataset()):
        with pytest.raises(InvalidInput):
            assess(source)
    with pytest.raises(InvalidInput, match="one axis"):
        assess({"loss": [1.0, 2.0], "gradient_unbiased": [1.0]})


@settings(max_examples=12, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=120), st.integers(1, 30))
def test_whatever_is_logged_there_is_an_answer(values, every):
    loss = np.array(values, dtype=float)
    level = np.full(len(loss), np.nan)
    level[::every] = loss[::every]
    found = assess({"loss": loss, "gradient_unbiased": level})
    assert found.kind in MEANING
    assert found.words
    assert found.plot() is not None
    if not np.isfinite(loss[len(loss) // 2 :]).all():
        assert found.kind == "undecided"


def test_processes_with_known_truth():
    tally = Counter()
    for name in table.PROCESSES:
        here = Counter(table.judge(name, seed) for seed in range(1000, 1006))
        assert here["wrong"] <= 1, name
        tally += here
    assert tally["right"] > 0.7 * tally.total()  # six of the eight are decided, the walk never
    assert tally["wrong"] <= 2


def test_the_table_in_the_docs_has_all_processes():
    text = (ROOT / "docs" / "stationarity.md").read_text()
    rows = re.findall(r"^\| (.+?) \| ([\d.]+)% \| ([\d.]+)% \| ([\d.]+)% \|$", text, re.MULTILINE)
    assert [row[0] for row in rows] == list(table.PROCESSES)
    for _, right, undecided, wrong in rows:
        assert float(right) + float(undecided) >= 95
        assert float(wrong) <= 5


@pytest.mark.slow
def test_two_hundred_seeds_give_the_table_in_the_docs():
    found = table.counts(200)
    for name, tally in found.items():
        assert tally["wrong"] <= 10, name
    assert table.table(found) in (ROOT / "docs" / "stationarity.md").read_text()


def test_batchnorm_runs_in_kind():
    runs = make_batchnorm_runs.load()
    decayed, undecayed = (assess(runs[name]) for name in ("decayed", "undecayed"))
    assert decayed.kind == "invariant regime", decayed
    assert decayed.level.trend.p > 0.005
    assert undecayed.kind != "invariant regime", undecayed
    assert decayed.level.interval[0] > decayed.level.floor
    level = undecayed.level
    assert level.falling  # on its way to zero,
    assert level.interval[1] < level.floor  # and below the floor already,
    assert level.biased > level.floor  # which the usual estimate would not have shown


def test_the_networks_in_the_docs():
    assert table.networks() in (ROOT / "docs" / "stationarity.md").read_text()


@pytest.mark.slow
def test_the_stored_runs_come_from_the_script():
    stored = make_batchnorm_runs.load()["decayed"]
    again = make_batchnorm_runs.train(make_batchnorm_runs.DECAYS["decayed"], steps=60)
    np.testing.assert_allclose(again["loss"][:50], stored["loss"][:50], rtol=1e-3)
    assert again["gradient_unbiased"][50] == pytest.approx(stored["gradient_unbiased"][50], rel=0.02)
