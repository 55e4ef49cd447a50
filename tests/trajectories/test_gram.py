"""The streaming Gram against brute force: exact sums, every byte once, whatever is read at a time."""

from concurrent.futures import Future

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from reference.trajectories import Memory, exact, kernel, kernel_only, relative_error, walk
from thalweg.errors import InvalidInput, NonFinite, StorageError
from thalweg.runs.sources import TensorInfo, Trajectory
from thalweg.trajectories import combine, extend, grams, run_task, tasks
from thalweg.trajectories.products import Products, Workspace
from thalweg.trajectories.tiles import BLOCK, layout

EPS = 2.0**-23
SHAPES = {"embed": (300, 64), "qkv": (96, 32), "norm": (32,), "head": (32, 300)}


def thirds(tensor):
    """Queries, keys and values of two heads of 16 rows, as fused projections hold them."""
    if tensor.name != "qkv":
        return None
    row, head = 32, 16
    starts = {"Q": 0, "K": head, "V": 2 * head}
    return {
        label: [(row * (first + 48 * h), row * (first + 48 * h + head)) for h in range(2)]
        for label, first in starts.items()
    }


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float16, 1e-7), (torch.bfloat16, 1e-7), (torch.float32, 2 * EPS), (torch.float64, 1e-13)],
)
def test_increments_meet_brute_force(dtype, bound):
    points = walk(SHAPES, 12, dtype=dtype)
    found = grams(Memory(points))
    for index, name in enumerate(found.names):
        g, c, m = exact(points, name)
        assert relative_error(found.G[index], g) < bound
        assert np.abs(found.c[index] - c).max() < bound * np.sqrt(m * np.diag(g).max())
        assert found.m[index] == pytest.approx(m, rel=bound)
    assert relative_error(found.kernel(), kernel(points)) < bound


def test_exact_products_of_float32_files():
    points = walk(SHAPES, 6, dtype=torch.float32)
    found = grams(Memory(points), exact=True)
    assert relative_error(found.increments(), exact(points)[0]) < 1e-14


def test_products_of_points_fail_the_bound_that_increments_meet():
    points = walk({"w": (400, 500)}, 30, scale=1e-3)
    g = exact(points)[0]
    assert relative_error(grams(Memory(points)).increments(), g) < 1e-7
    assert relative_error(kernel_only(points), g) > 1e-4


def test_one_float32_sum_is_short_enough_where_all_products_are_positive():
    points = [{"w": torch.full((3 * BLOCK + 5,), 1 + i * 2.0**-9, dtype=torch.float16)} for i in range(3)]
    found = grams(Memory(points))
    assert relative_error(found.increments(), exact(points)[0]) < 1e-7


def test_every_byte_is_read_once():
    source = Memory(walk(SHAPES, 64))
    found = grams(source, tile=1000, parts=thirds)
    assert source.times_read() == {1}
    assert found.bytes_read == source.bytes_read == 64 * 2 * sum(t.numel for t in source.tensors)


def test_readers_share_the_reads():
    points = walk(SHAPES, 7)
    source = Memory(points)
    found = grams(source, tile=1500, readers=3)
    assert source.times_read() == {1}
    assert np.array_equal(found.G, grams(Memory(points)).G)


@given(tile=st.integers(1, 9 * BLOCK), size=st.integers(1, 12 * BLOCK), count=st.integers(2, 5))
@settings(max_examples=25, deadline=None)
def test_what_is_read_at_a_time_changes_no_bit(tile, size, count):
    tile = max(tile, size // 50)
    points = walk({"w": (size,)}, count, seed=size)
    one, other = grams(Memory(points)), grams(Memory(points), tile=tile)
    assert np.array_equal(one.G, other.G)
    assert np.array_equal(one.c, other.c)
    assert np.array_equal(one.m, other.m)
    assert np.array_equal(one.unchanged, other.unchanged)


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.25, 1.0, 8.0]))
@settings(max_examples=15, deadline=None)
def test_a_common_permutation_and_power_of_two_change_only_rounding(seed, scale):
    points = walk({"w": (700,)}, 5, dtype=torch.float32, seed=seed)
    order = torch.randperm(700, generator=torch.Generator().manual_seed(seed))
    moved = [{"w": scale * p["w"][order]} for p in points]
    one, other = grams(Memory(points), exact=True), grams(Memory(moved), exact=True)
    assert relative_error(other.increments() / scale**2, one.increments()) < 1e-13
    assert relative_error(other.kernel() / scale**2, one.kernel()) < 1e-13


