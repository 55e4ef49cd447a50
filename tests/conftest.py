"""Every test starts from its own fixed seed and must leave every global switch as it found it."""

import copy
import random
import signal
import warnings
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from thalweg.errors import ThalwegWarning

# The same examples on every run and at any speed; `pytest --hypothesis-profile=explore` looks for new ones.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("explore"), derandomize=True)
settings.load_profile("same")


def pytest_configure() -> None:
    """A run in the background inherits an ignored SIGINT; the tests of Ctrl-C, and their children, must hear it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def switches() -> dict[str, object]:
    """The global state of torch that a library must not change behind its user's back."""
    cuda = torch.backends.cuda
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomaly mode": torch.is_anomaly_enabled(),
        "flash attention": cuda.flash_sdp_enabled(),
        "memory-efficient attention": cuda.mem_efficient_sdp_enabled(),
        "math attention": cuda.math_sdp_enabled(),
        "cudnn attention": cuda.cudnn_sdp_enabled(),
        "attention fast path": torch.backends.mha.get_fastpath_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "deterministic cudnn": torch.backends.cudnn.deterministic,
        "matmul precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
    }


def swallows(entry: tuple) -> bool:
    """Whether a warnings filter hides or raises more than one named module's or message's warnings."""
    _, message, category, module, _ = entry
    return module is None and message is None and (category is Warning or issubclass(category, ThalwegWarning))


@pytest.fixture(autouse=True)
def globals_untouched():
    before, filters = switches(), list(warnings.filters)
    yield
    after = switches()
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not changed, f"global state was changed: {changed}"
    assert not [f for f in filters if f not in warnings.filters], "a warnings filter was removed"
    assert not [f for f in warnings.filters if f not in filters and swallows(f)], "a broad warnings filter was added"


@pytest.fixture(autouse=True)
def seed(request) -> int:
    """A seed that depends on the test's name only; pytest shows it where the test fails."""
    number = zlib.crc32(request.node.nodeid.encode())
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002
    torch.manual_seed(number)
    print(f"seed {number}")
    return number


def snapshot(model: torch.nn.Module) -> dict[str, object]:
    """Everything of a model, and of the random streams, that an evaluation could disturb."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "values": {name: (t.detach().clone(), t.dtype, id(t), t._version) for name, t in tensors.items()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "grads": {
            name: None if p.grad is None else (id(p.grad), p.grad.clone()) for name, p in model.named_parameters()
        },
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()},
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": torch.get_rng_state(),
    }


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


@pytest.fixture
def untouched():
    """``with untouched(model): ...`` fails where the block changes the model or a random stream, also if it raises."""

    @contextmanager
    def check(model: torch.nn.Module):
        before = copy.copy(snapshot(model))
        try:
            yield
        finally:
            after = snapshot(model)
            changed = [name for name in before if not same(before[name], after[name])]
            assert not changed, f"changed: {', '.join(changed)}"

    return check
