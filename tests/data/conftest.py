from pathlib import Path

import numpy as np
import pytest
import torch
from video_files import PACKED, VIDEOS, full_decode, write_packed, write_video
from volume_files import random_volume, save_nifti, save_npy


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="session")
def video(video_folder):
    """Writes a video of `VIDEOS` or `PACKED` once, and returns its path and all its frames."""
    written = {}

    def get(name: str) -> tuple[Path, torch.Tensor]:
        if name not in written:
            if name in PACKED:
                path = write_packed(video_folder / name, PACKED.index(name) + 1)
            else:
                path = write_video(video_folder / name, **VIDEOS[name])
            written[name] = path, full_decode(path)
        return written[name]

    return get


@pytest.fixture
def volume_directory(tmp_path):
    """Class folders with ten volumes each, in three formats and several dtypes and sizes."""
    for label_index, label in enumerate(("ct", "mr")):
        folder = tmp_path / "volumes" / label
        folder.mkdir(parents=True)
        for number in range(10):
            shape = (4 + number, 9, 12 - number)
            dtype = (np.int16, np.float64, np.uint8)[number % 3]
            volume = random_volume(shape, dtype, seed=10 * label_index + number)
            suffix = (".nii", ".nii.gz", ".npy", ".NII.GZ")[number % 4]
            (save_npy if suffix == ".npy" else save_nifti)(folder / f"{number}{suffix}", volume)
        (folder / "notes.txt").write_text("no volume")
    return tmp_path / "volumes"