def test_parts_add_up_to_the_fused_tensor():
    points = walk(SHAPES, 9)
    whole, split = grams(Memory(points)), grams(Memory(points), parts=thirds)
    assert split.names == ("embed", "qkv[Q]", "qkv[K]", "qkv[V]", "norm", "head")
    both = split.grouped({"fused": lambda name: name.startswith("qkv")})
    assert relative_error(both.G[0], whole.G[1]) < 1e-7
    view = torch.arange(96 * 32).view(2, 3, 16, 32)
    for part, label in enumerate("QKV"):
        g, _, _ = exact(points, "qkv", view[:, part].flatten())
        assert relative_error(split.increments(f"qkv[{label}]"), g) < 1e-7


def test_parts_in_short_runs():
    points = walk({"c_attn": (200, 90)}, 5)
    parts = lambda t: {k: [(90 * r + 30 * i, 90 * r + 30 * i + 30) for r in range(200)] for i, k in enumerate("QKV")}  # noqa: E731
    found, other = grams(Memory(points), parts=parts, tile=4001), grams(Memory(points), parts=parts)
    assert np.array_equal(found.G, other.G)
    for i, label in enumerate("QKV"):
        places = torch.arange(200 * 90).view(200, 3, 30)[:, i].flatten()
        assert relative_error(found.increments(f"c_attn[{label}]"), exact(points, "c_attn", places)[0]) < 1e-7


def test_groups_add_up_to_the_whole():
    found = grams(Memory(walk(SHAPES, 9)))
    coarse = found.grouped({"ends": ["embed", "head"], "rest": lambda name: name in ("qkv", "norm")})
    np.testing.assert_allclose(coarse.kernel(), found.kernel(), rtol=1e-13)
    np.testing.assert_allclose(coarse.relative(4), found.relative(4), rtol=0, atol=1e-13 * found.relative(4).max())
    assert coarse.sizes.sum() == found.sizes.sum()
    whole = found.grouped({"all": None})
    spread = np.sqrt((found.quantum**2 * found.points()).sum() / found.points().sum())
    assert whole.quantum[0] == pytest.approx(spread)


def test_relative_is_invariant_under_translation_and_centred_on_its_anchor():
    points = walk(SHAPES, 8, dtype=torch.float64)
    moved = [{name: w + 3 for name, w in p.items()} for p in points]
    for anchor in (0, 3, -1):
        one, other = grams(Memory(points)).relative(anchor), grams(Memory(moved)).relative(anchor)
        np.testing.assert_allclose(one, other, atol=1e-10 * one.max())
        x = torch.stack([torch.cat([w.flatten() for w in p.values()]) for p in points])
        x = (x - x[anchor]).numpy()
        np.testing.assert_allclose(one, x @ x.T, atol=1e-12 * one.max())
        assert not one[anchor].any()


def test_tasks_in_any_order_and_split_give_the_same():
    points = walk({**SHAPES, "long": (5 * BLOCK + 77,)}, 6)
    source = Memory(points)
    whole = grams(source, parts=thirds)
    pieces = tasks(Memory(points), parts=thirds, split=BLOCK)
    assert sum(task.layout.name == "long" for task in pieces) == 6
    partials = [run_task(task) for task in reversed(pieces)]
    found = combine(source, partials, parts=thirds)
    for name in ("G", "c", "m", "unchanged"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-12, atol=1e-18)
    with pytest.raises(InvalidInput, match="once"):
        combine(source, partials[1:], parts=thirds)
    with pytest.raises(InvalidInput, match="once"):
        combine(source, [*partials, partials[0]], parts=thirds)


def test_tensor_order_does_not_matter():
    points = walk(SHAPES, 6)
    turned = [dict(reversed(p.items())) for p in points]
    one, other = grams(Memory(points)), grams(Memory(turned))
    assert np.array_equal(one.G, other.G[::-1])


