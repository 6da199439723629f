"""Data sets on the Hub: loading them, and checking their splits and columns."""

from collections.abc import Sequence
from typing import Any

import datasets

from ...errors import InputError


def from_hub(hub_id: str, **options: Any) -> Any:
    """`datasets.load_dataset` of a Hub data set.

    Raises:
        InputError: it is gated and access was not granted, it does not exist, or there is no connection.
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
