"""The common road in few operations against the general one, block by block, and what a batch leaves for the next."""

import math

import pytest
import torch

from thalweg.optim import alice_layout
from thalweg.optim.alice import Alice
from thalweg.optim.alice_arithmetic import Piece, advance
from thalweg.optim.alice_foreach import advance_all
from thalweg.optim.alice_plain import Numbers, advance_plain, plain
from thalweg.optim.alice_settings import coefficients

MODES = {
    "abs and glass": {},
    "glass only": {"hess_comp": "zero"},
    "abs": {"grad_glass": False},
    "rms": {"hess_comp": "rms", "grad_glass": False},
    "rms and glass": {"hess_comp": "rms"},
    "opened": {"lr_max": 100.0},
    "decay, upwards": {"weight_decay": 0.1, "maximize": True},
    "jensen": {"glass_bound": "jensen", "lr_max": 10.0},
    "rate 0": {"lr": 0.0},
    "measuring": {"move": False},
}
modes = pytest.mark.parametrize("options", MODES.values(), ids=MODES.keys())
SIZE = 301


def group_of(options):
    return Alice([torch.nn.Parameter(torch.ones(1))], **{"lr": 0.01, **options}).param_groups[0]


def made(dtype, sampled, seed=0):
    """Numbers over many decades; the first coordinates are zeros, and what is no number."""
    stream = torch.Generator().manual_seed(seed)

    def wide():
        sign = torch.randn(SIZE, generator=stream, dtype=torch.float64).sign()
        return (sign * 10 ** (8 * torch.rand(SIZE, generator=stream, dtype=torch.float64) - 6)).to(dtype)

    names = ("parameter", "gradient", "descent", "mean", "square", "glass", "curvature", "second", "first")
    values = {name: wide() for name in names}
    for name in ("square", "glass", "curvature"):
        values[name].abs_()
    for name in ("glass", "curvature", "second", "first"):
        values[name][:3] = 0
        values[name][5] = math.inf
        values[name][6] = math.nan
    for name in names[1:]:
        values[name][0] = 0
    values["glass"][3], values["curvature"][4] = 0, 0
    if not sampled:
        values["second"] = values["first"] = None
    return Piece(**values, rest=None, reach=0.9)


def numbers_of(piece):
    return [t for t in vars(piece).values() if isinstance(t, torch.Tensor)]


@modes
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
class TestAdvance:
    def test_equals_the_general_one(self, options, sampled, dtype, rtol):
        k = coefficients(group_of(options), 40.0)
        one, other = made(dtype, sampled), made(dtype, sampled)
        first, second = (t if t is None else t.clone() for t in (one.first, one.second))
        assert plain(k, one)
        advance_plain(one, k, Numbers.of(k, dtype), torch.full((2, SIZE), math.nan, dtype=dtype))
        advance(other, k)
        for name in ("parameter", "descent", "mean", "square", "glass", "curvature"):
            found, expected = getattr(one, name), getattr(other, name)
            torch.testing.assert_close(found, expected, rtol=rtol, atol=0, equal_nan=True, msg=name)
        if sampled:
            torch.testing.assert_close(one.first, first, rtol=0, atol=0, equal_nan=True)
            torch.testing.assert_close(one.second, second, rtol=0, atol=0, equal_nan=True)

    def test_lists_give_the_same_bits(self, options, sampled, dtype, rtol):
        k = coefficients(group_of(options), 40.0)
        one, other = ([made(dtype, sampled, seed) for seed in range(3)] for _ in range(2))
        for piece in one:
            advance_plain(piece, k, Numbers.of(k, dtype), torch.empty(2, SIZE, dtype=dtype))
        advance_all(other, k)
        for a, b in zip(one, other):
            for found, expected in zip(numbers_of(a), numbers_of(b)):
                torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_no_number_is_the_upper_bound():
    k = coefficients(group_of({}), 40.0)
    piece = made(torch.float64, False)
    advance_plain(piece, k, Numbers.of(k, torch.float64), torch.empty(2, SIZE, dtype=torch.float64))
    bound = 0.02 * piece.mean / (piece.square.sqrt() + 1e-8)
    assert float(piece.descent[6]) == pytest.approx(float(bound[6]), rel=1e-12)
    assert bool(piece.descent.isfinite().all())
    assert float(piece.descent[0]) == 0


