import pytest

from thalweg.errors import RunFolderError
from thalweg.runs.folder import RunFolder


def test_a_folder_that_was_never_begun_is_taken_over(tmp_path):
    """What a process leaves that was killed before it wrote the manifest."""
    folder = RunFolder.create(tmp_path / "run")
    folder.metrics.write_bytes(b"half")
    (folder.root / ".tmp-manifest.json").write_text("{")
    again = RunFolder.create(tmp_path / "run")
    assert sorted(path.name for path in again.root.iterdir()) == ["checkpoints", "lock", "state"]


@pytest.mark.parametrize("path", ["checkpoints/mine.pt", "report.html", "state/x", "data"])
def test_files_of_others_are_neither_deleted_nor_mixed(path, tmp_path):
    """Names of ours do not make files ours where there is no manifest."""
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text("mine")
    with pytest.raises(RunFolderError, match="is not empty"):
        RunFolder.create(tmp_path, replace=True)
    assert (tmp_path / path).read_text() == "mine"
    assert not (tmp_path / "lock").exists()


def test_replacing_trusts_a_manifest_and_not_its_name(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    (tmp_path / "state").mkdir()
    with pytest.raises(RunFolderError, match="damaged"):
        RunFolder.create(tmp_path, replace=True)
    assert (tmp_path / "state").exists()


def test_the_lock_is_exclusive_and_ends_with_its_block(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    with folder.lock():
        assert folder.in_use()
        with pytest.raises(RunFolderError, match="Another process is writing"), folder.lock():
            pass
        assert folder.in_use(), "a failed attempt does not free it"
    assert not folder.in_use()
    with folder.lock():
        pass


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    (tmp_path / "target").write_text("precious")
    (folder.root / "lock").unlink()
    (folder.root / "lock").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="lock"), folder.lock():
        pass
