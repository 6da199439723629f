import datasets
import numpy as np
import pytest
from idx_files import idx, write_fashion_mnist
from PIL import Image

from liere_hf.configuration import DataArguments
from liere_hf.data import load_splits
from liere_hf.data.data_sets.fashion_mnist import LABELS
from liere_hf.data.data_sets.splits import Splits, hold_out
from liere_hf.data.decoding.images import decode_image
from liere_hf.errors import InputError


@pytest.fixture
def idx_directory(tmp_path):
    return write_fashion_mnist(tmp_path, num_train=30, num_test=10)


@pytest.fixture
def image_directory(tmp_path):
    """Class folders with images of several modes and sizes."""
    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True)
        for number in range(10):
            shape = (16 + number, 20) if number % 2 else (16, 20 + number, 3)
            Image.fromarray(random.integers(256, size=shape, dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "images"


def assert_images_and_names(data, names):
    for split in data.tables.values():
        assert isinstance(split.features["image"], datasets.Image)
        assert split.features["label"].names == list(names)
    assert data.label_names == list(names)


def test_fashion_mnist_from_idx_files(idx_directory):
    data = load_splits(DataArguments(dataset="fashion_mnist", data_dir=str(idx_directory)), seed=0)
    assert_images_and_names(data, LABELS)
    assert (len(data.train), len(data.test)) == (30, 10)
    expected = np.random.default_rng(0).integers(256, size=(30, 28, 28), dtype=np.uint8)
    assert np.array_equal(np.asarray(data.train[3]["image"]), expected[3])
    assert data.train["label"][:] == [index % 10 for index in range(30)]


def test_digits_split_is_stratified():
    data = load_splits(DataArguments(dataset="digits"), seed=0)
    assert_images_and_names(data, "0123456789")
    assert len(data.train) + len(data.validation) == 1797
    shares = np.bincount(data.validation["label"]) / np.bincount(data.train["label"][:] + data.validation["label"][:])
    assert np.allclose(shares, 0.2, atol=0.01)


def test_held_out_examples_are_those_that_datasets_would_choose():
    """Runs of before remain comparable: `train_test_split` chose them, which reads the labels one by one."""
    labels = np.random.default_rng(0).integers(3, size=101).tolist()
    classes = datasets.ClassLabel(names=["a", "b", "c"])
    table = datasets.Dataset.from_dict(
        {"image": [{"bytes": bytes([number]), "path": None} for number in range(101)], "label": labels},
        features=datasets.Features({"image": datasets.Image(decode=False), "label": classes}),
    )
    split = hold_out(Splits(table, validation=None, test=None, num_train=len(table)), 0.23, seed=5)
    expected = table.train_test_split(0.23, stratify_by_column="label", seed=5)
    assert split.train["image"][:] == expected["train"]["image"][:]
    assert split.validation["image"][:] == expected["test"]["image"][:]


def test_arrows_train_and_test_differ():
    arguments = DataArguments(dataset="arrows", train_examples=100, eval_examples=50, data_num_proc=1)
    data = load_splits(arguments, seed=0)
    assert_images_and_names(data, ("up", "right", "down", "left"))
    train = {np.asarray(image).tobytes() for image in data.train["image"]}
    test = {np.asarray(image).tobytes() for image in data.test["image"]}
    assert (len(train), len(test)) == (100, 50)
    assert not train & test


def test_images_of_several_modes_and_sizes(image_directory):
    data = load_splits(DataArguments(dataset="imagefolder", data_dir=str(image_directory), data_num_proc=1), seed=0)
    assert_images_and_names(data, ("cat", "dog"))
    assert (len(data.train), len(data.validation), data.test, data.left_out) == (16, 4, None, [])


def test_corrupt_images_are_named_or_skipped_and_counted(image_directory):
    truncated = image_directory / "cat" / "3.png"
    truncated.write_bytes(truncated.read_bytes()[:-100])
    empty = image_directory / "dog" / "4.png"
    empty.write_bytes(b"")
    arguments = DataArguments(dataset="imagefolder", data_dir=str(image_directory), data_num_proc=1)
    with pytest.raises(InputError, match=r"cat/3\.png.*dog/4\.png.*skip_corrupt_files"):
        load_splits(arguments, seed=0)
    arguments.skip_corrupt_files = True
    data = load_splits(arguments, seed=0)
    assert len(data.train) + len(data.validation) == 18
    assert sorted(data.left_out) == [
        (str(truncated), "cannot be used: image file is truncated"),
        (str(empty), "cannot be used: it is empty"),
    ]
    for row in (*data.train, *data.validation):
        decode_image(row["image"])


def test_subset_is_seeded():
    arguments = DataArguments(dataset="digits", train_examples=50)
    first, second = (load_splits(arguments, seed=seed).train["label"][:] for seed in (0, 0))
    assert len(first) == 50
    assert first == second
    assert first != load_splits(arguments, seed=1).train["label"][:]


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "dataset is not given, allowed are arrows"),
        ({"dataset": "imagefolder"}, "data_dir, train_file and hub_id are not given, imagefolder needs one"),
        ({"dataset": "imagefolder", "data_dir": "missing"}, "data_dir missing is not a directory"),
        ({"dataset": "fashion_mnist", "data_dir": "missing"}, "data_dir missing is not a directory"),
        ({"dataset": "digits", "train_examples": 5000}, "train_examples is 5000, the data set has 1437"),
        ({"dataset": "arrows", "arrows_grid_size": 2}, "arrows: .* a grid of 2 x 2"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        load_splits(DataArguments(**options), seed=0)


@pytest.mark.parametrize("dataset", ["imagefolder", "fashion_mnist"])
def test_empty_directory(tmp_path, dataset):
    with pytest.raises(InputError, match=f"data_dir {tmp_path} is empty"):
        load_splits(DataArguments(dataset=dataset, data_dir=str(tmp_path)), seed=0)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda path: path.unlink(), "lacks t10k-images-idx3-ubyte"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "t10k-images-idx3-ubyte is corrupt"),
        (lambda path: path.write_bytes(b""), "t10k-images-idx3-ubyte is corrupt"),
        (lambda path: path.write_bytes(idx(np.zeros((3, 28, 28), np.uint8))), "3 t10k images but 10 labels"),
    ],
)
def test_broken_idx_files(idx_directory, change, message):
    change(idx_directory / "t10k-images-idx3-ubyte")
    with pytest.raises(InputError, match=message):
        load_splits(DataArguments(dataset="fashion_mnist", data_dir=str(idx_directory)), seed=0)
