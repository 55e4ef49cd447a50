"""Steps from names, gaps, folders of several kinds, distributed checkpoints, the hub."""

import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

import leaving
from checkpoint_makers import as_cache, neox
from thalweg.errors import InvalidInput, MissingExtra, RunFolderError, StorageError
from thalweg.runs.sources import hub, trajectory
from thalweg.runs.sources.distributed import _cover
from thalweg.runs.sources.steps import lacking, number

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def save(path: Path, value: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.full((4,), float(value))}, path)


PYTHIA = [0, *(2**k for k in range(10)), *range(1000, 144000, 1000)]


@pytest.mark.parametrize(
    ("names", "steps", "rule"),
    [
        (["step0", "step143000"], (0, 143000), "step"),
        (["step1000-tokens4B", "step500-tokens2B", "main"], (1000, 500, None), "step"),
        (["stage1-step10-tokens1B"], (10,), "step"),
        (["checkpoint-500", "checkpoint-1000"], (500, 1000), "checkpoint"),
        (["global_step20", "global_step40"], (20, 40), "step"),
        (["epoch=3-step=400.ckpt", "epoch=4-step=500.ckpt"], (400, 500), "step"),
        (["iter_0001000", "iter_0002000"], (1000, 2000), "iteration"),
        (["resnet20_epoch10.pth", "resnet20_epoch20.pth"], (10, 20), "epoch"),
        (["resnet20_10.pth", "resnet20_20.pth"], (10, 20), "last number"),
        (["ckpt-10k.pt", "ckpt-1m.pt"], (10_000, 1_000_000), "checkpoint"),
        (["step-000512/model-00001-of-00002.safetensors"], (512,), "step"),
        (["a3/weights.pt", "a4/weights.pt"], (3, 4), "last number"),
        (["stepsize2_run.pt"], (2,), "last number"),
        (["final"], (None,), "no number"),
    ],
)
def test_steps_from_names(names, steps, rule):
    found = number(names)
    assert found.steps == steps
    assert rule in found.rule


def test_rules_of_one_s_own():
    assert number(["a-7-x", "b"], lambda name: 7 if "7" in name else None).steps == (7, None)
    assert number(["s5e9"], r"e(?P<step>\d+)").steps == (9,)
    for rule in ("(", "no group", r"(\w+)", lambda name: 1.5):
        with pytest.raises(InvalidInput, match="whole number"):
            number(["seven"], rule) if callable(rule) or rule != "no group" else number(["x"], rule)


def test_steps_that_are_lacking():
    assert lacking(PYTHIA) == []
    assert lacking([s for s in PYTHIA if s not in (51000, 60000, 61000)]) == [
        (50000, 52000, [51000]),
        (59000, 62000, [60000, 61000]),
    ]
    assert lacking([0, 1, 2, 4, 8, 16, 32]) == []
    assert lacking([0, 10, 20, 30, 100, 200]) == [], "a change of spacing is no gap"
    bursts = [1000 * k + j for k in range(5) for j in range(16)]
    assert lacking(bursts) == [], "bursts are no gaps"


def test_gaps_are_listed_and_skipped(tmp_path):
    for step in range(0, 10_000, 1000):
        if step != 4000:
            save(tmp_path / f"step{step}" / "model.safetensors", step)
    (tmp_path / "step4000").mkdir()
    path = trajectory(tmp_path)
    assert len(path) == 9
    assert path.gaps == ("step4000/ holds no checkpoint.", "Between 3000 and 5000 the regular sequence lacks 4000.")
    assert "2 noted gaps" in repr(path)


def test_only_some_steps(tmp_path):
    for step in range(0, 100, 10):
        save(tmp_path / f"step{step}.safetensors", step)
    assert trajectory(tmp_path, only=[10, 50]).steps == (10, 50)
    assert trajectory(tmp_path, only=lambda step: step >= 80).steps == (80, 90)
    assert trajectory(trajectory(tmp_path), only=[10, 50]).tensor(1, "w")[0] == 50
    with pytest.raises(InvalidInput, match="None of the 10 checkpoints"):
        trajectory(tmp_path, only=[7])


def test_a_glob_and_names_of_folders_above(tmp_path):
    for step in (3, 20):
        save(tmp_path / f"run_step{step}" / "inner" / "model.safetensors", step)
    for source in (str(tmp_path / "*/inner/model.safetensors"), str(tmp_path / "*" / "inner"), str(tmp_path)):
        assert trajectory(source).steps == (3, 20), source


