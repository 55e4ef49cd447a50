"""Each loader on small files in the published format, written here; and on damaged ones."""

import gzip
import struct

import numpy as np
import pytest
import torch

from thalweg import Problem
from thalweg.errors import InvalidInput
from thalweg.problem.data import DataConfig, load_data, loss_for
from thalweg.problem.data.files import read_idx


def test_digits_are_the_real_ones():
    sklearn = pytest.importorskip("sklearn.datasets")
    data = load_data(DataConfig())
    reference = sklearn.load_digits()
    assert data.inputs.shape == (1797, 1, 8, 8)
    assert data.targets.tolist() == reference.target.tolist()
    flat = data.inputs.reshape(1797, -1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(1797), atol=1e-5, rtol=0)
    torch.testing.assert_close(flat.std(1, correction=0), torch.ones(1797), atol=1e-4, rtol=0)
    raw = load_data(DataConfig(samples=3, standardise=False))
    np.testing.assert_allclose(raw.inputs[:, 0].numpy() * 16, reference.images[:3], rtol=1e-6)
    with pytest.raises(InvalidInput, match="There are 1797"):
        load_data(DataConfig(samples=2000))


def test_sorting_asks_only_for_the_sorted_half():
    data = load_data(DataConfig("sorting", samples=20, length=5, vocabulary=7, seed=3))
    assert data.inputs.shape == data.targets.shape == (20, 10)
    assert bool((data.targets[:, :5] == -100).all())
    lists, answers = data.inputs[:, :5], data.targets[:, 5:]
    assert bool((data.inputs[:, 5] == 7).all())
    torch.testing.assert_close(answers, lists.sort(1).values)
    assert torch.equal(data.inputs, load_data(DataConfig("sorting", samples=20, length=5, vocabulary=7, seed=3)).inputs)


def test_text_predicts_the_next_character():
    data = load_data(DataConfig("text", samples=400, length=16))
    assert data.inputs.shape == (400, 16)
    torch.testing.assert_close(data.inputs.reshape(-1)[1:], data.targets.reshape(-1)[:-1])
    alphabet = "\n\t" + "".join(chr(c) for c in range(32, 127)) + "?"
    assert "import" in "".join(alphabet[t] for t in data.inputs.reshape(-1).tolist())
    assert "hash" in data.description
    assert int(data.inputs.max()) < data.outputs


def write_cifar(folder, name, count, rng):
    records = np.concatenate(
        [rng.integers(0, 10, (count, 1)), rng.integers(0, 256, (count, 3072))], axis=1, dtype=np.uint8, casting="unsafe"
    )
    (folder / name).write_bytes(records.tobytes())
    return records


def test_cifar_binaries(tmp_path):
    rng = np.random.default_rng(0)
    first = write_cifar(tmp_path, "data_batch_1.bin", 4, rng)
    second = write_cifar(tmp_path, "data_batch_2.bin", 3, rng)
    test = write_cifar(tmp_path, "test_batch.bin", 2, rng)
    data = load_data(DataConfig("cifar10", path=str(tmp_path), standardise=False))
    whole = np.concatenate([first, second])
    assert data.targets.tolist() == whole[:, 0].tolist()
    np.testing.assert_allclose(data.inputs.reshape(7, -1).numpy() * 255, whole[:, 1:], atol=1e-4)
    assert data.inputs.shape == (7, 3, 32, 32)
    held_out = load_data(DataConfig("cifar10", path=str(tmp_path), train=False, samples=1))
    assert held_out.targets.tolist() == test[:1, 0].tolist()


def test_cifar_damaged(tmp_path):
    (tmp_path / "data_batch_1.bin").write_bytes(b"\0" * 3072)
    with pytest.raises(InvalidInput, match=r"data_batch_1.bin has 3,072 bytes"):
        load_data(DataConfig("cifar10", path=str(tmp_path)))
    (tmp_path / "data_batch_1.bin").write_bytes(b"\x0b" + b"\0" * 3072)
    with pytest.raises(InvalidInput, match="Labels run"):
        load_data(DataConfig("cifar10", path=str(tmp_path)))
    (tmp_path / "data_batch_1.bin").unlink()
    (tmp_path / "test_batch.bin").write_bytes(b"")
    with pytest.raises(InvalidInput, match="never opened"):
        load_data(DataConfig("cifar10", path=str(tmp_path)))


