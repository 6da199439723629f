import re
from pathlib import Path

import numpy as np
import pytest
from volume_files import bad_files, load_volume_folders, save_npy

from liere_hf.configuration import DataArguments
from liere_hf.data import load_splits
from liere_hf.errors import InputError


def test_class_folders_without_a_split(volume_directory):
    data = load_volume_folders(volume_directory)
    assert data.column == "volume"
    assert data.label_names == ["ct", "mr"]
    assert (len(data.train), len(data.validation), data.test, data.num_train) == (16, 4, None, 16)
    assert [Path(file).name for file, _ in data.left_out] == ["notes.txt"] * 2
    assert data.validation["label"][:].count(0) == 2
    rows = [*data.train, *data.validation]
    assert len({row["volume"]["path"] for row in rows}) == 20
    for row in rows:
        assert f"/{data.label_names[row['label']]}/" in row["volume"]["path"]


def test_bad_files_are_named_or_skipped_and_counted(volume_directory, tmp_path):
    good = {str(path) for path in volume_directory.glob("*/[0-9]*")}
    bad = bad_files(tmp_path)
    for name, (content, _) in bad.items():
        (volume_directory / "mr" / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"^{len(bad)} of .*mr/broken\.nii\.gz.* and {len(bad) - 3} more"):
        load_volume_folders(volume_directory)
    data = load_volume_folders(volume_directory, skip_corrupt_files=True)
    left_out = {Path(file).name: reason for file, reason in data.left_out if Path(file).name != "notes.txt"}
    assert left_out.keys() == bad.keys()
    for name, reason in left_out.items():
        assert re.search(f"^cannot be used: .*{bad[name][1]}", reason), (name, reason)
    assert {row["volume"]["path"] for row in (*data.train, *data.validation)} == good


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: path.rmdir(), "is not a directory"),
        (lambda path: None, "is empty"),
        (lambda path: (path / "ct").mkdir(), "holds no volumes in class folders"),
        (lambda path: save_npy(path / "1.npy", np.zeros((2, 2, 2))), "holds 1 volumes that are not in class folders"),
    ],
)
def test_directories_without_volumes(tmp_path, make, message):
    directory = tmp_path / "volumes"
    directory.mkdir()
    make(directory)
    with pytest.raises(InputError, match=f"{directory} {message}"):
        load_volume_folders(directory)


def test_directory_is_needed():
    with pytest.raises(InputError, match="data_dir, train_file and hub_id are not given"):
        load_splits(DataArguments(dataset="volumes"), seed=0)
