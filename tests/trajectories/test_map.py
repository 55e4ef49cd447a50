"""The map and its averages against direct computation; what leaves it unchanged; what is undefined."""

import numpy as np
import pytest
import torch
from path_cases import plain_grams, points_of_walk

from thalweg.errors import InvalidInput
from thalweg.trajectories.averages import weights
from thalweg.trajectories.kernels import Kernels
from thalweg.trajectories.map import trajectory_map
from thalweg.trajectories.nulls import Decay


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def tensors(rng):
    return {
        "q": 3 + np.cumsum(rng.standard_normal((12, 40)), axis=0),
        "k": np.cumsum(rng.standard_normal((12, 30)), axis=0),
        "bias": rng.standard_normal((12, 5)),
    }


def joined(tensors):
    return np.concatenate(list(tensors.values()), axis=1)


def cosines(rows):
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def test_maps_are_the_cosines_of_checkpoints_of_moves_from_the_anchor_and_of_updates(tensors):
    found, points = trajectory_map(plain_grams(tensors), anchor=4), joined(tensors)
    np.testing.assert_allclose(found.similarity, cosines(points), atol=1e-12)
    np.testing.assert_allclose(found.updates, cosines(np.diff(points, axis=0)), atol=1e-12)
    rest = np.arange(12) != 4
    np.testing.assert_allclose(found.relative[np.ix_(rest, rest)], cosines((points - points[4])[rest]), atol=1e-12)
    assert np.isnan(found.relative[4]).all()
    np.testing.assert_allclose(found.path().kernel, points @ points.T, rtol=1e-12)


def test_the_map_is_symmetric_with_unit_diagonal_and_positive(tensors):
    found = trajectory_map(plain_grams(tensors))
    for one in (found.similarity, found.updates, found.relative[1:, 1:]):
        np.testing.assert_array_equal(one, one.T)
        np.testing.assert_allclose(np.diag(one), 1.0, atol=1e-15)
        assert np.linalg.eigvalsh(one).min() > -1e-8


def test_scale_and_order_of_coordinates_do_not_matter_and_the_relative_map_ignores_where_the_path_lies(rng, tensors):
    points = joined(tensors)
    base = Kernels.from_points(points)
    for same in (7.5 * points, points[:, rng.permutation(points.shape[1])]):
        other = Kernels.from_points(same)
        np.testing.assert_allclose(other.similarity, base.similarity, atol=1e-12)
        np.testing.assert_allclose(other.relative(3), base.relative(3), atol=1e-12)
    moved = Kernels.from_points(points + rng.standard_normal(points.shape[1]))
    np.testing.assert_allclose(moved.relative(3), base.relative(3), atol=1e-12)
    assert np.abs(moved.similarity - base.similarity).max() > 0.01


def test_tensors_add_up_to_groups_and_groups_to_the_whole(tensors):
    found = trajectory_map(plain_grams(tensors), groups={"q": "attention", "k": "attention", "bias": "bias"})
    assert found.groups == ("whole", "attention", "bias")
    total = found.path("attention").kernel + found.path("bias").kernel
    np.testing.assert_allclose(found.path().kernel, total, rtol=1e-12)
    fused = np.concatenate([tensors["q"], tensors["k"]], axis=1)
    np.testing.assert_allclose(found.path("attention").similarity, cosines(fused), atol=1e-12)
    each = trajectory_map(plain_grams(tensors), groups="tensor")
    assert each.groups == ("whole", "q", "k", "bias")
    named = trajectory_map(plain_grams(tensors), groups=lambda name: None if name == "bias" else "attention")
    np.testing.assert_array_equal(named.path("attention").kernel, found.path("attention").kernel)


