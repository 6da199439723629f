"""Local files: directories, class folders, and leaving out the files that cannot be read."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ...configuration import DataArguments
from ...errors import InputError
from ..media import encoded_feature
from .tables import table_of_paths

# Names of an evaluation split, in the order of preference.
EVALUATION_SPLITS = ("test", "validation", "val")


def existing_directory(path: str) -> Path:
    """
    Raises:
        InputError: there is no such directory, or it is empty.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise InputError(f"data_dir {path} is not a directory")
    if not any(directory.iterdir()):
        raise InputError(f"data_dir {path} is empty")
    return directory


def split_folders(directory: Path) -> dict[str, Path]:
    """`directory` as `train`; or its folder `train`, and as `test` its evaluation folder if there is one."""
    if not (directory / "train").is_dir():
        return {"train": directory}
    evaluation = first_folder(directory, EVALUATION_SPLITS)
    return {"train": directory / "train"} | ({"test": evaluation} if evaluation else {})


def first_folder(directory: Path, names: Sequence[str]) -> Path | None:
    """The first of some folders that exists."""
    return next((directory / name for name in names if (directory / name).is_dir()), None)


def class_folder_splits(directory: Path, column: str, suffixes: Sequence[str]) -> dict[str, datasets.Dataset]:
    """`split_folders` of class folders as tables; the training folders name the classes.

    Raises:
        InputError: see `class_folder_table`.
    """
    tables, names = {}, None
    for split, folder in split_folders(directory).items():
        tables[split] = class_folder_table(folder, column, suffixes, names)
        names = tables[split].features["label"].names
    return tables


def class_folder_table(
    folder: Path, column: str, suffixes: Sequence[str], names: list[str] | None = None
) -> datasets.Dataset:
    """Files in class folders as a table of paths and labels; classes are in the order of their folders' names.

    Args:
        column: of the paths.
        suffixes: of the files, in lower case.
        names: the classes that are allowed; by default, the names of the folders.

    Raises:
        InputError: there are no such files, or a folder is not one of the classes.
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
    return table_of_paths(column, paths, labels, names)


def without_unusable_files(
    tables: dict[str, datasets.Dataset],
    column: str,
    is_usable: Callable[[dict[str, Any]], bool],
    arguments: DataArguments,
) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """The tables without the files that cannot be used, and the names of these files.

    Raises:
        InputError: there are such files and `skip_corrupt_files` is not set, or a split has no other files.
    """
    skipped = []
    for split, table in tables.items():
        files = table.cast_column(column, encoded_feature(column))
        usable = np.array(
            files.map(
                lambda file: {"usable": is_usable(file)},
                input_columns=column,
                num_proc=min(arguments.num_processes, len(table)),
                remove_columns=table.column_names,
                desc=f"Checking {column}s",
            )["usable"]
        )
        bad = np.flatnonzero(~usable)
        if len(bad):
            bad_files = zip(files.select(bad)[column], bad, strict=True)
            skipped += [file["path"] or f"{column} {index} of {split}" for file, index in bad_files]
            tables = tables | {split: table.select(np.flatnonzero(usable))}
        if not usable.any():
            raise InputError(f"no {column} of the {split} split can be read, for example {skipped[-1]}")
    if skipped and not arguments.skip_corrupt_files:
        raise InputError(
            f"corrupt {column}s: {first_names(skipped)}; remove them or set skip_corrupt_files to leave them out"
        )
    return tables, skipped


def readable_with(read: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], bool]:
    """A check for `without_unusable_files`: a file is usable if `read` raises no InputError."""
    return partial(_is_readable, read)


def _is_readable(read: Callable[[dict[str, Any]], Any], file: dict[str, Any]) -> bool:
    try:
        read(file)
    except InputError:
        return False
    return True


def first_names(names: Sequence[str]) -> str:
    """Three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
