"""What a loss tells without sharpness, and what is said to the user who has no more than that."""

import json

import numpy as np
import pytest
from regime_cases import case
from regime_expectations import EDGE, SEEDS, called

from thalweg.cli.regimes import main
from thalweg.phases.regimes import segment
from thalweg.phases.regimes_loss import loss_signs


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["random_c8", "nesterov"])
def test_the_edge_is_heard_in_the_loss(name, seed):
    """Where sharpness says edge, the loss of descent alternates; before the last decade of the rise it does not."""
    signs, found = loss_signs(case(name, seed)["loss"]), called(name, seed)
    edge = next(s for s in found.segments if s.label == EDGE)
    heard = np.zeros(edge.end + 1, dtype=bool)
    for begin, end in signs.bounces:
        heard[begin : end + 1] = True
    assert heard[edge.start :].mean() > 0.5
    assert not heard[: edge.start // 10].any()
    assert signs.dense
    assert signs.jitter == 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["true", "catapult", "heavy_ball", "ema", "cross_entropy", "sgd", "sgd_true"])
def test_no_oscillation_is_heard_where_there_is_none(name, seed):
    signs = loss_signs(case(name, seed)["loss"])
    assert signs.bounces == ()
    assert (signs.jitter > 0.01) == name.startswith("sgd")


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_oscillation(seed):
    loss = np.exp(-np.arange(6000) / 3000 + 0.1 * np.random.default_rng(seed).normal(size=6000))
    signs = loss_signs(loss)
    assert signs.bounces == ()
    assert signs.jitter == pytest.approx(0.1 * np.sqrt(2) * 0.6745, rel=0.1)


def test_an_oscillation_is_found_under_noise_and_by_its_steps():
    t = np.arange(4000)
    rng = np.random.default_rng(0)
    wave = np.where((t >= 1000) & (t < 3000), 0.02 * (-1.0) ** t, 0) + 0.004 * rng.normal(size=4000)
    loss = np.exp(-t / 2000 + wave)
    ((begin, end),) = loss_signs(loss, 100 + t).bounces
    assert abs(begin - 1100) <= 64
    assert abs(end - 3100) <= 64
    slow = np.exp(-t / 2000 + np.where(t >= 1000, 0.02 * np.cos(np.pi * t / 2), 0))
    assert loss_signs(slow).bounces == ()  # period four


def test_steps_that_are_not_successive_say_nothing_of_an_oscillation():
    t = np.arange(0, 40000, 10)
    signs = loss_signs(np.exp(-t / 20000) * (1 + 0.1 * (t % 20 == 0)), t)
    assert signs.bounces == ()
    assert not signs.dense


@pytest.mark.parametrize("size", [0.0, 0.05])
def test_a_rest_of_the_loss_is_found(size):
    t = np.arange(20001)
    logs = np.interp(np.log10(1 + t), [0, 1.5, 3.0, 4.3], [0.0, -0.5, -0.5, -2.0])
    loss = 10 ** (logs + size * np.random.default_rng(1).normal(size=len(t)))
    ((begin, end),) = loss_signs(loss).rests
    assert 20 < begin < 50
    assert 700 < end < 1400


@pytest.mark.parametrize("loss", [[1.0], [1.0, 0.5], np.full(300, 2.0), np.zeros(300), -np.arange(300.0), [1, np.inf]])
def test_odd_losses_are_survived(loss):
    signs = loss_signs(loss)
    assert signs.bounces == ()
    assert signs.jitter == 0


def test_a_loss_that_is_negative_may_oscillate():
    t = np.arange(500)
    assert loss_signs(-3 - t / 1000 + 0.01 * (-1.0) ** t).bounces == ((0, 499),)


def test_what_is_said_of_a_loss_alone():
    loss = case("random_c8", 2)["loss"]
    bare = segment(loss)
    assert bare.order == ("undetermined",)
    assert "up and down at every other step" in bare.text
    assert "the learning rate, and the optimizer" in bare.text
    assert "catapult if sharpness fell" in bare.text
    known = segment(loss, learning_rate=0.2, rule="gd")
    assert "sharpness is near 10 " in known.text
    assert "the learning rate, and" not in known.text
    noisy = segment(case("sgd", 1)["loss"])
    assert "as mini-batches do: give batch size" in noisy.text
    told = segment(case("sgd", 1)["loss"], batch_size=30, samples=300)
    assert "give batch size" not in told.text
    gone = segment(case("diverged", 1)["loss"])
    assert "smaller learning rate" in gone.text
    assert "critical_sharpness" not in gone.text


def test_with_sharpness_nothing_of_this_is_said():
    assert "critical_sharpness" not in called("random_c8", 2).text


def test_the_command_makes_use_of_a_file_with_step_and_loss(tmp_path, capsys):
    loss = case("random_c8", 2)["loss"]
    rows = "".join(f"{step},{value:.8g}\n" for step, value in enumerate(loss))
    (tmp_path / "log.csv").write_text(f"step,loss\n{rows}")
    assert main([str(tmp_path / "log.csv"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["flags"] == ["no sharpness"]
    assert found["excursions"][0]["opened"] == 1
    assert "up and down at every other step" in found["text"]
    assert "To be told regimes, give sharpness" in found["text"]
    assert "every other step" in (tmp_path / "log-regimes.html").read_text()