def idx_bytes(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files(tmp_path, zipped):
    rng = np.random.default_rng(0)
    images, classes = rng.integers(0, 256, (5, 28, 28)), rng.integers(0, 10, 5)
    for stem, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", classes)):
        raw = idx_bytes(array)
        (tmp_path / (stem + ".gz" * zipped)).write_bytes(gzip.compress(raw) if zipped else raw)
    data = load_data(DataConfig("fashion_mnist", path=str(tmp_path), standardise=False))
    np.testing.assert_allclose(data.inputs[:, 0].numpy() * 255, images, atol=1e-4)
    assert data.targets.tolist() == classes.tolist()


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", "header"),
        (b"\1\2\3\4", "header"),
        (idx_bytes(np.zeros((2, 3)))[:-1], "promises 6 bytes and 5 follow"),
        (idx_bytes(np.zeros((2, 3)))[:7], "header"),
    ],
)
def test_idx_damaged(tmp_path, raw, match):
    path = tmp_path / "broken"
    path.write_bytes(raw)
    with pytest.raises(InvalidInput, match=match):
        read_idx(path)


def test_idx_truncated_gzip(tmp_path):
    path = tmp_path / "broken.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((20, 30))))[:-12])
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_idx(path)


def test_missing_folder_and_files(tmp_path):
    with pytest.raises(InvalidInput, match="not a folder"):
        load_data(DataConfig("mnist", path=str(tmp_path / "none")))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((1, 28, 28))))
    with pytest.raises(InvalidInput, match="train-labels"):
        load_data(DataConfig("mnist", path=str(tmp_path)))


@pytest.fixture
def hub():
    return pytest.importorskip("datasets")


def pictures(hub, count, side, column, label, mode):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    channels = () if mode == "L" else (3,)
    arrays = [rng.integers(0, 256, (side, side, *channels), dtype=np.uint8) for _ in range(count)]
    rows = {column: [image.fromarray(a, mode=mode) for a in arrays], label: [i % 10 for i in range(count)]}
    features = hub.Features({column: hub.Image(), label: hub.Value("int64")})
    return hub.Dataset.from_dict(rows, features=features), arrays


@pytest.mark.parametrize(
    ("name", "column", "label", "mode"), [("mnist", "image", "label", "L"), ("cifar100", "img", "fine_label", "RGB")]
)
def test_local_copy_of_a_published_image_set(hub, tmp_path, name, column, label, mode):
    source, arrays = pictures(hub, 6, 28, column, label, mode)
    source.save_to_disk(str(tmp_path))
    data = load_data(DataConfig(name, path=str(tmp_path), standardise=False, samples=5))
    assert data.targets.tolist() == [0, 1, 2, 3, 4]
    expected = np.stack(arrays[:5]).reshape(5, 28, 28, -1).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(data.inputs.numpy() * 255, expected, atol=1e-4)


def test_imagenet_is_streamed_from_parquet(hub, tmp_path):
    source, _ = pictures(hub, 5, 300, "image", "label", "RGB")
    source.to_parquet(str(tmp_path / "train-00000.parquet"))
    data = load_data(DataConfig("imagenet", path=str(tmp_path), samples=4))
    assert data.inputs is None
    assert data.input_shape == (3, 224, 224)
    for _ in range(2):  # it can be read again
        (pixels, targets), *rest = list(data.dataset)
        assert pixels.shape == (4, 3, 224, 224)
        assert targets.tolist() == [0, 1, 2, 3]
        assert not rest
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 1000))
    problem = Problem(model, loss_for("cross_entropy", data), data.pair())
    assert problem.samples == 4


def test_wikitext_as_bytes(hub, tmp_path):
    hub.Dataset.from_dict({"text": ["hello world", "", "another line"]}).save_to_disk(str(tmp_path))
    data = load_data(DataConfig("wikitext103", path=str(tmp_path), length=8))
    assert bytes(data.inputs[0].tolist()) == b"hello wo"
    assert bytes(data.targets[0].tolist()) == b"ello wor"
    assert 256 in data.inputs[1:].reshape(-1).tolist()


def test_wrong_columns_and_unreadable_copies(hub, tmp_path):
    hub.Dataset.from_dict({"x": [1]}).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(InvalidInput, match="columns"):
        load_data(DataConfig("mnist", path=str(tmp_path / "other")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="could not be opened"):
        load_data(DataConfig("mnist", path=str(tmp_path / "empty")))
