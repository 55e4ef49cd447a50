"""What torch, its schedulers, scalers, hooks and checkpoints, and users' models may expect of Alice."""

import copy
import io
import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg.errors import InvalidInput, ThalwegWarning
from thalweg.optim.alice import Alice


def net(dtype=torch.float32, dropout=0.0, norm=False):
    torch.manual_seed(1)
    layers = [nn.Linear(6, 16), *([nn.BatchNorm1d(16)] if norm else []), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(16, 3)).to(dtype)


def batch(number=0, size=32, dtype=torch.float32):
    stream = torch.Generator().manual_seed(100 + number)
    x = torch.randn(size, 6, generator=stream)
    return x.to(dtype), torch.randint(0, 3, (size,), generator=stream)


def closure_of(model, optimizer, number=0, dtype=torch.float32):
    x, y = batch(number, dtype=dtype)

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def train(model, optimizer, numbers):
    return [float(optimizer.step(closure_of(model, optimizer, i)).detach()) for i in numbers]


def weights(model):
    return torch.cat([p.detach().reshape(-1).double() for p in model.parameters()])


def tensors(optimizer):
    return [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]


class TestProtocols:
    def test_manual_equals_closure(self):
        models = net(), net()
        one, other = (Alice(m.parameters(), lr=5e-3) for m in models)
        for number in range(25):
            train(models[0], one, [number])
            kinds = []
            for point in other.points():
                closure_of(models[1], other, number)()
                other.observe(point)
                kinds.append(point.sign)
            assert kinds in ([1, -1, 0], [0])
            other.step()
        assert torch.equal(weights(models[0]), weights(models[1]))

    @pytest.mark.parametrize("failing", [0, 1, 2])
    def test_a_closure_that_raises_leaves_the_centre(self, failing):
        model = net()
        optimizer = Alice(model.parameters(), lr=5e-3, quick_steps=0)
        train(model, optimizer, range(15))
        twin = copy.deepcopy(model)
        before, calls, ordinary = weights(model), 0, closure_of(model, optimizer, 15)

        def closure():
            nonlocal calls
            calls += 1
            if calls == failing + 1:
                raise ZeroDivisionError
            return ordinary()

        with pytest.raises(ZeroDivisionError):
            optimizer.step(closure)
        assert torch.equal(weights(model), before)
        # and the next step is as if nothing had happened
        again = Alice(twin.parameters())
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert train(model, optimizer, [15]) == train(twin, again, [15])
        assert torch.equal(weights(model), weights(twin))

    def test_leaving_the_loop_early(self):
        model = net()
        optimizer = Alice(model.parameters(), lr=5e-3)
        before = weights(model)
        for _ in optimizer.points():
            assert not torch.equal(weights(model), before)
            break
        assert torch.equal(weights(model), before)

    def test_a_point_that_was_not_observed(self):
        model = net()
        optimizer = Alice(model.parameters())
        before = weights(model)
        with pytest.raises(InvalidInput, match="observe"):
            for _ in optimizer.points():
                pass
        assert torch.equal(weights(model), before)

    def test_a_bare_step_is_harmless(self):
        """Distributed checkpointing creates state so: zero gradients, lr = 0, no closure."""
        model = net()
        optimizer = Alice(model.parameters(), lr=0.0)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        before = weights(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert optimizer.step(closure=None) is None
        assert torch.equal(weights(model), before)
        assert len(optimizer.state) == 4
        assert all(not bool(t.any()) for t in tensors(optimizer))

    def test_a_bare_step_with_gradients_says_that_nothing_moves(self):
        model = net()
        optimizer = Alice(model.parameters())
        before = weights(model)
        closure_of(model, optimizer)()
        with pytest.warns(ThalwegWarning, match="nothing has moved"):
            optimizer.step()
        assert torch.equal(weights(model), before)

    def test_the_grad_mode_is_the_users(self):
        model = net()
        optimizer = Alice(model.parameters())
        for point in optimizer.points():
            assert torch.is_grad_enabled()
            closure_of(model, optimizer)()
            optimizer.observe(point)
        with torch.no_grad():
            optimizer.step(closure_of(model, optimizer))


class TestResume:
    @pytest.mark.parametrize("options", [{}, {"count_samples": True, "hess_comp": "hutchinson"}, {"capturable": True}])
    @pytest.mark.parametrize("cut", [5, 14, 17])
    def test_bit_identical(self, options, cut):
        whole = net(dropout=0.2)
        optimizer = Alice(whole.parameters(), lr=5e-3, seed=3, **options)
        torch.manual_seed(9)
        train(whole, optimizer, range(cut))
        buffer = io.BytesIO()
        torch.save({"m": whole.state_dict(), "o": optimizer.state_dict(), "r": torch.get_rng_state()}, buffer)
        expected = train(whole, optimizer, range(cut, 25))

        resumed = net(dropout=0.2)
        other = Alice(resumed.parameters(), lr=1.0, seed=8)
        buffer.seek(0)
        saved = torch.load(buffer, weights_only=True)
        resumed.load_state_dict(saved["m"])
        other.load_state_dict(saved["o"])
        torch.set_rng_state(saved["r"])
        assert train(resumed, other, range(cut, 25)) == expected
        assert torch.equal(weights(resumed), weights(whole))
        for a, b in zip(tensors(optimizer), tensors(other)):
            assert torch.equal(a, b)

    def test_copies_and_pickles(self):
        model = net()
        optimizer = Alice(model.parameters(), lr=5e-3)
        train(model, optimizer, range(12))
        copied, twin = copy.deepcopy((model, optimizer))
        assert train(model, optimizer, [12, 13]) == train(copied, twin, [12, 13])

    def test_weights_loaded_between_steps_are_kept(self):
        """The look-ahead point moves along."""
        model = net()
        optimizer = Alice(model.parameters(), lr=5e-3, phi=0.3)
        train(model, optimizer, range(15))
        reach = [optimizer.state[p]["reach"] * optimizer.state[p]["descent"] for p in model.parameters()]
        assert max(float(r.abs().max()) for r in reach) > 0
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(0.25)
        for point in optimizer.points(sample=False):
            for p, r in zip(model.parameters(), reach):
                torch.testing.assert_close(p.detach(), 0.25 - r)
            closure_of(model, optimizer)()
            optimizer.observe(point)
        assert all(bool((p == 0.25).all()) for p in model.parameters())


class TestSettings:
    def test_rate_zero_leaves_all_finite(self):
        model = net()
        optimizer = Alice(model.parameters(), lr=5e-3, quick_steps=0)
        train(model, optimizer, range(12))
        before = weights(model)
        optimizer.param_groups[0]["lr"] = 0.0
        train(model, optimizer, range(12, 16))
        assert torch.equal(weights(model), before)
        optimizer.param_groups[0]["lr"] = 5e-3
        train(model, optimizer, range(16, 20))
        assert all(bool(t.isfinite().all()) for t in tensors(optimizer))
        assert bool(weights(model).isfinite().all())
        assert not torch.equal(weights(model), before)

    @pytest.mark.parametrize("tensor", [False, True])
    def test_schedulers(self, tensor):
        """A tensor rate is filled in place; each group has its own."""
        model = net()
        rate = torch.tensor(1e-2) if tensor else 1e-2
        groups = [{"params": model[0].parameters()}, {"params": model[3].parameters(), "lr": rate}]
        optimizer = Alice(groups, lr=rate)
        assert optimizer.param_groups[0]["lr"] is not optimizer.param_groups[1]["lr"] or not tensor
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda t: 1.0 / (t + 1), lambda t: 0.5])
        for number in range(3):
            train(model, optimizer, [number])
            scheduler.step()
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(1e-2 / 4)
        assert float(optimizer.param_groups[1]["lr"]) == pytest.approx(5e-3)
        assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor) is tensor

    def test_momentum_cycling(self):
        model = net()
        optimizer = Alice(model.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=30)
        momenta = set()
        for number in range(29):
            train(model, optimizer, [number])
            scheduler.step()
            momenta.add(round(optimizer.param_groups[0]["betas"][0], 6))
        assert len(momenta) > 10
        assert bool(weights(model).isfinite().all())

    def test_tensor_rate_equals_float(self):
        models = net(torch.float64), net(torch.float64)
        optimizers = [
            Alice(m.parameters(), lr=lr) for m, lr in zip(models, (1e-2, torch.tensor(1e-2, dtype=torch.float64)))
        ]
        for model, optimizer in zip(models, optimizers):
            for number in range(14):
                optimizer.step(closure_of(model, optimizer, number, torch.float64))
        assert torch.equal(weights(models[0]), weights(models[1]))

    def test_groups_differ(self):
        """Every setting by group: a group that samples at every batch beside one that does so rarely."""
        model = net()
        groups = [
            {"params": model[0].parameters(), "quick_steps": 0, "hess_comp": "rms"},
            {
                "params": model[3].parameters(),
                "quick_steps": 9,
                "limit_method": "sgdm",
                "lr_max": 0.3,
                "betas": (0.5, 0.99),
            },
        ]
        optimizer = Alice(groups, lr=5e-3)
        train(model, optimizer, range(12))
        glass = optimizer.state[model[3].weight]["glass"].clone()
        before = model[3].weight.detach().clone()
        for point in optimizer.points():
            if point.sign:
                assert (model[3].weight - before).abs().max() < 0.31  # at its look-ahead point, not probed
            closure_of(model, optimizer)()
            optimizer.observe(point)
        optimizer.step()
        assert torch.equal(optimizer.state[model[3].weight]["glass"], glass)
        assert optimizer.state[model[0].weight]["samples"] == 13
        assert optimizer.report().groups[1].coordinates == 51

    def test_parameters_that_come_later(self):
        model = net()
        model[3].requires_grad_(False)
        optimizer = Alice(model.parameters(), lr=5e-3)
        train(model, optimizer, range(15))
        assert len(optimizer.state) == 2
        model[3].requires_grad_(True)
        before = weights(model[3])
        train(model, optimizer, range(15, 24))
        assert torch.equal(weights(model[3]), before), "they warm up first"
        assert optimizer.state[model[3].weight]["samples"] == 9
        train(model, optimizer, [24])
        assert not torch.equal(weights(model[3]), before)
        extra = nn.Parameter(torch.ones(2))
        optimizer.add_param_group({"params": [extra], "lr": 1e-4})
        assert optimizer.param_groups[1]["lr_max"] == 2e-4
        train(model, optimizer, range(25, 28))
        assert extra not in optimizer.state

    def test_named_parameters(self):
        model = net()
        optimizer = Alice(model.named_parameters(), lr=5e-3)
        train(model, optimizer, range(3))
        assert optimizer.param_groups[0]["param_names"][0] == "0.weight"

    def test_a_group_that_is_refused_is_not_kept(self):
        optimizer = Alice([nn.Parameter(torch.ones(2))])
        with pytest.raises(ValueError, match="omega"):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "omega": -1.0})
        assert len(optimizer.param_groups) == 1

    def test_maximize(self):
        w = [nn.Parameter(torch.full((3,), 0.5)) for _ in range(2)]
        optimizers = [Alice([w[0]], lr=1e-2), Alice([w[1]], lr=1e-2, maximize=True)]
        for optimizer, p, sign in zip(optimizers, w, (1, -1)):
            for _ in range(20):

                def closure(optimizer=optimizer, p=p, sign=sign):
                    optimizer.zero_grad()
                    (sign * (p**2).sum()).backward()

                optimizer.step(closure)
        assert torch.equal(w[0], w[1])


