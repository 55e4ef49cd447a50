"""The processes of a group: is there one, do they agree, did one of them fail."""

from __future__ import annotations

import gc
import hashlib
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from thalweg.errors import DistributedError, ThalwegWarning, explain

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

BITS = 48
"""Bits of the fingerprint that rides along with each sum: two different vectors share it once in 3e14 times."""

_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 20


class Processes:
    """The members of one process group, as far as operators need them.

    Every process must make the same calls in the same order. Each sum carries two things besides the numbers: the
    bits of a fingerprint of what the processes were asked, and a flag of failure. So processes that have
    drifted apart raise instead of adding up unlike things, and a process that fails tells the others.

    Args:
        group: A process group; None is the default one.
        device: Where the tensors are that will be summed: the CPU for gloo, a GPU for NCCL.

    Raises:
        DistributedError: No group is initialised, or this process is not in it.
    """

    def __init__(self, group: ProcessGroup | None, device: torch.device) -> None:
        require_group(group)
        self.group = group  # None stays None: a reference kept past destroy_process_group can crash the exit of gloo
        self.device = device
        self.count = dist.get_world_size(self.group)
        self.rank = dist.get_rank(self.group)

    def sum(self, compute: Callable[[], Tensor], asked: Tensor, entries: int) -> Tensor:
        """Return the sum over processes of what ``compute()`` returns, by exactly one all-reduce.

        Args:
            compute: Gives this process's part; same shape and dtype everywhere.
            asked: What the part was computed from: it must be equal, bit for bit, on all processes.
            entries: Number of entries of the part, sent as zeros by a process that fails.

        Raises:
            DistributedError: Another process failed, or was asked something else.
            Exception: What ``compute`` raised here.
        """
        part, error = asked.new_zeros(entries), None
        try:
            part = compute()
        except Exception as caught:  # the others wait in the all-reduce below: tell them before it is raised
            error = caught
        wide = torch.promote_types(asked.dtype, torch.float32)
        flags = torch.tensor([*_bits(fingerprint(asked)), float(error is not None)], dtype=wide, device=self.device)
        payload = torch.cat([part.reshape(-1).to(wide), flags])
        dist.all_reduce(payload, group=self.group)
        *bits, failed = payload[-BITS - 1 :].tolist()
        if error is not None:
            raise error
        if failed:
            raise self._failed(int(failed))
        if any(bit not in (0.0, float(self.count)) for bit in bits):
            raise DistributedError(
                explain(
                    f"The {self.count} processes were asked for products with different vectors",
                    "their sum would be no product at all",
                    "Make the same calls with the same w, v and seed on every process, on like hardware with the same "
                    "number of threads",
                )
            )
        return payload[: -BITS - 1].view(part.shape).to(part.dtype)

    def all_sum(self, part: Tensor) -> Tensor:
        """Return the plain sum of ``part`` over processes."""
        total = part.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        return total

    def gather(self, row: Iterable[float]) -> Tensor:
        """Return the numbers of all processes, float64, one process a row."""
        own = torch.tensor(list(row), dtype=torch.float64, device=self.device)
        rows = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(rows, own, group=self.group)
        return torch.stack(rows).cpu()

    def agree(self, facts: Callable[[], Mapping[str, str]]) -> None:
        """Raise on every process where any fact differs between them, or where one cannot give its facts.

        Args:
            facts: Gives named texts or digests, under the same names on all processes.
        """
        error: Exception | None = None
        named: Mapping[str, str] = {}
        try:
            named = facts()
        except Exception as caught:
            error = caught
        # One number for all facts first: processes that fail give no facts, and shapes must be the same.
        whole = "/".join(f"{name}={text}" for name, text in named.items())
        rows = self.gather([float(error is not None), _number(whole), *map(_number, _padded(named.values()))])
        if error is not None:
            raise error
        if rows[:, 0].any():
            raise self._failed(int(rows[:, 0].sum()))
        if (rows[:, 1] != rows[0, 1]).any():
            different = [name for i, name in enumerate(named) if (rows[:, 2 + i] != rows[0, 2 + i]).any()]
            others = torch.nonzero(rows[:, 1] != rows[0, 1]).reshape(-1).tolist()
            raise DistributedError(
                explain(
                    f"Processes {others} differ from process 0 in {', '.join(different) or 'their arguments'}",
                    "their products belong to different functions, and a sum of them means nothing",
                    "Build the same model from the same seed or checkpoint on every process (DistributedDataParallel "
                    "does so when it wraps one), and pass the same w",
                )
            )

    def _failed(self, count: int) -> DistributedError:
        return DistributedError(
            explain(
                f"{count} of {self.count} processes failed",
                "a sum without them is not the whole",
                "Read the traceback of the process that raised another error",
            )
        )


