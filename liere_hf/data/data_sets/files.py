"""Local files: directories, and leaving out the files that cannot be used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from ...configuration import DataArguments
from ...errors import InputError, first_names
from ..decoding.checks import Check
from ..media import encoded_feature


class NotedFile(NamedTuple):
    """A file or folder and what is told of it: why it is not used, or used only in part.

    Reasons of one kind are equal up to their first colon.
    """

    file: str
    reason: str


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


class CheckedFiles(NamedTuple):
    """Tables without unusable files, these files, and what is told of others."""

    tables: dict[str, datasets.Dataset]
    left_out: list[NotedFile]
    remarks: list[NotedFile]


def check_files(
    tables: dict[str, datasets.Dataset],
    column: str,
    check: Callable[[dict[str, Any]], Check],
    arguments: DataArguments,
) -> CheckedFiles:
    """Check every file of the tables once, and leave out those that cannot be used.

    Raises:
        InputError: there are such files and `skip_corrupt_files` is not set, or a split has no other files.
    """
    left_out, remarks, kept = [], [], {}
    for split, table in tables.items():
        names, checks = _checks(table, column, check, arguments.num_processes, split)
        faults = [NotedFile(name, each.fault) for name, each in zip(names, checks, strict=True) if each.fault]
        if len(faults) == len(table):
            raise InputError(f"no {column} of the {split} split can be used, for example {_with_reason(faults[0])}")
        usable = [index for index, each in enumerate(checks) if each.fault is None]
        kept[split] = table.select(usable) if faults else table
        left_out += faults
        remarks += [NotedFile(name, each.remark) for name, each in zip(names, checks, strict=True) if each.remark]
    if left_out and not arguments.skip_corrupt_files:
        raise InputError(
            f"{len(left_out)} of {sum(map(len, tables.values()))} {column}s cannot be used: "
            f"{first_names([*map(_with_reason, left_out)])}; correct or remove them, or set skip_corrupt_files to "
            "leave them out"
        )
    return CheckedFiles(kept, [NotedFile(file, f"cannot be used: {reason}") for file, reason in left_out], remarks)


def _checks(
    table: datasets.Dataset, column: str, check: Callable[[dict[str, Any]], Check], num_processes: int, split: str
) -> tuple[list[str], list[Check]]:
    """The name of each file of a table, and its check."""
    files = table.cast_column(column, encoded_feature(column))
    num_proc = min(num_processes, len(table))
    checked = files.map(
        lambda file, index: {"name": file["path"] or f"{column} {index} of {split}", **check(file)._asdict()},
        input_columns=column,
        with_indices=True,
        num_proc=num_proc if num_proc > 1 else None,
        remove_columns=table.column_names,
        features=datasets.Features({name: datasets.Value("string") for name in ("name", *Check._fields)}),
        desc=f"Checking {column}s",
    )
    return checked["name"][:], [Check(*pair) for pair in zip(checked["fault"], checked["remark"], strict=True)]


def _with_reason(noted: NotedFile) -> str:
    return f"{noted.file} ({noted.reason})"
