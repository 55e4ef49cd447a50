"""How many bytes a graph keeps, and how many are free."""

from __future__ import annotations

import os
from types import TracebackType

import torch
from torch import Tensor


class SavedBytes:
    """Count the distinct storages that autograd saves while this context is open.

    Example:
        >>> x = torch.ones(1000, requires_grad=True)
        >>> with SavedBytes() as saved:
        ...     y = (x * x).sum()
        >>> saved.bytes
        4000
    """

    def __init__(self) -> None:
        self._storages: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """Bytes saved so far, each storage counted once."""
        return sum(self._storages.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that its own node holds would be a circle that no collector sees

    def __enter__(self) -> SavedBytes:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)


def available(device: torch.device) -> int:
    """Return the bytes that can be allocated on ``device`` now; on the CPU without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 2 << 30  # unknown system: assume a small machine
