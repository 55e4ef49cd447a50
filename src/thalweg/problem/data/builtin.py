"""Data that needs no file: real handwritten digits, text of the standard library, and a sorting task."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

import numpy as np
import torch

from thalweg import _rng
from thalweg.errors import InvalidInput, MissingExtra, explain
from thalweg.problem.data.base import Data, choose, standardise, take

TEXT_FILES = (
    "argparse.py",
    "ast.py",
    "collections/__init__.py",
    "dataclasses.py",
    "datetime.py",
    "decimal.py",
    "difflib.py",
    "email/message.py",
    "fractions.py",
    "functools.py",
    "heapq.py",
    "inspect.py",
    "json/decoder.py",
    "logging/__init__.py",
    "pathlib.py",
    "random.py",
    "statistics.py",
    "string.py",
    "textwrap.py",
    "threading.py",
)
"""Sources read for the text data set, in this order."""


def digits(samples: int | None, standardised: bool, classes: int | None = None) -> Data:
    """Return scikit-learn's handwritten digits: 1,797 images of 8 x 8, grey, ten classes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra(
            explain(
                "The package scikit-learn is not installed",
                "the digits images are shipped inside it",
                "pip install 'thalweg[digits]'",
            )
        ) from error
    loaded = load_digits()
    targets = torch.from_numpy(loaded.target.astype(np.int64))
    index = choose(targets, samples, classes, 10, "digits")
    images = torch.from_numpy(loaded.images.astype(np.float32) / 16).unsqueeze(1)[index]
    outputs = classes or 10
    return Data(
        name="digits",
        inputs=standardise(images) if standardised else images,
        targets=targets[index],
        outputs=outputs,
        task="classification",
        description=f"{len(index):,} handwritten digits of 8 x 8 pixels in {outputs} classes",
    )


def sorting(samples: int | None, length: int, vocabulary: int, seed: int) -> Data:
    """Return random lists followed by the same list in order; only the sorted half is asked for.

    A sequence is ``x_1 .. x_n, separator, s_1 .. s_n``; token t predicts token t + 1, and targets before the
    separator are -100.
    """
    count = 1000 if samples is None else samples
    if length < 2 or vocabulary < 2 or count < 1:
        raise InvalidInput(
            explain(
                f"{count} lists of {length} from {vocabulary} numbers",
                "there is nothing to sort",
                "Use at least one list, and at least 2 of the others",
            )
        )
    stream = _rng.generator(seed, "data", "sorting")
    lists = torch.randint(vocabulary, (count, length), generator=stream)
    separator = torch.full((count, 1), vocabulary)
    whole = torch.cat([lists, separator, lists.sort(dim=1).values], dim=1)
    targets = whole[:, 1:].clone()
    targets[:, :length] = -100
    return Data(
        name="sorting",
        inputs=whole[:, :-1].contiguous(),
        targets=targets,
        outputs=vocabulary + 1,
        task="tokens",
        description=f"{count:,} lists of {length} numbers below {vocabulary}, to be sorted",
    )


def text(samples: int | None, length: int) -> Data:
    """Return the standard library's sources at character level, cut into sequences of ``length``.

    The file list is fixed; the text depends on the Python version, so its hash is in the description. Characters
    outside printable ASCII, tab and newline share one token.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    parts = [path.read_text(encoding="utf-8") for name in TEXT_FILES if (path := folder / name).is_file()]
    if not parts:
        raise InvalidInput(
            explain(
                f"None of the {len(TEXT_FILES)} source files is in {folder}",
                "this Python comes without its sources",
                "Use another data set, such as sorting",
            )
        )
    content = "\n".join(parts)
    digest = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
    alphabet = "\n\t" + "".join(chr(c) for c in range(32, 127))
    table = np.full(0x110000, len(alphabet), dtype=np.int64)
    table[[ord(c) for c in alphabet]] = np.arange(len(alphabet))
    tokens = torch.from_numpy(table[np.frombuffer(content.encode("utf-32-le"), dtype=np.uint32)])
    if length < 2:
        raise InvalidInput(explain(f"Sequences of {length} characters", "a next one must follow", "Use 2 or more"))
    available = (len(tokens) - 1) // length
    count = take(samples, available, "text")
    span = count * length
    return Data(
        name="text",
        inputs=tokens[:span].reshape(count, length).contiguous(),
        targets=tokens[1 : span + 1].reshape(count, length).contiguous(),
        outputs=len(alphabet) + 1,
        task="tokens",
        description=f"{count:,} sequences of {length} characters of {len(parts)} library sources (hash {digest})",
    )
