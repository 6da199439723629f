"""Any images in class folders."""

from typing import Any

import datasets

from ..configuration import DataArguments
from ..errors import InputError
from .images import decode_image
from .sources import Data, existing_directory, hold_out, split_folders, without_corrupt_files


def load_imagefolder(arguments: DataArguments, seed: int) -> Data:
    """Class folders in `data_dir`, or in its `train` and `test`, `validation` or `val` folders.

    Every image is read once beforehand, so that a corrupt one ends the run at its start, or is left out and counted.
    """
    if arguments.data_dir is None:
        raise InputError("data_dir is not given, imagefolder needs a directory of class folders")
    directory = existing_directory(arguments.data_dir)
    try:
        splits = datasets.load_dataset(
            "imagefolder",
            data_files={name: f"{folder}/**" for name, folder in split_folders(directory).items()},
            drop_labels=False,
        )
    except (FileNotFoundError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise InputError(f"data_dir {directory} holds no images in class folders") from error
    splits, skipped = without_corrupt_files(dict(splits), "image", is_readable, arguments)
    if "test" in splits:
        return Data.of(splits["train"], splits["test"], skipped)
    return Data.of(*hold_out(splits["train"], arguments.eval_fraction, seed), skipped)


def is_readable(image: dict[str, Any]) -> bool:
    """Whether an encoded image can be decoded."""
    try:
        decode_image(image)
    except InputError:
        return False
    return True
