import json
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from thalweg import hessian, open_run
from thalweg.cli import estimates
from thalweg.cli import layers as layers_module
from thalweg.cli.checkpoint import fit, read_weights
from thalweg.cli.config import build_problem, from_dict
from thalweg.cli.main import main
from thalweg.cli.spectrum_options import parse
from thalweg.cli.stages import Stopped
from thalweg.cli.subject import subject
from thalweg.cli.subject_config import settings_of
from thalweg.errors import InvalidInput, NonFinite
from thalweg.operators.fisher import empirical_fisher
from thalweg.operators.gauss_newton import gauss_newton
from thalweg.runs.analyses import read_analysis

DATA = ["--data.samples", "40", "--dtype", "float64"]
MODEL = ["--model.width", "6", "--model.depth", "2"]
QUICK = ["--no-trace", "--no-density", "--no-per-layer", "--k", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of gradient descent and Adam, recorded once; nothing here changes them."""
    home = tmp_path_factory.mktemp("runs")
    common = ["run", *DATA, *MODEL, "--steps", "12", "--checkpoint-every", "5", "--track.eigenvalues", "1"]
    common += ["--track.tol", "1e-7", "--no-report"]
    assert main([*common, "--out", str(home / "gd")]) == 0
    assert main([*common, "--rule.name", "adam", "--batch-size", "16", "--out", str(home / "adam")]) == 0
    return home


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def measured(path, *more):
    """Run the command without complaint and read what it wrote."""
    assert main(["spectrum", str(path), *map(str, more), "--out", "found.nc"]) == 0
    return read_analysis(Path("found.nc"), "spectrum")


def dense(run, step):
    """Problem, point and all eigenvalues at a checkpoint, largest first, by brute force."""
    problem = build_problem(from_dict(run.manifest.config, "here"))
    w = problem.layout.flatten(run.checkpoint(step)).to(problem.dtype)
    matrix = hessian(problem, w).dense()
    return problem, w, torch.linalg.eigvalsh((matrix + matrix.T) / 2).flip(0).numpy(), matrix


def weights(folder, step=12):
    return open_run(folder / "gd").checkpoint(step)


def test_everything_agrees_with_the_dense_hessian(folder):
    run = open_run(folder / "gd")
    problem, w, values, matrix = dense(run, 12)
    got = measured(folder / "gd", "--k", 3, "--target", "0.02")
    size = problem.dimension
    np.testing.assert_allclose(got.eigenvalues.values, [*values[:3], *values[-3:]], atol=1e-6)
    assert (got.eigen_end.values == [1, 1, 1, -1, -1, -1]).all()
    trace = float(matrix.trace())
    assert abs(float(got.trace) - trace) < 4 * float(got.trace_standard_error) + 1e-9
    assert float(got.trace_standard_error) <= 0.02 * abs(float(got.trace))
    assert abs(float(got.density_trace) - trace) < 5 * float(got.density_trace_standard_error)
    area = np.trapezoid(got.density.values, got.value.values)
    assert area == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(got.density_weights.sum("node"), 1, rtol=1e-6)
    assert got.layer_parameters.sum() == size
    for i, name in enumerate(got.layer.values):
        block = problem.layout.indices(lambda n, name=name: n.startswith(f"{name}."))
        part = matrix[block][:, block]
        assert float(got.layer_eigenvalue[i]) == pytest.approx(float(torch.linalg.eigvalsh(part)[-1]), abs=1e-4)
        assert (
            abs(float(got.layer_trace[i]) - float(part.trace())) < 5 * float(got.layer_trace_standard_error[i]) + 1e-9
        )
    assert float(got.loss) == pytest.approx(float(problem.value(w)))
    assert got.attrs["complete"] == "yes"
    assert got.attrs["layers_cover"] == "yes"
    assert set(got.stage.values) == {"eigenvalues", "edge", "trace", "density", "layers"}
    assert (got.stage_products > 0).all()
    assert (got.stage_gradients > 0).all()
    assert float(got.peak_memory) > 1e7


@pytest.mark.parametrize("name", ["gd", "adam"])
def test_the_edge_is_the_one_that_the_run_recorded(folder, name):
    """For Adam this needs its state on disk, and the mini-batch whose gradient the last step took in."""
    run = open_run(folder / name)
    recorded = run.data.isel(step=-1)
    got = measured(run.path, *QUICK)
    assert float(got.edge_sharpness) == pytest.approx(float(recorded.sharpness), rel=1e-5)
    assert float(got.stability_threshold) == pytest.approx(float(recorded.stability_threshold))
    assert got.attrs["comparable"] == ("yes" if name == "gd" else "no")


def test_preconditioned_eigenvalues_meet_the_threshold(folder):
    run = open_run(folder / "adam")
    got = measured(run.path, *QUICK, "--preconditioned", "--k", 2)
    assert float(got.eigenvalues[0]) == pytest.approx(float(run.data.sharpness[-1]), rel=1e-5)
    assert got.attrs["comparable"] == "yes"
    plain = measured(run.path, *QUICK, "--k", 2)
    assert float(plain.eigenvalues[0]) != pytest.approx(float(got.eigenvalues[0]), rel=0.1)


def test_without_the_state_nothing_is_preconditioned(folder, capsys):
    assert main(["spectrum", str(folder / "adam"), *QUICK, "--step", "5", "--preconditioned"]) == 2
    assert "Adam's state is not on disk" in capsys.readouterr().err
    got = measured(folder / "adam", *QUICK, "--step", "5")
    assert "edge_sharpness" not in got
    assert "kept for the start and the last saved step only" in got.attrs["notes"]


def test_results_and_page_go_into_the_run_and_its_report(folder, tmp_path, capsys):
    import shutil

    run = shutil.copytree(folder / "gd", tmp_path / "copy")
    assert main(["report", str(run)]) == 0
    assert "Spectrum at step" not in (run / "report.html").read_text()
    assert main(["spectrum", str(run), "--step", "5", "--k", "1", "--no-density", "--no-per-layer"]) == 0
    out = capsys.readouterr().out
    assert (run / "analyses" / "spectrum-5.nc").is_file()
    assert "The largest eigenvalue" not in out
    assert "At step 5 the largest eigenvalue of the Hessian is" in out
    assert "Spectrum</h2>" in (run / "analyses" / "spectrum-5.html").read_text()
    assert "Spectrum at step 5</h2>" in (run / "report.html").read_text()
    assert not [path.name for path in run.rglob(".tmp-*")]


def test_results_as_json(folder, capsys):
    assert main(["spectrum", str(folder / "gd"), *QUICK, "--k", "1", "--json", "--out", "x.nc"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["facts"]["step"] == 12
    assert told["variables"]["eigenvalues"]["units"] == "loss / weight^2"
    assert len(told["variables"]["eigenvalues"]["value"]) == 2
    assert "eigenvalues:" in captured.err


def test_a_checkpoint_file_of_a_run_is_found_in_its_run(folder):
    file = next((folder / "gd" / "checkpoints").glob("*.safetensors"))
    got = measured(file, *QUICK, "--step", 5)
    assert (got.attrs["step"], got.attrs["name"]) == (5, "gd")
    last = measured(folder / "gd", *QUICK, "--step", "-1")
    assert last.attrs["step"] == 12


def test_a_missing_step_names_those_that_exist(folder, capsys):
    assert main(["spectrum", str(folder / "gd"), "--step", "7"]) == 2
    assert "Step 7 has no checkpoint. There are some at 0, 5, 10, 12." in capsys.readouterr().err
    assert main(["spectrum", str(folder / "gd"), "--step", "late"]) == 2
    assert "--step is 'late'" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["w.safetensors", "w.pt"])
def test_a_state_dict_gives_the_numbers_of_its_run(folder, file):
    (save_file if file.endswith("safetensors") else torch.save)(weights(folder), file)
    got = measured(file, *QUICK, *DATA, *MODEL, "--rule.lr", 0.14)
    recorded = float(open_run(folder / "gd").data.sharpness[-1])
    assert float(got.eigenvalues[0]) == pytest.approx(recorded, rel=1e-5)
    assert float(got.edge_sharpness) == pytest.approx(recorded, rel=1e-5)
    assert "step" not in got.attrs
    assert "missing" in got.attrs


def test_without_a_learning_rate_there_is_no_threshold(folder):
    torch.save(weights(folder), "w.pt")
    got = measured("w.pt", *QUICK, *DATA, *MODEL)
    assert not {"edge_sharpness", "stability_threshold"} & set(got)


def test_weights_are_found_under_what_training_scripts_wrap_them_in(folder):
    tensors = weights(folder)
    for wrapped in (
        {"epoch": 3, "state_dict": tensors},
        {"model": {f"module._orig_mod.{name}": t for name, t in tensors.items()}},
    ):
        torch.save(wrapped, "w.pt")
        found = subject(None, Path("w.pt"), settings_of(open_run(folder / "gd")), None, None)
        assert torch.equal(found.w, found.problem.layout.flatten(tensors)), "all digits of them"


def test_a_state_dict_that_does_not_fit_names_its_tensors(folder, capsys):
    tensors = weights(folder)
    names = list(tensors)
    broken = dict(tensors)
    broken["extra.bias"] = torch.zeros(3)
    broken[names[0]] = torch.zeros(2, 2)
    del broken[names[-1]]
    torch.save(broken, "w.pt")
    assert main(["spectrum", "w.pt", *DATA, *MODEL]) == 2
    error = capsys.readouterr().err
    assert f"it lacks {names[-1]}" in error
    assert "the model has no extra.bias" in error
    assert f"{names[0]} is (2, 2) and not" in error
    assert "--model.depth" in error


def test_tied_tensors_fit_under_either_name_and_buffers_may_be_missing():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    model[1].weight = model[0].weight
    tensors = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    tensors["1.weight"] = tensors.pop("0.weight")
    fit(model, tensors, "it")
    assert torch.equal(model[0].weight, tensors["1.weight"])
    del tensors["1.weight"]
    with pytest.raises(InvalidInput, match=r"it lacks 0.weight"):
        fit(model, tensors, "it")


@pytest.mark.parametrize("damage", ["half", "text", "empty"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_damaged_files_are_told(folder, capsys, suffix, damage):
    (save_file if suffix == "safetensors" else torch.save)(weights(folder), file := f"w.{suffix}")
    whole = Path(file).read_bytes()
    Path(file).write_bytes({"half": whole[: len(whole) // 2], "text": b"hello", "empty": b""}[damage])
    assert main(["spectrum", file, *DATA, *MODEL]) == 2
    error = capsys.readouterr().err
    assert f"w.{suffix}" in error
    assert "Traceback" not in error


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_nothing_in_a_file_is_executed(capsys):
    with open("w.pt", "wb") as file:
        pickle.dump({"weights": Evil()}, file)
    assert main(["spectrum", "w.pt", *DATA, *MODEL]) == 2
    assert not os.path.exists("executed")
    torch.save({"a": 3}, "v.pt")
    assert main(["spectrum", "v.pt", *DATA, *MODEL]) == 2
    assert "holds no state dict" in capsys.readouterr().err


def test_other_files_and_nothing_at_all(tmp_path, capsys):
    (tmp_path / "w.txt").write_text("x")
    for path, words in (("w.txt", ".safetensors"), ("nowhere", "There is no nowhere"), (".", "is not a run folder")):
        assert main(["spectrum", path]) == 2
        assert words in capsys.readouterr().err


def test_a_run_keeps_its_own_problem(folder, capsys):
    assert main(["spectrum", str(folder / "gd"), "--model.width", "7"]) == 2
    assert "together with --model.width" in capsys.readouterr().err
    told, run, _ = parse([str(folder / "gd"), "--dtype", "float32", "--chunk", "16"])
    assert run is not None
    assert (told.settings.dtype, told.settings.chunk, told.settings.model.width) == ("float32", 16, 6)


def test_another_seed_measures_the_same_problem_again(folder):
    """The seed of a run is also that of its model; here it is that of the random vectors only."""
    first, second = (measured(folder / "gd", "--k", 1, "--no-density", "--no-per-layer", "--seed", s) for s in (0, 1))
    assert float(first.loss) == float(second.loss)
    assert float(first.trace) != float(second.trace)
    np.testing.assert_allclose(first.eigenvalues, second.eigenvalues, atol=1e-6)


def test_gauss_newton_and_fisher_have_one_end(folder):
    run = open_run(folder / "gd")
    problem = build_problem(from_dict(run.manifest.config, "here"))
    w = problem.layout.flatten(run.checkpoint(12)).to(problem.dtype)
    for name, build in (("gauss-newton", gauss_newton), ("fisher", empirical_fisher)):
        got = measured(run.path, *QUICK, "--operator", name, "--k", 2)
        want = torch.linalg.eigvalsh(build(problem, w).dense()).flip(0)[:2]
        np.testing.assert_allclose(got.eigenvalues, want, rtol=1e-6)
        assert "edge_sharpness" not in got
    assert main(["spectrum", str(run.path), "--operator", "fisher", "--layout", "difference"]) == 2


def test_chunks_change_nothing(folder):
    whole, cut = (measured(folder / "gd", *QUICK, *more) for more in ([], ["--chunk", 16]))
    np.testing.assert_allclose(whole.eigenvalues, cut.eigenvalues, atol=1e-6)


def test_part_of_the_data_is_told(folder):
    assert "Measured on 20 of 40 samples" in measured(folder / "gd", *QUICK, "--samples", 20).attrs["notes"]


OWN = """
import torch, thalweg as tw

def problem():
    torch.manual_seed(0)
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
    model = torch.nn.Linear(3, 1).double()
    return tw.Problem(model, torch.nn.MSELoss(), (x, y))

class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g

class Odd(torch.nn.Linear):
    def forward(self, x):
        return Once.apply(super().forward(x))

def odd():
    torch.manual_seed(0)
    return tw.Problem(Odd(3, 1), torch.nn.MSELoss(), (torch.randn(9, 3), torch.randn(9, 1)))
"""


def test_a_problem_of_ones_own(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(OWN)
    import thalweg as tw

    namespace = {}
    exec(OWN, namespace)
    tw.train(namespace["problem"](), tw.rules.GradientDescent(lr=0.1), steps=3, folder="python")
    assert main(["spectrum", "python"]) == 2
    assert "--model-file" in capsys.readouterr().err
    got = measured("python", *QUICK, "--model-file", "mine.py:problem", "--k", 1)
    problem = namespace["problem"]()
    want = torch.linalg.eigvalsh(hessian(problem).dense())
    np.testing.assert_allclose(got.eigenvalues, [want[-1], want[0]], rtol=1e-6)
    torch.save(problem.model.state_dict(), "w.pt")
    assert measured("w.pt", *QUICK, "--model-file", "mine.py:problem").attrs["model"] == "Linear"


STRAIGHT = """
import torch, thalweg as tw
from torch import nn

def problem(deep=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)) if deep else nn.Linear(3, 1)
    return tw.Problem(model, nn.L1Loss(), (torch.randn(20, 3), torch.randn(20, 1)))

