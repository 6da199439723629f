"""Images in class folders."""

import datasets

from ...configuration import DataArguments
from ...errors import InputError
from ..decoding.images import decode_image
from .files import existing_directory, readable_with, split_folders, without_unusable_files
from .splits import Splits, complete_splits


def load_imagefolder(arguments: DataArguments, seed: int) -> Splits:
    """Class folders in `data_dir`, or in its `train` and `test`, `validation` or `val` folders.

    Every image is decoded once before training, so that a corrupt one ends the run at its start, or is left out and
    counted.

    Raises:
        InputError: no `data_dir`, no images in it, corrupt ones without `skip_corrupt_files`, or classes that are too
            small to hold out examples.
    """
    if arguments.data_dir is None:
        raise InputError("data_dir is not given, imagefolder needs a directory of class folders")
    directory = existing_directory(arguments.data_dir)
    try:
        tables = datasets.load_dataset(
            "imagefolder",
            data_files={name: f"{folder}/**" for name, folder in split_folders(directory).items()},
            drop_labels=False,
        )
    except (FileNotFoundError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise InputError(f"data_dir {directory} holds no images in class folders") from error
    tables, skipped = without_unusable_files(dict(tables), "image", readable_with(decode_image), arguments)
    return complete_splits(tables, arguments, seed, skipped)
