"""Data sets on the Hub, or copies of them: loading them, and checking their splits and columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from ...configuration import DataArguments
from ...errors import InputError
from ..media import MEDIA, encoded_feature
from .class_folders import folder_split
from .files import NotedFile
from .groups import GROUP, groups_by_pattern
from .label_files import DEFAULT_LABEL, FILE_COLUMNS, find_column
from .labels import RawLabels, encode_labels
from .tables import FoundTables


def from_hub(hub_id: str, **options: Any) -> Any:
    """`datasets.load_dataset` of a Hub data set, or of a directory, also one that `save_to_disk` has written.

    Raises:
        InputError: it is gated and access was not granted, it does not exist, or there is no connection.
    """
    saved = [name for name in ("dataset_dict.json", "state.json") if (Path(hub_id) / name).is_file()]
    try:
        if saved:
            loaded = datasets.load_from_disk(hub_id)
            return loaded if isinstance(loaded, dict) else {"train": loaded}
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


def require_split(tables: dict[str, Any], name: str, source: str) -> Any:
    """
    Raises:
        InputError: there is no such split.
    """
    if name not in tables:
        raise InputError(f"{source} has no split {name!r}, only {', '.join(tables) or 'none'}")
    return tables[name]


def require_columns(table: datasets.Dataset, columns: Sequence[str], source: str) -> None:
    """
    Raises:
        InputError: a column is missing.
    """
    for column in columns:
        if column not in table.column_names:
            raise InputError(f"{source} has no column {column!r}, only {', '.join(table.column_names)}")


def tables_of_hub(hub_id: str, column: str, arguments: DataArguments) -> FoundTables:
    """The examples of any data set with a column of a medium and columns of labels, named as the arguments say.

    Raises:
        InputError: it cannot be loaded, has no or two splits of a name, or lacks a column.
    """
    named: dict[str, datasets.Dataset] = {}
    left_out = []
    for name, table in from_hub(hub_id).items():
        split = folder_split(name)
        if split in named:
            raise InputError(f"{hub_id} has two splits for {split}, one of them {name}")
        if split is None:
            left_out.append(NotedFile(f"{hub_id}: {name}", "a split of another name than train, validation and test"))
        else:
            named[split] = table
    if not named:
        raise InputError(f"{hub_id} has none of the splits train, validation and test")
    label_columns = arguments.label_column_name or [DEFAULT_LABEL]
    raw = {split: RawLabels(_raw_labels(table, label_columns, hub_id), hub_id) for split, table in named.items()}
    labels = encode_labels(raw, arguments.problem_type, arguments.label_separator)
    tables = {}
    for split, table in named.items():
        examples = _examples(table, column, arguments.image_column_name, hub_id)
        tables[split] = examples.add_column("label", labels.splits[split], feature=labels.feature)
        groups = _groups(table, examples, column, arguments, hub_id)
        if groups is not None:
            tables[split] = tables[split].add_column(GROUP, groups)
    return FoundTables(tables, left_out)


def _raw_labels(table: datasets.Dataset, names: Sequence[str], source: str) -> dict[str, list[Any]]:
    """Columns of labels, with the names of classes instead of their indices."""
    columns = {}
    for name in names:
        find_column(table.features, name, (), source)
        feature, values = table.features[name], table[name][:]
        if isinstance(feature, datasets.ClassLabel):
            values = [None if value is None or value < 0 else feature.int2str(value) for value in values]
        elif isinstance(getattr(feature, "feature", None), datasets.ClassLabel):
            values = [feature.feature.int2str(value) for value in values]
        columns[name] = values
    return columns


def _examples(table: datasets.Dataset, column: str, name: str | None, source: str) -> datasets.Dataset:
    """The column of the medium, encoded."""
    typed = [each for each, feature in table.features.items() if isinstance(feature, MEDIA[column].feature)]
    name = find_column(table.features, name, (*typed, column, *FILE_COLUMNS), source)
    table = table.select_columns([name])
    table = table.rename_column(name, column) if name != column else table
    try:
        return table.cast_column(column, encoded_feature(column))
    except (TypeError, ValueError, datasets.table.CastError) as error:
        raise InputError(
            f"{source} has the column {name} of type {table.features[column]}, allowed are {column}s"
        ) from error


def _groups(
    table: datasets.Dataset, examples: datasets.Dataset, column: str, arguments: DataArguments, source: str
) -> list[str] | None:
    if arguments.group_column:
        return [str(group) for group in table[find_column(table.features, arguments.group_column, (), source)]]
    if arguments.group_pattern:
        paths = [file["path"] or "" for rows in examples.iter(1000) for file in rows[column]]
        return groups_by_pattern(paths, arguments.group_pattern)
    return None
