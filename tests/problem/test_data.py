"""Each loader on small files in the published format, written here; and on damaged ones."""

import dataclasses
import gzip
import struct
import sys

import numpy as np
import pytest
import torch

from thalweg import Problem
from thalweg.errors import InvalidInput, MissingExtra
from thalweg.problem.data import Data, DataConfig, load_data, loss_for
from thalweg.problem.data.base import standardise
from thalweg.problem.data.copies import parquet_files
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


def test_idx_corrupt_gzip(tmp_path):
    raw = bytearray(gzip.compress(idx_bytes(np.random.default_rng(0).integers(0, 256, (30, 30)))))
    for position in range(10, len(raw), 37):  # one damaged byte anywhere behind gzip's header
        broken = raw.copy()
        broken[position] ^= 0xFF
        path = tmp_path / "broken.gz"
        path.write_bytes(broken)
        with pytest.raises(InvalidInput, match="cannot be read"):
            read_idx(path)


def test_idx_of_other_numbers_is_no_image(tmp_path):
    header = struct.pack(">HBB3I", 0, 0x0D, 3, 1, 2, 2)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + b"\0" * 16)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(1)))
    with pytest.raises(InvalidInput, match="one byte"):
        load_data(DataConfig("mnist", path=str(tmp_path)))


def test_a_file_that_is_a_folder(tmp_path):
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_idx(tmp_path)


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
    hub.Dataset.from_dict({"text": ["hello world", "", None, "another line"]}).save_to_disk(str(tmp_path))
    config = DataConfig("wikitext103", path=str(tmp_path), length=8)
    joined = [*b"hello world", 256, 256, 256, *b"another line", 256]
    data = load_data(dataclasses.replace(config, samples=3))
    assert data.inputs.reshape(-1).tolist() == joined[:24]
    assert data.targets.reshape(-1).tolist() == joined[1:25]
    with pytest.raises(InvalidInput, match="There are 3"):
        load_data(dataclasses.replace(config, samples=4))
    with pytest.raises(InvalidInput, match="0 samples"):
        load_data(dataclasses.replace(config, samples=0))


def test_text_streams_where_all_of_it_is_wanted(hub, tmp_path):
    rows = [("x" * n + "yz") for n in (0, 3, 50, 1, 17, 200)]
    folder = tmp_path / "wikitext-103-raw-v1"
    hub.Dataset.from_dict({"text": rows}).to_parquet(str(folder / "train-00000.parquet"))
    hub.Dataset.from_dict({"text": ["another configuration"]}).to_parquet(
        str(tmp_path / "wikitext-2" / "train-0.parquet")
    )
    data = load_data(DataConfig("wikitext103", path=str(tmp_path), length=16))
    assert data.inputs is None
    assert data.input_shape == (16,)
    joined = [token for row in rows for token in [*row.encode(), 256]]
    count = (len(joined) - 1) // 16
    for _ in range(2):
        batches = list(data.dataset)
        assert torch.cat([x for x, _ in batches]).reshape(-1).tolist() == joined[: count * 16]
        assert torch.cat([y for _, y in batches]).reshape(-1).tolist() == joined[1 : count * 16 + 1]
    short = dataclasses.replace(DataConfig("wikitext103", path=str(tmp_path), length=16), samples=count)
    assert torch.equal(load_data(short).inputs, torch.cat([x for x, _ in batches]))


@pytest.mark.parametrize("stored", ["parquet", "disk", "dict"])
def test_the_other_split_is_never_passed_off(hub, tmp_path, stored):
    rows = hub.Dataset.from_dict({"text": ["a" * 40]}, split="train")
    if stored == "parquet":
        rows.to_parquet(str(tmp_path / "train-00000.parquet"))
    elif stored == "disk":
        rows.save_to_disk(str(tmp_path))
    else:
        hub.DatasetDict(train=rows).save_to_disk(str(tmp_path))
    config = DataConfig("wikitext103", path=str(tmp_path), length=8, samples=2)
    assert load_data(config).inputs.shape == (2, 8)
    with pytest.raises(InvalidInput, match=r"is of the train split\. The test split was asked for"):
        load_data(dataclasses.replace(config, train=False))


def test_parquet_files_are_told_apart_by_their_words(tmp_path):
    for name in ("latest/train-0.parquet", "latest/test-0.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert parquet_files(tmp_path, None, "test") == [str(tmp_path / "latest/test-0.parquet")]
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "0000.parquet").touch()
    assert parquet_files(tmp_path / "plain", None, "test") == [str(tmp_path / "plain/0000.parquet")]


def test_streams_obey_standardise_and_classes_and_check_labels(hub, tmp_path):
    source, _ = pictures(hub, 25, 230, "image", "label", "RGB")
    source.to_parquet(str(tmp_path / "train-00000.parquet"))
    config = DataConfig("imagenet", path=str(tmp_path), samples=4, classes=2)
    ((raw, targets),) = load_data(dataclasses.replace(config, standardise=False)).dataset
    assert targets.tolist() == [0, 1, 0, 1]
    assert 0 <= float(raw.min()) < float(raw.max()) <= 1
    ((normal, _),) = load_data(config).dataset
    torch.testing.assert_close(normal, standardise(raw))
    wrong = hub.Dataset.from_dict(
        {"image": source["image"][:1], "label": [-1]},
        features=hub.Features({"image": hub.Image(), "label": hub.Value("int64")}),
    )
    wrong.save_to_disk(str(tmp_path / "wrong"))
    with pytest.raises(InvalidInput, match="Labels run from -1"):
        list(load_data(DataConfig("imagenet", path=str(tmp_path / "wrong"))).dataset)


