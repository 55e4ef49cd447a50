"""Signs that nobody has to store: sign ``i`` of a parameter is one bit of a hash of (seed, parameter, step, ``i``).

Word ``w`` of 64 signs is SplitMix64 (Steele, Lea and Flood 2014) of ``key + w * GOLDEN``, the key being SplitMix64 of
``base + step * STRIDE``. A counter replaces a live random generator, so that a resumed run, every replica of a
data-parallel job and every device draw the same signs, and a shard draws its own stretch of the whole tensor's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from thalweg._rng import derive_seed

WORD = 64
_GOLDEN, _FIRST, _SECOND, _STRIDE = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD1342543DE82EF95
_MASK = (1 << 64) - 1


def key_base(seed: int, index: int, *shard: int) -> int:
    """Return what the keys of parameter ``index`` start from, as a signed 64-bit integer.

    Args:
        seed: The optimizer's.
        index: Position of the parameter among all of the optimizer's.
        shard: Coordinates that tell apart shards whose offset in the whole tensor is not known.

    Returns:
        An integer in ``[-2**63, 2**63)``.
    """
    return _signed(derive_seed(seed, "alice", index, *shard))


def key_of(base: int, step: int | Tensor) -> int | Tensor:
    """Return the key of one step; a tensor step (capturable) gives a tensor, with the same value."""
    if isinstance(step, Tensor):
        return _mix_tensor(step.to(torch.int64) * _signed(_STRIDE) + base)
    return _signed(_mix_number((base + step * _STRIDE) & _MASK))


def signs(
    key: int | Tensor, start: int, count: int, scale: float | Tensor, *, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return signs ``start`` to ``start + count`` of a key's stream, times ``scale``.

    Args:
        key: From `key_of`.
        start: Index of the first, in the whole parameter's logical order.
        count: How many.
        scale: Length of the probe; 1 for the signs themselves.
        dtype: Of the result.
        device: Of the result.

    Returns:
        Tensor ``(count,)`` of plus and minus ``scale``.

    Example:
        >>> draw = lambda start, count: signs(key_of(key_base(0, 0), 1), start, count, 1.0,
        ...                                   dtype=torch.float32, device=torch.device("cpu"))
        >>> bool((draw(0, 300)[70:200] == draw(70, 130)).all())
        True
    """
    return stream(key, start, count, scale, dtype=dtype, device=device)(0, count)


def stream(
    key: int | Tensor, start: int, count: int, scale: float | Tensor, *, dtype: torch.dtype, device: torch.device
) -> Callable[[int, int], Tensor]:
    """Return ``draw(begin, length)``, which gives any stretch of `signs`; kept meanwhile is one bit for each."""
    first, last = start // WORD, -(-(start + count) // WORD)
    words = torch.arange(first, last, device=device, dtype=torch.int64)
    octets = _mix_tensor(words.mul_(_signed(_GOLDEN)).add_(key)).view(torch.uint8)
    if sys.byteorder == "big":
        octets = octets.view(-1, 8).flip(1).reshape(-1)
    table, skip = _table(scale, dtype, device), start - first * WORD

    def draw(begin: int, length: int) -> Tensor:
        low, high = (skip + begin) // 8, -(-(skip + begin + length) // 8)
        drawn = table.index_select(0, octets[low:high].to(torch.int32)).view(-1)
        return drawn.narrow(0, skip + begin - 8 * low, length)

    return draw


def _table(scale: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the eight signs of every byte, times ``scale``: one look-up writes eight numbers."""
    bits = torch.arange(256, device=device).unsqueeze(1) >> torch.arange(8, device=device)
    return (bits & 1).to(dtype).mul_(2).sub_(1).mul_(scale)


def _mix_tensor(z: Tensor) -> Tensor:
    """SplitMix64's finalizer on int64, whose products wrap; masks turn its arithmetic shifts into logical ones."""
    z = (z ^ ((z >> 30) & (_MASK >> 30))) * _signed(_FIRST)
    z = (z ^ ((z >> 27) & (_MASK >> 27))) * _signed(_SECOND)
    return z ^ ((z >> 31) & (_MASK >> 31))


def _mix_number(z: int) -> int:
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
