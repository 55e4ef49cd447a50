"""The run folder: where everything lies, who may write, and how one is made, opened and removed."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from thalweg.errors import RunFolderError, StorageError, explain
from thalweg.runs.files import TEMPORARY, inside, storing
from thalweg.runs.manifest import Manifest, not_a_run, read_manifest

OURS = ("manifest.json", "metrics.sqlite", "lock", "checkpoints", "sketches", "state", "analyses", "report.html")
"""What a run folder may hold. Only these are ever deleted, and only beside a manifest of ours."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run.

    ``manifest.json`` says what the run is, ``metrics.sqlite`` has a row per step, ``checkpoints/`` the
    weights, ``state/`` what resuming needs, ``lock`` is held by the process that writes. A folder is a run
    once it has a manifest.

    Attributes:
        root: The folder.
    """

    root: Path

    @classmethod
    def create(cls, path: str | Path, *, replace: bool = False) -> RunFolder:
        """Make an empty run folder, or take over one that was never begun.

        Args:
            path: Where; parents are made.
            replace: Delete a run that is there already. Files that are no run's are never deleted.

        Raises:
            RunFolderError: The folder holds a run (and ``replace`` is off) or other files, or is in use.
            StorageError: The folder cannot be made.

        Example:
            >>> folder = RunFolder.create("runs/first")
            >>> folder.begun, sorted(p.name for p in folder.root.iterdir())
            (False, ['checkpoints', 'lock', 'state'])
        """
        folder = cls(Path(path))
        folder.check_free(replace=replace)  # before a lock file is left in someone else's folder
        folder.make()
        with folder.lock():
            folder.claim(replace=replace)
        return folder

    def make(self) -> None:
        """Make the folder itself where there is none, with its parents."""
        with storing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)

    def check_free(self, *, replace: bool) -> None:
        """Raise unless a run may begin here; leaves nothing behind."""
        if not self.root.exists():
            return
        if self.begun:
            if replace:
                read_manifest(self.manifest)  # nothing is deleted on the word of a file name
                return
            raise RunFolderError(
                explain(
                    f"The folder {self.root} already holds a run",
                    "two runs do not fit in one folder",
                    "Continue it with resume=True (--resume), take another folder (--out), or delete it with "
                    "replace=True (--replace)",
                )
            )
        strangers = [path.name for path in sorted(self.root.iterdir()) if not _is_left_over(path)]
        if strangers:
            raise RunFolderError(
                explain(
                    f"The folder {self.root} is no run folder and is not empty: it holds {strangers[0]!r}",
                    "a run folder holds nothing but its run",
                    "Take another folder (--out), or move these files away",
                )
            )

    def claim(self, *, replace: bool) -> None:
        """Empty the folder for a new run. The caller holds the lock."""
        self.check_free(replace=replace)
        with storing(self.root):
            for path in self.root.iterdir():
                if path.name == "lock" or not _is_ours(path.name):
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            self.checkpoints.mkdir()
            self.state.mkdir()

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Return the run folder at ``path``.

        Raises:
            RunFolderError: It is none, or its manifest is damaged.
            SchemaError: A newer thalweg wrote it.
        """
        folder = cls(Path(path))
        if not folder.begun:
            raise not_a_run(folder.root)
        read_manifest(inside(folder.root, folder.manifest))
        return folder

    @property
    def manifest(self) -> Path:
        """``manifest.json``."""
        return self.root / "manifest.json"

    @property
    def metrics(self) -> Path:
        """``metrics.sqlite``."""
        return self.root / "metrics.sqlite"

    @property
    def checkpoints(self) -> Path:
        """``checkpoints/``."""
        return self.root / "checkpoints"

    @property
    def sketches(self) -> Path:
        """``sketches/``, of a recorder that keeps projections."""
        return self.root / "sketches"

    @property
    def state(self) -> Path:
        """``state/``."""
        return self.root / "state"

    @property
    def begun(self) -> bool:
        """Whether there is a manifest."""
        return self.manifest.is_file()

    def lock(self) -> Lock:
        """Return the writer's lock, to be held in a ``with`` block."""
        return Lock(self.root / "lock")

    def in_use(self) -> bool:
        """Whether some process is writing to the run now."""
        return is_locked(self.root / "lock")

    def check_links(self) -> None:
        """Raise where a file or folder of the run is a link that leads out of it."""
        for path in (self.manifest, self.metrics, self.checkpoints, self.sketches, self.state):
            inside(self.root, path)


class Lock:
    """One writer at a time: an advisory lock that the system drops when the process ends, however it ends.

    Raises:
        RunFolderError: Another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = -1

    def __enter__(self) -> Lock:
        with storing(self._path):
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        for attempt in range(20):  # someone who only asks whether the run is alive holds it for a moment
            if _try_lock(self._handle, exclusive=True):
                return self
            time.sleep(0.05 if attempt < 19 else 0)
        os.close(self._handle)
        raise RunFolderError(
            explain(
                f"Another process is writing to {self._path.parent}",
                "two writers would mix their steps",
                "Wait for it, stop it, or take another folder (--out)",
            )
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock at ``path``."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not _try_lock(handle, exclusive=False)
    finally:
        os.close(handle)


def _try_lock(handle: int, *, exclusive: bool) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows has no advisory locks; one writer is then the user's promise
        return True
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StorageError(
            explain(
                f"The lock of the run cannot be taken: {error}",
                "this file system has no locks",
                "Keep run folders on a local disk, and copy them afterwards",
            )
        ) from error
    return True


def _is_ours(name: str) -> bool:
    return name in OURS or name.startswith(("metrics.sqlite-", TEMPORARY))


def _is_left_over(path: Path) -> bool:
    """Whether a process killed before it wrote the manifest may have left this."""
    if path.name in ("checkpoints", "state"):
        return path.is_dir() and not any(path.iterdir())
    return path.name.startswith(("lock", "metrics.sqlite", TEMPORARY)) and path.is_file()


def load_manifest(folder: RunFolder) -> Manifest:
    """Read the manifest of ``folder``."""
    return read_manifest(inside(folder.root, folder.manifest))
