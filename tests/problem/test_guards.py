"""The context managers restore what they change, also after an exception."""

import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from thalweg.problem.guards import evaluation, math_attention, no_autocast, preserved_rng

CPU = torch.device("cpu")


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


@pytest.mark.parametrize("fails", [False, True])
def test_random_streams_go_on_as_if_nothing_was_drawn(fails):
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    expected = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    try:
        with preserved_rng(CPU):
            draw()
            np.random.randn()  # noqa: NPY002  (leaves half a pair behind)
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert draw() == expected


def test_generators_are_restored():
    generator = torch.Generator().manual_seed(0)
    expected = torch.rand(2, generator=torch.Generator().manual_seed(0))
    with preserved_rng(generator):
        torch.rand(5, generator=generator)
    assert torch.equal(torch.rand(2, generator=generator), expected)


@pytest.mark.parametrize("fast", [True, False])
def test_attention_switches_are_restored_after_an_exception(fast):
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        with pytest.raises(KeyError), math_attention():  # noqa: PT012
            assert not torch.backends.mha.get_fastpath_enabled()
            assert not torch.backends.cuda.flash_sdp_enabled()
            raise KeyError
        assert torch.backends.mha.get_fastpath_enabled() is fast
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert torch.backends.cuda.flash_sdp_enabled()


def attention_twice(context):
    q = torch.randn(1, 1, 4, 8, requires_grad=True)
    with context:
        out = F.scaled_dot_product_attention(q, q, q)
    (g,) = torch.autograd.grad(out.pow(2).sum(), q, create_graph=True)
    return torch.autograd.grad(g.sum(), q)


def test_attention_has_a_second_derivative_inside_only():
    import contextlib

    attention_twice(math_attention())
    with pytest.raises(RuntimeError, match="not implemented"):
        attention_twice(contextlib.nullcontext())


def test_autocast_is_off_inside():
    x = torch.randn(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with no_autocast(CPU):
            assert (x @ x).dtype == torch.float32
        with evaluation(CPU):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
