"""The three conditions, against planted solutions, a naive second solver, and problems one can solve by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.errors import InvalidInput, NotConverged
from thalweg.flows import complementarity
from thalweg.flows.complementarity import Method, Unbounded, solve
from thalweg.flows.semidefinite import Split, interior_point, newton
from thalweg.operators.packing import smat, svec

sys.path.insert(0, str(Path(__file__).parent.parent))
from reference.complementarity import admm, full_operator


def symmetric(rng, k):
    a = rng.standard_normal((k, k))
    return a + a.T


def random_problem(rng, k, terms=None):
    """Alpha, beta in packed coordinates, and the same operator on full matrices."""
    m = k * (k + 1) // 2
    matrices = [symmetric(rng, k) for _ in range(terms or 2 * m)]
    weights = rng.uniform(0.5, 2, len(matrices))
    beta = sum(w * np.outer(svec(s), svec(s)) for w, s in zip(weights, matrices))
    return symmetric(rng, k), beta, full_operator(k, weights, matrices)


def planted(rng, k, rank, slack_rank, terms):
    """A problem with a known solution of given rank, and slack of given rank on the complement."""
    matrices = [symmetric(rng, k) for _ in range(terms)]
    beta = sum(np.outer(svec(s), svec(s)) for s in matrices)
    q = np.linalg.qr(rng.standard_normal((k, k)))[0]
    x = (q[:, :rank] * rng.uniform(0.2, 2, rank)) @ q[:, :rank].T
    back = q[:, k - slack_rank :]
    s = (back * rng.uniform(0.2, 2, slack_rank)) @ back.T
    return s - smat(beta @ svec(x)), beta, x, s


def assert_solved(found, alpha, beta, tolerance=1e-9):
    """The conditions, computed here."""
    x, a, b = found.X.numpy(), np.asarray(alpha), np.asarray(beta)
    bx = smat(b @ svec(x))
    s = a + bx
    size = max(np.linalg.norm(a), np.linalg.norm(bx))
    assert np.linalg.norm(found.slack.numpy() - s) <= 1e-12 * size
    primal, dual = (max(0.0, -np.linalg.eigvalsh(part)[0]) for part in (x, s))
    gap = abs(np.sum(x * s))
    assert primal <= tolerance * np.linalg.norm(x)
    assert dual <= tolerance * size
    assert gap <= tolerance * size * np.linalg.norm(x)
    assert found.residual <= tolerance
    assert found.primal == pytest.approx(primal / (np.linalg.norm(x) or 1.0), abs=1e-13)
    assert found.dual == pytest.approx(dual / (size or 1.0), abs=1e-13)


@pytest.mark.parametrize("k", range(1, 9))
def test_random_operators_and_a_second_solver(k):
    rng = np.random.default_rng(k)
    for trial in range(12):
        alpha, beta, full = random_problem(rng, k)
        found = solve(alpha, beta)
        assert_solved(found, alpha, beta)
        if trial < 4:
            other = admm(alpha, full)
            assert np.linalg.norm(found.X.numpy() - other) <= 1e-7 * max(1e-3, np.linalg.norm(other))


@pytest.mark.parametrize("k", range(2, 9))
def test_newton_and_interior_point_agree(k):
    rng = np.random.default_rng(k)
    for _ in range(5):
        alpha, beta, _ = random_problem(rng, k)
        a, b = svec(alpha) / np.linalg.norm(alpha), beta / np.trace(beta) * len(beta)
        x, z, steps = newton(a, b, -a)
        other, slack, _ = interior_point(a, b)
        assert steps <= 12, "quadratic convergence"
        np.testing.assert_allclose(x, other, atol=1e-4)  # an objective right to 1e-12 leaves its root in X
        np.testing.assert_allclose(x - z, slack, atol=1e-4)


@pytest.mark.parametrize("k", range(1, 9))
def test_planted_solutions_of_every_rank_degenerate_ones_too(k):
    rng = np.random.default_rng(100 + k)
    m = k * (k + 1) // 2
    for rank in range(k + 1):
        for slack_rank in range(k + 1 - rank):
            alpha, beta, x, s = planted(rng, k, rank, slack_rank, m + 2)
            found = solve(alpha, beta)
            assert_solved(found, alpha, beta)
            # where X and S share a zero eigenvalue its error is the root of the residual's
            degenerate = rank + slack_rank < k
            error = 1e-5 if degenerate else 1e-8
            np.testing.assert_allclose(found.X, x, atol=error * np.linalg.cond(beta) ** 0.5)
            np.testing.assert_allclose(found.slack, s, atol=error * np.linalg.norm(beta))
            if not degenerate:
                assert found.rank == rank


@pytest.mark.parametrize("k", [2, 3, 5, 8])
@pytest.mark.parametrize("degenerate", [False, True])
def test_singular_operators(k, degenerate):
    """The planted X is one of many: ours has the same image, and is no longer than it."""
    rng = np.random.default_rng(k)
    m = k * (k + 1) // 2
    for trial in range(10):
        rank = int(rng.integers(1, k + 1))
        slack_rank = int(rng.integers(0, k - rank + 1)) if degenerate else k - rank
        alpha, beta, x, s = planted(rng, k, rank, slack_rank, max(1, m // 2 - trial % 3))
        found = solve(alpha, beta)
        assert_solved(found, alpha, beta)
        np.testing.assert_allclose(found.slack, s, atol=1e-4 * np.linalg.norm(beta))
        assert np.linalg.norm(found.X) <= np.linalg.norm(x) * (1 + 1e-6)


def test_least_norm_by_hand():
    # beta[X] = tr(X) I: only the trace is determined
    v = svec(np.eye(3))
    trace = np.outer(v, v)
    np.testing.assert_allclose(solve(-6 * np.eye(3), trace).X, 2 * np.eye(3), atol=1e-12)
    np.testing.assert_allclose(solve(np.diag([-6.0, -1, 3]), trace).X, np.diag([6.0, 0, 0]), atol=1e-9)
    twice = solve(np.diag([-6.0, -6, 3]), trace)
    np.testing.assert_allclose(twice.X, np.diag([3.0, 3, 0]), atol=1e-9)
    # x11 - x22 / 2 = 1 is all that is asked; the shortest such matrix is not positive semidefinite
    w = svec(np.diag([1.0, -0.5]))
    np.testing.assert_allclose(solve(-smat(w), np.outer(w, w)).X, np.diag([1.0, 0]), atol=1e-9)


@given(k=st.integers(1, 6), seed=st.integers(0, 10_000), factor=st.floats(1e-6, 1e6))
@settings(max_examples=60, deadline=None)
def test_a_multiple_of_the_identity_projects(k, seed, factor):
    alpha = symmetric(np.random.default_rng(seed), k)
    values, vectors = np.linalg.eigh(-alpha / factor)
    expected = (vectors * np.maximum(values, 0)) @ vectors.T
    found = solve(alpha, factor * np.eye(k * (k + 1) // 2))
    np.testing.assert_allclose(found.X, expected, atol=1e-11 * np.linalg.norm(alpha) / factor)


@given(
    k=st.integers(1, 5),
    seed=st.integers(0, 10_000),
    a_scale=st.integers(-12, 12),
    b_scale=st.integers(-12, 12),
)
@settings(max_examples=60, deadline=None)
def test_invariances(k, seed, a_scale, b_scale):
    """Units of alpha and beta, and the choice of the basis, change X as they must."""
    rng = np.random.default_rng(seed)
    alpha, beta, _ = random_problem(rng, k)
    x = solve(alpha, beta).X.numpy()
    close = 1e-8 * (1 + np.linalg.norm(x))
    scaled = solve(10.0**a_scale * alpha, 10.0**b_scale * beta)
    assert scaled.residual <= 1e-10
    np.testing.assert_allclose(10.0 ** (b_scale - a_scale) * scaled.X.numpy(), x, atol=close)
    q = np.linalg.qr(rng.standard_normal((k, k)))[0]
    turn = np.stack([svec(q @ e @ q.T) for e in smat(np.eye(len(beta)))], axis=1)
    turned = solve(q @ alpha @ q.T, turn @ beta @ turn.T)
    np.testing.assert_allclose(q.T @ turned.X.numpy() @ q, x, atol=close)


@pytest.mark.parametrize("spread", [4, 8])
def test_ill_conditioned_operators(spread):
    rng = np.random.default_rng(spread)
    for trial in range(40):
        k = 2 + trial % 4
        m = k * (k + 1) // 2
        q = np.linalg.qr(rng.standard_normal((m, m)))[0]
        beta = (q * np.geomspace(10.0**-spread, 1, m)) @ q.T
        beta = (beta + beta.T) / 2
        alpha = symmetric(rng, k)
        found = solve(alpha, beta)
        rounding = 1e-15 * np.linalg.norm(found.X) * np.linalg.norm(beta) / np.linalg.norm(alpha)
        assert found.residual <= max(1e-10, 20 * rounding)


class TestMethods:
    def test_in_order(self):
        rng = np.random.default_rng(0)
        alpha, beta, x, _ = planted(rng, 3, 3, 0, 8)
        zero = solve(np.eye(3), beta)
        assert (zero.method, zero.rank, zero.residual) == (Method.ZERO, 0, 0.0)
        closed = solve(np.array([[-6.0]]), np.array([[2.0]]))
        assert (closed.method, closed.X.item()) == (Method.CLOSED, 3.0)
        active = solve(alpha, beta)
        assert (active.method, active.iterations) == (Method.ACTIVE, 0)
        np.testing.assert_allclose(active.X, x, atol=1e-10)
        part, beta, x, _ = planted(rng, 3, 2, 1, 8)
        assert solve(part, beta).method is Method.NEWTON
        thin, beta, x, _ = planted(rng, 3, 2, 1, 4)
        assert solve(thin, beta).method is Method.INTERIOR

    def test_no_direction(self):
        found = solve(np.zeros((0, 0)), np.zeros((0, 0)))
        assert found.X.shape == (0, 0)
        assert found.rank == 0

    def test_a_good_start_saves_steps(self):
        rng = np.random.default_rng(3)
        for k in (3, 5, 8):
            alpha, beta, x, _ = planted(rng, k, k - 1, 1, k * (k + 1))
            cold = solve(alpha, beta)
            again = solve(alpha, beta, start=cold)
            nearby = solve(alpha, beta, start=torch.from_numpy(x) + 1e-4 * torch.eye(k))
            assert again.iterations <= 1 < cold.iterations
            assert nearby.iterations < cold.iterations
            for found in (again, nearby):
                np.testing.assert_allclose(found.X, x, atol=1e-8)

    def test_a_bad_start_does_not_matter(self):
        rng = np.random.default_rng(4)
        alpha, beta, x, _ = planted(rng, 4, 2, 2, 20)
        for size in (0.0, 1e-6, 1e6):
            found = solve(alpha, beta, start=-size * symmetric(rng, 4))
            np.testing.assert_allclose(found.X, x, atol=1e-7)


class TestUnbounded:
    @pytest.mark.parametrize("k", [1, 2, 4])
    def test_nothing_answers(self, k):
        with pytest.raises(Unbounded, match="third derivative vanishes"):
            solve(-np.eye(k), np.zeros((k * (k + 1) // 2,) * 2))

    @pytest.mark.parametrize("k", [2, 3, 5])
    def test_one_direction_does_not_answer(self, k):
        """Everything but <q q', X> is penalised, and alpha is negative along q."""
        rng = np.random.default_rng(k)
        q = np.linalg.qr(rng.standard_normal((k, k)))[0][:, 0]
        direction = svec(np.outer(q, q))
        beta = np.eye(k * (k + 1) // 2) - np.outer(direction, direction)
        alpha = symmetric(rng, k) + 10 * np.eye(k)
        alpha = alpha - (q @ alpha @ q + 0.1) * np.outer(q, q)
        with pytest.raises(Unbounded, match="no solution"):
            solve(alpha, beta)

    def test_a_kernel_in_which_alpha_is_positive_is_harmless(self):
        beta = np.diag([1.0, 1, 0])
        found = solve(np.diag([-1.0, 1]), beta)
        np.testing.assert_allclose(found.X, np.diag([1.0, 0]), atol=1e-9)

    def test_an_infimum_that_is_not_attained_is_approached(self):
        """(x12 - 1)^2 / 2 + x22 tends to zero with x11 to infinity: the conditions hold as well as one likes."""
        found = solve(np.array([[0.0, -1.0], [-1.0, 1.0]]), np.diag([0.0, 1.0, 0.0]))
        assert found.residual <= 1e-10
        assert float(found.X[0, 0]) > 1e4


def test_a_solver_that_stops_early_is_found_out(monkeypatch):
    """The residuals are measured on the given data, so nothing has to be believed."""
    alpha, beta, x, _ = planted(np.random.default_rng(0), 3, 2, 1, 9)
    for solver in ("newton", "proximal"):
        monkeypatch.setattr(complementarity, solver, lambda a, b, z: (Split.of(z).positive, z, 1))
    with pytest.raises(NotConverged, match="instead of 1e-10") as error:
        solve(alpha, beta)
    best = solve(alpha, beta, strict=False)
    assert best.residual == error.value.result.residual > 1e-10
    assert best.method is Method.INTERIOR, "the best of what was found"
    np.testing.assert_allclose(best.X, x, atol=1e-3)


class TestInput:
    def test_tensors_of_any_dtype_give_float64(self):
        rng = np.random.default_rng(0)
        alpha, beta, x, _ = planted(rng, 3, 2, 1, 9)
        for dtype in (torch.float32, torch.float64):
            found = solve(torch.from_numpy(alpha).to(dtype), torch.from_numpy(beta).to(dtype).requires_grad_())
            assert found.X.dtype == found.slack.dtype == torch.float64
            np.testing.assert_allclose(found.X, x, atol=1e-3 if dtype == torch.float32 else 1e-8)

    def test_rounding_of_single_precision_is_removed(self):
        rng = np.random.default_rng(1)
        rows = rng.standard_normal((6, 4)).astype(np.float32)
        beta = (rows @ rows.T).astype(np.float64) + 1e-7 * symmetric(rng, 6) + 1e-7 * rng.standard_normal((6, 6))
        assert np.linalg.eigvalsh((beta + beta.T) / 2)[0] < 0
        alpha = -smat(rows.astype(float) @ (rows.T.astype(float) @ svec(np.eye(3))))
        assert solve(alpha, beta, strict=False).residual < 1e-6

    def test_wrong_data_is_refused(self):
        eye = np.eye(3)
        with pytest.raises(InvalidInput, match="packed matrices"):
            solve(np.eye(2), np.eye(4))
        with pytest.raises(InvalidInput, match="packed matrices"):
            solve(np.zeros(3), eye)
        with pytest.raises(InvalidInput, match="Alpha has NaN"):
            solve(np.full((2, 2), np.nan), eye)
        with pytest.raises(InvalidInput, match="Beta has NaN"):
            solve(-np.eye(2), np.full((3, 3), np.inf))
        with pytest.raises(InvalidInput, match="Beta differs from its transpose"):
            solve(-np.eye(2), eye + np.triu(np.ones((3, 3)), 1))
        with pytest.raises(InvalidInput, match="the eigenvalue -1"):
            solve(-np.eye(2), np.diag([1.0, 1, -1]))
        with pytest.raises(InvalidInput, match="Start has shape"):
            solve(np.eye(2), eye, start=np.eye(3))


def test_the_split_and_its_derivative():
    """The derivative of the projection, against central differences."""
    rng = np.random.default_rng(0)
    for k in (1, 2, 4):
        z, d = svec(symmetric(rng, k)), svec(symmetric(rng, k))
        h = 1e-6
        numeric = (Split.of(z + h * d).positive - Split.of(z - h * d).positive) / (2 * h)
        np.testing.assert_allclose(Split.of(z).derivative @ d, numeric, atol=1e-8)


def test_a_result_says_what_it_is():
    alpha, beta, _, _ = planted(np.random.default_rng(0), 3, 2, 1, 9)
    found = solve(alpha, beta)
    assert "rank=2" in repr(found)
    assert "NEWTON" in repr(found)
    figure = found.plot()
    assert "2 of 3" in figure.layout.title.text
    assert len(figure.data) == 2