def deep():
    return problem(True)
"""


def straight(tmp_path, name):
    (tmp_path / "mine.py").write_text(STRAIGHT)
    namespace = {}
    exec(STRAIGHT, namespace)
    torch.save(namespace[name]().model.state_dict(), "w.pt")


@pytest.mark.parametrize(
    ("name", "operator", "blamed"),
    [
        ("problem", "hessian", "The Hessian at w.pt is zero|with L1Loss."),
        ("deep", "gauss-newton", "The Gauss-Newton matrix at w.pt is zero|with 1 (ReLU) and L1Loss."),
    ],
)
def test_no_curvature_at_all_is_refused_with_what_makes_it_so(tmp_path, capsys, name, operator, blamed):
    straight(tmp_path, name)
    assert main(["spectrum", "w.pt", "--model-file", f"mine.py:{name}", "--operator", operator]) == 2
    error = capsys.readouterr().err
    assert all(words in error for words in blamed.split("|"))
    assert "no second derivative" in error
    assert "Take a smooth loss" in error
    assert not list(tmp_path.glob("*.nc"))


def test_curvature_between_layers_only_is_told(tmp_path, capsys):
    straight(tmp_path, "deep")
    got = measured("w.pt", "--model-file", "mine.py:deep", "--no-density")
    assert float(got.eigenvalues[0]) > 0
    assert not got.layer_trace.any()
    assert "No layer has curvature of its own" in capsys.readouterr().err


def test_a_model_without_second_derivative(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(OWN)
    namespace = {}
    exec(OWN, namespace)
    torch.save(namespace["odd"]().model.state_dict(), "w.pt")
    assert main(["spectrum", "w.pt", "--model-file", "mine.py:odd"]) == 2
    error = capsys.readouterr().err
    assert "second" in error
    assert "difference" in error, "what to do instead"
    got = measured("w.pt", *QUICK, "--model-file", "mine.py:odd", "--layout", "difference", "--tol", "1e-2")
    assert np.isfinite(got.eigenvalues).all()


def test_ctrl_c_keeps_the_stages_before(folder, monkeypatch, capsys):
    real = estimates.trace

    def pressed(bench):
        os.kill(os.getpid(), signal.SIGINT)
        return real(bench)

    monkeypatch.setattr(estimates, "trace", pressed)
    assert main(["spectrum", str(folder / "gd"), "--out", "half.nc"]) == 130
    captured = capsys.readouterr()
    assert "Stopped before trace" in captured.out
    got = read_analysis(Path("half.nc"), "spectrum")
    assert (got.attrs["complete"], got.attrs["missing"]) == ("no", "trace, density, layers")
    assert len(got.eigenvalues) == 8
    assert "missing: trace" in Path("half.html").read_text()


def test_ctrl_c_keeps_the_layers_that_are_done(folder, monkeypatch):
    real = layers_module.layer_blocks

    def pressed(*args, **options):
        yield next(real(*args, **options))
        raise Stopped

    monkeypatch.setattr(layers_module, "layer_blocks", pressed)
    assert main(["spectrum", str(folder / "gd"), "--no-trace", "--no-density", "--k", "1", "--out", "half.nc"]) == 130
    got = read_analysis(Path("half.nc"), "spectrum")
    assert list(got.layer.values) == ["1"]
    assert (got.attrs["layers_cover"], got.attrs["missing"]) == ("no", "layers")


def test_numbers_that_break_off_leave_what_was_before(folder, monkeypatch, capsys):
    def broken(bench):
        raise NonFinite("A product is NaN. That is bad. Look at it.")

    monkeypatch.setattr(estimates, "trace", broken)
    assert main(["spectrum", str(folder / "gd"), "--k", "1", "--out", "half.nc"]) == 1
    assert "What the stages before found is kept in half.nc" in capsys.readouterr().out
    assert "eigenvalues" in read_analysis(Path("half.nc"), "spectrum")


def test_a_complete_result_is_not_replaced_by_half_of_one(folder, monkeypatch, capsys):
    assert main(["spectrum", str(folder / "gd"), *QUICK, "--k", "1", "--out", "x.nc"]) == 0
    before = Path("x.nc").read_bytes()

    def stopped(bench):
        raise Stopped

    monkeypatch.setattr(estimates, "trace", stopped)
    assert main(["spectrum", str(folder / "gd"), "--out", "x.nc"]) == 130
    assert Path("x.nc").read_bytes() == before
    assert "not written, as x.nc is complete" in capsys.readouterr().out


def test_a_budget_bounds_all_products(folder, capsys):
    got = measured(folder / "gd", "--budget", 120, "--k", 2)
    assert got.stage_products.sum() <= 135, "a stage may finish what it has begun"
    assert got.attrs["eigenvalues_converged"] == "no"
    told = capsys.readouterr().err
    assert "The eigenvalues did not reach the accuracy asked for. The share of the budget ran out" in told
    assert "raise --budget, or loosen --tol" in told


def test_a_budget_that_is_too_small_leaves_out_what_it_cannot_pay(folder, capsys):
    """With a hand's count of products there are still eigenvalues, with what they are worth."""
    got = measured(folder / "gd", "--budget", 30, "--k", 2)
    captured = capsys.readouterr()
    assert "layers: left out, as it takes at least 80 products" in captured.out
    assert "The layers were left out. It takes at least 80 products" in captured.err
    assert (got.attrs["layers_left_out"], got.attrs["complete"]) == ("yes", "yes")
    assert "layer_trace" not in got
    tiny = measured(folder / "gd", "--budget", 3)
    assert len(tiny.eigenvalues) == 1
    assert "is at least" in capsys.readouterr().out
    assert float(tiny.stage_products.sum()) <= 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--k", "-1"], "--k is -1"),
        (["--target", "0"], "--target is 0"),
        (["--budget", "2"], "--budget is 2"),
        ([*QUICK, "--k", "0"], "nothing to measure"),
    ],
)
def test_numbers_out_of_range(folder, capsys, options, words):
    assert main(["spectrum", str(folder / "gd"), *options]) == 2
    assert words in capsys.readouterr().err


