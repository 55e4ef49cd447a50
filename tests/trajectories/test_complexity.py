"""Lengths, angles and spectra against their definitions on whole arrays."""

import numpy as np
import pytest

from thalweg.errors import InvalidInput
from thalweg.trajectories.complexity import complexity, principal, spectrum
from thalweg.trajectories.kernels import Kernels
from thalweg.trajectories.nulls import walk


@pytest.fixture
def points():
    rng = np.random.default_rng(5)
    return 2 + np.cumsum(rng.standard_normal((14, 25)), axis=0)


def degrees(a, b):
    return np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))


def test_lengths_are_those_of_the_path(points):
    found = complexity(Kernels.from_points(points))
    moved = np.diff(points, axis=0)
    u, n = np.linalg.norm(moved, axis=1), np.linalg.norm(points, axis=1)
    r = np.linalg.norm(points - points[0], axis=1)
    np.testing.assert_allclose(found.lengths, u, rtol=1e-12)
    np.testing.assert_allclose(found.norms, n, rtol=1e-12)
    np.testing.assert_allclose(found.radii, r, rtol=1e-12)
    np.testing.assert_allclose(found.update_ratio, u / n[:-1], rtol=1e-12)
    assert found.path_length == pytest.approx(u.sum())
    assert found.straightness == pytest.approx(r[-1] / u.sum())
    assert found.displacement == pytest.approx(r[-1] / n[0])


def test_angles_are_those_between_chords_and_between_points(points):
    found = complexity(Kernels.from_points(points), lags=[1, 3], anchor=2)
    count = len(points)
    for row, q in enumerate([1, 3]):
        for i in range(count):
            if q <= i < count - q:
                expected = degrees(points[i] - points[i - q], points[i + q] - points[i])
                assert found.turning[row, i] == pytest.approx(expected, abs=1e-9)
            else:
                assert np.isnan(found.turning[row, i])
            if i < count - q:
                assert found.apex_origin[row, i] == pytest.approx(degrees(points[i], points[i + q]), abs=1e-9)
                if 2 not in (i, i + q):
                    expected = degrees(points[i] - points[2], points[i + q] - points[2])
                    assert found.apex_anchor[row, i] == pytest.approx(expected, abs=1e-9)
        u = np.linalg.norm(np.diff(points, axis=0), axis=1)
        ratios = [u[i : i + q].sum() / np.linalg.norm(points[i + q] - points[i]) for i in range(count - q)]
        assert found.tortuosity[row] == pytest.approx(np.mean(ratios), rel=1e-12)
    summary = found.turning_summary(3)
    known = found.turning[1][np.isfinite(found.turning[1])]
    assert summary["decile_9"] == pytest.approx(np.quantile(known, 0.9))
    with pytest.raises(InvalidInput, match="Lag 2"):
        found.turning_summary(2)


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9])
def test_small_angles_keep_their_digits(size):
    away = np.zeros((3, 4))
    away[:, 0], away[1, 1], away[2, 2] = 1.0, size, size
    found = complexity(Kernels.from_points(away))
    expected = np.degrees(np.arctan(size))
    assert found.apex_origin[0, 0] == pytest.approx(expected, rel=1e-9)
    naive = np.degrees(np.arccos(min(1.0, 1 / np.sqrt(1 + size**2))))
    if size < 1e-6:
        assert abs(naive / expected - 1) > 0.01


def test_principal_components_are_those_of_the_points(points):
    found = principal(Kernels.from_points(points), components=4)
    middle = points - points.mean(axis=0)
    left, values, right = np.linalg.svd(middle, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.coordinates), np.abs(left[:, :4] * values[:4]), atol=1e-9)
    np.testing.assert_allclose(found.explained, (values**2 / (values**2).sum())[:4], rtol=1e-10)
    rest = middle - middle @ right[:2].T @ right[:2]
    np.testing.assert_allclose(found.residual, np.linalg.norm(rest, axis=1), rtol=1e-8)
    np.testing.assert_allclose(found.distance, np.linalg.norm(middle, axis=1), rtol=1e-10)


def test_spectra_are_of_the_kernels_they_name(points):
    found = complexity(Kernels.from_points(points)).spectra
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    for name, rows in {"kernel": points, "similarity": unit, "updates": np.diff(points, axis=0)}.items():
        expected = np.linalg.svd(rows, compute_uv=False) ** 2
        np.testing.assert_allclose(found[name].values, expected, rtol=1e-6, atol=1e-10 * expected[0])
    assert len(found["relative"].values) == len(points) - 1  # the anchor has no direction


def test_effective_ranks_count_equal_eigenvalues():
    found = spectrum(np.diag([2.0] * 20 + [0.0] * 5))
    assert found.entropy_rank == pytest.approx(20)
    assert found.participation == pytest.approx(20)
    assert found.rank95 == 19
    assert spectrum(np.zeros((3, 3))).rank95 == 0


def test_lags_beyond_the_path_are_left_out():
    assert complexity(walk(range(5)), lags=[1, 4, 5, 9]).lags.tolist() == [1, 4]
    assert complexity(walk(range(3))).lags.tolist() == [1]
    assert complexity(walk(range(2))).turning_summary()["mean"] != 0  # two points do not turn
    with pytest.raises(InvalidInput, match="lag"):
        complexity(walk(range(5)), lags=[0])
