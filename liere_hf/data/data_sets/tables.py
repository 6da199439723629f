"""Tables with a column of encoded inputs and a column of labels, from paths, arrays and lists of examples."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import datasets
import numpy as np

from ...configuration import DataArguments
from ...errors import InputError
from ..decoding.pnm import encode_pnm
from ..media import encoded_feature
from .files import NotedFile
from .groups import GROUP
from .label_files import ListedExamples
from .labels import encode_labels


class FoundTables(NamedTuple):
    """Tables by split, and what was found beside their examples."""

    tables: dict[str, datasets.Dataset]
    left_out: list[NotedFile]


def tables_of_listed(splits: Mapping[str, ListedExamples], column: str, arguments: DataArguments) -> FoundTables:
    """Tables of the examples that files list.

    Raises:
        InputError: an example is in two splits; see also `encode_labels`.
    """
    _require_separate_files(splits)
    labels = encode_labels(
        {split: listed.labels for split, listed in splits.items()}, arguments.problem_type, arguments.label_separator
    )
    tables = {}
    for split, listed in splits.items():
        columns = {column: listed.files, "label": labels.splits[split]}
        features = {column: encoded_feature(column), "label": labels.feature}
        if listed.groups is not None:
            columns[GROUP], features[GROUP] = listed.groups, datasets.Value("string")
        tables[split] = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    return FoundTables(tables, [noted for listed in splits.values() for noted in listed.left_out])


def table_of_paths(column: str, paths: Sequence[str], labels: Sequence[int], names: Sequence[str]) -> datasets.Dataset:
    """Paths of files, which are not read yet, with class indices and the classes' names."""
    return datasets.Dataset.from_dict(
        {column: [{"bytes": None, "path": path} for path in paths], "label": labels},
        features=datasets.Features({column: encoded_feature(column), "label": datasets.ClassLabel(names=list(names))}),
    )


def table_of_images(images: np.ndarray, labels: Sequence[int], names: Sequence[str]) -> datasets.Dataset:
    """uint8 images (examples, height, width[, 3]), stored uncompressed, with class indices and the classes' names."""
    return datasets.Dataset.from_dict(
        {"image": [{"bytes": encode_pnm(image), "path": None} for image in images], "label": labels},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}),
    )


def _require_separate_files(splits: Mapping[str, ListedExamples]) -> None:
    split_of: dict[str, str] = {}
    for split, listed in splits.items():
        for file in listed.files:
            if file["bytes"] is None and split_of.setdefault(file["path"], split) != split:
                raise InputError(f"{file['path']} is in {split_of[file['path']]} and in {split}, allowed is one split")