@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_damaged_pictures(hub, tmp_path, name):
    column = "img" if name == "cifar10" else "image"
    features = hub.Features({column: hub.Image(), "label": hub.Value("int64")})
    rows = {column: [{"bytes": b"not a picture", "path": None}], "label": [0]}
    hub.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path))
    with pytest.raises(InvalidInput, match=r"picture of .* cannot be used"):
        for _ in load_data(DataConfig(name, path=str(tmp_path))).pair():
            pass


def test_pictures_of_another_mode_and_size(hub, tmp_path):
    image = pytest.importorskip("PIL.Image")
    grey = [image.new("RGB", (28, 28), (90, 90, 90)), image.new("L", (28, 28), 90)]
    features = hub.Features({"image": hub.Image(), "label": hub.Value("int64")})
    hub.Dataset.from_dict({"image": grey, "label": [0, 1]}, features=features).save_to_disk(str(tmp_path / "modes"))
    data = load_data(DataConfig("mnist", path=str(tmp_path / "modes"), standardise=False))
    assert data.inputs.shape == (2, 1, 28, 28)
    assert data.inputs.unique().tolist() == pytest.approx([90 / 255])
    mixed = {"image": [grey[1], image.new("L", (27, 28))], "label": [0, 1]}
    hub.Dataset.from_dict(mixed, features=features).save_to_disk(str(tmp_path / "sizes"))
    with pytest.raises(InvalidInput, match="another size"):
        load_data(DataConfig("mnist", path=str(tmp_path / "sizes")))


def test_progress_bars_stay_as_the_user_set_them(hub, tmp_path, capfd):
    hub.Dataset.from_dict({"text": ["a" * 40]}).to_parquet(str(tmp_path / "train-0.parquet"))
    before = hub.are_progress_bars_disabled()
    capfd.readouterr()
    load_data(DataConfig("wikitext103", path=str(tmp_path), length=8, samples=2))
    assert hub.are_progress_bars_disabled() == before
    assert "Generating" not in capfd.readouterr().err


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtra, match=r"thalweg\[data\]"):
        load_data(DataConfig("mnist"))
    with pytest.raises(MissingExtra, match=r"thalweg\[digits\]"):
        load_data(DataConfig())


def test_classes_have_equal_shares():
    pytest.importorskip("sklearn.datasets")
    data = load_data(DataConfig(samples=40, classes=4))
    assert data.outputs == 4
    assert torch.bincount(data.targets).tolist() == [10, 10, 10, 10]
    whole = load_data(DataConfig())
    kept = load_data(DataConfig(classes=3))
    assert torch.equal(kept.inputs, whole.inputs[whole.targets < 3])
    for samples, classes in ((41, 4), (None, 11), (None, 1), (0, 2), (2000, 2)):
        with pytest.raises(InvalidInput):
            load_data(DataConfig(samples=samples, classes=classes))
    with pytest.raises(InvalidInput, match="Leave classes out"):
        load_data(DataConfig("text", classes=2))


def test_classes_of_files(tmp_path):
    rng = np.random.default_rng(0)
    records = write_cifar(tmp_path, "data_batch_1.bin", 200, rng)
    data = load_data(DataConfig("cifar10", path=str(tmp_path), samples=12, classes=4, standardise=False))
    firsts = [np.flatnonzero(records[:, 0] == c)[:3] for c in range(4)]
    expected = records[np.sort(np.concatenate(firsts))]
    assert data.targets.tolist() == expected[:, 0].tolist()
    np.testing.assert_allclose(data.inputs.reshape(12, -1).numpy() * 255, expected[:, 1:], atol=1e-4)


def test_fingerprints_tell_data_apart():
    base = DataConfig("sorting", samples=20, length=5)
    print_of = load_data(base).fingerprint
    assert load_data(base).fingerprint == print_of
    for other in (dataclasses.replace(base, seed=1), dataclasses.replace(base, samples=19)):
        assert load_data(other).fingerprint != print_of


@pytest.mark.parametrize("samples", [0, -1])
def test_no_lists_to_sort(samples):
    with pytest.raises(InvalidInput, match="nothing to sort"):
        load_data(DataConfig("sorting", samples=samples))


def test_two_conventions_of_the_squared_error():
    data = Data("two", torch.zeros(2, 1), torch.tensor([0, 1]), 3, "classification", "made up")
    output = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    # Residuals (0, 0, 2) and (0, -1, 0): squares sum to 5 over two samples and three classes.
    assert loss_for("mse", data)(output, data.targets).item() == pytest.approx(5 / (2 * 2))
    assert loss_for("mse_mean", data)(output, data.targets).item() == pytest.approx(5 / (2 * 2 * 3))


def test_wrong_columns_and_unreadable_copies(hub, tmp_path):
    hub.Dataset.from_dict({"x": [1]}).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(InvalidInput, match="columns"):
        load_data(DataConfig("mnist", path=str(tmp_path / "other")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="could not be opened"):
        load_data(DataConfig("mnist", path=str(tmp_path / "empty")))
