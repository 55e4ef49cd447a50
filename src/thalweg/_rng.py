"""Named, splittable random streams: the same name and seed give the same numbers, whoever else draws."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """Derive a 63-bit seed from ``seed`` and a path of names.

    Streams with different names are independent for all practical purposes, and adding a stream never shifts
    another one.

    Args:
        seed: The root seed.
        names: The path of the stream, for example ``("batches", epoch)``.

    Returns:
        An integer in ``[0, 2**63)``.

    Example:
        >>> derive_seed(0, "batches", 3) == derive_seed(0, "batches", 3)
        True
        >>> derive_seed(0, "batches", 3) == derive_seed(0, "batches", 4)
        False
    """
    text = "/".join([str(seed), *map(str, names)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh ``torch.Generator`` for the stream ``names`` of ``seed`` (see `derive_seed`)."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))
