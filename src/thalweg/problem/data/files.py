"""Data from local files in their published binary formats; nothing is ever unpickled."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from thalweg.errors import InvalidInput, explain
from thalweg.problem.data.base import Data, choose, standardise

_CIFAR_RECORD = 1 + 3 * 32 * 32
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def cifar10(folder: Path, samples: int | None, standardised: bool, train: bool, classes: int | None = None) -> Data:
    """Return CIFAR-10 from its *binary* version: ``data_batch_1.bin`` .. ``data_batch_5.bin``, ``test_batch.bin``.

    Raises:
        InvalidInput: No such file, or one that does not hold whole records.
    """
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if train else ["test_batch.bin"]
    paths = [path for name in names if (path := folder / name).is_file()]
    if not paths:
        raise InvalidInput(
            explain(
                f"{folder} holds none of {', '.join(names)}",
                "CIFAR-10 is read from its binary version; the Python version is a pickle, which is never opened",
                "Download cifar-10-binary.tar.gz, unpack it, and pass its folder",
            )
        )
    records = []
    for path in paths:
        raw = np.frombuffer(_bytes(path), dtype=np.uint8)
        if len(raw) == 0 or len(raw) % _CIFAR_RECORD:
            raise InvalidInput(
                explain(
                    f"{path.name} has {len(raw):,} bytes",
                    f"its records have {_CIFAR_RECORD} bytes each, so it is cut off or another format",
                    "Download it again",
                )
            )
        records.append(raw.reshape(-1, _CIFAR_RECORD))
    whole = np.concatenate(records)
    targets = torch.from_numpy(whole[:, 0].astype(np.int64))
    index = choose(targets, samples, classes, 10, "CIFAR-10")
    images = torch.from_numpy(whole[index.numpy(), 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 255)
    split, outputs = "training" if train else "test", classes or 10
    return Data(
        name="cifar10",
        inputs=standardise(images) if standardised else images,
        targets=targets[index],
        outputs=outputs,
        task="classification",
        description=f"{len(index):,} CIFAR-10 {split} images of 32 x 32 pixels in {outputs} classes",
    )


def idx(
    folder: Path, samples: int | None, standardised: bool, train: bool, name: str = "mnist", classes: int | None = None
) -> Data:
    """Return images and labels from MNIST's IDX files (also Fashion-MNIST), plain or gzipped.

    Raises:
        InvalidInput: A file is missing, cut off, or not IDX; images and labels differ in number.
    """
    prefix = "train" if train else "t10k"
    images = read_idx(_find(folder, f"{prefix}-images-idx3-ubyte", f"{prefix}-images.idx3-ubyte"))
    digits = read_idx(_find(folder, f"{prefix}-labels-idx1-ubyte", f"{prefix}-labels.idx1-ubyte"))
    if images.ndim != 3 or digits.ndim != 1 or len(images) != len(digits) or images.dtype != np.uint8:
        raise InvalidInput(
            explain(
                f"Images have shape {images.shape} and type {images.dtype}, labels shape {digits.shape}",
                "there must be one label for each image, and pixels of one byte",
                "Check that both files belong together",
            )
        )
    targets = torch.from_numpy(digits.astype(np.int64))
    index = choose(targets, samples, classes, 10, name)
    pixels = torch.from_numpy(images[index.numpy()].astype(np.float32) / 255).unsqueeze(1)
    outputs = classes or 10
    return Data(
        name=name,
        inputs=standardise(pixels) if standardised else pixels,
        targets=targets[index],
        outputs=outputs,
        task="classification",
        description=f"{len(index):,} {name} images of {pixels.shape[2]} x {pixels.shape[3]} pixels "
        f"in {outputs} classes",
    )


def read_idx(path: Path) -> np.ndarray:
    """Read one IDX file: two zero bytes, a type, the number of dimensions, the sizes, the data, all big-endian."""
    raw = _bytes(path)
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise _broken(path, str(error)) from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_TYPES or len(raw) < 4 + 4 * raw[3]:
        raise _broken(path, "its header is not one of IDX")
    sizes = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    dtype = np.dtype(_IDX_TYPES[raw[2]])
    body = raw[4 + 4 * raw[3] :]
    expected = math.prod(sizes) * dtype.itemsize
    if len(body) != expected:
        raise _broken(path, f"its header promises {expected:,} bytes and {len(body):,} follow")
    return np.frombuffer(body, dtype=dtype).reshape(sizes)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidInput(explain(f"{path} cannot be read", reason, "Check the disk and its permissions")) from error


def _find(folder: Path, *names: str) -> Path:
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise InvalidInput(
        explain(f"{folder} holds no {names[0]}[.gz]", "images and labels are read from there", "Pass their folder")
    )


def _broken(path: Path, why: str) -> InvalidInput:
    return InvalidInput(explain(f"{path.name} cannot be read", why, "Download it again"))