def test_several_steps_in_one_file(folder):
    file = next((folder / "gd" / "checkpoints").glob("*.safetensors"))
    assert read_weights(file).keys() == weights(folder).keys()
    with pytest.raises(InvalidInput, match=r"Its steps are 0, 5, 10, 12"):
        read_weights(file, 3)


def test_changed_data_and_weights_that_are_not_finite(folder, tmp_path, capsys):
    import shutil

    run = shutil.copytree(folder / "gd", tmp_path / "copy")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["fingerprints"]["data"] = "0" * 32
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert main(["spectrum", str(run), *QUICK]) == 2
    assert "has changed since it was recorded" in capsys.readouterr().err
    torch.save({name: t * float("nan") for name, t in weights(folder).items()}, "w.pt")
    assert main(["spectrum", "w.pt", *DATA, *MODEL]) == 1
    assert "no curvature at such a point" in capsys.readouterr().err


def test_a_damaged_state_does_not_hide_the_checkpoints(folder, tmp_path):
    import shutil

    run = shutil.copytree(folder / "gd", tmp_path / "copy")
    (run / "state" / "latest.safetensors").write_bytes(b"broken")
    got = measured(run, *QUICK)
    assert got.attrs["step"] == 12
    assert "was left aside" in got.attrs["notes"]


def test_the_weights_of_a_stopped_run_are_its_last_saved_ones(folder, tmp_path):
    """Its last checkpoint may be far behind."""
    import shutil

    run = shutil.copytree(folder / "gd", tmp_path / "copy")
    (run / "checkpoints" / "from-000000000.safetensors").unlink()
    save_file(
        {f"0/{name}": t for name, t in weights(folder, 0).items()}, run / "checkpoints/from-000000000.safetensors"
    )
    assert open_run(run).checkpoints == [0]
    assert measured(run, *QUICK).attrs["step"] == 12


def test_a_link_out_of_the_run_is_not_followed(folder, tmp_path, capsys):
    import shutil

    run = shutil.copytree(folder / "gd", tmp_path / "copy")
    (tmp_path / "outside").mkdir()
    (run / "analyses").symlink_to(tmp_path / "outside")
    assert main(["spectrum", str(run), *QUICK]) == 2
    assert "leads out of the run folder" in capsys.readouterr().err
    assert not list((tmp_path / "outside").iterdir())