def test_shards_in_a_glob_are_one_checkpoint(tmp_path):
    neox(tmp_path, [1, 2])
    path = trajectory(str(tmp_path / "step*" / "*.safetensors"))
    assert path.steps == (1, 2)
    assert path.nbytes == trajectory(tmp_path).nbytes


def test_one_checkpoint_and_nothing(tmp_path):
    save(tmp_path / "only" / "model.safetensors", 3)
    path = trajectory(tmp_path / "only")
    assert path.steps == (0,)
    assert repr(path).startswith("Trajectory of 1 checkpoint, step 0, 4 parameters in 1 tensor (float32), 16 B")
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", str(tmp_path / "*.none"), tmp_path / "absent", []):
        with pytest.raises(InvalidInput):
            trajectory(source)
    with pytest.raises(InvalidInput, match="Missing is 'ignore'"):
        trajectory(tmp_path, missing="ignore")


def test_safetensors_are_preferred_to_pickles_beside_them(tmp_path):
    for step in (1, 2):
        save(tmp_path / f"step{step}" / "model.safetensors", step)
        (tmp_path / f"step{step}" / "pytorch_model.bin").write_bytes(b"rubbish")
        (tmp_path / f"step{step}" / "training_args.bin").write_bytes(b"rubbish")
    assert trajectory(tmp_path).tensor(1, "w")[0] == 2


# ---------------------------------------------------------------------------------- torch.distributed.checkpoint


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("deep", [True, False])
def test_distributed_checkpoints_of_one_process(tmp_path, wrapped, deep):
    net = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4)).to(torch.bfloat16)
    saved = {}
    for step in (0, 100):
        with torch.no_grad():
            net[0].weight.add_(1)
        state = (
            {"model": net.state_dict(), "optim": {"exp_avg": torch.ones(3)}, "step": step}
            if wrapped
            else net.state_dict()
        )
        place = tmp_path / f"step-{step}" / "model_and_optim" if deep else tmp_path / f"step-{step}"
        dcp.save(state, checkpoint_id=place)
        saved[step] = {name: p.detach().clone() for name, p in net.named_parameters()}
    path = trajectory(tmp_path)
    assert {info.name for info in path.tensors} == set(saved[0])
    for index, step in enumerate(path.steps):
        for name, tensor in saved[step].items():
            assert torch.equal(path.tensor(index, name), tensor)
    before = path.bytes_read
    assert torch.equal(path.read(0, "0.weight", 5, 9), saved[0]["0.weight"].reshape(-1)[5:9])
    assert path.bytes_read - before == 8, "to the byte"
    assert torch.equal(pickle.loads(pickle.dumps(path)).read(1, "0.weight"), path.read(1, "0.weight"))


WORKER = """
import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp

sys.path.insert(0, sys.argv[2])
from leaving import leave
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for step in (0, 1):
        whole = torch.arange(35.0).reshape(7, 5) + step
        state = {
            "rows": distribute_tensor(whole, mesh, [Shard(0)]),
            "columns": distribute_tensor(whole, mesh, [Shard(1)]),
            "copies": distribute_tensor(whole, mesh, [Replicate()]),
            "few": distribute_tensor(whole[:1], mesh, [Shard(0)]),
        }
        dcp.save({"model": state}, checkpoint_id=f"{folder}/step{step}")
    leave()

if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (sys.argv[1],), nprocs=2)
"""


@pytest.mark.slow
def test_distributed_checkpoints_of_two_processes(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, tmp_path / "worker.py", tmp_path, Path(leaving.__file__).parent]
    subprocess.run(command, check=True, timeout=540, capture_output=True)
    path = trajectory(str(tmp_path / "step*"))
    assert len(list((tmp_path / "step0").glob("*.distcp"))) == 2
    assert {info.name for info in path.tensors} == {"rows", "columns", "copies", "few"}
    for step in (0, 1):
        whole = torch.arange(35.0).reshape(7, 5) + step
        for name in ("rows", "columns", "copies"):
            assert torch.equal(path.tensor(step, name), whole)
            assert torch.equal(path.read(step, name, 3, 23), whole.reshape(-1)[3:23])
        assert torch.equal(path.tensor(step, "few"), whole[:1])
    before = path.bytes_read
    path.read(0, "rows", 18, 22)  # over the border of the two shards
    assert path.bytes_read - before == 16


