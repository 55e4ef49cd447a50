"""``thalweg map``: any source, what it says first and last, what it leaves, and how it fails."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from thalweg import open_run
from thalweg.cli import map_work
from thalweg.cli.main import main
from thalweg.cli.map_options import parse, size_of
from thalweg.errors import InvalidInput, StorageError
from thalweg.runs.analyses import read_analysis
from thalweg.runs.sources import trajectory
from thalweg.trajectories import gram_store, gram_tasks
from thalweg.trajectories.gram_result import open_grams
from thalweg.trajectories.map import trajectory_map
from thalweg.trajectories.stored import open_map

STEPS = tuple(range(0, 2000, 100))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def weights(generator, scale=1.0):
    shapes = {
        "model.layers.0.self_attn.q_proj.weight": (8, 8),
        "model.layers.1.self_attn.q_proj.weight": (8, 8),
        "model.layers.1.mlp.up_proj.weight": (16, 8),
        "model.norm.weight": (8,),
    }
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def folder():
    """Twenty checkpoints of a random walk, ``ckpt/step0.safetensors`` and so on."""
    generator, place = torch.Generator().manual_seed(0), Path("ckpt")
    place.mkdir()
    point = weights(generator)
    for step in STEPS:
        save_file(point, place / f"step{step}.safetensors")
        moves = weights(generator, 0.1)
        point = {name: values + moves[name] for name, values in point.items()}
    return place


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with seven checkpoints; tests take copies."""
    home = tmp_path_factory.mktemp("run") / "gd"
    options = ["--data.samples", "40", "--model.width", "8", "--model.depth", "3", "--rule.lr", "0.1"]
    every = ["--steps", "30", "--checkpoint-every", "5", "--track.eigenvalues", "0"]
    assert main(["run", *options, *every, "--rule.weight-decay", "0.01", "--out", str(home)]) == 0
    return home


@pytest.fixture
def mine(run):
    return Path(shutil.copytree(run, "gd"))


def failed(capsys, *arguments, code=2):
    assert main(["map", *map(str, arguments)]) == code
    assert not list(Path().glob("**/trajectory*.nc"))
    assert not list(Path().glob("**/map.html"))
    return capsys.readouterr().err


def test_a_folder_is_mapped_as_the_library_does_it(folder, capsys):
    assert main(["map", "ckpt", "--budget", "100MB"]) == 0
    out, err = capsys.readouterr()
    path = trajectory("ckpt")
    expected = trajectory_map(path, groups="layer")
    found = open_map("ckpt-map/trajectory.nc")
    np.testing.assert_array_equal(found.similarity, expected.similarity)
    np.testing.assert_array_equal(found.relative, expected.relative)
    assert found.groups == expected.groups
    assert found.decay is None
    grams = open_grams("ckpt-map/gram.nc")
    assert grams.bytes_read == len(STEPS) * path.nbytes
    data = read_analysis(Path("ckpt-map/trajectory.nc"), "trajectory")
    assert all(data[name].attrs["units"] and data[name].attrs["long_name"] for name in data.variables)
    assert data.attrs["bytes_read"] == grams.bytes_read
    np.testing.assert_allclose(data["similarity"].sel(group="whole"), expected.similarity, atol=1e-6)
    first, second = out.splitlines()[:2]  # what was found and what it takes is said before the work
    assert "Trajectory of 20 checkpoints, steps 0 to 1900" in first
    assert "the number after 'step'" in first
    assert re.match(r"To read: \d.* kB, each byte once, .* limited by (reading|multiplying); memory up to", second)
    assert out.index("To read") < out.index("tile ") < out.index("Read ")
    row = next(line for line in out.splitlines() if line.startswith("mean relative similarity"))
    value, line, walk, mixing = map(float, row.split()[-4:])
    table = expected.table()["relative"]
    assert (value, line, walk, mixing) == pytest.approx((table.value, table.line, table.walk, table.mixing), abs=6e-4)
    assert re.search(r"Read \d.* kB in .* GB/s", out)
    assert "Page: ckpt-map/map.html" in out
    assert "Relative similarity" in Path("ckpt-map/map.html").read_text()
    assert "Nulls are for many more weights than checkpoints" in err