def test_increments_keep_digits_that_whole_checkpoints_lose(rng):
    points = (1 + np.cumsum(1e-3 * rng.standard_normal((60, 4000)), axis=0)).astype(np.float32)
    exact = Kernels.from_points(points.astype(np.float64))

    def turning(increments):
        return np.diag(increments, 1) / np.sqrt(np.diag(increments)[1:] * np.diag(increments)[:-1])

    moved = np.diff(points, axis=0)
    ours = turning((moved @ moved.T).astype(np.float64))
    whole = (points @ points.T).astype(np.float64)
    theirs = turning(np.diff(np.diff(whole, axis=0), axis=1))
    truth = np.diag(exact.updates, 1)
    assert np.abs(ours - truth).max() < 1e-6
    assert np.abs(theirs - truth).max() > 1e-4


def test_averages_weight_pairs_and_leave_out_the_diagonal(tensors):
    steps = [0, 1, 2, 4, 8, 16, 32, 64, 128, 1000, 2000, 3000]
    rates = np.linspace(1, 0.1, 12)
    found = trajectory_map(plain_grams(tensors, steps), schedule={"learning_rate": rates})
    c, count = found.similarity, 12
    assert list(found.mds) == ["uniform", "time", "learning_rate", "arclength"]
    uniform = found.mds["uniform"]
    assert uniform.omega == pytest.approx(c.mean(), abs=1e-14)
    assert uniform.omega_off == pytest.approx((count * c.mean() - 1) / (count - 1), abs=1e-14)
    assert uniform.relative == pytest.approx(found.relative[1:, 1:].mean(), abs=1e-14)
    assert (uniform.skipped, uniform.skipped_relative) == (0, 0)
    w = weights(found.path(), "time")
    np.testing.assert_allclose(w[:3] * 3000, [0.5, 1.0, 1.5], rtol=1e-12)
    assert found.mds["time"].omega == pytest.approx(w @ c @ w, abs=1e-14)
    v = w * rates / (w @ rates)
    assert found.mds["learning_rate"].omega == pytest.approx(v @ c @ v, abs=1e-14)
    assert found.mds["learning_rate"].omega_off == pytest.approx((v @ c @ v - v @ v) / (1 - v @ v), abs=1e-14)


def test_undefined_entries_are_nan_skipped_and_counted(tensors):
    for points in tensors.values():
        points[1] = points[0]  # nothing moved at first
        points[6] = points[5]
    found = trajectory_map(plain_grams(tensors))
    assert np.isnan(found.relative[[0, 1]]).all()
    assert np.isnan(found.updates[[0, 5]]).all()
    assert np.isfinite(found.similarity).all()
    mds = found.mds["uniform"]
    assert mds.skipped == 0
    assert mds.skipped_relative == 11 + 10
    assert mds.relative == pytest.approx(np.nanmean(found.relative[1:, 1:]), abs=1e-14)
    assert "nan" not in repr(found)


def test_a_group_that_never_moves_has_a_map_and_no_weights_by_length(tensors):
    tensors["bias"][:] = tensors["bias"][0]
    found = trajectory_map(plain_grams(tensors), groups="tensor")
    np.testing.assert_allclose(found.path("bias").similarity, 1.0, atol=1e-14)
    assert "arclength" not in found.mds_of("bias")
    assert np.isnan(found.table("bias")["straightness"].value)
    assert found.data.omega_relative.sel(group="bias").isnull().all()


def test_the_dataset_has_every_group_by_name(tensors):
    found = trajectory_map(plain_grams(tensors), groups="tensor", decay=Decay(0.1, learning_rate=0.01))
    data = found.data
    assert dict(data.sizes) | {"group": 4, "step": 12, "increment": 11, "component": 3} == dict(data.sizes)
    np.testing.assert_array_equal(data.similarity.sel(group="whole"), found.similarity)
    np.testing.assert_allclose(data.persistence, data.similarity - data.decay_null, atol=1e-15)
    assert data.turning.sel(group="q", lag=1).isnull().sum() == 2


def test_each_number_stands_beside_its_nulls(rng):
    path = points_of_walk(rng, 60, 20_000, 2.0)
    table = trajectory_map(plain_grams({"w": path})).table()
    for row in table:
        assert np.isfinite([row.value, row.line, row.walk, row.mixing]).all(), row.key
        scale = 90.0 if "deg" in row.name else max(1.0, abs(row.walk))
        assert abs(row.value - row.walk) < 0.03 * scale, row.key
    assert table["straightness"].line == pytest.approx(1.0, abs=1e-12)
    assert "-0.000" not in repr(table)
    assert repr(table).splitlines()[0].split() == ["whole", "measured", "line", "walk", "mixing"]
    with pytest.raises(InvalidInput, match="No measure"):
        table["speed"]


