"""The look for repeated eigenvalues: its bound is a bound, its promise is kept, and its price is small."""

import math

import numpy as np
import pytest
import torch
from spectra_of_all_kinds import SPECTRA, expected, symmetric

from thalweg.operators import from_dense
from thalweg.spectra.hidden import MISS, Edges, _Mass, look
from thalweg.spectra.krylov import Krylov
from thalweg.spectra.lanczos import Lanczos, top_eigenpairs
from thalweg.spectra.task import Task


def task(operator, k=3, which="largest"):
    return Task(operator, k, which, tol=1e-7, budget=1000)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_no_eigenvalue_carries_more_than_the_bound(steps):
    """The bound on the mass at a level holds for the true mass, and is attained by the best quadrature."""
    values = np.r_[[3.0], np.linspace(-1, 1, 59)]
    matrix = symmetric(values)
    vectors = torch.linalg.eigh(matrix).eigenvectors
    krylov = Krylov(from_dense(matrix), 20, torch.Generator().manual_seed(0))
    krylov.begin(None)
    mass = _Mass(3.0)
    true = float(krylov.rows[0] @ vectors[:, -1]) ** 2
    for _ in range(steps):
        krylov.expand()
        j = krylov.size - 1
        mass.advance(float(krylov.matrix[j, j]), krylov.beta)
    assert true <= 1 / mass.total * (1 + 1e-9)
    # The bound is not idle: where the steps are done, T + beta^2/(t - theta) has t itself as an eigenvalue.
    t = krylov.matrix[:steps, :steps]
    last = np.zeros(steps)
    last[-1] = krylov.beta
    resolvent = np.linalg.solve(3.0 * np.eye(steps) - t, last)
    bordered = np.block([[t, last[:, None]], [last[None], np.array([[last @ resolvent]]) * 0 + 3.0]])
    corner = 3.0 - float(last @ resolvent)
    bordered[-1, -1] = corner
    found, coordinates = np.linalg.eigh(bordered)
    place = int(np.argmin(np.abs(found - 3.0)))
    assert found[place] == pytest.approx(3.0, abs=1e-9)
    assert coordinates[0, place] ** 2 == pytest.approx(1 / mass.total, rel=1e-6)


def test_the_chance_is_the_chance():
    """Of random unit vectors, so many have a component below s along a fixed one; the bound is just above it."""
    n, mass = 500, _Mass(1.0)
    mass.total = 1e5
    stream = torch.Generator().manual_seed(0)
    drawn = torch.randn(20_000, n, generator=stream)
    small = float(((drawn[:, 0] / drawn.norm(dim=1)).square() < 1 / mass.total).double().mean())
    spread = math.sqrt(mass.chance(n) / 20_000)
    assert small <= mass.chance(n) + 3 * spread
    assert small >= 0.9 * mass.chance(n) - 3 * spread


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("copies", [1, 2, 4])
def test_every_copy_is_found_whatever_the_seed(copies, which):
    rng = np.random.default_rng(copies)
    values = np.r_[[6.0] * copies, [-6.5] * copies, [4.0, 3.0, -3.8, -3.5], rng.uniform(-0.5, 0.5, 100)]
    matrix = symmetric(values)
    truth = expected(matrix, 3, which)
    for seed in range(10):
        pairs = top_eigenpairs(from_dense(matrix), 3, which=which, seed=seed)
        torch.testing.assert_close(pairs.values, truth, rtol=1e-8, atol=0)


def test_a_look_is_short_where_the_rest_is_small():
    matrix = symmetric(SPECTRA["outliers"])
    with_look = top_eigenpairs(from_dense(matrix), 5)
    without = top_eigenpairs(from_dense(matrix), 5, method=Lanczos(check_multiplicity=False))
    assert 1 <= with_look.products - without.products <= 6
    assert f"{with_look.products - without.products} products looked for repeated eigenvalues" in with_look.why


def test_copies_of_the_last_value_are_not_looked_for():
    """They would change nothing: five of ten equal eigenvalues are the answer, and no further product is due."""
    matrix = symmetric(np.r_[[5.0] * 10, np.linspace(-0.1, 0.1, 90)])
    operator = from_dense(matrix)
    edges = Edges.of(task(operator, 5), np.full(5, 5.0), 5.0)
    hint, chance = look(task(operator, 5), [], edges, torch.Generator().manual_seed(0))
    assert hint is None
    assert chance == 0.0
    assert operator.products == 0


def test_ten_copies_of_each_cost_less_than_a_block_of_ten():
    """A linear model with ten outputs: every eigenvalue of its Hessian ten times."""
    matrix = symmetric(np.repeat(np.r_[[5.0, 3.0, 2.0, 1.5, 1.2], 0.9 ** np.arange(1, 16)], 10))
    operator = from_dense(matrix)
    pairs = top_eigenpairs(operator, 5)
    torch.testing.assert_close(pairs.values, torch.full((5,), 5.0, dtype=torch.float64), rtol=1e-9, atol=0)
    assert operator.products <= 100


def test_what_could_not_be_excluded_is_said():
    matrix = symmetric(np.linspace(0, 1, 900))
    vectors = torch.linalg.eigh(matrix).eigenvectors
    operator = from_dense(matrix)
    edges = Edges.of(task(operator, 2), np.array([1.0, 898 / 899]), 1.0)
    hint, chance = look(task(operator, 2), [vectors[:, -2:].T], edges, torch.Generator().manual_seed(0))
    assert hint is None
    assert MISS < chance <= 1
    assert operator.products == 64


@pytest.mark.parametrize(
    ("which", "found", "bounds", "levels"),
    [
        ("largest", [5, 4, 3], (-np.inf, 3), (-np.inf, 4)),
        ("smallest", [-5, -4, -3], (-3, np.inf), (-4, np.inf)),
        ("both", [5, 4, 3, -6, -7, -8], (-6, 3), (-7, 4)),
        ("magnitude", [5, -4, 3], (-3, 3), (-4, 5)),
        ("largest", [5, 5, 5], (-np.inf, 5), (-np.inf, np.inf)),
    ],
)
def test_edges(which, found, bounds, levels):
    edges = Edges.of(task(from_dense(torch.eye(20).double()), 3, which), np.array(found, dtype=float), 8.0)
    np.testing.assert_allclose(edges.bounds, bounds, atol=1e-5)
    assert edges.levels == levels
    assert edges.beyond(np.array([-100.0, 0.0, 100.0])) == [
        i for i, b in ((0, bounds[0]), (2, bounds[1])) if np.isfinite(b)
    ]


def test_pairs_of_two_runs_are_pairs_of_one_space():
    """Loose pairs leave a complement that is not invariant; together they are honest, and as good as each."""
    matrix = symmetric(np.r_[[9.0, 9.0, 7.0, 3.0, 2.5], -np.linspace(0.1, 5, 95)])
    for seed in range(5):
        operator = from_dense(matrix)
        pairs = top_eigenpairs(operator, 4, tol=1e-4, seed=seed)
        explicit = (matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
        assert bool((explicit <= 1e-4 * pairs.values).all())
        assert bool((explicit <= 1.01 * pairs.residuals).all())
        gram = pairs.vectors.T @ pairs.vectors
        torch.testing.assert_close(gram, torch.eye(4, dtype=torch.float64), atol=1e-12, rtol=0)
        assert "hidden" in pairs.why
