"""Every format gives the very values that were saved, range by range, and counts the bytes."""

import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import thalweg as tw
from checkpoint_makers import as_bins, as_cache, neox
from thalweg.errors import InvalidInput, RunFolderError
from thalweg.runs.sources import Trajectory, trajectory
from thalweg.runs.sources.headers import DTYPES


def same(path: Trajectory, saved: dict) -> None:
    """Compare whole tensors and odd ranges with what was saved."""
    assert path.steps == tuple(sorted(saved))
    for index, step in enumerate(path.steps):
        assert [info.name for info in path.tensors] == sorted(
            (n for n in saved[step] if n in {i.name for i in path.tensors}), key=[i.name for i in path.tensors].index
        )
        for info in path.tensors:
            wanted = saved[step][info.name].detach()
            found = path.tensor(index, info.name)
            assert (info.shape, info.dtype) == (tuple(wanted.shape), wanted.dtype) == (tuple(found.shape), found.dtype)
            assert torch.equal(found, wanted), (step, info.name)
            a, b = info.numel // 3, info.numel - info.numel // 5
            assert torch.equal(path.read(index, info.name, a, b), wanted.reshape(-1)[a:b])


@pytest.fixture
def net():
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(6, 5, bias=False))
    return body.to(torch.bfloat16)


def walk(net, steps):
    for step in steps:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        yield step, {name: tensor.clone() for name, tensor in net.state_dict().items()}


def test_single_files_of_safetensors(tmp_path, net):
    saved = {}
    for step, state in walk(net, [0, 5, 100]):
        save_file(state, tmp_path / f"model_step{step}.safetensors")
        saved[step] = state
    path = trajectory(tmp_path)
    same(path, saved)
    assert path.rule == "the number after 'step'"
    assert path.left_out == {
        "1.running_mean": "a running statistic",
        "1.running_var": "a running statistic",
        "1.num_batches_tracked": "its dtype is int64",
    }
    assert path.gaps == ()
    for source in (str(tmp_path / "*.safetensors"), sorted(tmp_path.glob("*")), path):
        assert trajectory(source).steps == (0, 5, 100)


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s, "x": []}]
)
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "_orig_mod."])
def test_state_dicts_of_torch_save(tmp_path, net, wrap, prefix):
    saved = {}
    for step, state in walk(net, [10, 20]):
        torch.save(wrap({prefix + name: tensor for name, tensor in state.items()}), tmp_path / f"ckpt_{step}.pt")
        saved[step] = state
    same(trajectory(tmp_path), saved)


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".ckpt"])
def test_a_module_s_own_state_dict_with_parameters_and_metadata(tmp_path, net, suffix):
    """``state_dict(keep_vars=True)`` holds Parameters, and an OrderedDict with ``_metadata``."""
    for step in (1, 2):
        torch.save(net.state_dict(keep_vars=True), tmp_path / f"epoch{step}{suffix}")
    same(trajectory(tmp_path), {1: net.state_dict(), 2: net.state_dict()})


def test_tensors_that_are_not_contiguous(tmp_path):
    """Channels last, a transpose, a strided view, a view into a shared storage: the rows around a range are read."""
    flat = torch.randn(4000)
    base = {
        "last": torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        "transposed": torch.randn(7, 11).T,
        "strided": torch.randn(20)[::3],
        "expanded": torch.randn(1, 4).expand(3, 4),
        "view": flat[100:160].view(6, 10),
        "scalar": torch.tensor(3.0),
    }
    for step in (0, 1):
        torch.save(base, tmp_path / f"step{step}.pt")
    path = trajectory(tmp_path)
    same(path, {0: base, 1: base})
    before = path.bytes_read
    path.read(0, "view", 5, 25)
    assert path.bytes_read - before == 20 * 4, "a contiguous view is read to the byte"
    before = path.bytes_read
    path.read(0, "last", 0, 75)
    assert path.bytes_read - before == 75 * 4, "one filter of four, in its own order, is a row"