class TestModels:
    def test_dropout_masks_are_shared(self):
        """The density with random masks is that of the mask which the first evaluation drew."""
        found = []
        for fixed in (False, True):
            model = net(torch.float64, dropout=0.5)
            optimizer = Alice(model.parameters(), lr=1e-3)
            torch.manual_seed(5)
            x, y = batch(dtype=torch.float64)
            mask = functional.dropout(torch.ones(32, 16, dtype=torch.float64), 0.5)
            if not fixed:
                torch.manual_seed(5)

            def closure(model=model, optimizer=optimizer, x=x, y=y, mask=mask, fixed=fixed):
                optimizer.zero_grad()
                hidden = torch.relu(model[0](x))
                hidden = hidden * mask if fixed else functional.dropout(hidden, 0.5)
                loss = functional.cross_entropy(model[3](hidden), y)
                loss.backward()
                return loss

            optimizer.step(closure)
            found.append(torch.cat([optimizer.state[p]["glass"].reshape(-1) for p in model.parameters()]))
        torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)

    def test_the_random_stream_advances_by_one_evaluation(self):
        model = net(dropout=0.5)
        optimizer = Alice(model.parameters())
        torch.manual_seed(4)
        closure_of(model, optimizer)()
        expected = torch.rand(3)
        torch.manual_seed(4)
        train(model, optimizer, [0])
        assert torch.equal(torch.rand(3), expected)

    @pytest.mark.parametrize("given", [False, True])
    def test_running_statistics_see_the_look_ahead_point_only(self, given):
        model = net(norm=True)
        optimizer = Alice(model.parameters(), lr=5e-3, quick_steps=0, model=model if given else None)
        for number in range(12):
            train(model, optimizer, [number])
        assert int(model[1].num_batches_tracked) == 12
        expected = copy.deepcopy(model)
        with torch.no_grad():
            for p, q in zip(expected.parameters(), model.parameters()):
                p.sub_(optimizer.state[q]["reach"] * optimizer.state[q]["descent"])
        expected(batch(12)[0])
        train(model, optimizer, [12])
        torch.testing.assert_close(model[1].running_mean, expected[1].running_mean)

    def test_channels_last_equals_contiguous(self):
        found = []
        for layout in (torch.contiguous_format, torch.channels_last):
            torch.manual_seed(2)
            model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)).double()
            model = model.to(memory_format=layout)
            x = torch.randn(8, 3, 4, 4, dtype=torch.float64).to(memory_format=layout)
            optimizer = Alice(model.parameters(), lr=5e-3, hess_comp="hutchinson")

            def closure(model=model, optimizer=optimizer, x=x):
                optimizer.zero_grad()
                loss = (model(x) ** 2).mean()
                loss.backward()
                return loss

            for _ in range(16):
                optimizer.step(closure)
            assert model[0].weight.is_contiguous(memory_format=layout)
            state = optimizer.state[model[0].weight]
            assert state["mean"].stride() == model[0].weight.stride()
            found.append((weights(model), state["curvature"].clone()))
            model.to(memory_format=torch.contiguous_format)
            optimizer.step(closure)  # the state follows
        torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found[1][1].contiguous(), found[0][1], rtol=1e-8, atol=1e-12)

    def test_views_with_gaps_and_empty_tensors(self):
        base = torch.ones(6, 4)
        gaps, plain, empty = nn.Parameter(base[:, ::2]), nn.Parameter(torch.ones(6, 2)), nn.Parameter(torch.ones(0))
        assert not gaps.is_contiguous()
        for foreach in (False, True):
            optimizer = Alice([gaps, plain, empty], lr=1e-2, signs=lambda p, *_: torch.ones(p.shape), foreach=foreach)

            def closure(optimizer=optimizer):
                optimizer.zero_grad()
                (gaps.pow(3).sum() + plain.pow(3).sum() + empty.sum()).backward()

            for _ in range(15):
                optimizer.step(closure)
            assert torch.equal(gaps, plain)
            assert bool((gaps < 1).all())
        assert bool((base[:, 1::2] == 1).all())

    def test_storage_is_never_rebound(self):
        model = net()
        places = [p.data_ptr() for p in model.parameters()]
        optimizer = Alice(model.parameters(), lr=5e-3)
        train(model, optimizer, range(12))
        assert [p.data_ptr() for p in model.parameters()] == places

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_keeps_float32(self, dtype):
        """Averages, and what the centre has beyond half precision, also through a state dictionary."""
        half, full = nn.Parameter(torch.ones(64, dtype=dtype)), nn.Parameter(torch.ones(64))
        optimizers = [Alice([p], lr=1e-3, sigma=0.05) for p in (half, full)]
        weight = torch.linspace(0.5, 2, 64)
        for number in range(40):
            for optimizer, p in zip(optimizers, (half, full)):

                def closure(optimizer=optimizer, p=p):
                    optimizer.zero_grad()
                    (weight * p.float() ** 2).sum().backward()

                optimizer.step(closure)
            if number == 20:
                saved = copy.deepcopy(optimizers[0].state_dict())
                optimizers[0] = Alice([half])
                optimizers[0].load_state_dict(saved)
                for name in ("mean", "glass", "rest"):
                    assert torch.equal(optimizers[0].state[half][name], saved["state"][0][name])
        state = optimizers[0].state[half]
        assert {state[name].dtype for name in ("mean", "square", "glass", "curvature", "descent", "rest")} == {
            torch.float32
        }
        # Steps of 2e-4 are lost in bfloat16 numbers near 1, whose spacing is 4e-3; the rest keeps them.
        moved = 1 - (half.detach().float() + state["rest"])
        torch.testing.assert_close(moved, 1 - full.detach(), rtol=0.1, atol=0)

    def test_complex_and_sparse_are_refused(self):
        with pytest.raises(InvalidInput, match=r"complex.*view_as_real"):
            Alice([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
        table = nn.Embedding(5, 2, sparse=True)
        optimizer = Alice(table.parameters())
        before = weights(table)
        with pytest.raises(InvalidInput, match="sparse"):
            optimizer.step(lambda: table(torch.tensor([1])).sum().backward())
        assert torch.equal(weights(table), before)


class TestPaths:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"hess_comp": "rms", "grad_glass": False},
            {"hess_comp": "zero"},
            {"maximize": True, "weight_decay": 0.1},
            {"w1": 0.1},
            {"limit_method": "fixed"},
        ],
        ids=str,
    )
    def test_foreach_equals_single(self, options):
        models = net(), net()
        for model, foreach in zip(models, (False, True)):
            train(model, Alice(model.parameters(), lr=5e-3, foreach=foreach, **options), range(20))
        assert torch.equal(weights(models[0]), weights(models[1]))

    @pytest.mark.slow
    def test_compiled_equals_single(self):
        for options in ({}, {"hess_comp": "zero", "quick_steps": 1}):
            models = net(torch.float64), net(torch.float64)
            for model, compiled in zip(models, (False, True)):
                optimizer = Alice(model.parameters(), lr=5e-3, compiled=compiled, **options)
                for number in range(16):
                    optimizer.step(closure_of(model, optimizer, number, torch.float64))
            torch.testing.assert_close(weights(models[0]), weights(models[1]), rtol=1e-9, atol=1e-12)

    def test_blocks_change_nothing(self, monkeypatch):
        models = net(), net()
        train(models[0], Alice(models[0].parameters(), lr=5e-3, hess_comp="hutchinson"), range(14))
        monkeypatch.setattr("thalweg.optim.alice_layout.BLOCK", 10)
        train(models[1], Alice(models[1].parameters(), lr=5e-3, hess_comp="hutchinson"), range(14))
        assert torch.equal(weights(models[0]), weights(models[1]))

    def test_capturable_keeps_the_step_a_tensor(self):
        models = net(torch.float64), net(torch.float64)
        rate = torch.tensor(5e-3, dtype=torch.float64)
        optimizers = [Alice(models[0].parameters(), lr=rate, capturable=True), Alice(models[1].parameters(), lr=5e-3)]
        for model, optimizer in zip(models, optimizers):
            for number in range(20):
                optimizer.step(closure_of(model, optimizer, number, torch.float64))
        torch.testing.assert_close(weights(models[0]), weights(models[1]), rtol=1e-5, atol=1e-7)

    def test_scaler(self):
        """Scaled losses give the trajectory of unscaled ones; an overflow at a probe leaves everything as it was."""
        models = net(), net()
        one, other = (Alice(m.parameters(), lr=5e-3) for m in models)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10**6)
        x, y = batch()
        for number in range(14):
            train(models[0], one, [0])
            for overflow in (True, False) if number in (3, 11) else (False,):
                before, state = weights(models[1]), [t.clone() for t in tensors(other)]
                for point in other.points():
                    other.zero_grad()
                    loss = functional.cross_entropy(models[1](x), y)
                    loss = loss * torch.inf if overflow and point.sign == (-1 if number == 3 else 0) else loss
                    scaler.scale(loss).backward()
                    other.observe(point, scale=scaler.get_scale())
                scale = scaler.get_scale()
                scaler.step(other)
                scaler.update()
                if overflow:
                    assert torch.equal(weights(models[1]), before)
                    assert all(torch.equal(a, b) for a, b in zip(state, tensors(other)))
                    assert scaler.get_scale() == scale / 2
        torch.testing.assert_close(weights(models[0]), weights(models[1]), rtol=1e-5, atol=1e-7)

    def test_clipping_between(self):
        """What is clipped after the last point reaches the averages of the gradient, not those of curvature."""
        found = []
        for clip in (False, True):
            model = net()
            optimizer = Alice(model.parameters())
            for point in optimizer.points():
                closure_of(model, optimizer)()
                optimizer.observe(point)
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
            found.append(optimizer.state[model[0].weight])
        assert torch.equal(found[0]["glass"], found[1]["glass"])
        assert float(found[1]["mean"].norm()) < 1.1e-3 < float(found[0]["mean"].norm())

    def test_step_hooks(self):
        model = net()
        optimizer = Alice(model.parameters())
        seen = []
        optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
        optimizer.register_step_post_hook(lambda *_: seen.append("post"))
        train(model, optimizer, range(2))
        assert seen == ["pre", "post"] * 2


def test_dtype_grid():
    """Mixed dtypes in one optimizer, both paths."""
    for foreach, steps in itertools.product((False, True), (12,)):
        parameters = [nn.Parameter(torch.ones(5, dtype=d)) for d in (torch.float32, torch.float64, torch.bfloat16)]
        optimizer = Alice(parameters, lr=1e-2, foreach=foreach)

        def closure(optimizer=optimizer, parameters=parameters):
            optimizer.zero_grad()
            sum((p.double() ** 2).sum() for p in parameters).backward()

        for _ in range(steps):
            optimizer.step(closure)
        assert all(bool((p < 1).all()) for p in parameters)