def test_what_is_wrong_is_named(tensors):
    grams = plain_grams(tensors)
    with pytest.raises(InvalidInput, match="Anchor 12"):
        trajectory_map(grams, anchor=12)
    with pytest.raises(InvalidInput, match="no such tensor"):
        trajectory_map(grams, groups={"v": "attention"})
    with pytest.raises(InvalidInput, match="layer, role and tensor"):
        trajectory_map(grams, groups="head")
    with pytest.raises(InvalidInput, match="learning_rate"):
        trajectory_map(grams, schedule={"learning_rate": [0.1]})
    with pytest.raises(InvalidInput, match="No group"):
        trajectory_map(grams).complexity("v")
    with pytest.raises(InvalidInput, match="decay"):
        trajectory_map(grams).persistence()


def test_windows_and_thinned_paths_are_paths_of_their_own(tensors):
    points = joined(tensors)
    path = Kernels.from_points(points)
    np.testing.assert_allclose(path.window(3, 9).kernel, points[3:9] @ points[3:9].T, rtol=1e-11)
    keep = [2, 3, 7, 11]
    np.testing.assert_allclose(path.thinned(keep).kernel, points[keep] @ points[keep].T, rtol=1e-11)


def test_the_overview_shows_the_maps_and_their_null(tensors):
    from thalweg.trajectories.figure import unpacked

    figure = trajectory_map(plain_grams(tensors, quantum=10.0)).plot()
    np.testing.assert_allclose(unpacked(figure.data[0].z), cosines(joined(tensors)), atol=1e-6)
    assert [trace.name for trace in figure.data[:3]] == ["cosine", "relative cosine", "cosine of updates"]
    assert any(trace.name == "below the precision floor" for trace in figure.data)


def test_a_trajectory_is_read_once_and_grouped_by_role_and_layer_with_fused_tensors_taken_apart(rng):
    from thalweg.runs.sources import Trajectory

    heads, size, count = 2, 3, 7
    model = {
        "gpt_neox.layers.0.attention.query_key_value.weight": (3 * heads * size, heads * size),
        "gpt_neox.layers.0.mlp.dense_h_to_4h.weight": (8, 6),
        "gpt_neox.layers.1.mlp.dense_h_to_4h.weight": (8, 6),
        "gpt_neox.final_layer_norm.weight": (6,),
    }
    points = [
        {name: torch.from_numpy(rng.standard_normal(shape)) for name, shape in model.items()} for _ in range(count)
    ]
    path = Trajectory.from_arrays(points, steps=[0, 1, 2, 4, 8, 16, 32])
    path.config = {"num_attention_heads": heads}
    by_role = trajectory_map(path, groups="role")
    assert set(by_role.groups) == {"whole", "Q", "K", "V", "MLP in", "norm scale"}
    fused = [
        p["gpt_neox.layers.0.attention.query_key_value.weight"].reshape(heads, 3, size, -1).numpy() for p in points
    ]
    for i, role in enumerate("QKV"):
        rows = np.stack([one[:, i].ravel() for one in fused])
        np.testing.assert_allclose(by_role.path(role).similarity, cosines(rows), atol=1e-9)
    total = sum(by_role.path(role).kernel for role in "QKV")
    rows = np.stack([one.ravel() for one in fused])
    np.testing.assert_allclose(total, rows @ rows.T, rtol=1e-9, atol=1e-9)
    by_layer = trajectory_map(path, groups="layer")
    assert set(by_layer.groups) == {"whole", "final_layer_norm", "layers.0", "layers.1"}
    np.testing.assert_allclose(
        by_layer.path().kernel, sum(by_layer.path(g).kernel for g in by_layer.groups[1:]), rtol=1e-9, atol=1e-9
    )
