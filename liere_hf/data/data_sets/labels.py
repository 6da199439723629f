"""Raw labels of tables to the feature `label`: classes, several classes of an example, or numbers."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import datasets

from ...configuration.metric_names import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ...errors import InputError, first_names


class RawLabels(NamedTuple):
    """The label columns of a split as they are in its file, and what the file is called."""

    columns: dict[str, list[Any]]
    source: str


class Labels(NamedTuple):
    """The labels of each split, and their feature: a ClassLabel, a list of them, or a number for each name."""

    feature: Any
    splits: dict[str, list[Any]]


def problem_type(feature: Any) -> str:
    """transformers' name for the problem of a model with such labels."""
    if isinstance(feature, datasets.ClassLabel):
        return SINGLE_LABEL
    return REGRESSION if isinstance(feature, dict) else MULTI_LABEL


def label_names(feature: Any) -> list[str]:
    """The classes, or the names of the numbers."""
    if isinstance(feature, dict):
        return [*feature]
    return feature.names if isinstance(feature, datasets.ClassLabel) else feature.feature.names


def encode_labels(splits: Mapping[str, RawLabels], kind: str, separator: str) -> Labels:
    """Labels of all splits, with the names that occur in any of them.

    Args:
        kind: single_label_classification, with one column of names; multi_label_classification, with one column of
            names between separators or of lists, or with a column of 0 and 1 for each class; regression, with a column
            of numbers for each target.

    Raises:
        InputError: a label that is missing or of another kind, or several columns of classes.
    """
    if kind == REGRESSION:
        return _numbers(splits)
    num_columns = max(len(raw.columns) for raw in splits.values())
    if num_columns > 1:
        if kind == SINGLE_LABEL:
            names = ", ".join(next(iter(splits.values())).columns)
            raise InputError(
                f"label_column_name is {names}, allowed is one column for {SINGLE_LABEL}: set problem_type"
            )
        return _flags(splits)
    values = {split: next(iter(raw.columns.values())) for split, raw in splits.items()}
    if kind == SINGLE_LABEL:
        named = {split: [_name(*row) for row in _rows(splits[split])] for split in splits}
        feature = datasets.ClassLabel(names=_in_order({name for names in named.values() for name in names}))
        return Labels(feature, {split: [feature.str2int(name) for name in names] for split, names in named.items()})
    listed = {split: [_names(value, separator) for value in values[split]] for split in splits}
    names = _in_order({name for rows in listed.values() for row in rows for name in row})
    if not names:
        raise InputError(f"{_sources(splits)} names no classes")
    numbers = {name: number for number, name in enumerate(names)}
    feature = datasets.List(datasets.ClassLabel(names=names))
    return Labels(
        feature, {split: [[numbers[name] for name in row] for row in rows] for split, rows in listed.items()}
    )


def _numbers(splits: Mapping[str, RawLabels]) -> Labels:
    encoded = {
        split: [
            {
                column: _number(value, column, row, raw.source)
                for column, value in zip(raw.columns, values, strict=True)
            }
            for row, values in enumerate(zip(*raw.columns.values(), strict=True), 1)
        ]
        for split, raw in splits.items()
    }
    columns = next(iter(splits.values())).columns
    return Labels({column: datasets.Value("float32") for column in columns}, encoded)


def _flags(splits: Mapping[str, RawLabels]) -> Labels:
    """Lists of the columns that are 1."""
    encoded = {}
    for split, raw in splits.items():
        encoded[split] = []
        for row, values in enumerate(zip(*raw.columns.values(), strict=True), 1):
            flags = [_number(value, name, row, raw.source) for name, value in zip(raw.columns, values, strict=True)]
            for name, flag in zip(raw.columns, flags, strict=True):
                if flag not in (0, 1):
                    raise InputError(f"{raw.source} has {name} {flag:g} in row {row}, allowed are 0 and 1")
            encoded[split].append([number for number, flag in enumerate(flags) if flag])
    names = [*next(iter(splits.values())).columns]
    return Labels(datasets.List(datasets.ClassLabel(names=names)), encoded)


def _rows(raw: RawLabels) -> list[tuple[Any, str, int, str]]:
    ((column, values),) = raw.columns.items()
    return [(value, column, row, raw.source) for row, value in enumerate(values, 1)]


def _name(value: Any, column: str, row: int, source: str) -> str:
    """A class by its name; numbers are names, too."""
    name = value.strip() if isinstance(value, str) else value
    if isinstance(name, float) and name.is_integer():
        # pandas makes whole numbers floats where some are missing.
        name = int(name)
    if name is None or name == "" or (isinstance(name, float) and math.isnan(name)):
        raise InputError(f"{source} has no {column} in row {row}")
    if not isinstance(name, str | int):
        raise InputError(
            f"{source} has {column} {value!r} in row {row}, allowed are names and whole numbers: set problem_type for "
            "numbers or for lists of classes"
        )
    return str(name)


def _names(value: Any, separator: str) -> list[str]:
    parts = value.split(separator) if isinstance(value, str) else [] if value is None else value
    parts = parts if isinstance(parts, list | tuple) else [parts]
    return [*dict.fromkeys(name for name in (str(part).strip() for part in parts) if name)]


def _number(value: Any, column: str, row: int, source: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{source} has {column} {value!r} in row {row}, allowed are numbers")
    return number


def _in_order(names: set[str]) -> list[str]:
    """Names by number if all are whole numbers, else by the alphabet."""
    is_number = all(name.removeprefix("-").isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if is_number else sorted(names)


def _sources(splits: Mapping[str, RawLabels]) -> str:
    return first_names(sorted({raw.source for raw in splits.values()}))
