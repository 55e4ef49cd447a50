"""Opening a published data set: by name, or a copy on disk, always the split that was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg.errors import InvalidInput, MissingExtra, ThalwegError, explain

SPLITS = {"train", "test", "validation"}


@dataclass(frozen=True)
class Published:
    """Where a data set is published, and which columns matter.

    Attributes:
        repository: Its name for ``datasets``.
        configuration: One of several in the repository.
        column: Input column.
        label: Label column; None for text.
        outputs: Classes, or tokens.
        mode: What pictures are converted to, as Pillow names it.
        side: Side to which pictures are resized and cut; None where all have one size.
        test: Name of the split with published labels that is not for training.
    """

    repository: str
    configuration: str | None
    column: str
    label: str | None
    outputs: int
    mode: str = "RGB"
    side: int | None = None
    test: str = "test"


def open_split(published: Published, path: Path | None, split: str, *, streaming: bool) -> Any:
    """Return the rows of ``split``, of the copy at ``path`` or, without one, by name.

    Raises:
        MissingExtra: ``datasets`` is not installed.
        InvalidInput: The data cannot be had, or the copy is of another split.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra(
            explain(
                "The package datasets is not installed",
                f"{published.repository} is read through it",
                "pip install 'thalweg[data]'",
            )
        ) from error
    try:
        with _silent(datasets):
            if path is None:
                return datasets.load_dataset(
                    published.repository, published.configuration, split=split, streaming=streaming
                )
            if (path / "state.json").is_file():
                source = datasets.load_from_disk(str(path))
                if source.split is not None and str(source.split) in SPLITS - {split}:
                    raise _other_split(path, str(source.split), split)
                return source
            if (path / "dataset_dict.json").is_file():
                splits = datasets.load_from_disk(str(path))
                if split not in splits:
                    raise _other_split(path, " and ".join(splits), split)
                return splits[split]
            files = parquet_files(path, published.configuration, split)
            return datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming)
    except ThalwegError:
        raise
    except Exception as error:  # datasets raises dozens of kinds; each means that the data cannot be had
        raise InvalidInput(
            explain(
                f"{path or published.repository} could not be opened: {type(error).__name__}: {str(error)[:200]}",
                "neither a local copy nor the network gave the data",
                "Pass the folder of a copy made with save_to_disk, or of parquet files",
            )
        ) from error


def parquet_files(folder: Path, configuration: str | None, split: str) -> list[str]:
    """Return the parquet files of ``split`` in ``folder``, found by the words in their names and folders.

    Files whose names speak of no split at all count as the one that was asked for.

    Raises:
        InvalidInput: All files belong to other splits.
    """
    files = sorted(file.relative_to(folder) for file in folder.rglob("*.parquet"))
    own = [file for file in files if configuration in file.parts]
    files = own or files  # copies of repositories with several configurations keep each in a folder
    marks = {file: set(re.findall("[a-z]+", str(file).lower())) & SPLITS for file in files}
    chosen = [file for file in files if split in marks[file]] or [file for file in files if not marks[file]]
    if files and not chosen:
        raise _other_split(folder, " and ".join(sorted(set().union(*marks.values()))), split)
    return [str(folder / file) for file in chosen]


def _other_split(path: Path, found: str, wanted: str) -> InvalidInput:
    return InvalidInput(
        explain(
            f"The copy at {path} is of the {found} split",
            f"the {wanted} split was asked for",
            "Pass a copy of that split, or ask for the other with data.train",
        )
    )


@contextmanager
def _silent(datasets: Any) -> Iterator[None]:
    """Show no progress bars of ``datasets`` while open: a library prints nothing."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
