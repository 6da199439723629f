import pickle
import shutil

import cifar_files
import datasets
import numpy as np
import pytest
import torch
import torchvision

from liere_hf.configuration import DataArguments
from liere_hf.data import load_splits
from liere_hf.data.decoding.images import decode_image
from liere_hf.errors import InputError

WRITERS = {"python": cifar_files.write_python, "binary": cifar_files.write_binary}


def load(dataset, directory, **options):
    return load_splits(DataArguments(dataset=dataset, data_dir=str(directory), **options), seed=0)


def pixels(split: datasets.Dataset) -> torch.Tensor:
    encoded = split.cast_column("image", datasets.Image(decode=False))["image"]
    return torch.stack([decode_image(image) for image in encoded])


def assert_as_written(data, dataset):
    for split, loaded in (("train", data.train), ("test", data.test)):
        images, labels = cifar_files.examples(dataset, split)
        assert pixels(loaded).equal(torch.from_numpy(images))
        assert loaded["label"][:] == labels.tolist()
    assert len(data.label_names) == len(cifar_files.NAMES[dataset])
    assert data.left_out == ()


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("place", ["folder", "parent", "archive"])
def test_original_formats(tmp_path, dataset, kind, place):
    folder = WRITERS[kind](dataset, tmp_path)
    directory = folder if place == "folder" else tmp_path
    if place == "archive":
        cifar_files.write_archive(folder)
        shutil.rmtree(folder)
    data = load(dataset, directory)
    assert_as_written(data, dataset)
    assert data.label_names[3] in ("class 3", "class_3", "class3")


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_parquet_as_on_the_hub(tmp_path, dataset):
    cifar_files.write_parquet(dataset, tmp_path)
    data = load(dataset, tmp_path)
    assert_as_written(data, dataset)
    assert data.label_names == cifar_files.NAMES[dataset]


def test_equals_torchvision(tmp_path):
    cifar_files.write_python("cifar100", tmp_path)

    class Cifar100(torchvision.datasets.CIFAR100):
        train_list = (("train", None),)
        test_list = (("test", None),)
        meta = {"filename": "meta", "key": "fine_label_names", "md5": None}  # noqa: RUF012

    data = load("cifar100", tmp_path)
    for loaded, train in ((data.train, True), (data.test, False)):
        theirs = Cifar100(tmp_path, train=train)
        assert np.array_equal(pixels(loaded).permute(0, 2, 3, 1).numpy(), theirs.data)
        assert loaded["label"][:] == theirs.targets


def test_train_fraction_is_stratified_and_nested(tmp_path):
    cifar_files.write_python("cifar10", tmp_path)
    members = {}
    for fraction in (0.2, 0.5, 0.9, 1.0):
        data = load("cifar10", tmp_path, train_fraction=fraction)
        assert np.bincount(data.train["label"]).tolist() == [round(6 * fraction)] * 10
        assert len(data.test) == 23
        assert data.num_train == len(data.train)
        members[fraction] = {image.numpy().tobytes() for image in pixels(data.train)}
    assert members[0.2] < members[0.5] < members[0.9] < members[1.0]
    other = load_splits(DataArguments(dataset="cifar10", data_dir=str(tmp_path), train_fraction=0.5), seed=1)
    assert {image.numpy().tobytes() for image in pixels(other.train)} != members[0.5]


class Malicious:
    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder: (folder / "train").unlink(), "lacks train"),
        (lambda folder: (folder / "train").write_bytes(b""), "train cannot be read"),
        (lambda folder: (folder / "train").write_bytes(pickle.dumps([1])), "train is not a batch of CIFAR"),
        (lambda folder: (folder / "train").write_bytes(pickle.dumps({})), "train is not a batch of CIFAR"),
        (lambda folder: (folder / "train").write_bytes(pickle.dumps(Malicious())), "does not belong in a CIFAR"),
        (
            lambda folder: (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["a", "b"]})),
            "2 class names found, uoft-cs/cifar100 has 100",
        ),
        (
            lambda folder: (folder / "train").write_bytes(
                pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 100]})
            ),
            "labels are 0 to 100, allowed are 0 to 99",
        ),
        (
            lambda folder: (folder / "train").write_bytes(
                pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0]})
            ),
            "2 images but 1 labels",
        ),
    ],
)
def test_broken_python_files(capsys, tmp_path, change, message):
    change(cifar_files.write_python("cifar100", tmp_path))
    with pytest.raises(InputError, match=message):
        load("cifar100", tmp_path)
    assert "this must not run" not in capsys.readouterr().out


def test_broken_binary_files(tmp_path):
    folder = cifar_files.write_binary("cifar100", tmp_path)
    (folder / "test.bin").write_bytes((folder / "test.bin").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"test\.bin: 70701 bytes, not a multiple of 3074"):
        load("cifar100", tmp_path)


def test_broken_archive(tmp_path):
    folder = cifar_files.write_python("cifar100", tmp_path)
    archive = cifar_files.write_archive(folder)
    shutil.rmtree(folder)
    archive.write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"cifar-100-python\.tar\.gz cannot be read"):
        load("cifar100", tmp_path)


def test_missing_split_and_columns(tmp_path):
    folder = cifar_files.write_parquet("cifar100", tmp_path)
    with pytest.raises(InputError, match="has no column 'label', only"):
        load("cifar10", tmp_path)
    (folder / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(InputError, match="has no split 'test', only train"):
        load("cifar100", tmp_path)
    (folder / "train-00000-of-00001.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="cannot be read"):
        load("cifar100", tmp_path)


def test_directory_with_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(InputError, match="has neither cifar-100-python nor cifar-100-binary"):
        load("cifar100", tmp_path)