def test_boxes_cover_a_tensor_once():
    halves = [((0, 0), (2, 3)), ((2, 0), (2, 3))]
    assert _cover(halves, (4, 3))
    assert not _cover([halves[0], halves[0]], (4, 3)), "one half twice has the right size"
    assert not _cover([*halves, halves[0]], (4, 3))
    assert _cover([((0, 0), (4, 1)), ((0, 1), (2, 2)), ((2, 1), (2, 2))], (4, 3))
    assert _cover([((), ())], ())
    assert _cover([((0,), (0,))], (0,))


# ---------------------------------------------------------------------------------------------------- the hub


class FakeHub(types.ModuleType):
    """What huggingface_hub does, on a folder of revisions."""

    def __init__(self, remote: Path, cache: Path, size: int = 1000) -> None:
        super().__init__("huggingface_hub")
        self.remote, self.size, self.fetched, self.patterns = remote, size, [], []
        self.constants = types.SimpleNamespace(HF_HUB_CACHE=str(cache))
        self.cache = cache

    def HfApi(self):
        return self

    def list_repo_refs(self, name):
        refs = [types.SimpleNamespace(name=path.name) for path in sorted(self.remote.iterdir())]
        return types.SimpleNamespace(branches=[*refs, types.SimpleNamespace(name="main")], tags=refs[:1])

    def model_info(self, name, revision=None, files_metadata=False):
        size = self.size if files_metadata else None
        files = [types.SimpleNamespace(rfilename=p.name, size=size) for p in (self.remote / revision).iterdir()]
        return types.SimpleNamespace(siblings=files)

    def snapshot_download(self, name, revision, allow_patterns):
        self.fetched.append(revision)
        self.patterns.append(allow_patterns)
        place = self.cache / revision
        place.mkdir(parents=True)
        for path in (self.remote / revision).iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, place)
        return str(place)


@pytest.fixture
def remote(tmp_path, monkeypatch):
    saved = neox(tmp_path / "remote", [0, 1, 512, 1000])
    for step in saved:
        (tmp_path / "remote" / f"step{step}" / "optimizer.bin").write_bytes(b"large")
    fake = FakeHub(tmp_path / "remote", tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.chdir(tmp_path)
    return fake, saved


def test_a_repository_is_downloaded_revision_by_revision(remote):
    fake, saved = remote
    seen = []
    path = trajectory("EleutherAI/pythia-none", only=lambda step: step != 1, told=lambda *facts: seen.append(facts))
    assert path.steps == (0, 512, 1000)
    assert fake.fetched == ["step0", "step512", "step1000"]
    assert seen[:3] == [("step0", 0, 3), ("step512", 1, 3), ("step1000", 2, 3)]
    assert not list(fake.cache.rglob("optimizer.bin"))
    for index, step in enumerate(path.steps):
        for info in path.tensors:
            assert torch.equal(path.tensor(index, info.name), saved[step][info.name])


def test_what_does_not_fit_on_the_disk_is_not_begun(remote):
    fake, _ = remote
    fake.size = 10**15
    with pytest.raises(StorageError, match=r"4 revisions of a/b take .* GB.*only="):
        trajectory("hf://a/b")
    assert fake.fetched == []


def test_troubles_with_the_hub(remote, monkeypatch):
    fake, _ = remote

    def offline(name):
        raise OSError("no route to host\nmore")

    with pytest.raises(InvalidInput, match="No revision of a/b is a checkpoint"):
        trajectory("a/b", only=[7])
    monkeypatch.setattr(fake, "list_repo_refs", offline)
    with pytest.raises(InvalidInput, match=r"a/b is no path here.*no route to host\. "):
        trajectory("a/b")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"thalweg\[hf\]"):
        trajectory("a/b")


def test_a_misspelt_folder_is_not_asked_of_the_hub(remote):
    fake, _ = remote
    with pytest.raises(InvalidInput, match="does not exist"):
        trajectory("remote/step2000")
    assert hub.repository("remote/step2000") is None
    assert hub.repository("a/../b") is None
    assert fake.fetched == []


def test_the_cache_that_a_download_leaves_reads_like_it(tmp_path):
    neox(tmp_path / "plain", [1, 2])
    root = as_cache(tmp_path / "plain", tmp_path / "hub")
    a, b = trajectory(root), trajectory(tmp_path / "plain")
    assert [i.name for i in a.tensors] == [i.name for i in b.tensors]
    (next(iter((root / "snapshots").iterdir())) / "config.json").unlink()
    shutil.rmtree(root / "blobs")
    with pytest.raises((InvalidInput, RunFolderError)):
        trajectory(root)
