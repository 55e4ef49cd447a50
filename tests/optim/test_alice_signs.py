"""Signs from a counter: the same whoever draws them, and as good as fair coins."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thalweg.optim.alice_signs import key_base, key_of, signs

CPU = torch.device("cpu")


def draw(step, start, count, seed=0, index=0, *shard):
    key = key_of(key_base(seed, index, *shard), step)
    return signs(key, start, count, 1.0, dtype=torch.float64, device=CPU)


def splitmix(key, word):
    """In Python's whole numbers, from the published text."""
    mask = (1 << 64) - 1
    z = (key + word * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_splitmix_itself():
    """Vigna's first outputs for seed 1234567."""
    assert [splitmix(1234567, i) for i in (1, 2)] == [6457827717110365317, 3203168211198807973]


def test_the_bits_of_the_words():
    key = key_of(key_base(5, 2), 9)
    expected = [2.0 * (splitmix(key, i // 64) >> (i % 64) & 1) - 1 for i in range(300)]
    assert draw(9, 0, 300, 5, 2).tolist() == expected


@given(start=st.integers(0, 500), count=st.integers(0, 300))
def test_any_stretch(start, count):
    assert torch.equal(draw(3, start, count), draw(3, 0, 800)[start : start + count])


@given(step=st.integers(0, 2**24), seed=st.integers(0, 2**40))
def test_a_tensor_step_gives_the_same_key(step, seed):
    base = key_base(seed, 1)
    assert int(key_of(base, torch.tensor(float(step)))) == key_of(base, step)


@pytest.mark.parametrize(("a", "b"), [((1, 0, 0), (2, 0, 0)), ((1, 0, 0), (1, 1, 0)), ((1, 0, 0), (1, 0, 1))])
def test_streams_are_independent(a, b):
    one, other = (draw(step, 0, 100_000, seed, index) for step, seed, index in (a, b))
    assert abs(float((one * other).mean())) < 4 / np.sqrt(100_000)


def test_coins_are_fair():
    flat = draw(1, 0, 1_000_000)
    assert abs(float(flat.mean())) < 4e-3
    assert float((flat**2).min()) == 1
    for lag in (1, 2, 7, 8, 63, 64, 65, 4096):
        assert abs(float((flat[lag:] * flat[:-lag]).mean())) < 4.5e-3
    by_bit = flat[: 64 * 15_000].view(-1, 64).mean(0)
    assert float(by_bit.abs().max()) < 5 / np.sqrt(15_000)
    # One coordinate over the steps is as fair as one step over the coordinates.
    steps = torch.stack([draw(step, 0, 64) for step in range(4000)])
    assert float(steps.mean(0).abs().max()) < 5 / np.sqrt(4000)
    assert float((steps[1:] * steps[:-1]).mean(0).abs().max()) < 5 / np.sqrt(4000)
