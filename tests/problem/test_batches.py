"""What counts as data, and what is kept of it."""

from collections import namedtuple

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from thalweg.errors import InvalidInput
from thalweg.problem import batches
from thalweg.problem.batches import cache, checksum, make_batches, map_tensors, tensors_in

X, Y = torch.arange(10.0).reshape(5, 2), torch.arange(5.0)


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y)


class Reuses:
    """Fills the same tensor anew for each batch, as some fast loaders do."""

    def __iter__(self):
        x = torch.empty(2, 2)
        for start in (0, 2):
            x.copy_(X[start : start + 2])
            yield x, Y[start : start + 2]


def test_tensors_are_cut_into_views():
    made = list(make_batches((X, Y), 2))
    assert [len(x) for x, _ in made] == [2, 2, 1]
    assert made[1][0].data_ptr() == X[2:].data_ptr()


@pytest.mark.parametrize(
    ("data", "batch_size", "message"),
    [
        ((X, Y[:3]), None, "same samples"),
        ((X, torch.tensor(1.0)), None, "same samples"),
        ((X, Y), 0, "batch_size is 0"),
        ((X, Y), -1, "batch_size is -1"),
        ([(X, Y)], 2, "already cut"),
        (DataLoader(TensorDataset(X, Y)), 2, "already cut"),
        (X, None, "Tensor"),
        (3, None, "int"),
        ("data.csv", None, "str"),
        (None, None, "NoneType"),
        (zip(X, Y), None, "one-shot"),
        ((pair for pair in [(X, Y)]), None, "one-shot"),
        (iter(DataLoader(TensorDataset(X, Y))), None, "one-shot"),
        (map(tuple, [(X, Y)]), None, "one-shot"),
        (Stream(), None, "DataLoader"),
    ],
)
def test_what_is_no_data(data, batch_size, message):
    with pytest.raises(InvalidInput, match=message):
        make_batches(data, batch_size)


def test_a_stream_through_a_loader_is_data():
    assert [len(y) for _, y in make_batches(DataLoader(Stream(), batch_size=2), None)] == [2, 2, 1]


def test_a_loader_that_refills_its_memory_is_copied():
    kept = cache(make_batches(Reuses(), None))
    assert torch.equal(torch.cat([x for x, _ in kept]), X[:4])


def test_a_list_is_not_copied():
    made = make_batches([(X, Y)], None)
    assert cache(made) is made
    assert next(iter(made))[0] is X


def test_what_is_too_large_is_not_kept():
    made = make_batches(Reuses(), None)
    assert cache(made, limit=8) is made
    assert cache(made, limit=1 << 10) is not made


def test_iterating_leaves_a_loaders_generator_alone():
    generator = torch.Generator().manual_seed(0)
    state, ambient = generator.get_state(), torch.get_rng_state()
    list(make_batches(DataLoader(TensorDataset(X, Y), generator=generator), None))
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(torch.get_rng_state(), ambient)


def test_map_tensors_keeps_the_kind_of_every_container():
    Pair = namedtuple("Pair", "left right")
    tree = {"a": [X, 1], "b": (Y, None), "c": Pair(X, "text")}
    doubled = map_tensors(lambda t: 2 * t, tree)
    assert isinstance(doubled["c"], Pair)
    assert doubled["a"][1] == 1
    assert doubled["b"][1] is None
    assert torch.equal(doubled["c"].left, 2 * X)
    assert [t.data_ptr() for t in tensors_in(tree)] == [X.data_ptr(), Y.data_ptr(), X.data_ptr()]


def test_checksums_see_permutations_and_single_entries():
    plain = checksum((X, Y))
    swapped, nudged = X.clone(), X.clone()
    swapped[[0, 1]] = X[[1, 0]]
    nudged[3, 1] += 1e-4
    assert torch.equal(plain, checksum((X.clone(), Y.clone())))
    assert not torch.equal(plain, checksum((swapped, Y)))
    assert not torch.equal(plain, checksum((nudged, Y)))
    assert checksum(("no", "tensor")).numel() == 0


def test_the_limit_is_a_gibibyte():
    assert batches.CACHE_LIMIT == 1 << 30