def test_it_goes_on_with_the_tensors_that_are_finished(folder, capsys, monkeypatch):
    monkeypatch.setattr(gram_store, "PAUSE", -1.0)  # as if each took a second
    real, calls = gram_tasks.Products, []

    class Breaks(real):
        def add(self, *arguments):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            super().add(*arguments)

    monkeypatch.setattr(gram_tasks, "Products", Breaks)
    assert main(["map", "ckpt"]) == 130
    out = capsys.readouterr().out
    assert "Stopped. Finished tensors are kept in ckpt-map/tensors (2 files)" in out
    assert not Path("ckpt-map/trajectory.nc").exists()
    monkeypatch.setattr(gram_tasks, "Products", real)
    assert main(["map", "ckpt"]) == 0
    assert "2 tensors were finished before" in capsys.readouterr().out
    np.testing.assert_array_equal(
        open_map("ckpt-map/trajectory.nc").similarity, trajectory_map(trajectory("ckpt")).similarity
    )
    assert main(["map", "ckpt", "--anchor", "500", "--groups", "none"]) == 0  # another view reads nothing
    assert "Read 0 B" in capsys.readouterr().out
    assert open_map("ckpt-map/trajectory.nc").anchor == 5
    assert main(["map", "ckpt", "--replace"]) == 0
    assert "finished before" not in capsys.readouterr().out


def test_steps_parameters_and_null_are_as_told(folder, capsys):
    chosen = ["--steps-from", "200", "--steps-to", "1800", "--every", "2", "--select", "*.q_proj.*", "--groups", "role"]
    decay = ["--weight-decay", "0.1", "--decoupled", "--learning-rate", "1e-4"]
    assert main(["map", "ckpt/*.safetensors", *chosen, *decay, "--weights", "time", "--out", "here"]) == 0
    assert "Left out: model.layers.1.mlp.up_proj.weight (not selected)" in capsys.readouterr().out
    found = open_map("here/trajectory.nc")
    assert found.steps.tolist() == list(range(200, 1801, 200))
    assert found.groups == ("whole", "Q")
    assert found.weighting == "time"
    assert (found.decay.weight_decay, found.decay.coupled) == (0.1, False)
    assert found.decay_null()[0, -1] == pytest.approx(
        np.exp(-0.1 * 1e-4 * 1600) * found.path().norms[0] / found.path().norms[-1]
    )


@pytest.mark.parametrize(("extra", "noun"), [(["--resident", "4"], "read"), (["--sketch", "32"], "checkpoint")])
def test_one_checkpoint_at_a_time(folder, capsys, extra, noun):
    assert main(["map", "ckpt", *extra]) == 0
    out = capsys.readouterr().out
    assert f"{noun} " in out
    found, exact = open_map("ckpt-map/trajectory.nc"), trajectory_map(trajectory("ckpt"))
    atol = 1e-10 if noun == "read" else 4 / np.sqrt(32)
    np.testing.assert_allclose(found.similarity, exact.similarity, atol=atol)
    assert found.sketch == (None if noun == "read" else 32)


def test_a_run_has_its_map_and_its_report(mine, capsys):
    assert "Trajectory map" in (mine / "report.html").read_text()  # written when the training ended
    made = open_map(mine / "analyses/trajectory-30.nc")
    assert made.steps.tolist() == [0, 5, 10, 15, 20, 25, 30]
    assert (made.decay.weight_decay, made.decay.coupled, made.decay.learning_rate) == (0.01, True, 0.1)
    (mine / "report.html").write_text("old")
    assert main(["map", str(mine), "--anchor", "10", "--groups", "tensor"]) == 0
    assert "Report: gd/report.html" in capsys.readouterr().out
    assert "Trajectory map" in (mine / "report.html").read_text()
    assert open_map(mine / "analyses/trajectory-30.nc").anchor == 2
    before = (mine / "analyses/trajectory-30.nc").read_bytes()
    assert main(["report", str(mine)]) == 0
    assert (mine / "analyses/trajectory-30.nc").read_bytes() == before, "a map that fits is kept as it was asked for"
    assert main(["map", str(mine), "--every", "2"]) == 0
    assert open_map(mine / "analyses/trajectory-part-30.nc").steps.tolist() == [0, 10, 20, 30]
    assert (mine / "analyses/trajectory-30.nc").read_bytes() == before, "a part does not take the place of the whole"