def test_unchanged_and_zero_increments():
    first = walk({"w": (1000,)}, 1)[0]["w"]
    second = first.clone()
    second[:250] += 1
    found = grams(Memory([{"w": first}, {"w": first}, {"w": second}]))
    assert found.unchanged.tolist() == [[1.0, 0.75]]
    assert found.increments()[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [0, 3, 5])
def test_not_finite_names_checkpoint_and_tensor(value, where):
    points = walk(SHAPES, 6)
    points[where]["head"][3, 7] = value
    with pytest.raises(NonFinite, match=rf"step {100 * where} .*'head'") as caught:
        grams(Memory(points, steps=range(0, 600, 100)))
    assert (caught.value.step, caught.value.tensor) == (100 * where, "head")


def test_skipping_leaves_the_elements_out_everywhere():
    points = walk(SHAPES, 6)
    points[2]["head"].view(-1)[[5, 9]] = float("nan")
    points[4]["head"].view(-1)[9] = float("inf")
    found = grams(Memory(points), on_bad="skip")
    assert [(b.step, b.tensor, b.elements) for b in found.bad] == [(2, "head", 2), (4, "head", 1)]
    kept = [i for i in range(32 * 300) if i not in (5, 9)]
    assert relative_error(found.increments("head"), exact(points, "head", kept)[0]) < 1e-7


class Threads:
    """In place of the second thread: what it is asked for is done at once, or not before it is waited for."""

    def __init__(self, prompt):
        self.prompt, self.asked = prompt, 0

    def submit(self, function, *args):
        self.asked += 1
        future = Later(function, args)
        if self.prompt:
            future.run()
        return future

    def shutdown(self, **how):
        pass


class Later(Future):
    def __init__(self, function, args):
        super().__init__()
        self.function, self.args = function, args

    def run(self):
        try:
            self.set_result(self.function(*self.args))
        except Exception as error:
            self.set_exception(error)

    def result(self, timeout=None):
        if not self.done():
            self.run()
        return super().result(timeout)


def shared(rows, kind, *, on_bad="raise"):
    """Products of a tensor of many buffers, of which the second thread takes none, those it can, or almost none."""
    workspace = Workspace()
    workspace.pool = None if kind == "alone" else Threads(kind == "prompt")
    info = TensorInfo("w", (rows.shape[1],), rows.dtype)
    found = Products(range(len(rows)), layout(info), on_bad=on_bad, workspace=workspace)
    for start in range(0, rows.shape[1], 5000):
        found.add(rows[:, start : start + 5000], start, min(start + 5000, rows.shape[1]))
    found.finish()
    return found, workspace.pool


@pytest.mark.parametrize("kind", ["prompt", "late"])
def test_who_multiplies_a_buffer_changes_no_bit(kind):
    rows = torch.stack([point["w"] for point in walk({"w": (37 * BLOCK + 11,)}, 5, scale=1e-3)])
    rows[2, 9 * BLOCK] = torch.nan  # it is left out, and counted, by whoever has its block
    (one, _), (other, threads) = shared(rows, "alone", on_bad="skip"), shared(rows, kind, on_bad="skip")
    assert threads.asked == 9 if kind == "prompt" else 0 < threads.asked < 9
    assert np.array_equal(one.moments, other.moments)
    assert np.array_equal(one.unchanged, other.unchanged)
    assert one.unchanged.any()
    assert (one.bad, one.flops) == (other.bad, other.flops)
    assert one.bad == {2: 1}


@pytest.mark.parametrize("kind", ["alone", "prompt", "late"])
def test_the_first_block_that_is_not_finite_is_named(kind):
    rows = torch.zeros(6, 40 * BLOCK)
    rows[4, 3], rows[1, 4 * BLOCK] = torch.nan, torch.inf
    with pytest.raises(NonFinite, match="step 4 "):
        shared(rows, kind)


