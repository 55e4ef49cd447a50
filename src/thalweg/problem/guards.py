"""Evaluate someone's model without leaving a trace: random state and attention backends are restored."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def preserved_rng(*sources: torch.device | torch.Generator) -> Iterator[None]:
    """Restore the random state of Python, NumPy, PyTorch and ``sources`` on exit, also after an exception."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = {s: torch.cuda.get_rng_state(s) for s in sources if isinstance(s, torch.device) and s.type == "cuda"}
    own = {s: s.get_state() for s in sources if isinstance(s, torch.Generator)}
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        for device, state in cuda.items():
            torch.cuda.set_rng_state(state, device)
        for generator, state in own.items():
            generator.set_state(state)


@contextmanager
def math_attention() -> Iterator[None]:
    """Compute attention from primitives while open.

    The fused kernels have no second derivative on the CPU, and the inference fast path of
    ``nn.MultiheadAttention`` rounds differently from the path with gradients; one path for every order of
    derivative keeps value, gradient and product consistent.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def no_autocast(device: torch.device) -> Iterator[None]:
    """Switch off a surrounding autocast: the loss would be another function of the weights inside it."""
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def evaluation(device: torch.device) -> Iterator[None]:
    """All guards, as every evaluation of a `Problem` needs them."""
    with preserved_rng(device), math_attention(), no_autocast(device):
        yield