def test_every_dtype_of_safetensors(tmp_path):
    floats = {k: getattr(torch, v) for k, v in DTYPES.items() if k.startswith(("F", "B")) and k != "BOOL"}
    state = {k: torch.randn(6, 3).abs().to(dtype) for k, dtype in floats.items()}
    state |= {"ints": torch.arange(3), "complex": torch.zeros(2, dtype=torch.complex64)}
    for step in (0, 1):
        save_file(state, tmp_path / f"step{step}.safetensors")
    path = trajectory(tmp_path)
    assert {info.name for info in path.tensors} == set(floats)
    for name in floats:
        assert torch.equal(path.tensor(1, name).view(torch.uint8), state[name].view(torch.uint8))
    assert path.left_out["complex"] == "its dtype is complex64"


def test_shards_of_a_language_model_each_byte_once(tmp_path):
    saved = neox(tmp_path, [0, 1, 2, 512, 1000])
    assert len(list((tmp_path / "step0").glob("*.safetensors"))) > 2
    path = trajectory(tmp_path)
    for index in range(len(path)):
        for info in path.tensors:
            for start in range(0, info.numel, 100):
                path.read(index, info.name, start, min(start + 100, info.numel))
    assert path.bytes_read == path.nbytes * len(path) == sum(2 * t.numel() for s in saved.values() for t in s.values())
    same(path, saved)
    assert path.config["num_attention_heads"] == 4
    order = [info.name for info in path.tensors]
    assert order.index("gpt_neox.layers.1.mlp.dense_4h_to_h.bias") > order.index(
        "gpt_neox.layers.0.input_layernorm.bias"
    )


def test_pickled_shards_with_masks(tmp_path):
    saved = neox(tmp_path, [0, 1000, 143000])
    for step in saved:
        as_bins(tmp_path / f"step{step}")
    path = trajectory(tmp_path)
    same(path, saved)
    assert set(path.left_out.values()) == {
        "its dtype is bool",
        "a constant of an attention mask",
        "a table of rotary positions",
    }


def test_a_cache_of_the_hub(tmp_path):
    saved = neox(tmp_path / "plain", [0, 1, 1000], names="step{}-tokens2B")
    path = trajectory(as_cache(tmp_path / "plain", tmp_path / "hub"))
    same(path, saved)
    (tmp_path / "hub" / "models--someone--tiny" / "refs" / "main").write_text(f"{2:040x}")
    (gap,) = trajectory(tmp_path / "hub" / "models--someone--tiny").gaps
    assert gap == "main is left out: its name has no step."


