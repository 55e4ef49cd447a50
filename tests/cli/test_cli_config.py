import dataclasses

import pytest
import torch

from thalweg.cli.config import (
    RunConfig,
    TrackConfig,
    build,
    build_problem,
    differences,
    from_dict,
    read_toml,
    resolve,
    threads,
    to_dict,
)
from thalweg.cli.rule import RuleConfig, ScheduleConfig
from thalweg.errors import InvalidInput
from thalweg.problem.data import DataConfig
from thalweg.problem.zoo import ModelConfig
from thalweg.rules import Adam
from thalweg.runs import FullLoss, Spectrum

SMALL = RunConfig(data=DataConfig(samples=30), model=ModelConfig(depth=2, width=5, init_scale=0.1))


def changed(config):
    """The same configuration with every plain number and switch moved."""
    new = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            new[f.name] = changed(value)
        elif isinstance(value, bool):
            new[f.name] = not value
        elif isinstance(value, int | float):
            new[f.name] = value + 1
    return dataclasses.replace(config, **new)


def test_round_trip_of_the_defaults_and_of_everything_changed():
    for config in (RunConfig(), changed(RunConfig()), resolve(changed(RunConfig()))):
        assert from_dict(to_dict(config), "here") == config
    assert changed(RunConfig()) != RunConfig()


def test_toml_changes_what_it_names_and_nothing_else(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('steps = 9\n[rule]\nname = "adam"\nlr = 1\n[rule.schedule]\nname = "cosine"\n[track]\nevery = 5\n')
    expected = RunConfig(
        steps=9, rule=RuleConfig("adam", lr=1.0, schedule=ScheduleConfig("cosine")), track=TrackConfig(every=5)
    )
    assert read_toml(file, RunConfig()) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stesp = 9", ["'stesp'", "steps"]),
        ("[model]\nwidht = 9", ["'model.widht'", "model.width"]),
        ("lr = 0.1", ["'lr'", "rule.lr"]),
        ("seed = 1\nsteps = many", ["not valid TOML", "line 2"]),
        ('[rule]\nname = "sgd"', ["rule.name to 'sgd'", "'gd'"]),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_what_was_meant(tmp_path, text, words):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_toml(file, RunConfig())
    for word in ["mine.toml", *words]:
        assert word in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"no\.toml cannot be read: No such file"):
        read_toml(tmp_path / "no.toml", RunConfig())


def test_differences_are_dotted_paths():
    other = dataclasses.replace(RunConfig(), steps=3, rule=RuleConfig(schedule=ScheduleConfig("cosine")))
    assert differences(RunConfig(), other) == ["steps", "rule.schedule.name"]


def test_build_hands_every_setting_on():
    config = dataclasses.replace(
        SMALL,
        dtype="float64",
        batch_size=8,
        rule=RuleConfig("adam", lr=0.5, beta2=0.9),
        track=TrackConfig(3, 7, 0.5, 9, 1e-5, 20, "double_backward"),
        seed=4,
    )
    problem, rule, measures = build(config)
    assert (problem.dtype, problem.samples, problem.dimension) == (torch.float64, 30, 64 * 5 + 5 + 5 * 10 + 10)
    assert rule == Adam(lr=0.5, beta2=0.9)
    expected = Spectrum(k=3, every=7, threshold=0.5, max_k=9, tol=1e-5, samples=20, layout="double_backward", seed=4)
    assert measures == [expected, FullLoss(every=7)]


def test_no_eigenvalues_and_full_batches_measure_nothing():
    assert build(dataclasses.replace(SMALL, track=TrackConfig(eigenvalues=0)))[2] == []


def test_the_seed_draws_the_model_and_chunks_change_no_result():
    first, again = build_problem(SMALL), build_problem(dataclasses.replace(SMALL, chunk=7))
    other = build_problem(dataclasses.replace(SMALL, seed=1))
    assert torch.equal(first.initial, again.initial)
    assert not torch.equal(first.initial, other.initial)
    assert float(first.value(first.initial)) == pytest.approx(float(again.value(again.initial)), rel=1e-6)


def test_losses_differ():
    values = {
        name: float(problem.value(problem.initial))
        for name in ("mse", "cross_entropy")
        if (problem := build_problem(dataclasses.replace(SMALL, loss=name)))
    }
    assert values["mse"] == pytest.approx(0.5, rel=0.1)
    assert values["cross_entropy"] == pytest.approx(2.303, rel=0.1)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(InvalidInput, match="'warp:3' cannot be used"):
        build_problem(dataclasses.replace(SMALL, device="warp:3"))


@pytest.mark.parametrize(("asked", "expected"), [(None, 1), (2, 2)])
def test_threads_are_set_and_put_back(asked, expected):
    config = dataclasses.replace(SMALL, threads=asked)
    problem, former = build_problem(config), torch.get_num_threads()
    with threads(config, problem):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == former


def test_no_thread_is_refused():
    config = dataclasses.replace(SMALL, threads=0)
    with pytest.raises(InvalidInput, match="Threads is 0"), threads(config, build_problem(config)):
        pass
