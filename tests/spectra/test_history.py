"""Predicting eigenvectors from those at past weights."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thalweg.errors import InvalidInput
from thalweg.operators import from_dense
from thalweg.spectra import EigenTracker
from thalweg.spectra.history import History

P = 40


def frame(seed, k=3):
    stream = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(P, P, dtype=torch.float64, generator=stream))[0].T[:k]


def span_distance(a, b):
    a, b = (torch.linalg.qr(x.T)[0].T for x in (a, b))
    return float((a - (a @ b.T) @ b).norm())


def tilted(base, away, amount):
    return torch.linalg.qr((base + amount * away).T)[0].T


@given(st.integers(0, 1000))
def test_shares_sum_to_one_and_reproduce_weights_that_past_ones_span(seed):
    stream = torch.Generator().manual_seed(seed)
    past = History(6)
    directions = torch.randn(2, P, dtype=torch.float64, generator=stream)
    for _ in range(6):
        past.append(torch.randn(2, dtype=torch.float64, generator=stream) @ directions, frame(0))
    w = 0.5 * torch.randn(2, dtype=torch.float64, generator=stream) @ directions
    share = past.coefficients(w)
    assert share.sum() == pytest.approx(1.0)
    combined = sum(c * point for c, point in zip(share, past.points))
    nearest = min(float((w - point).norm()) for point in past.points)
    assert float((combined - w).norm()) < 0.35 * nearest + 1e-12


def test_the_prediction_is_right_to_second_order():
    base, away = frame(1), frame(2)
    errors = []
    for size in (0.1, 0.05, 0.025):
        past = History(6)
        for x in (0.0, 1.0, -1.0, 0.6, -0.8):
            past.append(torch.full((P,), x * size, dtype=torch.float64), tilted(base, away, x * size))
        errors.append(span_distance(past.predict(torch.full((P,), 0.3 * size)), tilted(base, away, 0.3 * size)))
    rates = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert rates.min() > 1.6, errors


def test_rotating_within_the_span_changes_no_prediction():
    plain, turned = History(4), History(4)
    stream = torch.Generator().manual_seed(3)
    for t in range(4):
        w = torch.randn(P, dtype=torch.float64, generator=stream)
        rows = tilted(frame(1), frame(2), 0.05 * t)
        mix = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=stream))[0]
        plain.append(w, rows)
        turned.append(w, mix @ rows)
    w = torch.randn(P, dtype=torch.float64, generator=stream)
    assert span_distance(plain.predict(w), turned.predict(w)) < 1e-12


def test_a_replaced_direction_is_not_mixed_with_the_new_one():
    past, all_rows = History(4), frame(5, 4)
    for t in range(3):
        past.append(torch.full((P,), 0.1 * t, dtype=torch.float64), all_rows[:3])
    past.append(torch.full((P,), 0.3, dtype=torch.float64), all_rows[[0, 1, 3]])
    assert span_distance(past.predict(torch.full((P,), 0.37, dtype=torch.float64)), all_rows[[0, 1, 3]]) < 1e-12


def test_more_rows_join_every_old_block():
    past, rows = History(4), frame(6, 4)
    past.append(None, rows[:2])
    past.append(None, rows)
    assert past.predict(None).shape == (4, P)
    assert span_distance(past.predict(None), rows) < 1e-12


def test_weights_that_do_not_move_take_the_last_block():
    past, w = History(3), torch.ones(P, dtype=torch.float64)
    for seed in (1, 1, 1):
        past.append(w, frame(seed))
    assert past.coefficients(w).tolist() == [0.0, 0.0, 1.0]


def test_weights_missing_in_between_are_not_mixed_up():
    past = History(6)
    for t in range(5):
        past.append(None if t == 2 else torch.full((P,), float(t), dtype=torch.float64), frame(1))
    assert len(past.points) == 2
    assert len(past) == 5
    assert past.coefficients(torch.full((P,), 5.0, dtype=torch.float64))[:3].tolist() == [0, 0, 0]


def test_depth_bounds_what_is_kept():
    past = History(2)
    for t in range(5):
        past.append(torch.full((P,), float(t), dtype=torch.float64), frame(1))
    assert len(past) == len(past.points) == 2
    with pytest.raises(InvalidInput, match="warm start"):
        History(0)


def curved(w):
    """A smooth matrix function of two numbers: three leading directions that turn with them, and a bulk."""
    base, away, other = frame(1), frame(2), frame(7)
    rows = torch.linalg.qr((base + 0.3 * w[0] * away + 0.3 * w[1] * other).T)[0].T
    bulk = frame(9, P).T @ torch.diag(torch.linspace(-1, 2, P, dtype=torch.float64)) @ frame(9, P)
    return rows.T @ torch.diag(torch.tensor([5.0, 4.5, 4.0], dtype=torch.float64)) @ rows + bulk


def follow(history, given_weights):
    tracker, products = EigenTracker(k=3, history=history, tol=1e-4), []
    for t in range(30):
        w = torch.tensor([0.5 * (-1) ** t * (1 + 0.2 * np.sin(t)), 0.01 * t], dtype=torch.float64)
        pairs = tracker.update(from_dense(curved(w)), w=torch.cat([w, torch.zeros(38)]) if given_weights else None)
        truth = torch.linalg.eigvalsh(curved(w)).flip(0)[:3]
        torch.testing.assert_close(pairs.values, truth, rtol=1e-4, atol=0)
        products.append(pairs.products)
    return np.mean(products[8:])


def test_knowing_the_weights_saves_products():
    knowing, guessing, last = follow(6, True), follow(6, False), follow(1, True)
    assert knowing < guessing < last, (knowing, guessing, last)