def test_a_run_that_went_on_has_one_map_of_all(mine):
    assert main(["run", "--resume", str(mine), "--steps", "40"]) == 0
    assert [path.name for path in (mine / "analyses").glob("trajectory*.nc")] == ["trajectory-40.nc"]
    assert open_map(mine / "analyses/trajectory-40.nc").steps.tolist() == list(range(0, 41, 5))
    assert main(["map", str(mine)]) == 0  # asked for, so it stays
    assert main(["run", "--resume", str(mine), "--steps", "50"]) == 0
    assert sorted(path.name for path in (mine / "analyses").glob("trajectory*.nc")) == [
        "trajectory-40.nc",
        "trajectory-50.nc",
    ]


def test_the_report_makes_the_map_that_is_missing(mine, capsys):
    shutil.rmtree(mine / "analyses")
    assert main(["report", str(mine)]) == 0
    assert open_map(mine / "analyses/trajectory-30.nc").steps[-1] == open_run(mine).steps
    (mine / "analyses/trajectory-30.nc").write_bytes(b"damaged")
    assert main(["report", str(mine)]) == 0
    assert "There is no map of the checkpoints" in capsys.readouterr().err
    assert "Trajectory map" not in (mine / "report.html").read_text()


@pytest.mark.slow
def test_on_several_processes_the_sums_are_the_same(folder, capsys):
    assert main(["map", "ckpt", "--workers", "2", "--budget", "200MB"]) == 0
    assert "task 4/4 (100%)" in capsys.readouterr().out
    np.testing.assert_allclose(
        open_map("ckpt-map/trajectory.nc").similarity, trajectory_map(trajectory("ckpt")).similarity, atol=1e-12
    )


def test_damaged_checkpoints_are_named_or_skipped(folder, capsys):
    path = folder / "step700.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    err = failed(capsys, "ckpt")
    assert "step700" in err
    assert "--missing skip" in err
    assert main(["map", "ckpt", "--missing", "skip"]) == 0
    assert "Step 700 (step700.safetensors) is skipped" in capsys.readouterr().err
    assert 700 not in open_map("ckpt-map/trajectory.nc").steps
    assert any("Step 700" in note for note in open_map("ckpt-map/trajectory.nc").notes)


def test_a_missing_shard(capsys):
    for step in (0, 1, 2, 3):
        place = Path(f"sharded/step{step}")
        place.mkdir(parents=True)
        tensors = weights(torch.Generator().manual_seed(step))
        names = list(tensors)
        halves = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
        for file, part in halves.items():
            save_file({name: tensors[name] for name in part}, place / file)
        index = {name: file for file, part in halves.items() for name in part}
        (place / "model.safetensors.index.json").write_text(
            '{"weight_map": {' + ", ".join(f'"{name}": "{file}"' for name, file in index.items()) + "}}"
        )
    Path("sharded/step2/model-00002-of-00002.safetensors").unlink()
    err = failed(capsys, "sharded")
    assert "step2" in err
    assert "model-00002-of-00002.safetensors" in err
    assert main(["map", "sharded", "--missing", "skip"]) == 0


def test_a_wrong_shape_in_checkpoint_17(folder, capsys):
    path = folder / "step1700.safetensors"
    save_file(load_file(path) | {"model.norm.weight": torch.zeros(9)}, path)
    err = failed(capsys, "ckpt")
    assert "model.norm.weight" in err
    assert "1700" in err
    assert "9" in err


def test_two_files_of_one_step(folder, capsys):
    shutil.copy(folder / "step300.safetensors", folder / "again-step300.safetensors")
    err = failed(capsys, "ckpt")
    assert "step300.safetensors" in err
    assert "again-step300.safetensors" in err
    assert main(["map", "ckpt", "--step-rule", r"^step(\d+)"]) == 0


class Code:
    """Unpickling this would write a file."""

    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_code_in_a_pickled_checkpoint_does_not_run(capsys):
    Path("pickled").mkdir()
    for step in range(4):
        torch.save({"w": torch.ones(4) * step}, f"pickled/step{step}.pt")
    torch.save({"w": torch.ones(4), "evil": Code()}, "pickled/step2.pt")
    err = failed(capsys, "pickled")
    assert "step2.pt" in err
    assert not Path("executed").exists()
    torch.load("pickled/step2.pt", weights_only=False)
    assert Path("executed").exists(), "the file does hold code"