class Copies(TorchDispatchMode):
    """Notes how many elements each copy has that changes the type."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.copy_.default and args[0].dtype != args[1].dtype:
            self.sizes.append(args[0].numel())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("threads", [1, 2])
def test_torch_threads_take_no_part_and_change_no_bit(threads):
    rows = torch.stack([point["w"] for point in walk({"w": (9 * BLOCK + 11,)}, 21)])
    right, before = shared(rows, "alone")[0], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with Copies() as copies:
            found = shared(rows, "alone")[0]
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found.moments, right.moments)
    assert sum(copies.sizes) == rows.numel()
    assert (max(copies.sizes) < 2**15) == (threads > 1)  # torch shares what has so many elements


def test_inside_inference_mode():
    points = torch.stack([point["w"] for point in walk({"w": (21 * BLOCK,)}, 5)])
    points[3, ::BLOCK] = torch.nan
    right = grams(Trajectory.from_arrays(points), on_bad="skip")
    with torch.inference_mode():
        found = grams(Trajectory.from_arrays(points), on_bad="skip")
    assert np.array_equal(found.G, right.G)
    assert found.bad == right.bad != ()


def test_finite_numbers_whose_squares_overflow_are_no_error():
    points = [{"w": torch.tensor([1e25, 2e25, 0.0]) * factor} for factor in (1.0, 2.0, 4.0)]
    found = grams(Memory(points))
    assert relative_error(found.increments(), exact(points)[0]) < 1e-7


def test_a_short_read_is_an_error():
    source = Memory(walk(SHAPES, 3))
    whole = source.read
    source.read = lambda index, name, start, stop: whole(index, name, start, stop - (index == 1))
    with pytest.raises(StorageError, match="step 1"):
        grams(source)


def test_wrong_arguments():
    points = walk(SHAPES, 3)
    with pytest.raises(InvalidInput, match="two"):
        grams(Memory(points[:1]))
    with pytest.raises(InvalidInput, match="on_bad"):
        grams(Memory(points), on_bad="ignore")
    with pytest.raises(InvalidInput, match="tile"):
        grams(Memory(points), tile=0)
    for wrong in ([(0, 10)], [(0, 10), (5, 3072)], [(0, 4000)]):
        with pytest.raises(InvalidInput, match="make up"):
            grams(Memory(points), parts=lambda t, wrong=wrong: {"a": wrong} if t.name == "qkv" else None)
    found = grams(Memory(points))
    with pytest.raises(InvalidInput, match="no tensor"):
        found.kernel("tail")
    with pytest.raises(InvalidInput, match="anchor"):
        found.relative(3)


@pytest.mark.parametrize("new", [1, 3])
def test_extending_gives_the_whole_and_reads_everything_again(new):
    points = walk(SHAPES, 9)
    old = grams(Memory(points[:-new]), parts=thirds)
    source = Memory(points)
    found, whole = extend(old, source, parts=thirds), grams(Memory(points), parts=thirds)
    assert relative_error(found.increments(), whole.increments()) < 1e-7
    for name in ("c", "m", "unchanged"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-5, atol=1e-9)
    assert source.times_read() == {1}
    assert found.flops * 9 == whole.flops * new


def test_what_cannot_be_extended():
    points = walk(SHAPES, 6)
    old = grams(Memory(points[:4]))
    for source, reason in (
        (Memory(points[:4]), "steps"),
        (Memory(points, steps=range(1, 7)), "steps"),
        (Memory([{"w": p["embed"]} for p in points]), "tensors"),
    ):
        with pytest.raises(InvalidInput, match=reason):
            extend(old, source)
    changed = Memory(points)
    changed.prints[2] = "another"
    with pytest.raises(InvalidInput, match="changed"):
        extend(old, changed)


def test_precision_asked_for_elsewhere_does_not_reach_the_products():
    points = walk(SHAPES, 4)
    right = grams(Memory(points)).G
    torch.set_float32_matmul_precision("medium")
    try:
        assert np.array_equal(grams(Memory(points)).G, right)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_an_accelerator():
    points = walk({**SHAPES, "long": (40 * BLOCK + 77,)}, 6)
    torch.set_float32_matmul_precision("medium")
    try:
        found = grams(Memory(points), device="cuda", parts=thirds)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert relative_error(found.increments(), exact(points)[0]) < 1e-7
