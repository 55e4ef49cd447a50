"""Writing that is whole or absent, and reading that stays inside the folder."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from thalweg.errors import RunFolderError, StorageError, ThalwegError, explain

TEMPORARY = ".tmp-"
"""Prefix of files that are being written; one left over by a killed process is rubbish."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn every failure to write ``path`` into a `StorageError` that says which, why and what to do.

    A database that SQLite can open but not understand is damage, a `RunFolderError`, whatever was to be
    written.
    """
    try:
        yield
    except ThalwegError:
        raise
    except sqlite3.DatabaseError as error:
        if not isinstance(error, sqlite3.OperationalError) or "no such" in str(error):
            raise damaged_database(path, str(error)) from error
        raise StorageError(_diagnose(path, error)) from error
    except (OSError, SafetensorError) as error:
        raise StorageError(_diagnose(path, error)) from error


def damaged_database(path: Path, reason: str) -> RunFolderError:
    """Return the error for a metrics file that cannot be understood."""
    return RunFolderError(
        explain(
            f"The file {path} is damaged: {reason}",
            "it must be the SQLite file that thalweg wrote",
            "Restore it from a copy; checkpoints/ beside it can still be read",
        )
    )


def _diagnose(path: Path, error: Exception) -> str:
    text = str(error).lower()
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL or "is full" in text or "no space" in text or "too large" in text:
        why = "the disk, a quota or a size limit is exhausted"
        remedy = "Free some space, then continue with resume=True (--resume): no earlier step is lost"
    elif number in _READ_ONLY or "readonly" in text or "read-only" in text or "permission denied" in text:
        why = "the disk is read-only, or this user may not write there"
        remedy = "Choose another folder (--out), or change the permissions"
    elif "locked" in text:
        why = "another process keeps the database locked"
        remedy = "Close whatever has it open for writing, then continue with resume=True (--resume)"
    else:
        why = "a run is only as good as its record"
        remedy = "Check that the disk is still there, then continue with resume=True (--resume)"
    return explain(f"Writing {path} failed: {error}", why, remedy)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on exit it becomes ``path`` at once, or nothing happened.

    The data reach the disk before the name does, so that a power cut leaves the old file or the new one.
    The name needs no process number: a run folder has one writer, which holds its lock.
    """
    temporary = path.with_name(TEMPORARY + path.name)
    with storing(path):
        try:
            yield temporary
            _sync(temporary, os.O_RDWR)
            os.replace(temporary, path)
            _sync(path.parent, os.O_RDONLY)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: str = "", *, owned: bool = False) -> None:
    """Replace ``path`` by a safetensors file atomically; ``note`` travels in its header.

    Tensors are copied to contiguous CPU memory of their own, as the format asks, unless ``owned`` says that they lie
    so already.
    """
    ready = dict(tensors) if owned else {n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()}
    with replacing(path) as temporary:
        save_file(ready, temporary, metadata={"note": note} if note else None)
        temporary.chmod(path.parent.stat().st_mode & 0o666)  # save_file lets only the owner read


def read_tensors(path: Path, prefix: str = "") -> tuple[dict[str, Tensor], str]:
    """Read the tensors whose names start with ``prefix``, and the note; other tensors are not touched.

    Raises:
        RunFolderError: The file is missing, truncated or otherwise damaged.
    """
    with opening(path) as handle:
        names = [name for name in handle.keys() if name.startswith(prefix)]  # noqa: SIM118
        # A copy lies on torch's own alignment, on which the last bit of a BLAS sum can depend.
        tensors = {name: handle.get_tensor(name).clone() for name in names}
        return tensors, (handle.metadata() or {}).get("note", "")


def tensor_names(path: Path) -> list[str]:
    """List the names in a safetensors file from its header alone."""
    with opening(path) as handle:
        return list(handle.keys())


@contextmanager
def opening(path: Path) -> Iterator[Any]:
    """Open a safetensors file; damage becomes a `RunFolderError`."""
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError, ValueError) as error:
        raise RunFolderError(
            explain(
                f"The file {path} cannot be read as safetensors: {error}",
                "the file is missing, truncated or damaged; thalweg writes such files whole or not at all",
                "Restore it from a copy, or delete it and use what the rest of the run folder holds",
            )
        ) from error


def inside(root: Path, path: Path) -> Path:
    """Return ``path`` if it lies in ``root`` once links are followed.

    Raises:
        RunFolderError: It points elsewhere.
    """
    if not path.resolve().is_relative_to(root.resolve()):
        raise RunFolderError(
            explain(
                f"The path {path} leads out of the run folder to {path.resolve()}",
                "a run folder is read and written inside itself only",
                "Replace the link by the file that it points to",
            )
        )
    return path


def clear_temporaries(folder: Path) -> None:
    """Delete what a killed writer left half-written in ``folder``."""
    for path in folder.glob(TEMPORARY + "*"):
        with storing(path):
            path.unlink()


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