def test_a_trainer_s_folder_with_what_it_logged(tmp_path):
    import json

    saved = neox(tmp_path, [50, 100], names="checkpoint-{}")
    (tmp_path / "checkpoint-50" / "optimizer.pt").write_bytes(b"not read")
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    history = [{"step": 50, "loss": 2.5, "learning_rate": 1e-3}, {"step": 70, "loss": 2.0}, {"step": 100, "loss": 1.5}]
    (tmp_path / "checkpoint-100" / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    path = trajectory(tmp_path)
    same(path, saved)
    assert path.schedule["loss"].tolist() == [2.5, 1.5]
    np.testing.assert_equal(path.schedule["learning_rate"], [1e-3, np.nan])
    assert path.gaps == ("the weights in the folder itself is left out: its name has no step.",)


def test_a_run_folder(tmp_path):
    x, y = torch.randn(20, 3), torch.randn(20, 2)
    problem = tw.Problem(torch.nn.Linear(3, 2), torch.nn.MSELoss(), (x, y))
    run = tw.train(problem, tw.rules.GradientDescent(lr=0.1), steps=12, folder=tmp_path / "run", checkpoint_every=4)
    path = trajectory(tmp_path / "run")
    assert list(path.steps) == run.checkpoints
    for index, step in enumerate(path.steps):
        for name, tensor in run.checkpoint(step).items():
            assert torch.equal(path.tensor(index, name), tensor)
    assert len(path.schedule["loss"]) == len(path)
    at = [int(step) for step in path.steps if step < 12]
    np.testing.assert_array_equal(path.schedule["loss"][: len(at)], run.data.loss.sel(step=at).values)
    assert trajectory(tmp_path / "run", only=[4, 8]).steps == (4, 8)


def test_tied_tensors_count_once(tmp_path):
    embedding = torch.randn(9, 4)
    state = {"wte.weight": embedding, "lm_head.weight": embedding, "h.0.w": torch.randn(3)}
    for step in (0, 1):
        torch.save(state, tmp_path / f"step{step}.pt")
    path = trajectory(tmp_path)
    assert [i.name for i in path.tensors] == ["h.0.w", "wte.weight"]
    assert path.left_out == {"lm_head.weight": "tied to wte.weight"}


@pytest.mark.parametrize(
    ("told", "equal", "kept"), [(None, True, 1), (None, False, 2), (False, True, 2), (True, False, 1)]
)
def test_copies_of_tied_tensors(tmp_path, told, equal, kept):
    """safetensors cannot say that two names are one: the configuration does, or else the values do."""
    first = torch.randn(9, 4)
    for step in (0, 1):
        (tmp_path / f"step{step}").mkdir()
        state = {"model.embed_tokens.weight": first, "lm_head.weight": first.clone() if equal else first + 1}
        save_file(state, tmp_path / f"step{step}" / "model.safetensors")
        if told is not None:
            (tmp_path / f"step{step}" / "config.json").write_text(f'{{"tie_word_embeddings": {str(told).lower()}}}')
    assert len(trajectory(tmp_path).tensors) == kept


def test_what_is_trainable_can_be_said(tmp_path, net):
    for step in (0, 1):
        torch.save(net.state_dict(), tmp_path / f"step{step}.pt")
    path = trajectory(tmp_path, trainable=["*.weight", "*.running_mean"])
    assert [i.name for i in path.tensors] == ["0.weight", "1.running_mean", "1.weight", "2.weight"]
    assert [i.name for i in trajectory(tmp_path, select="1.*").tensors] == ["1.bias", "1.weight"]
    assert trajectory(tmp_path).select("2.*").left_out["0.weight"] == "not selected"
    with pytest.raises(InvalidInput, match="matches 'nothing'"):
        trajectory(tmp_path, select="nothing")


def test_a_reader_of_one_s_own(tmp_path):
    for step in (0, 3):
        with open(tmp_path / f"it{step}.pt", "wb") as file:
            np.savez(file, w=np.full((2, 2), float(step)))

    def reader(path):
        with np.load(path) as found:
            return {name: torch.from_numpy(found[name]) for name in found.files}

    path = trajectory(tmp_path, reader=reader)
    assert path.tensor(1, "w").tolist() == [[3, 3], [3, 3]]


def test_threads_read_the_same_values(tmp_path):
    saved = neox(tmp_path, [0, 1, 2])
    path = trajectory(tmp_path, drop_pages=True)
    jobs = [(i, info.name, a) for i in range(3) for info in path.tensors for a in range(0, info.numel, 997)]

    def one(job):
        index, name, start = job
        stop = min(start + 997, saved[0][name].numel())
        return torch.equal(path.read(index, name, start, stop), saved[index][name].detach().reshape(-1)[start:stop])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, jobs))
    assert path.bytes_read == 3 * path.nbytes


def test_windows_and_fingerprints(tmp_path, net):
    for step, state in walk(net, range(0, 50, 10)):
        torch.save(state, tmp_path / f"step{step}.pt")
    path = trajectory(tmp_path)
    part = path.window([0, 2, 4])
    assert part.steps == (0, 20, 40)
    assert torch.equal(part.read(1, "2.weight"), path.read(2, "2.weight"))
    prints = [path.fingerprint(i) for i in range(5)]
    assert len(set(prints)) == 5
    assert part.fingerprint(1) == prints[2] == trajectory(tmp_path).fingerprint(2)
    assert path.select("2.*").fingerprint(2) != prints[2]
    os.utime(tmp_path / "step20.pt", ns=(1, 1))
    assert [path.fingerprint(i) == p for i, p in enumerate(prints)] == [True, True, False, True, True]
    with pytest.raises(InvalidInput, match="does not rise"):
        path.window([2, 1])


