"""Evaluate someone's model without leaving a trace: random state and attention backends are restored."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """Restore the random state of Python, NumPy, PyTorch and ``device`` on exit, also after an exception."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)


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
def evaluation(device: torch.device) -> Iterator[None]:
    """Both guards, as every evaluation of a `Problem` needs them."""
    with preserved_rng(device), math_attention():
        yield
