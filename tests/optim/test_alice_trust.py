"""Bounds that follow the confirmed share of the predicted loss change."""

import io
import math

import pytest
import torch

from thalweg.errors import InvalidInput
from thalweg.optim.alice import Alice
from thalweg.optim.alice_trust import CLOSE, OPENING


def quadratic(n=12, seed=0):
    """``w A w / 2 - b w`` with eigenvalues from 0.1 to 3, in float64."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    matrix = q @ torch.diag(torch.logspace(-1, 0.5, n, dtype=torch.float64)) @ q.T
    vector = torch.randn(n, generator=generator, dtype=torch.float64)
    return lambda w: 0.5 * w @ matrix @ w - vector @ w


def started(loss, n=12, **options):
    """Two parameters that together are the argument of ``loss``, their optimizer and its closure."""
    first = torch.nn.Parameter(torch.ones(n // 3, dtype=torch.float64))
    second = torch.nn.Parameter(-torch.ones(n - n // 3, dtype=torch.float64))
    optimizer = Alice([{"params": [first]}, {"params": [second]}], **{"lr": 1e-2, "quick_steps": 0, **options})

    def closure():
        optimizer.zero_grad()
        value = loss(torch.cat([first, second]))
        value.backward()
        return value

    return torch.nn.ParameterList([first, second]), optimizer, closure


def joined(parameters):
    return torch.cat([p.detach() for p in parameters])


@pytest.mark.parametrize("options", [{}, {"omega": 0.6, "phi": "coupled"}, {"hess_comp": "rms"}, {"lr_max": 1.0}])
def test_measured_change_is_the_true_one_on_a_quadratic(options):
    """There the averaged gradient is that of the centre and the trapezoidal rule exact: M is a difference."""
    loss = quadratic()
    parameters, optimizer, closure = started(loss, trust=True, **options)
    expected, compared = 0.0, 0
    for _ in range(30):
        before = joined(parameters)
        moved = [optimizer.state[p]["descent"].clone() for p in parameters] if optimizer.state else None
        optimizer.step(closure)
        if moved is not None and any(m.any() for m in moved):
            # `before` is the centre after the last step; the look-ahead point was reached from the one before it.
            group = optimizer.param_groups[0]
            phi = {None: 0.1, "coupled": 0.1 * group["omega"]}[group["phi"]]
            step = torch.cat(moved)
            origin = before + phi * step
            expected = 0.9 * expected + 0.1 * float(loss(origin) - loss(origin - group["omega"] * step))
            assert group["trust_measured"] == pytest.approx(expected, rel=1e-9)
            compared += 1
    assert compared == 20


def test_prediction_is_that_of_the_report():
    _, optimizer, closure = started(quadratic(), trust=True)
    for _ in range(25):
        optimizer.step(closure)
    report = optimizer.report()
    group = optimizer.param_groups[0]
    assert group["trust_decrease"] == pytest.approx(sum(g.predicted for g in report.groups), rel=1e-9)
    assert group["trust_linear"] == pytest.approx(sum(g.linear for g in report.groups), rel=1e-9)
    weights = [g.upper for g in report.groups]
    assert (group["trust_binding"] == 0) == (max(weights) == 0)


def test_trust_is_nothing_but_another_bound():
    """Given the same bounds by hand, Alice without trust takes the same steps, bit for bit."""
    parameters, optimizer, closure = started(quadratic(), trust=True)
    others, plain, plain_closure = started(quadratic(), lr_max=2.0, scale_bounds_with_lr=False)
    shares = set()
    for _ in range(40):
        optimizer.step(closure)
        for group, twin in zip(plain.param_groups, optimizer.param_groups):
            group["lr_max"] = twin["trust_share"] * twin["lr_max"]
            shares.add(twin["trust_share"])
        plain.step(plain_closure)
        assert torch.equal(joined(parameters), joined(others))
    assert len(shares) > 3


def test_published_bound_first():
    _, optimizer, closure = started(quadratic(), trust=True)
    assert [group["lr_max"] for group in optimizer.param_groups] == [200 * 1e-2] * 2
    for _ in range(10):
        optimizer.step(closure)
    assert [group["trust_share"] for group in optimizer.param_groups] == [0.01] * 2


def test_opens_where_the_model_is_right_and_the_bound_binds():
    _, optimizer, closure = started(quadratic(), trust=True, lr=1e-4)
    for _ in range(40):
        optimizer.step(closure)
    group = optimizer.param_groups[0]
    assert group["trust_share"] > 0.01 * OPENING**10
    assert group["trust_measured"] > 0


def test_closes_where_the_model_is_wrong():
    """Glass alone sees no curvature in a quadratic, so that all coordinates run to their bound, however far it is."""
    losses, shares = {}, []
    for trust in (True, False):
        _, optimizer, closure = started(
            quadratic(), trust=trust, hess_comp="zero", limit_method="sgdm", lr=20.0, lr_max=40.0
        )
        losses[trust] = []
        for _ in range(100 if trust else 60):
            losses[trust].append(optimizer.step(closure).item())
            shares.append(optimizer.param_groups[0]["trust_share"] if trust else 0.0)
    assert shares[0] == 1
    assert min(shares[:100]) < 0.1
    assert max(losses[True]) > losses[True][0] > losses[True][-1]
    assert not losses[False][-1] < 1e6 * abs(losses[False][0])


def test_only_bounds_that_bind_are_opened():
    """All lengths are inside from the start: nothing would come of opening, and closing would come late."""
    _, optimizer, closure = started(quadratic(), trust=True, lr=10.0)
    for _ in range(40):
        optimizer.step(closure)
    assert optimizer.param_groups[0]["trust_share"] <= 0.01 * OPENING
    assert optimizer.param_groups[0]["trust_binding"] < 0.1
    assert optimizer.param_groups[0]["trust_measured"] > CLOSE * optimizer.param_groups[0]["trust_predicted"]


@pytest.mark.parametrize("options", [{}, {"quick_steps": 3}, {"w1": 1e-3, "w2": 0.1}, {"maximize": True}])
def test_resume_is_bit_identical(options):
    sign = -1 if options.get("maximize") else 1
    base = quadratic()

    def loss(w):
        return sign * base(w)

    parameters, optimizer, closure = started(loss, trust=True, **options)
    for _ in range(23):
        optimizer.step(closure)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "weights": [p.detach() for p in parameters]}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    others, second, second_closure = started(loss, trust=True, **options)
    with torch.no_grad():
        for p, w in zip(others, saved["weights"]):
            p.copy_(w)
    second.load_state_dict(saved["optimizer"])
    for _ in range(10):
        optimizer.step(closure)
        second.step(second_closure)
        assert torch.equal(joined(parameters), joined(others))
    assert optimizer.param_groups[0]["trust_share"] == second.param_groups[0]["trust_share"]
    assert optimizer.param_groups[0]["trust_share"] != 0.01 or options


def test_foreach_equals_single():
    found = []
    for foreach in (True, False):
        parameters, optimizer, closure = started(quadratic(), trust=True, foreach=foreach)
        for _ in range(40):
            optimizer.step(closure)
        found.append((joined(parameters), optimizer.param_groups[0]["trust_share"]))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_a_gradient_that_is_not_finite_closes():
    parameters, optimizer, closure = started(quadratic(), trust=True)
    for _ in range(15):
        optimizer.step(closure)
    before = optimizer.param_groups[0]["trust_measured"]
    for _ in optimizer.points():
        closure()
        parameters[0].grad[0] = math.inf
        optimizer.observe(_)
    optimizer.step()
    after = optimizer.param_groups[0]["trust_measured"]
    assert math.isfinite(after)
    assert after < before


def test_checkpoint_from_before_there_was_trust():
    _, optimizer, closure = started(quadratic())
    for _ in range(12):
        optimizer.step(closure)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["trust"]
    optimizer.load_state_dict(saved)
    optimizer.step(closure)
    assert optimizer.param_groups[0]["trust"] is False


def test_refusals():
    with pytest.raises(InvalidInput, match="trust"):
        started(quadratic(), trust=True, capturable=True)
    shard = torch.nn.Parameter(torch.ones(3))
    shard.placements = ()
    with pytest.raises(InvalidInput, match="sharded"):
        Alice([shard], trust=True)
