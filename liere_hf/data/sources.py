"""What loaders of data sets have in common: their result, and where files and Hub data sets come from."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np

from ..configuration import DataArguments
from ..errors import InputError
from .pnm import encode_pnm

COLUMNS = ("image", "video", "volume")
EVALUATION_FOLDERS = ("test", "validation", "val")


class Data(NamedTuple):
    """Training and evaluation examples with a column `image`, `video` or `volume` and a `ClassLabel` column, `label`.

    `train` may be a stream (`datasets.IterableDataset`) of `num_train` examples. `skipped_files` are the names of the
    files that were left out because they cannot be used.
    """

    train: datasets.Dataset | datasets.IterableDataset
    test: datasets.Dataset
    skipped_files: list[str]
    num_train: int

    @classmethod
    def of(cls, train: datasets.Dataset, test: datasets.Dataset, skipped_files: Sequence[str] = ()) -> "Data":
        return cls(train, test, list(skipped_files), len(train))

    @property
    def column(self) -> str:
        return next(name for name in COLUMNS if name in self.test.features)

    @property
    def label_names(self) -> list[str]:
        return self.test.features["label"].names


def num_processes(arguments: DataArguments) -> int:
    """How many processes prepare data."""
    return arguments.data_num_proc or os.cpu_count() or 1


def existing_directory(path: str) -> Path:
    """
    Raises:
        InputError: no directory there, or an empty one.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise InputError(f"data_dir {path} is not a directory")
    if not any(directory.iterdir()):
        raise InputError(f"data_dir {path} is empty")
    return directory


def from_hub(hub_id: str, **options: Any) -> Any:
    """`datasets.load_dataset` of a Hub data set.

    Raises:
        InputError: it is gated and there is no access, it does not exist, or there is no connection.
    """
    try:
        return datasets.load_dataset(hub_id, **options)
    except Exception as error:
        text = f"{error} {error.__cause__}".lower()
        if "gated" in text or "401 client error" in text or "403 client error" in text:
            raise InputError(
                f"{hub_id} is gated: accept its terms at https://huggingface.co/datasets/{hub_id} and log in with "
                "'hf auth login', or give data_dir with local files"
            ) from error
        raise InputError(
            f"{hub_id} could not be loaded from the Hub ({type(error).__name__}); give data_dir to read local files"
        ) from error


def require_split(splits: dict[str, Any], name: str, where: str) -> Any:
    """
    Raises:
        InputError: there is no such split.
    """
    if name not in splits:
        raise InputError(f"{where} has no split {name!r}, only {', '.join(splits) or 'none'}")
    return splits[name]


def from_arrays(images: np.ndarray, labels: Sequence[int], names: Sequence[str]) -> datasets.Dataset:
    """uint8 images (examples, height, width[, 3]) and class indices as a data set of uncompressed images."""
    return datasets.Dataset.from_dict(
        {"image": [{"bytes": encode_pnm(image), "path": None} for image in images], "label": labels},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}),
    )


def hold_out(dataset: datasets.Dataset, fraction: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Training and evaluation examples, `fraction` of each class in the latter."""
    try:
        splits = dataset.train_test_split(fraction, stratify_by_column="label", seed=seed)
    except ValueError as error:
        raise InputError(f"eval_fraction {fraction} cannot be held out of {len(dataset)} examples: {error}") from error
    return splits["train"], splits["test"]


def split_folders(directory: Path) -> dict[str, Path]:
    """`directory` as `train`, or its folder `train` and the first of `test`, `validation` and `val` as `test`."""
    if not (directory / "train").is_dir():
        return {"train": directory}
    tests = [directory / name for name in EVALUATION_FOLDERS if (directory / name).is_dir()]
    return {"train": directory / "train"} | ({"test": tests[0]} if tests else {})


def class_folders(
    folder: Path, column: str, suffixes: Sequence[str], names: list[str] | None = None
) -> datasets.Dataset:
    """Files in class folders as a data set of paths and labels; classes are in the order of their folders' names.

    Args:
        column: of the paths.
        suffixes: of the files, in lower case.
        names: the classes there may be; the folders' names if not given.

    Raises:
        InputError: no such files, or a folder that is none of the classes.
    """
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    names = names or [path.name for path in folders]
    paths, labels = [], []
    for class_folder in folders:
        if class_folder.name not in names:
            raise InputError(f"{class_folder} is a class that the training data does not have")
        files = sorted(
            entry.path
            for entry in os.scandir(class_folder)
            if entry.name.lower().endswith(tuple(suffixes)) and not entry.name.startswith(".")
        )
        paths += files
        labels += [names.index(class_folder.name)] * len(files)
    if not paths:
        raise InputError(f"data_dir {folder} holds no {column}s in class folders")
    return from_paths(column, paths, labels, names)


def from_paths(column: str, paths: Sequence[str], labels: Sequence[int], names: Sequence[str]) -> datasets.Dataset:
    """Paths of files, not yet read, as a data set."""
    return datasets.Dataset.from_dict(
        {column: [{"bytes": None, "path": path} for path in paths], "label": labels},
        features=datasets.Features({column: undecoded(column), "label": datasets.ClassLabel(names=list(names))}),
    )


def undecoded(column: str) -> Any:
    """The feature type of a column whose rows are `{"bytes": ..., "path": ...}`."""
    kinds = {"image": datasets.Image, "video": datasets.Video, "volume": datasets.Nifti}
    return kinds[column](decode=False)


def without_corrupt_files(
    splits: dict[str, datasets.Dataset],
    column: str,
    is_usable: Callable[[dict[str, Any]], bool],
    arguments: DataArguments,
) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """The splits without the files that cannot be used, and the names of these.

    Raises:
        InputError: there are some, and the arguments do not allow to leave them out.
    """
    skipped = []
    for name, dataset in splits.items():
        usable = np.array(
            dataset.cast_column(column, undecoded(column)).map(
                lambda file: {"usable": is_usable(file)},
                input_columns=column,
                num_proc=min(num_processes(arguments), len(dataset)),
                remove_columns=dataset.column_names,
                desc=f"Checking {column}s",
            )["usable"]
        )
        bad = np.flatnonzero(~usable)
        if len(bad):
            files = dataset.cast_column(column, undecoded(column)).select(bad)[column]
            skipped += [file["path"] or f"{column} {index} of {name}" for file, index in zip(files, bad, strict=True)]
            splits = splits | {name: dataset.select(np.flatnonzero(usable))}
        if not usable.any():
            raise InputError(f"no {column} of the {name} split can be read, {skipped[-1]} for one")
    if skipped and not arguments.skip_corrupt_files:
        shown = ", ".join(skipped[:3]) + (f" and {len(skipped) - 3} more" if len(skipped) > 3 else "")
        raise InputError(f"corrupt {column}s: {shown}; remove them or set skip_corrupt_files to leave them out")
    return splits, skipped
