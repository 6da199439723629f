import numpy as np
import pytest
from volume_files import bad_files, load_volume_folders, save_npy

from liere_hf.configuration import DataArguments
from liere_hf.data.data_sets.volume_folders import load_volumes
from liere_hf.errors import InputError


def test_class_folders_without_a_split(volume_directory):
    data = load_volume_folders(volume_directory)
    assert data.column == "volume"
    assert data.label_names == ["ct", "mr"]
    assert (len(data.train), len(data.test), data.num_train, data.skipped_files) == (16, 4, 16, [])
    assert data.test["label"][:].count(0) == 2
    rows = [*data.train, *data.test]
    assert len({row["volume"]["path"] for row in rows}) == 20
    for row in rows:
        assert f"/{data.label_names[row['label']]}/" in row["volume"]["path"]


@pytest.mark.parametrize("test_folder", ["test", "validation", "val"])
def test_class_folders_with_a_split(volume_directory, tmp_path, test_folder):
    directory = tmp_path / "split"
    directory.mkdir()
    (directory / "train").symlink_to(volume_directory)
    only_mr = directory / test_folder
    only_mr.mkdir()
    (only_mr / "mr").symlink_to(volume_directory / "mr")
    data = load_volume_folders(directory)
    assert (len(data.train), len(data.test)) == (20, 10)
    assert data.label_names == ["ct", "mr"]
    assert set(data.test["label"]) == {1}


def test_bad_files_are_named_or_skipped_and_counted(volume_directory, tmp_path):
    good = {str(path) for path in volume_directory.glob("*/[0-9]*")}
    bad = bad_files(tmp_path)
    for name, (content, _) in bad.items():
        (volume_directory / "mr" / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"mr/broken\.nii\.gz.* and {len(bad) - 3} more.*skip_corrupt_files"):
        load_volume_folders(volume_directory)
    data = load_volume_folders(volume_directory, skip_corrupt_files=True)
    assert sorted(data.skipped_files) == sorted(str(volume_directory / "mr" / name) for name in bad)
    assert {row["volume"]["path"] for row in (*data.train, *data.test)} == good


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: path.rmdir(), "is not a directory"),
        (lambda path: None, "is empty"),
        (lambda path: (path / "ct").mkdir(), "holds no volumes in class folders"),
        (lambda path: save_npy(path / "1.npy", np.zeros((2, 2, 2))), "holds no volumes in class folders"),
    ],
)
def test_directories_without_volumes(tmp_path, make, message):
    directory = tmp_path / "volumes"
    directory.mkdir()
    make(directory)
    with pytest.raises(InputError, match=f"data_dir {directory} {message}"):
        load_volume_folders(directory)


def test_directory_is_needed():
    with pytest.raises(InputError, match="data_dir is not given"):
        load_volumes(DataArguments(dataset="volumes"), seed=0)


def test_test_classes_must_match_training(volume_directory, tmp_path):
    directory = tmp_path / "split"
    (directory / "test" / "pet").mkdir(parents=True)
    (directory / "train").symlink_to(volume_directory)
    with pytest.raises(InputError, match="pet is a class that the training data does not have"):
        load_volume_folders(directory)
