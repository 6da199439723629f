"""Files to predict for, and files and tables of predictions."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from pyarrow import parquet
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .data.data_sets.class_folders import find_files as files_below
from .data.data_sets.folders import suffixes
from .errors import InputError
from .output_files import require_writable_file, write_bytes

# More are left to the file of predictions.
MAX_SHOWN_ROWS = 20


class Prediction(NamedTuple):
    """What a model says about a file.

    Attributes:
        file: its name.
        values: labels with their probabilities, the most probable first; of a regression, every number with its name.
        error: why the file cannot be read, None if it can.
    """

    file: str
    values: list[tuple[str, float]]
    error: str | None = None


class Predictions(NamedTuple):
    """Predictions by file; `are_shares` says whether their values are probabilities."""

    rows: list[Prediction]
    are_shares: bool


def find_files(paths: Sequence[str], column: str) -> list[str]:
    """Files as given, and those of a medium in folders, at any depth, in the order of their names.

    Raises:
        InputError: a path does not exist, or a folder holds no such file.
    """
    endings = suffixes(column)
    files = []
    for path in paths:
        if Path(path).is_dir():
            found, _ = files_below(Path(path), column, endings)
            if not found:
                raise InputError(f"folder {path} holds no {column}, which end with {', '.join(endings)}")
            files += sorted(found)
        elif Path(path).exists():
            files.append(path)
        else:
            raise InputError(f"{path} does not exist")
    return files


def require_output(path: Path | None) -> None:
    """
    Raises:
        InputError: the ending of a file of predictions is not one of `FORMATS`, or it cannot be written.
    """
    if path is not None and path.suffix.lower() not in FORMATS:
        raise InputError(f"output is {path}, allowed are names that end with {', '.join(FORMATS)}")
    require_writable_file("output", path)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a file whose ending gives its format, whole or not at all."""
    write_bytes(path, FORMATS[path.suffix.lower()](predictions))


def print_predictions(predictions: Predictions) -> None:
    """A table of the first predictions, and the names of the files that cannot be read."""
    console = Console()
    readable = [row for row in predictions.rows if not row.error]
    table = Table("file", "prediction")
    for row in readable[:MAX_SHOWN_ROWS]:
        values = (
            f"{label} {100 * value:.1f}%" if predictions.are_shares else f"{label} {value:.4g}"
            for label, value in row.values
        )
        table.add_row(escape(row.file), escape(", ".join(values)))
    console.print(table)
    if len(readable) > MAX_SHOWN_ROWS:
        console.print(f"and {len(readable) - MAX_SHOWN_ROWS:,} more files")
    for row in predictions.rows:
        if row.error:
            console.print(f"left out: {row.error}", markup=False, soft_wrap=True)
    if len(readable) < len(predictions.rows):
        unreadable = len(predictions.rows) - len(readable)
        console.print(f"{unreadable:,} of {len(predictions.rows):,} files cannot be read")


def _columns(predictions: Predictions) -> dict[str, list[Any]]:
    """Columns of a table, None where empty: `file`, the values, and `error`.

    Values are `label`, `probability`, `label_2`, `probability_2`, ..., or for a regression each number by its name.
    """
    rows = predictions.rows
    columns: dict[str, list[Any]] = {"file": [row.file for row in rows]}
    names = next([name for name, _ in row.values] for row in rows if not row.error)
    for rank, name in enumerate(names):
        pairs = [row.values[rank] if row.values else (None, None) for row in rows]
        labels, values = map(list, zip(*pairs, strict=True))
        ending = f"_{rank + 1}" if rank else ""
        columns |= (
            {f"label{ending}": labels, f"probability{ending}": values} if predictions.are_shares else {name: values}
        )
    return columns | {"error": [row.error for row in rows]}


def _csv(predictions: Predictions) -> bytes:
    columns, text = _columns(predictions), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode(errors="surrogateescape")


def _parquet(predictions: Predictions) -> bytes:
    columns, content = _columns(predictions), io.BytesIO()
    numbers = {name for name, values in columns.items() if any(isinstance(value, float) for value in values)}
    kinds = {name: pyarrow.float64() if name in numbers else pyarrow.string() for name in columns}
    parquet.write_table(pyarrow.table(columns, schema=pyarrow.schema(kinds)), content)
    return content.getvalue()


def _json(predictions: Predictions) -> bytes:
    kind = "probability" if predictions.are_shares else "value"
    rows = [
        {
            "file": row.file,
            "predictions": [{"label": label, kind: value} for label, value in row.values],
            "error": row.error,
        }
        for row in predictions.rows
    ]
    return (json.dumps(rows, indent=2) + "\n").encode()


FORMATS: dict[str, Callable[[Predictions], bytes]] = {".csv": _csv, ".parquet": _parquet, ".json": _json}
