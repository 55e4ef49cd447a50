import killable
import numpy as np
import pytest
import torch

import thalweg as tw
from thalweg.errors import InvalidInput, NotConverged
from thalweg.operators import preconditioned
from thalweg.runs import Spectrum, train

RULES = {
    "gd": tw.rules.GradientDescent(lr=0.3),
    "decay": tw.rules.GradientDescent(lr=0.3, weight_decay=0.05),
    "rmsprop": tw.rules.RMSProp(lr=0.01, beta2=0.9),
}


@pytest.mark.parametrize("name", RULES)
def test_against_dense_matrices(name, tmp_path):
    """Eigenvalues of P^-1/2 (H + gamma) P^-1/2 with the P that the update used; residuals bound the error."""
    problem, rule, steps = killable.make_problem(), RULES[name], 12
    data = train(problem, rule, steps, folder=tmp_path / "run", measures=[Spectrum(k=3, every=4)]).data
    w = problem.initial
    state = rule.init(w)
    for t in range(steps + 1):
        gradient = problem.gradient(w)
        following, state = rule.advance(w, state, gradient)
        values = data["eigenvalues"].values[t]
        if t % 4:
            assert np.isnan(values).all()
            assert np.isnan(data["sharpness"].values[t])
        else:
            matrix = tw.hessian(problem, w).dense() + rule.decay * torch.eye(problem.dimension, dtype=problem.dtype)
            diagonal = rule.preconditioner(state)
            if diagonal is not None:
                matrix = matrix / torch.outer(diagonal, diagonal).sqrt()
            exact = torch.linalg.eigvalsh(matrix).flip(0)[:3].numpy()
            bound = data["eigen_residuals"].values[t] + 1e-9 * abs(exact[0])
            assert (abs(values - exact) <= bound).all()
            assert (data["eigen_residuals"].values[t] <= 1e-3 * values[0]).all()
            assert data["sharpness"].values[t] == values[0]
            assert data["eigen_products"].values[t] > 0
        w = following
    assert data["stability_threshold"].values[0] == rule.stability_threshold(0)


@pytest.mark.parametrize("name", ["gd", "rmsprop"])
def test_projections_obey_the_rule(name, tmp_path):
    """In the coordinates P^1/2 w the update is -lr times the gradient, along every eigenvector."""
    rule = RULES[name]
    data = train(killable.make_problem(), rule, 10, folder=tmp_path / "run", measures=[Spectrum(k=2)]).data
    along, moved = data["gradient_projection"].values, data["update_projection"].values
    assert np.isnan(moved[-1]).all()
    assert np.isfinite(along[-1]).all()
    np.testing.assert_allclose(moved[:-1], -rule.lr * along[:-1], rtol=1e-9, atol=1e-13)
    assert abs(along).max() > 1e-3


def test_the_plain_hessian_on_request(tmp_path):
    problem = killable.make_problem()
    plain = Spectrum(k=1, preconditioned=False, tol=1e-8)
    data = train(problem, RULES["rmsprop"], 3, folder=tmp_path / "run", measures=[plain]).data
    exact = torch.linalg.eigvalsh(tw.hessian(problem).dense())[-1].item()
    assert data["sharpness"].values[0] == pytest.approx(exact, rel=1e-7)
    np.testing.assert_allclose(
        data["gradient_projection"].values[0] ** 2 <= data["gradient_norm"].values[0] ** 2 * (1 + 1e-12), True
    )


def test_every_eigenvalue_above_the_threshold_is_followed(tmp_path):
    problem = killable.make_problem()
    exact = torch.linalg.eigvalsh(tw.hessian(problem).dense()).flip(0)
    rule = tw.rules.GradientDescent(lr=0.1)
    fraction = float(exact[3:5].mean()) / rule.stability_threshold(0)
    measure = Spectrum(k=1, threshold=fraction, tol=1e-8)
    data = train(problem, rule, 0, folder=tmp_path / "run", measures=[measure]).data
    values = data["eigenvalues"].values[0]
    np.testing.assert_allclose(values[:4], exact[:4].numpy(), rtol=1e-6)
    assert len(values) == 5, "the first one below the threshold shows that none is missing"


def test_on_a_part_of_the_data(tmp_path):
    problem = killable.make_problem()
    data = train(problem, RULES["gd"], 2, folder=tmp_path / "run", measures=[Spectrum(samples=6, tol=1e-8)]).data
    exact = torch.linalg.eigvalsh(tw.hessian(problem.subset(slice(0, 6))).dense())[-1].item()
    assert data["sharpness"].values[0] == pytest.approx(exact, rel=1e-7)


def test_mini_batches_are_measured_on_all_data(tmp_path):
    problem = killable.make_problem()
    data = train(problem, RULES["gd"], 2, folder=tmp_path / "run", batch_size=4, measures=[Spectrum(tol=1e-8)]).data
    exact = torch.linalg.eigvalsh(tw.hessian(problem).dense())[-1].item()
    assert data["sharpness"].values[0] == pytest.approx(exact, rel=1e-7)


def test_one_measure_serves_two_runs(tmp_path):
    """The second run does not start from the eigenvectors of the first."""
    measure = Spectrum(k=2)
    runs = [
        train(killable.make_problem(), RULES["gd"], 6, folder=tmp_path / name, measures=[measure])
        for name in ("a", "b")
    ]
    assert runs[0].data["eigenvalues"].equals(runs[1].data["eigenvalues"])
    assert runs[0].data["eigen_products"].equals(runs[1].data["eigen_products"])


def test_where_the_tracker_does_not_converge(tmp_path, monkeypatch):
    """The values are kept with their true residuals, an event says so, and the run goes on."""
    from thalweg.spectra import EigenTracker, Lanczos, top_eigenpairs

    update, given = EigenTracker.update, []

    def failing(self, operator, limit=None, *, w=None):
        if self._updates == 2 and not given:
            given.append(top_eigenpairs(operator, 3, method=Lanczos(tol=1e-14, max_products=8), strict=False))
            raise NotConverged("The tracker gave up. It had no time. Give it more.", given[0])
        return update(self, operator, limit, w=w)

    monkeypatch.setattr(EigenTracker, "update", failing)
    run = train(killable.make_problem(), RULES["gd"], 5, folder=tmp_path / "run", measures=[Spectrum(k=2)])
    assert run.state == "finished"
    assert [(event.step, event.kind) for event in run.events] == [(2, "not_converged")]
    data = run.data
    assert data["eigenvalues"].values[2].tolist() == given[0].values[:2].tolist()
    assert data["eigen_residuals"].values[2].tolist() == given[0].residuals[:2].tolist()
    assert data["eigen_residuals"].values[2].max() > 1e-14
    assert np.isnan(data["eigen_tracks"].values[2]).all()
    assert np.isfinite(data["eigenvalues"].values).all()


@pytest.mark.parametrize("options", [{"every": 0}, {"every": 1.5}, {"every": True}, {"k": 0}, {"tol": -1.0}])
def test_arguments_out_of_range(options):
    with pytest.raises(InvalidInput):
        Spectrum(**options)


def test_preconditioned_is_what_it_says():
    """The dense reference of this file and the library's operator agree."""
    problem = killable.make_problem()
    diagonal = torch.linspace(0.5, 2.0, problem.dimension, dtype=problem.dtype)
    dense = tw.hessian(problem).dense() / torch.outer(diagonal, diagonal).sqrt()
    assert torch.allclose(preconditioned(tw.hessian(problem), diagonal).dense(), dense, atol=1e-12)
