"""Where averages of squares rest at fixed weights: against the convex program, and in closed form."""

import numpy as np
import pytest
import torch
from toys import digits, of_weights

from reference.stationary import stationary
from thalweg.errors import InvalidInput, NotConverged
from thalweg.flows import stationary as module
from thalweg.flows.stationary import stationary_preconditioner
from thalweg.operators import hessian
from thalweg.rules import Adam, GradientDescent, RMSProp, ScalarRMSProp


def quadratic(n, seed, distance):
    stream = torch.Generator().manual_seed(seed)
    factor = torch.randn(n, n // 2, generator=stream, dtype=torch.float64)
    H = factor @ factor.T / n - 0.1 * torch.eye(n, dtype=torch.float64)
    start = distance * torch.randn(n, generator=stream, dtype=torch.float64)
    return of_weights(lambda w: 0.5 * w @ H @ w, *start.tolist())


def solved(problem, eta):
    H, g = hessian(problem, problem.initial).dense().numpy(), problem.gradient(problem.initial).numpy()
    return (H + H.T) / 2, g, stationary((H + H.T) / 2, g, eta)


@pytest.mark.parametrize(("n", "eta", "distance"), [(12, 0.3, 0.1), (24, 1.0, 0.03), (24, 0.01, 1.0)])
def test_it_is_the_minimum_of_the_convex_program(n, eta, distance):
    problem = quadratic(n, n, distance)
    H, g, best = solved(problem, eta)
    found = stationary_preconditioner(problem, RMSProp(lr=eta, eps=0.0), tol=1e-6)
    P = found.preconditioner.numpy()

    def objective(p):
        return p.sum() + (g**2 / p).sum() / eta**2

    assert objective(P) == pytest.approx(objective(best), rel=1e-6)
    np.testing.assert_allclose(P, best, atol=1e-3 * best.max())
    assert np.linalg.eigvalsh(2 * np.diag(P) - H)[0] > -1e-5 * P.max()
    # The multiplier of the program is 2 Sigma / eta^2, and the averages are those of g g' + H Sigma H.
    U, xi = found.directions.numpy(), found.covariance.numpy()
    assert eta < 0.1 or (xi > 1e-12).sum() > 1, "several directions hold the limit together"
    sigma = (U * xi) @ U.T
    np.testing.assert_allclose(g**2 + np.diag(H @ sigma @ H), found.nu.numpy(), atol=1e-3 * found.nu.max())


def test_on_a_network_with_or_without_forming_the_hessian(monkeypatch):
    problem, rule = digits(samples=5), RMSProp(lr=0.05, eps=0.0)
    with pytest.raises(NotConverged, match="after 2 steps") as error:
        stationary_preconditioner(problem, rule, max_steps=2)
    found = error.value.result
    assert found.steps == 2
    assert found.products < problem.dimension, "a Hessian of this size is not formed"
    toy = quadratic(20, 1, 0.1)
    dense = stationary_preconditioner(toy, rule, tol=1e-5)
    monkeypatch.setattr(module, "DENSE", 0)
    lean = stationary_preconditioner(toy, rule, tol=1e-5)
    torch.testing.assert_close(
        lean.preconditioner, dense.preconditioner, rtol=0, atol=1e-3 * float(dense.nu.max().sqrt())
    )


def test_a_start_nearby_rests_sooner_at_the_same_place():
    problem, rule = quadratic(12, 12, 0.1), RMSProp(lr=0.3, eps=0.0)
    cold = stationary_preconditioner(problem, rule, tol=1e-5)
    warm = stationary_preconditioner(problem, rule, tol=1e-5, start=cold.nu * 1.05)
    assert warm.steps < cold.steps
    torch.testing.assert_close(warm.nu, cold.nu, rtol=0, atol=1e-3 * float(cold.nu.max()))
    assert "directions oscillate" in repr(cold)


@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_the_scalar_rule_rests_at_half_the_sharpness(eps):
    problem = quadratic(10, 3, 1e-3)
    top = float(torch.linalg.eigvalsh(hessian(problem, problem.initial).dense())[-1])
    found = stationary_preconditioner(problem, ScalarRMSProp(lr=0.5, eps=eps), tol=1e-6)
    assert float(found.preconditioner) == pytest.approx(top / 2, rel=1e-5)
    assert found.sharpness == pytest.approx(2.0, rel=1e-5)


def test_other_rules_and_odd_numbers_are_refused():
    problem = quadratic(6, 0, 1.0)
    for rule in (GradientDescent(lr=0.1), Adam(lr=0.1)):
        with pytest.raises(InvalidInput, match="averages of squares"):
            stationary_preconditioner(problem, rule)
    with pytest.raises(InvalidInput, match="rate=2"):
        stationary_preconditioner(problem, RMSProp(lr=0.1), rate=2.0)
