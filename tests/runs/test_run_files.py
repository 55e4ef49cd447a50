import os
import stat

import pytest
import torch

from thalweg.errors import RunFolderError, StorageError
from thalweg.runs.files import inside, read_tensors, replacing, write_tensors, write_text
from thalweg.runs.manifest import first_difference, plain
from thalweg.runs.minibatches import MiniBatches
from thalweg.runs.state import Position, load_position, save_position


def test_a_replacement_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "f"
    write_text(path, "old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_data_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, r=real: calls.append(n) or r(*a))
    write_text(tmp_path / "f", "new")
    assert calls == ["fsync", "replace", "fsync"], "the file, its name, then the folder"


def test_a_missing_folder_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="Check that the disk is still there"):
        write_text(tmp_path / "none" / "f", "new")


def test_files_are_as_readable_as_their_folder(tmp_path):
    tmp_path.chmod(0o750)
    write_tensors(tmp_path / "t.safetensors", {"w": torch.zeros(2)})
    assert stat.S_IMODE((tmp_path / "t.safetensors").stat().st_mode) == 0o640


def test_tensors_are_read_lazily_aligned_and_unshared(tmp_path):
    w = torch.arange(10.0)
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"1/a": w[:3], "1/b": w[3:], "2/a": torch.tensor(7)}, "a note")
    tensors, note = read_tensors(path, "1/")
    assert (note, sorted(tensors)) == ("a note", ["1/a", "1/b"])
    assert torch.equal(tensors["1/b"], w[3:])
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors.values())


def test_inside_follows_links(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "other")
    assert inside(tmp_path / "run", tmp_path / "run" / "x") == tmp_path / "run" / "x"
    for path in (tmp_path / "run" / "link", tmp_path / "run" / ".." / "x"):
        with pytest.raises(RunFolderError, match="leads out"):
            inside(tmp_path / "run", path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("started", [True, False])
def test_a_position_comes_back_bit_for_bit(dtype, started, tmp_path):
    w = torch.randn(7, dtype=torch.float64).to(dtype)
    position = Position(
        step=12 if started else 0,
        w=w,
        rule={"step": torch.tensor(12), "nu": w * w},
        previous=w / 3 if started else None,
        path=0.1 + 0.2,
        first_loss=1 / 3 if started else None,
        diverged=started,
        measures={"spectrum": {"last": torch.eye(2), "tracks": torch.tensor([0, 1])}, "empty": {}},
    )
    save_position(tmp_path / "state", position)
    found = load_position(tmp_path / "state", torch.device("cpu"))
    for name in ("step", "path", "first_loss", "diverged"):
        assert getattr(found, name) == getattr(position, name)
    assert found.w.dtype == dtype
    assert torch.equal(found.w, w)
    assert (found.previous is None) == (position.previous is None)
    assert torch.equal(found.rule["nu"], w * w)
    assert found.measures.keys() == position.measures.keys()
    assert torch.equal(found.measures["spectrum"]["last"], torch.eye(2))


def test_no_position_is_none(tmp_path):
    assert load_position(tmp_path, torch.device("cpu")) is None


def test_plain_descriptions():
    described = plain({"a": (1, {2.5}), "b": float("inf"), "c": write_text, "d": {1: None}})
    assert described == {"a": [1, [2.5]], "b": "inf", "c": "write_text", "d": {"1": None}}


def test_first_difference_names_the_place():
    old = {"a": {"b": [1, {"c": 2}]}, "gone": 1}
    assert first_difference(old, {"a": {"b": [1, {"c": 2}]}, "gone": 1}) is None
    assert first_difference(old, {"a": {"b": [1, {"c": 3}]}, "gone": 1}) == "a.b[1].c is 2 in the folder and 3 now"
    assert first_difference(old, {"a": old["a"]}) == "gone is 1 in the folder and None now"
    assert first_difference({}, {"new": 5}) == "new is None in the folder and 5 now"
    assert first_difference({"a": [1]}, {"a": [1, 2]}) == "a is [1] in the folder and [1, 2] now"


@pytest.mark.parametrize(("samples", "size"), [(10, 3), (10, 5), (7, 7), (4, 1)])
def test_every_epoch_is_a_permutation_of_its_own(samples, size):
    batches, other = MiniBatches(samples, size, seed=1), MiniBatches(samples, size, seed=1)
    epochs = []
    for epoch in range(3):
        steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
        parts = [batches.indices(step) for step in steps]
        epochs.append(torch.cat(parts).tolist())
        assert sorted(epochs[-1]) == list(range(samples))
        assert all(len(part) == size for part in parts[:-1])
    backwards = [other.indices(step).tolist() for step in reversed(range(3 * batches.per_epoch))]
    assert [i for part in reversed(backwards) for i in part] == [i for epoch in epochs for i in epoch]
    if samples > 5:
        assert epochs[0] != epochs[1]
        assert epochs[0] != [MiniBatches(samples, samples, seed=2).indices(0).tolist()]
