"""Damage is named and skipped on request; code in a file is described and never run; files may go away."""

import io
import json
import os
import pickle
import shutil
import struct
import zipfile

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from checkpoint_makers import as_bins, neox
from thalweg.errors import InvalidInput, RunFolderError
from thalweg.runs.sources import trajectory
from thalweg.runs.sources.headers import read_header
from thalweg.runs.sources.pickles import Refused, read_pickle
from thalweg.runs.sources.stored import Unreadable

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def state(value=0.0):
    return {"a.weight": torch.full((8, 4), float(value)), "a.bias": torch.full((8,), float(value))}


@pytest.fixture
def singles(tmp_path):
    for step in range(0, 60, 10):
        save_file(state(step), tmp_path / f"step{step}.safetensors")
    return tmp_path


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


class Code:
    """Leaves a file behind where it is run."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


# ------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("keep", [-1, -40, 100, 8, 3, 0])
def test_a_truncated_file_is_named_or_skipped(singles, keep):
    path = singles / "step30.safetensors"
    cut(path, keep if keep >= 0 else path.stat().st_size + keep)
    with pytest.raises(RunFolderError, match=r"step30\.safetensors.*(cut short|does not begin)"):
        trajectory(singles)
    found = trajectory(singles, missing="skip")
    assert found.steps == (0, 10, 20, 40, 50)
    assert "Step 30" in found.gaps[0]
    assert found.tensor(3, "a.bias").tolist() == [40] * 8


def test_a_missing_shard(tmp_path):
    saved = neox(tmp_path, [0, 1, 2])
    gone = sorted((tmp_path / "step1").glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(RunFolderError, match=rf"step1 \(step 1\).*{gone.name}.*does not exist"):
        trajectory(tmp_path)
    assert trajectory(tmp_path, missing="skip").steps == (0, 2)
    for step in saved:  # also where no index tells
        (tmp_path / f"step{step}" / "model.safetensors.index.json").unlink()
    with pytest.raises(RunFolderError, match=r"of its \d+ shards \d+ are there"):
        trajectory(tmp_path)


def test_a_truncated_pickled_shard(tmp_path):
    neox(tmp_path, [0, 1])
    for step in (0, 1):
        as_bins(tmp_path / f"step{step}")
    shard = sorted((tmp_path / "step1").glob("*.bin"))[0]
    cut(shard, shard.stat().st_size // 2)
    with pytest.raises(RunFolderError, match=rf"step 1.*{shard.name}.*cut short"):
        trajectory(tmp_path)


def test_a_shard_that_lacks_what_the_index_says(tmp_path):
    for step in (0, 1):
        (tmp_path / f"step{step}").mkdir()
        save_file(state(), tmp_path / f"step{step}" / "model-00001-of-00001.safetensors")
        listed = dict.fromkeys([*state(), *(["b"] if step else [])], "model-00001-of-00001.safetensors")
        (tmp_path / f"step{step}" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(RunFolderError, match="'b', which the index says"):
        trajectory(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd"])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path, name):
    save_file(state(), tmp_path / "secret.safetensors")
    (tmp_path / "step1").mkdir()
    (tmp_path / "step1" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(RunFolderError, match="leads out of the folder"):
        trajectory(tmp_path / "step1")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s | {"a.bias": torch.zeros(9)}, r"has 'a.bias' in shape \(9,\), not \(8,\)"),
        (lambda s: {"a.bias": s["a.bias"]}, "lacks the tensor 'a.weight'"),
        (lambda s: s | {"extra": torch.zeros(2)}, "has the tensor 'extra' besides"),
        (lambda s: s | {"a.bias": torch.zeros(8).half()}, r"has 'a.bias' in torch.float16, not torch.float32"),
    ],
)
def test_a_checkpoint_that_differs_is_named(tmp_path, change, words):
    for number in range(20):
        save_file(change(state()) if number == 16 else state(), tmp_path / f"step{number}.safetensors")
    with pytest.raises(InvalidInput, match=rf"step16.safetensors \(step 16\) {words}"):
        trajectory(tmp_path)


def test_an_extra_buffer_is_no_difference(singles):
    save_file(state(9.0) | {"a.running_mean": torch.zeros(3)}, singles / "step60.safetensors")
    assert trajectory(singles).steps[-1] == 60


def test_duplicate_steps_name_both(singles):
    shutil.copy(singles / "step10.safetensors", singles / "again_step10.safetensors")
    with pytest.raises(InvalidInput, match=r"Step 10 is there twice: again_step10.safetensors and step10.safetensors"):
        trajectory(singles)
    assert len(trajectory(singles, steps=r"^step(\d+)")) == 6


def test_headers_that_lie(tmp_path):
    def write(header, size=32):
        text = json.dumps(header).encode()
        (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))

    good = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}
    write({"a": good})
    assert list(read_header(tmp_path / "x.safetensors")) == ["a"]
    for change in (
        {"shape": [2, 5]},
        {"shape": [-2, -4]},
        {"shape": [2.0, 4]},
        {"shape": None},
        {"data_offsets": [0, 40]},
        {"data_offsets": [32, 0]},
        {"data_offsets": [-32, 0]},
        {"data_offsets": [0]},
    ):
        write({"a": good | change})
        with pytest.raises(Unreadable):
            read_header(tmp_path / "x.safetensors")
    for data in (b"", b"\xff" * 8, struct.pack("<Q", 4) + b"[[[[", struct.pack("<Q", 10**6) + b"{}"):
        (tmp_path / "x.safetensors").write_bytes(data)
        with pytest.raises(Unreadable):
            read_header(tmp_path / "x.safetensors")


def test_a_flipped_bit_anywhere_in_a_table_is_an_error_or_harmless(tmp_path):
    """No damage to the tables of a ``.pt`` file does anything but raise our error or read some values."""
    torch.save(state(), tmp_path / "step1.pt")
    whole = (tmp_path / "step1.pt").read_bytes()
    generator = torch.Generator().manual_seed(1)
    for place in torch.randint(len(whole), (300,), generator=generator).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(torch.randint(8, (1,), generator=generator))
        (tmp_path / "step1.pt").write_bytes(damaged)
        try:
            path = trajectory(tmp_path / "step1.pt")
            for info in path.tensors[:4]:
                path.read(0, info.name, 0, min(info.numel, 10))
        except (InvalidInput, RunFolderError):
            pass


# ------------------------------------------------------------------------------------------------------- going away


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
@pytest.mark.parametrize("how", ["unlink", "truncate", "replace"])
def test_a_file_that_goes_away_while_it_is_read(tmp_path, kind, how):
    for step in (0, 1):
        path = tmp_path / f"step{step}.{kind}"
        save_file(state(step), path) if kind == "safetensors" else torch.save(state(step), path)
    found = trajectory(tmp_path)
    found.read(1, "a.weight", 0, 4)
    path = tmp_path / f"step1.{kind}"
    if how == "unlink":
        path.unlink()
    elif how == "truncate":
        os.truncate(path, path.stat().st_size - 100)
    else:
        path.write_bytes(bytes(path.stat().st_size))
        os.utime(path, ns=(5, 5))
    with pytest.raises(RunFolderError, match=rf"'a.weight' of the checkpoint .*step1.{kind} \(step 1\)"):
        found.read(1, "a.weight", 4, 8)
    assert found.read(0, "a.weight", 4, 8).tolist() == [0] * 4


# ------------------------------------------------------------------------------------------------------- code in files


def test_a_pickled_file_with_code_is_refused_and_does_not_run(tmp_path):
    torch.save({**state(), "x": Code(tmp_path / "it-ran")}, tmp_path / "step1.pt")
    with pytest.raises(RunFolderError, match=r"names (io|_io|builtins)\.open.*never executes"):
        trajectory(tmp_path / "step1.pt")
    assert not (tmp_path / "it-ran").exists()
    torch.load(tmp_path / "step1.pt", weights_only=False)  # the trap is a trap
    assert (tmp_path / "it-ran").exists()


def test_a_bare_pickle_is_refused_and_does_not_run(tmp_path):
    (tmp_path / "step1.bin").write_bytes(pickle.dumps({"w": Code(tmp_path / "it-ran")}))
    with pytest.raises(RunFolderError, match="no zip archive"):
        trajectory(tmp_path / "step1.bin")
    assert not (tmp_path / "it-ran").exists()


def test_the_old_format_is_refused_with_the_remedy(tmp_path):
    torch.save(state(), tmp_path / "step1.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(RunFolderError, match=r"torch older than 1.6.*convert it once with torch.save"):
        trajectory(tmp_path / "step1.pt")


def test_a_distributed_table_with_code_is_refused_and_does_not_run(tmp_path):
    dcp.save(state(), checkpoint_id=tmp_path / "step1")
    table = tmp_path / "step1" / ".metadata"
    metadata = pickle.loads(table.read_bytes())
    metadata.planner_data = Code(tmp_path / "it-ran")
    table.write_bytes(pickle.dumps(metadata))
    with pytest.raises(RunFolderError, match=r"names (io|_io|builtins)\.open, which is no part of such a table"):
        trajectory(tmp_path / "step1")
    assert not (tmp_path / "it-ran").exists()
    dcp.FileSystemReader(tmp_path / "step1").read_metadata()  # the trap is a trap
    assert (tmp_path / "it-ran").exists()


def test_a_distributed_table_does_not_lead_out_of_its_folder(tmp_path):
    dcp.save(state(), checkpoint_id=tmp_path / "step1")
    table = tmp_path / "step1" / ".metadata"
    metadata = pickle.loads(table.read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = "../elsewhere.distcp"
    table.write_bytes(pickle.dumps(metadata))
    shutil.copy(tmp_path / "step1" / "__0_0.distcp", tmp_path / "elsewhere.distcp")
    with pytest.raises(RunFolderError, match="leads out of the folder"):
        trajectory(tmp_path / "step1")


@pytest.mark.parametrize("how", ["missing", "short", "hole"])
def test_a_damaged_distributed_checkpoint(tmp_path, how):
    dcp.save(state(), checkpoint_id=tmp_path / "step1")
    ranks = tmp_path / "step1" / "__0_0.distcp"
    if how == "missing":
        ranks.unlink()
    elif how == "short":
        cut(ranks, 1000)
    else:
        table = tmp_path / "step1" / ".metadata"
        metadata = pickle.loads(table.read_bytes())
        metadata.state_dict_metadata["a.weight"].size = torch.Size([16, 4])
        table.write_bytes(pickle.dumps(metadata))
    with pytest.raises(RunFolderError, match=r"step1.*(does not exist|cut short|do not cover)"):
        trajectory(tmp_path / "step1")


def programs(mark):
    """Pickles that try to reach real objects by other ways than a plain call."""
    yield b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."
    yield b"(S'touch " + str(mark).encode() + b"'\nios\nsystem\n."
    yield b"(cos\nsystem\nS'touch " + str(mark).encode() + b"'\no."
    yield b"\x80\x04\x8c\x0bcollections\x8c\x17OrderedDict.__class__\x93."  # an attribute of what is admitted
    yield b"\x80\x02\x82\x01."  # a registered extension
    yield b"\x80\x04ctorch\nSize\n}\x8c\x07__new__cos\nsystem\nsb."  # a changed class
    yield b"\x80\x05\x97."  # a buffer from outside
    yield b"\x80\x02r\xff\xff\xff\x7f."  # a memo of 2^31 places
    yield b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f."  # a string longer than the file
    yield b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."  # deep
    yield b"\x80\x02(" * 5000
    yield b""


def test_every_way_to_an_object_is_closed(tmp_path):
    for number, program in enumerate(programs(tmp_path / "it-ran")):
        try:
            read_pickle(program, {"torch.Size", "collections.OrderedDict"})
        except (Refused, ValueError):
            pass
        else:
            assert number == 9, f"program {number} was read"  # the deep one is a list of lists, and harmless
    assert not (tmp_path / "it-ran").exists()
    assert torch.Size([1, 2]).numel() == 2


def test_what_a_pickle_does_to_a_class_stays_in_its_load():
    data = b"\x80\x04ctorch\nSize\n}\x8c\x04kindK\x07sb."
    with pytest.raises((ValueError, Refused)):
        read_pickle(data, {"torch.Size"})
    assert read_pickle(pickle.dumps(torch.Size([3])), {"torch.Size"}).kind == "torch.Size"


def test_a_compressed_record_is_refused(tmp_path):
    torch.save(state(), tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as source, zipfile.ZipFile(tmp_path / "step1.pt", "w", 8) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(RunFolderError, match="compressed"):
        trajectory(tmp_path / "step1.pt")


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    """A forged table must not read what lies behind the storage."""
    torch.save({"w": torch.zeros(4)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as source, zipfile.ZipFile(tmp_path / "step1.pt", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                data = data.replace(b"K\x04\x85", b"K\x40\x85")  # the shape (4,) becomes (64,)
            target.writestr(name, data)
    path = trajectory(tmp_path / "step1.pt")
    assert path.tensors[0].shape == (64,)
    with pytest.raises(RunFolderError, match="goes beyond its storage"):
        path.read(0, "w", 0, 64)


def test_a_file_without_a_state_dict(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "step1.pt")
    with pytest.raises(RunFolderError, match="holds no state dict"):
        trajectory(tmp_path / "step1.pt")
    stream = io.BytesIO()
    torch.save({"epoch": 3}, stream)
    (tmp_path / "step1.pt").write_bytes(stream.getvalue())
    with pytest.raises(RunFolderError, match="holds no state dict"):
        trajectory(tmp_path / "step1.pt")