def train(steps, *, shapes=((40, 25), (30,)), dtype=torch.float64, **options):
    stream = torch.Generator().manual_seed(2)
    parameters = [torch.nn.Parameter(torch.randn(s, generator=stream, dtype=torch.float64).to(dtype)) for s in shapes]
    optimizer = Alice(parameters, **{"lr": 1e-2, "quick_steps": 1, **options})

    def closure():
        optimizer.zero_grad()
        loss = sum((torch.relu(p - 0.3) ** 2).sum() + p.abs().sum() + (p**2).sum() for p in parameters)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return parameters, optimizer


@pytest.mark.parametrize("options", [{}, {"hess_comp": "rms"}, {"hess_comp": "hutchinson"}, {"w1": 0.1}], ids=str)
@pytest.mark.parametrize("foreach", [False, True])
def test_blocks_of_any_size(monkeypatch, options, foreach):
    """Cut into pieces of 64 or not at all; the last piece is shorter."""
    whole, _ = train(20, foreach=foreach, **options)
    monkeypatch.setattr(alice_layout, "BLOCK", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    cut, _ = train(20, foreach=foreach, **options)
    for a, b in zip(whole, cut):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


class TestMemory:
    def test_it_is_used_again(self):
        parameters, optimizer = train(11)
        kept = {name: t.data_ptr() for name, t in optimizer._spare[parameters[0]].items()}
        assert set(kept) == {"centre", "second", "first"}
        for point in optimizer.points():
            held = optimizer._batch[parameters[0]]
            assert held.centre.data_ptr() == kept["centre"]
            optimizer.observe(point)

    def test_another_layout_gets_its_own(self):
        parameters, optimizer = train(11, shapes=((4, 5, 3, 3),))
        (p,) = parameters
        before = p.detach().clone()
        p.data = p.data.to(memory_format=torch.channels_last)
        for point in optimizer.points():
            assert optimizer._batch[p].centre.stride() == p.stride()
            optimizer.observe(point)
        assert torch.equal(p, before)

    def test_it_is_no_state(self):
        _, optimizer = train(3)
        assert set(optimizer.state_dict()) == {"state", "param_groups"}


class TestMirror:
    """The second probe without a second draw of the signs."""

    def places(self, optimizer, parameter, between=lambda: None, signs=(1, -1, 0)):
        found = {}
        for point in optimizer.points(sample=True):
            found[point.sign] = parameter.detach().clone()
            between()
            optimizer.observe(point)
        return [found[s] for s in signs]

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_probes_are_opposite(self, dtype):
        (p, _), optimizer = train(15, dtype=dtype, sigma=0.1)
        plus, minus, ahead = (t.double() for t in self.places(optimizer, p))
        eps = torch.finfo(dtype).eps * 8
        torch.testing.assert_close((plus - ahead).abs(), torch.full_like(plus, 0.1), rtol=0, atol=eps)
        torch.testing.assert_close(minus - ahead, ahead - plus, rtol=0, atol=eps)

    def test_signs_are_asked_for_once(self):
        calls = []

        def drawn(parameter, step, index):
            calls.append((step, index))
            return torch.ones(parameter.shape)

        train(3, signs=drawn)
        assert calls == [(step, index) for step in (1, 2, 3) for index in (0, 1)]

    def test_a_layer_that_writes_to_its_weights(self):
        """Their probes are placed each for itself."""
        (p, _), optimizer = train(15)

        def shrink():
            with torch.no_grad():
                p.mul_(0.5)

        plus, minus, ahead = self.places(optimizer, p, between=shrink)
        torch.testing.assert_close(plus + minus, 2 * ahead)
