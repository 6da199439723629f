"""Volumes of one channel, such as CT or MR, in class folders of NIfTI and .npy files."""

from ...configuration import DataArguments
from ...errors import InputError
from ..decoding.volumes import read_volume
from .files import class_folder_splits, existing_directory, readable_with, without_unusable_files
from .splits import Splits, complete_splits

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".npy")


def load_volumes(arguments: DataArguments, seed: int) -> Splits:
    """Class folders of volumes in `data_dir`, or in its `train` and `test`, `validation` or `val` folders.

    Every volume is read once before training, so that a corrupt one ends the run at its start, or is left out and
    counted.

    Raises:
        InputError: no `data_dir`, no volumes in it, corrupt ones without `skip_corrupt_files`, or classes that are too
            small to hold out examples.
    """
    if arguments.data_dir is None:
        raise InputError("data_dir is not given, volumes needs a directory of class folders")
    tables = class_folder_splits(existing_directory(arguments.data_dir), "volume", VOLUME_SUFFIXES)
    tables, skipped = without_unusable_files(tables, "volume", readable_with(read_volume), arguments)
    return complete_splits(tables, arguments, seed, skipped)