def test_a_file_that_vanishes_during_the_read(folder, capsys, monkeypatch):
    real = map_work.compute

    def gone(*arguments, **more):
        (folder / "step900.safetensors").unlink()
        return real(*arguments, **more)

    monkeypatch.setattr("thalweg.cli.map.compute", gone)
    err = failed(capsys, "ckpt")
    assert "step900.safetensors" in err


def test_values_that_are_not_finite(folder, capsys):
    path = folder / "step1100.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, path)
    err = failed(capsys, "ckpt", code=1)
    assert "1100" in err
    assert "model.layers.1.mlp.up_proj.weight" in err
    assert main(["map", "ckpt", "--not-finite", "skip"]) == 0
    assert "1 values are not finite" in capsys.readouterr().err


def test_a_budget_that_is_too_small_tells_the_least(folder, capsys):
    err = failed(capsys, "ckpt", "--budget", "1MB")
    least = int(re.search(r"Allow at least (\d+) bytes", err)[1])
    assert main(["map", "ckpt", "--budget", str(least)]) == 0


def test_a_full_disk_keeps_what_was_finished(folder, capsys, monkeypatch):
    monkeypatch.setattr(gram_store, "PAUSE", -1.0)
    real, calls = gram_store.write_tensors, []

    def full(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise StorageError("No space left on device.")
        real(*arguments)

    monkeypatch.setattr(gram_store, "write_tensors", full)
    assert main(["map", "ckpt"]) == 1
    out, err = capsys.readouterr()
    assert "No space left" in err
    assert "kept in ckpt-map/tensors (2 files)" in out
    monkeypatch.setattr(gram_store, "write_tensors", real)
    assert main(["map", "ckpt"]) == 0
    assert "2 tensors were finished before" in capsys.readouterr().out


def test_results_that_cannot_be_written(folder, capsys):
    Path("taken").write_text("a file")
    assert "taken" in failed(capsys, "ckpt", "--out", "taken", code=1)


def test_one_checkpoint_is_no_path(folder, capsys):
    assert "2 checkpoints of those asked for" in failed(capsys, "ckpt", "--steps-to", "100")
    assert "does not exist" in failed(capsys, "nowhere")
    assert "The nearest are 100, 200, 300" in failed(capsys, "ckpt", "--anchor", "210")
    assert "No tensor matches" in failed(capsys, "ckpt", "--select", "decoder.*")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "much"], "a size of memory"),
        (["--every", "0"], "--every is 0"),
        (["--resident", "4", "--sketch", "8"], "--resident and --sketch"),
        (["--sketch", "8", "--device", "cuda"], "--sketch and --device"),
        (["--address", "host:1"], "that of a Ray cluster"),
        (["--momentum", "0.9"], "without --weight-decay"),
        (["--weight-decay", "0.1"], "learning rate"),
        (["--device", "tpu"], "--device is 'tpu'"),
        (["--step-rule", "step("], "no regular expression"),
        (["--step-rule", "step"], "no group"),
    ],
)
def test_options_that_cannot_be_meant(folder, capsys, arguments, words):
    assert words in failed(capsys, "ckpt", *arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_no_accelerator(folder, capsys):
    assert "sees 0 CUDA devices" in failed(capsys, "ckpt", "--device", "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_accelerator_gives_the_same_map(folder):
    assert main(["map", "ckpt", "--device", "cuda"]) == 0
    exact = trajectory_map(trajectory("ckpt"))
    np.testing.assert_allclose(open_map("ckpt-map/trajectory.nc").similarity, exact.similarity, atol=1e-7)


def test_layers_that_are_numbers_are_called_layers():
    for step in range(4):
        save_file({"0.weight": torch.randn(9), "2.weight": torch.randn(9)}, f"step{step}.safetensors")
    assert main(["map", ".", "--out", "m"]) == 0
    assert open_map("m/trajectory.nc").groups == ("whole", "layer 0", "layer 2")


def test_sizes():
    assert [size_of(text) for text in ("2GiB", "300MB", "1.5k", "17", "1 tb")] == [
        2 * 1024**3,
        300 * 1000**2,
        1536,
        17,
        1000**4,
    ]
    for text in ("", "GiB", "-1", "1 QB", "0"):
        with pytest.raises(InvalidInput):
            size_of(text)
    assert parse(["x", "--workers", "4", "--budget", "4GiB"]).share == 1024**3