def test_a_growing_run_keeps_the_fingerprints_of_its_steps(tmp_path):
    problem = tw.Problem(torch.nn.Linear(3, 2), torch.nn.MSELoss(), (torch.randn(9, 3), torch.randn(9, 2)))
    rule = tw.rules.GradientDescent(lr=0.1)
    for steps, resume in ((6, False), (12, True)):
        tw.train(problem, rule, steps=steps, folder=tmp_path / "run", checkpoint_every=2, resume=resume)
        path = trajectory(tmp_path / "run")
        found = {step: path.fingerprint(i) for i, step in enumerate(path.steps)}
        if not resume:
            before = found
    assert before.items() < found.items()


def test_a_run_that_goes_on_while_it_is_read(tmp_path):
    """Its file of checkpoints is replaced by a longer one; another run in its place is refused."""
    problem = tw.Problem(torch.nn.Linear(3, 2), torch.nn.MSELoss(), (torch.randn(9, 3), torch.randn(9, 2)))
    rule = tw.rules.GradientDescent(lr=0.1)
    run = tw.train(problem, rule, steps=6, folder=tmp_path / "run", checkpoint_every=2)
    path = trajectory(tmp_path / "run")
    assert path.steps == (0, 2, 4, 6)
    wanted = [run.checkpoint(step)["weight"] for step in path.steps]
    tw.train(problem, rule, steps=12, folder=tmp_path / "run", checkpoint_every=2, resume=True)
    assert all(torch.equal(path.tensor(i, "weight"), w) for i, w in enumerate(wanted))
    time.sleep(1.1)  # a run is told from another by the second in which it was begun
    tw.train(problem, rule, steps=6, folder=tmp_path / "run", checkpoint_every=2, replace=True)
    with pytest.raises(RunFolderError, match="another run was begun"):
        path.tensor(1, "weight")


def test_a_trajectory_can_be_sent_to_another_process(tmp_path, net):
    problem = tw.Problem(torch.nn.Linear(3, 2), torch.nn.MSELoss(), (torch.randn(9, 3), torch.randn(9, 2)))
    tw.train(problem, tw.rules.GradientDescent(lr=0.1), steps=4, folder=tmp_path / "run", checkpoint_every=2)
    for step, state in walk(net, [0, 1]):
        for kind in ("pt", "st"):
            (tmp_path / kind).mkdir(exist_ok=True)
        torch.save(state, tmp_path / "pt" / f"step{step}.pt")
        save_file(state, tmp_path / "st" / f"step{step}.safetensors")
    memory = Trajectory.from_arrays(torch.randn(3, 5))
    for path in (*(trajectory(tmp_path / kind) for kind in ("run", "pt", "st")), memory):
        name = path.tensors[0].name
        path.read(0, name)
        sent = pickle.loads(pickle.dumps(path))
        assert torch.equal(sent.read(1, name), path.read(1, name))
        assert sent.fingerprint(1) == path.fingerprint(1)
        assert sent.bytes_read == path.bytes_read // 2


def test_in_memory():
    points = torch.randn(4, 7)
    path = Trajectory.from_arrays(points, steps=[1, 2, 4, 8], schedule={"loss": np.arange(4.0)})
    assert torch.equal(path.read(2, "w", 3, 5), points[2, 3:5])
    assert path.bytes_read == 8
    assert path.fingerprint(0) != path.fingerprint(1)
    assert path.window([1, 3]).schedule["loss"].tolist() == [1, 3]
    with pytest.raises(InvalidInput, match="no checkpoint 4"):
        path.read(4, "w")
    with pytest.raises(InvalidInput, match=r"\[3, 9\)"):
        path.read(0, "w", 3, 9)
    with pytest.raises(InvalidInput, match="'v'"):
        path.read(0, "v")
    with pytest.raises(InvalidInput, match=r"has 'b' in shape \(2,\), not \(1,\)"):
        Trajectory.from_arrays([{"b": torch.zeros(1)}, {"b": torch.zeros(2)}])