def require_group(group: ProcessGroup | None) -> None:
    """Raise unless ``group``, or the default group, is there and has this process as a member.

    Raises:
        DistributedError: torch has no distributed package, no group is initialised, or this process is not in it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise DistributedError(
            explain(
                "No process group is initialised",
                "this process does not know of any other to share the work with",
                "Start the script with torchrun --nproc-per-node=N script.py, and call "
                'torch.distributed.init_process_group("gloo") in it first ("nccl" on GPUs)',
            )
        )
    if dist.get_rank(group) < 0:
        raise DistributedError(
            explain(
                "This process is not a member of the group",
                "it would wait for an answer that never comes",
                "Call this on members only, or pass the group that the process belongs to",
            )
        )


def leave_group() -> None:
    """Leave the process group, on all its processes together, so that none of them is aborted when it ends.

    gloo works in threads. One that still has a tensor of the last sum when Python ends asks for a lock that is no
    more, and C++ aborts the process: "terminate called without an active exception". The threads are joined where the
    group is freed, but ``torch.distributed.destroy_process_group`` only forgets it, and every ``DeviceMesh`` goes on
    holding it; torch's caches keep those of ``fully_shard`` and of ``DTensor`` for good. This waits for the other
    processes, destroys all groups, and takes them from every mesh. Delete sharded models and problems before.

    Raises:
        DistributedError: No group is initialised.

    Warns:
        ThalwegWarning: Something of yours still holds a group.

    Example:
        >>> from torch import distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> leave_group()
        >>> dist.is_initialized()
        False
    """
    require_group(None)
    dist.barrier()  # a process that leaves early takes the connections of the others with it
    gc.collect()
    module = sys.modules.get("torch.distributed.device_mesh")
    meshes = [m for m in gc.get_objects() if issubclass(type(m), module.DeviceMesh)] if module else []
    known: list[dict[str, Any]] = [vars(mesh).get("_pg_registry", {}) for mesh in meshes]  # private
    groups = [weakref.ref(dist.group.WORLD), *(weakref.ref(g) for registry in known for g in registry.values())]
    dist.destroy_process_group()
    for registry in known:
        registry.clear()
    if any(group() is not None for group in groups):
        warnings.warn(
            explain(
                "The process group is still held",
                "threads of gloo may outlive Python, and then abort the process",
                "Delete what was built on it, such as models that fully_shard has cut and their ShardedProblem, or let "
                "the function that built it return, before leave_group()",
            ),
            ThalwegWarning,
            stacklevel=2,
        )


def fingerprint(tensor: Tensor) -> int:
    """Return a hash of the bits of ``tensor`` and their order, below ``2**48``; integers only, so alike everywhere."""
    flat = tensor.detach().reshape(-1)
    integers = flat.view(_INTEGER[flat.element_size()]) if flat.dtype != torch.bool else flat.view(torch.uint8)
    position = torch.arange(min(_CHUNK, max(len(integers), 1)), device=tensor.device)
    total = 0
    for number, chunk in enumerate(torch.split(integers, _CHUNK)):
        mixed = chunk.to(torch.int64) * 0x1CE4E5B9BF58476D
        mixed += position[: len(chunk)] * 0x133111EB94D049BB + number
        mixed ^= mixed >> 29
        mixed *= 0x2545F4914F6CDD1D
        mixed ^= mixed >> 32
        total += int(mixed.sum()) * (2 * number + 1)
    return total % (1 << BITS)


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a text that changes with any name, shape, dtype or bit of named tensors."""
    parts = (f"{name}{tuple(t.shape)}{t.dtype}{fingerprint(t)}" for name, t in tensors)
    return hashlib.blake2b("/".join(parts).encode(), digest_size=16).hexdigest()


def _bits(number: int) -> list[float]:
    return [float(number >> i & 1) for i in range(BITS)]


def _number(text: str) -> float:
    """Hash a text to a whole number that float64 holds exactly."""
    return float(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big"))


_FACTS = 4


def _padded(texts: Iterable[str]) -> list[str]:
    texts = list(texts)
    if len(texts) > _FACTS:
        raise ValueError(f"at most {_FACTS} facts")
    return texts + [""] * (_FACTS - len(texts))
