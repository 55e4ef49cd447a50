"""The exactly solvable model: recursions against weights, closed forms against dense matrices, refusals."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reference.uv import descend, hessian
from thalweg.errors import InvalidInput
from thalweg.phases.uv import UVModel, ends_at_edge, reduced_step, uv_path, uv_step, zero_loss_stable
from thalweg.phases.uv_hessian import uv_eigenvalues, uv_spectrum

inputs = st.floats(0.2, 3) | st.floats(-3, -0.2)
targets = st.floats(-3, 3)
widths = st.integers(1, 40)
seeds = st.integers(0, 10**6)


@settings(max_examples=150, deadline=None)
@given(widths, inputs, targets, seeds, st.floats(0.05, 1.9))
def test_the_recursion_is_gradient_descent_on_the_weights(w, x, y, seed, c):
    model = UVModel(w, x, y)
    u, v = model.weights(seed)
    f, t = model.reduce(u, v)
    # inside the stable range, where a rounding error does not grow
    lr = c / uv_eigenvalues(model, f - y, t)[1] / (1 + abs(f - y))
    path = uv_path(model, f, t, lr=lr, steps=12)
    states = np.array([model.reduce(*state) for state in descend(u, v, x, y, lr, 12)])
    assume(states[:, 1].max() < 100 * t)  # a start beside the saddle at zero grows, and rounding errors as it does
    assert abs(path.output - states[:, 0]).max() <= 1e-12 * (abs(states[:, 0]).max() + abs(y))
    assert abs(path.kernel - states[:, 1]).max() <= 1e-12 * states[:, 1].max()


@settings(max_examples=150, deadline=None)
@given(widths, inputs, targets, seeds, st.floats(0.05, 6))
def test_one_step_at_any_rate_and_the_form_without_parameters(w, x, y, seed, c):
    model = UVModel(w, x, y)
    u, v = model.weights(seed)
    f, t = model.reduce(u, v)
    lr = c / t
    after = model.reduce(*descend(u, v, x, y, lr, 1)[1])
    residual, kernel = uv_step(model, f - y, t, lr)
    d = f - y
    size = abs(d) * (1 + lr * t) + (lr * model.scale * d) ** 2 * abs(f) + abs(y)  # of the terms that are added
    assert abs(residual + y - after[0]) <= 1e-12 * size
    assert abs(kernel - after[1]) <= 1e-12 * (t + abs(lr * model.scale * d) * (lr * abs(model.scale * d) * t + 4 * t))
    zero = UVModel(w, x)
    residual, kernel = uv_step(zero, f, t, lr)
    s, g = reduced_step(lr * t, (lr * zero.scale * f) ** 2)
    assert lr * kernel == pytest.approx(float(s), rel=1e-12, abs=1e-12)
    assert (lr * zero.scale * residual) ** 2 == pytest.approx(float(g), rel=1e-9, abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 12), inputs, targets, seeds)
def test_closed_forms_are_the_dense_spectrum(w, x, y, seed):
    model = UVModel(w, x, y)
    u, v = model.weights(seed)
    f, t = model.reduce(u, v)
    dense = hessian(u, v, x, y)
    values = np.linalg.eigvalsh(dense)
    size = abs(values).max()
    assert abs(np.trace(dense) - t) <= 1e-10 * size
    assert abs(uv_spectrum(model, f - y, t) - values).max() <= 1e-10 * size
    low, high = uv_eigenvalues(model, f - y, t)
    assert abs(values - low).min() <= 1e-10 * size
    assert values[0] == pytest.approx(float(low) if w == 1 else -abs(model.scale * (f - y)), abs=1e-10 * size)
    assert abs(high - values[-1]) <= 1e-10 * size


def test_the_reference_hessian_is_the_second_derivative():
    u, v, x, y = np.array([0.3, -1.0]), np.array([0.7, 0.4]), 1.3, 0.5

    def loss(theta):
        return (x / 2**0.5 * theta[:2] @ theta[2:] - y) ** 2 / 2

    at, h = np.concatenate([u, v]), 1e-4
    eye = h * np.eye(4)
    number = [
        [(loss(at + a + b) - loss(at + a - b) - loss(at - a + b) + loss(at - a - b)) / (4 * h * h) for b in eye]
        for a in eye
    ]
    assert abs(np.array(number) - hessian(u, v, x, y)).max() < 1e-6


def test_a_run_beyond_the_cutoff_is_infinite_to_its_end():
    path = uv_path(UVModel(4), [1.0, 1.0], [3.0, 3.0], lr=[0.5, 3.0], steps=30, cutoff=1e5)
    assert np.isfinite(path.loss[0]).all()
    first = int(np.argmax(~np.isfinite(path.loss[1])))
    assert 0 < first < 30
    assert np.isinf(path.loss[1, first:]).all()
    assert np.isinf(path.kernel[1, first:]).all()
    assert np.isinf(path.sharpness[1, first:]).all()
    assert (path.loss[1, :first] <= 1e5).all()
    assert len(path.plot().data) == 6


def test_training_from_small_weights_ends_at_the_least_kernel():
    for psi, settled in ((0.5, 1.0), (0.9, 1.8), (0.99, 1.98)):
        model = UVModel(100, y=10 * psi)  # at a rate of 1, psi = y / sqrt(w)
        path = uv_path(model, 1e-8, 1e-4, lr=1.0, steps=4000)
        assert path.kernel[-1] == pytest.approx(settled, rel=2e-3)
        assert zero_loss_stable(model, 1.0, float(path.kernel[-1]))
        assert not ends_at_edge(model, 1.0)
    beyond = UVModel(100, y=11.0)
    assert ends_at_edge(beyond, 1.0)
    path = uv_path(beyond, 1e-8, 1e-4, lr=1.0, steps=4000)
    assert path.loss[-50:].max() > 1e-3
    assert path.kernel[-50:].mean() == pytest.approx(2.1, rel=1e-3)  # 1 + psi: above 2 / rate


@pytest.mark.parametrize(
    "call",
    [
        lambda: UVModel(0),
        lambda: UVModel(4, x=0.0),
        lambda: UVModel(4, y=float("nan")),
        lambda: uv_path(UVModel(4), 1.0, 0.5, lr=1.0, steps=3),
        lambda: uv_path(UVModel(4), 1.0, 3.0, lr=0.0, steps=3),
        lambda: uv_path(UVModel(4), 1.0, float("nan"), lr=0.1, steps=3),
        lambda: uv_path(UVModel(4), 1.0, 3.0, lr=1.0, steps=-1),
        lambda: uv_spectrum(UVModel(4), float("inf"), 3.0),
        lambda: zero_loss_stable(UVModel(1, y=4.0), 0.1, 1.0),
    ],
)
def test_what_cannot_be_is_refused(call):
    with pytest.raises(InvalidInput):
        call()
