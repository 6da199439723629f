"""Files of paths and labels: CSV, TSV, JSON lines and Parquet, one row for each example."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ...configuration import DataArguments
from ...errors import InputError, first_names
from .files import NotedFile
from .groups import groups_by_pattern
from .labels import RawLabels

DELIMITERS = {".csv": ",", ".tsv": "\t"}
# Columns of the files of examples where image_column_name is not given, besides the name of the medium.
FILE_COLUMNS = ("file_name", "path", "file")
DEFAULT_LABEL = "label"


class ListedExamples(NamedTuple):
    """The rows of a file: encoded examples as `{"bytes": ..., "path": ...}`, their labels, and groups if asked for."""

    files: list[dict[str, Any]]
    labels: RawLabels
    groups: list[str] | None
    left_out: list[NotedFile]

    def select(self, rows: Sequence[int]) -> "ListedExamples":
        """Some of the rows."""
        columns = {name: [values[row] for row in rows] for name, values in self.labels.columns.items()}
        return self._replace(
            files=[self.files[row] for row in rows],
            labels=self.labels._replace(columns=columns),
            groups=None if self.groups is None else [self.groups[row] for row in rows],
        )


def read_label_file(path: Path, directory: Path, column: str, arguments: DataArguments) -> ListedExamples:
    """The examples that a file lists.

    Args:
        directory: to which relative paths in the file are relative.
        column: the medium.
        arguments: name the columns and the groups.

    Raises:
        InputError: the file cannot be read, lacks a column or lists an example twice, or examples are missing and
            `skip_corrupt_files` is not set.
    """
    columns = read_columns(path)
    file_column = find_column(columns, arguments.image_column_name, (column, *FILE_COLUMNS), path)
    label_columns = arguments.label_column_name or [DEFAULT_LABEL]
    for name in [*label_columns, *([arguments.group_column] if arguments.group_column else [])]:
        find_column(columns, name, (), path)
    files = [_file(value, directory, row, file_column, path) for row, value in enumerate(columns[file_column], 1)]
    if not files:
        raise InputError(f"{path} lists no {column}s")
    paths = Counter(file["path"] for file in files if file["bytes"] is None)
    repeated = [name for name, count in paths.items() if count > 1]
    if repeated:
        raise InputError(f"{path} lists {first_names(repeated)} more than once, allowed is one row for each {column}")
    missing = [row for row, file in enumerate(files) if file["bytes"] is None and not Path(file["path"]).is_file()]
    if missing and not arguments.skip_corrupt_files:
        raise InputError(
            f"{path} lists {len(missing)} {column}s that do not exist: "
            f"{first_names([files[row]['path'] for row in missing])}; correct the list, or set skip_corrupt_files to "
            "leave them out"
        )
    groups = [str(group) for group in columns[arguments.group_column]] if arguments.group_column else None
    if arguments.group_pattern:
        names = [str(value) for value in columns[file_column]]
        groups = groups_by_pattern(names, arguments.group_pattern)
    left_out = [NotedFile(files[row]["path"], f"listed in {path.name} but missing") for row in missing]
    labels = RawLabels({name: columns[name] for name in label_columns}, str(path))
    listed = ListedExamples(files, labels, groups, left_out)
    return listed.select(sorted({*range(len(files))} - {*missing})) if missing else listed


def read_columns(path: Path) -> dict[str, list[Any]]:
    """The columns of a file; those of CSV and TSV are text.

    Raises:
        InputError: the file does not exist, is of another type, or cannot be read.
    """
    try:
        if path.suffix in DELIMITERS:
            return _read_text(path)
        if path.suffix == ".jsonl":
            records = [json.loads(line) for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
            names = dict.fromkeys(name for record in records for name in record)
            return {name: [record.get(name) for record in records] for name in names}
        if path.suffix == ".parquet":
            return pq.read_table(path).to_pydict()
    except (OSError, ValueError, AttributeError, csv.Error, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    raise InputError(f"{path} is not a file of type {', '.join([*DELIMITERS, '.jsonl', '.parquet'])}")


def find_column(columns: dict[str, Any], name: str | None, candidates: Sequence[str], source: Any) -> str:
    """The column of this name or, if there is none, the first of some candidates.

    Raises:
        InputError: there is no such column.
    """
    wanted = [name] if name else [*candidates]
    found = next((each for each in wanted if each in columns), None)
    if found is None:
        raise InputError(f"{source} has no column {' or '.join(wanted)}, only {', '.join(columns) or 'none'}")
    return found


def _read_text(path: Path) -> dict[str, list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        header, *rows = [row for row in csv.reader(file, delimiter=DELIMITERS[path.suffix]) if row] or [[]]
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} values, its header {len(header)}")
    if len({*header}) < len(header):
        raise ValueError("its header names a column twice")
    return {name: [row[position] for row in rows] for position, name in enumerate(header)}


def _file(value: Any, directory: Path, row: int, column: str, source: Path) -> dict[str, Any]:
    if isinstance(value, str) and value:
        return {"bytes": None, "path": str(directory / value)}
    if isinstance(value, dict) and value.get("bytes"):
        return {"bytes": value["bytes"], "path": value.get("path")}
    if isinstance(value, bytes) and value:
        return {"bytes": value, "path": None}
    raise InputError(f"{source} has no path or content in row {row} of the column {column}")
