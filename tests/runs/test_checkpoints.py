import pytest
import torch

from thalweg.errors import InvalidInput, RunFolderError
from thalweg.runs.checkpoints import Checkpoints, CheckpointWriter


def weights(step, size=100):
    """800 bytes for the default size."""
    return {"a.weight": torch.full((size // 2, 2), float(step), dtype=torch.float64), "b/odd": torch.tensor(step)}


def filled(folder, steps, limit=2000, size=100):
    writer = CheckpointWriter(folder, limit)
    for step in steps:
        writer.add(step, weights(step, size))
    writer.flush()
    return writer


def test_small_steps_share_files_up_to_the_limit(tmp_path):
    filled(tmp_path / "c", range(0, 50, 10))
    reader = Checkpoints(tmp_path / "c")
    assert [first for first, _ in reader.files()] == [0, 20, 40]
    assert reader.steps() == [0, 10, 20, 30, 40]
    for step in reader.steps():
        found = reader.read(step)
        assert found.keys() == {"a.weight", "b/odd"}
        assert torch.equal(found["a.weight"], weights(step)["a.weight"])
    assert all(path.stat().st_size < 2000 + 1000 for _, path in reader.files())


def test_large_steps_have_a_file_each_and_leave_memory(tmp_path):
    writer = filled(tmp_path / "c", [0, 5], limit=500)
    assert [first for first, _ in writer.files()] == [0, 5]
    assert not writer._pack


def test_what_is_added_is_copied(tmp_path):
    w = torch.zeros(3)
    writer = CheckpointWriter(tmp_path / "c")
    writer.add(0, {"w": w})
    w += 1
    writer.flush()
    assert writer.read(0)["w"].tolist() == [0, 0, 0]


def test_views_and_half_precision_survive(tmp_path):
    flat = torch.arange(12.0).to(torch.bfloat16)
    writer = CheckpointWriter(tmp_path / "c")
    writer.add(3, {"t": flat.view(3, 4).T, "tail": flat[6:]})
    writer.flush()
    found = writer.read(3)
    assert torch.equal(found["t"], flat.view(3, 4).T)
    assert found["tail"].dtype == torch.bfloat16


@pytest.mark.parametrize("limit", [500, 2000, 10**6])
@pytest.mark.parametrize("cut", [0, 1, 10, 15, 20, 41, 100])
def test_after_truncation_the_files_are_those_of_one_go(cut, limit, tmp_path):
    filled(tmp_path / "whole", range(0, 90, 10), limit)
    filled(tmp_path / "c", range(0, 50, 10), limit)
    writer = CheckpointWriter(tmp_path / "c", limit)
    writer.truncate(cut)
    assert writer.steps() == [step for step in range(0, 50, 10) if step < cut]
    for step in range(0, 90, 10):
        if step >= min(cut, 50):
            writer.add(step, weights(step))
    writer.flush()
    both = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "c")]
    assert both[0] == both[1]


def test_files_of_other_names_are_not_read(tmp_path):
    filled(tmp_path / "c", [0])
    for name in (".tmp-from-000000007.safetensors", "from-12.safetensors", "from-x.safetensors", "notes.txt"):
        (tmp_path / "c" / name).write_bytes(b"rubbish")
    assert Checkpoints(tmp_path / "c").steps() == [0]
    CheckpointWriter(tmp_path / "c")
    assert not (tmp_path / "c" / ".tmp-from-000000007.safetensors").exists(), "a writer clears what was half written"


def test_a_step_without_checkpoint(tmp_path):
    with pytest.raises(InvalidInput, match="The run has none at all"):
        Checkpoints(tmp_path).read(0)
    filled(tmp_path / "c", [10, 20])
    for step in (0, 15, 99):
        with pytest.raises(InvalidInput, match=f"Step {step} has no checkpoint"):
            Checkpoints(tmp_path / "c").read(step)


def test_a_damaged_file_does_not_hide_the_others(tmp_path):
    filled(tmp_path / "c", range(0, 50, 10))
    path = tmp_path / "c" / "from-000000020.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    reader = Checkpoints(tmp_path / "c")
    assert reader.read(0)["b/odd"].item() == 0
    assert reader.read(40)["b/odd"].item() == 40
    with pytest.raises(RunFolderError, match="from-000000020"):
        reader.read(30)
