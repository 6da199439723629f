"""The examples that a run trains on and is evaluated on: held out where a data set lacks them, and subsets of them."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from datasets.utils.stratify import stratified_shuffle_split_generate_indices

from ...configuration import DataArguments
from ...configuration.metric_names import REGRESSION, SINGLE_LABEL
from ...errors import InputError, first_names
from ..media import MEDIA
from .files import NotedFile
from .groups import GROUP, choose_groups
from .labels import label_names, problem_type


class HeldOut(NamedTuple):
    """How validation examples were chosen among the training examples of a data set.

    Attributes:
        fraction: of each class, `eval_fraction`.
        seed: of the choice.
        source: of the data set, as in `Splits`.
        digest: of the examples to choose from; among other ones the choice would be another.
        group_column, group_pattern: where groups are from that were held out as a whole.
    """

    fraction: float
    seed: int
    source: str
    digest: str
    group_column: str | None = None
    group_pattern: str | None = None


class Splits(NamedTuple):
    """Examples with a column `image`, `video` or `volume` and a column `label`.

    Labels are a class (`ClassLabel`), a list of classes, or a mapping of names to numbers.

    Attributes:
        train: the training examples; may be a stream (`datasets.IterableDataset`) of `num_train` examples.
        validation: chooses the best checkpoint; without it, `test` does, as in published results.
        test: evaluated once, at the end; None if there is none.
        num_train: the number of training examples.
        left_out: what was found but is not used.
        remarks: what is worth telling of files that are used.
        source: the data set: its directory, its id on the Hub, or its name.
        is_own: whether the data are the user's own, so that no published result asks for `test` to choose checkpoints.
        held_out: how `validation` was chosen from the training examples; None if it comes with the data.
    """

    train: datasets.Dataset | datasets.IterableDataset | None
    validation: datasets.Dataset | None
    test: datasets.Dataset | None
    num_train: int
    left_out: Sequence[NotedFile] = ()
    remarks: Sequence[NotedFile] = ()
    is_own: bool = False
    source: str = ""
    held_out: HeldOut | None = None

    @classmethod
    def of(
        cls,
        train: datasets.Dataset | None = None,
        validation: datasets.Dataset | None = None,
        test: datasets.Dataset | None = None,
        **facts: Any,
    ) -> "Splits":
        """Splits that are no streams."""
        return cls(train, validation, test, 0 if train is None else len(train), **facts)

    @property
    def tables(self) -> dict[str, datasets.Dataset | datasets.IterableDataset]:
        """The splits that there are, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: table for name, table in named.items() if table is not None}

    @property
    def evaluation(self) -> datasets.Dataset:
        """What is evaluated during training."""
        return self.test if self.validation is None else self.validation

    @property
    def column(self) -> str:
        return next(name for name in MEDIA if name in self._any.features)

    @property
    def label_names(self) -> list[str]:
        return label_names(self._any.features["label"])

    @property
    def problem_type(self) -> str:
        """single_label_classification, multi_label_classification or regression, as in transformers."""
        return problem_type(self._any.features["label"])

    @property
    def _any(self) -> datasets.Dataset:
        return next(table for table in (self.test, self.validation, self.train) if table is not None)

    def facts(self) -> dict[str, Any]:
        """What is known of the examples, as plain data.

        The digest of the training examples shows whether they are others; a stream has none.
        """
        is_stream = isinstance(self.train, datasets.IterableDataset)
        return {
            "source": self.source,
            "train_examples": self.num_train,
            "digest": None if is_stream else digest(self.train),
            "classes": self.label_names,
            "splits": {name: self._counts(table) for name, table in self.tables.items()},
            "held_out": self.held_out._asdict() if self.held_out else None,
            "left_out": [each._asdict() for each in self.left_out],
            "remarks": [each._asdict() for each in self.remarks],
        }

    def _counts(self, table: datasets.Dataset | datasets.IterableDataset) -> int | dict[str, int]:
        """Examples of each class, of which one example may have several; where there are no classes, of the table."""
        if isinstance(table, datasets.IterableDataset):
            return self.num_train
        if self.problem_type == REGRESSION:
            return len(table)
        counts = np.bincount(_class_indices(table), minlength=len(self.label_names))
        return dict(zip(self.label_names, counts.tolist(), strict=True))


def _class_indices(table: datasets.Dataset) -> list[int]:
    """The classes of all examples, one after another; those out of range end the run that reads them."""
    labels = table["label"][:]
    labels = [label for row in labels for label in row] if labels and isinstance(labels[0], list) else labels
    return [label for label in labels if label is not None and label >= 0]


def require_trainable(splits: Splits) -> None:
    """
    Raises:
        InputError: no training examples, fewer than two classes, or a class that training examples lack.
    """
    if splits.train is None:
        raise InputError(
            f"{splits.source} has {' and '.join(splits.tables)} but no train: there is nothing to train on"
        )
    if splits.problem_type == REGRESSION or isinstance(splits.train, datasets.IterableDataset):
        return
    if splits.problem_type == SINGLE_LABEL and len(splits.label_names) < 2:
        (name,) = splits.label_names
        folder = Path(splits.source) / name
        has_folders = folder.is_dir() and any(path.is_dir() for path in folder.iterdir())
        advice = (
            f": if its folders are the splits or the classes, {folder} is the directory to name" if has_folders else ""
        )
        raise InputError(f"{splits.source} has the one class {name!r}, a classifier needs two or more{advice}")
    present = {name: {*_class_indices(table)} for name, table in splits.tables.items()}
    for name, labels in present.items():
        missing = [splits.label_names[label] for label in sorted(labels - present["train"])]
        if missing:
            raise InputError(
                f"{splits.source} has no training examples of {first_names(missing)}, which {name} has: add some, or "
                f"take these out of {name}"
            )
    unused = [name for label, name in enumerate(splits.label_names) if label not in present["train"]]
    if splits.is_own and unused:
        raise InputError(f"{splits.source} has no usable examples of {first_names(unused)}: add some, or remove these")


def hold_out(splits: Splits, fraction: float, seed: int, **groups: str | None) -> Splits:
    """The splits with `fraction` of the training examples as validation examples: of each class, and whole groups.

    Args:
        groups: of `HeldOut`.

    Raises:
        InputError: there are too few examples for that.
    """
    train = splits.train
    choose = _choose_groups if GROUP in train.column_names else _choose_examples
    train, validation = choose(splits, fraction, seed)
    return splits._replace(
        train=train,
        validation=validation,
        num_train=len(train),
        held_out=HeldOut(fraction, seed, splits.source, digest(splits.train), **groups),
    )


def _choose_groups(splits: Splits, fraction: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    train, is_single = splits.train, splits.problem_type == SINGLE_LABEL
    labels = np.array(train["label"][:]) if is_single else np.zeros(len(train), int)
    classes = splits.label_names if is_single else ["the training split"]
    held = choose_groups(labels, classes, train[GROUP][:], fraction, seed)
    return train.select(np.flatnonzero(~held)), train.select(np.flatnonzero(held))


def _choose_examples(splits: Splits, fraction: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    train, names, is_single = splits.train, splits.label_names, splits.problem_type == SINGLE_LABEL
    labels = train["label"][:] if is_single else []
    counts = Counter(labels)
    small = [names[label] for label, count in sorted(counts.items()) if count < 2]
    if small:
        raise InputError(
            f"class {small[0]!r} has 1 example, at least 2 are needed to hold out eval_fraction {fraction} of each "
            "class: add examples, or give a validation split"
        )
    try:
        if not is_single:
            parts = train.train_test_split(fraction, seed=seed)
            return parts["train"], parts["test"]
        # As train_test_split chooses with stratify_by_column, which reads the labels one by one.
        num_held = math.ceil(fraction * len(train))
        rng = np.random.default_rng(seed)
        chosen, held = next(
            stratified_shuffle_split_generate_indices(np.array(labels), len(train) - num_held, num_held, rng)
        )
    except ValueError as error:
        raise InputError(
            f"eval_fraction {fraction} of {len(train)} examples leaves fewer than one for each of the {len(counts)} "
            "classes in training or in validation: add examples, change eval_fraction, or give a validation split"
            if is_single
            else f"eval_fraction {fraction} of {len(train)} examples leaves none for training or for validation"
        ) from error
    return train.select(chosen), train.select(held)


def digest(table: datasets.Dataset) -> str:
    """SHA-256 of a table: names below their common folder and sizes of files, or contents, and labels, in order."""
    column = next(name for name in MEDIA if name in table.features)
    # As arrow, whose columns are not decoded; in batches, as there may be the contents of many files.
    files = table.select_columns(column).with_format("arrow")
    batches = (rows[column].combine_chunks() for rows in files.iter(1000))
    paths = [
        path for batch in batches for path in batch.filter(batch.field("bytes").is_null()).field("path").to_pylist()
    ]
    root = os.path.commonpath(paths) if paths else ""
    total = hashlib.sha256(json.dumps(table["label"][:]).encode())
    for rows in files.iter(1000):
        for file in rows[column].to_pylist():
            content = file["bytes"]
            if content is None:
                path = Path(file["path"])
                content = f"{path.relative_to(root)}\0{path.stat().st_size}".encode()
            total.update(hashlib.sha256(content).digest())
    if GROUP in table.column_names:
        total.update(json.dumps(table[GROUP][:]).encode())
    return total.hexdigest()


def select_subsets(splits: Splits, arguments: DataArguments, seed: int) -> Splits:
    """The splits cut down: training examples to `train_fraction` and `train_examples`, those that are evaluated during
    training to `eval_examples`.

    Raises:
        InputError: more examples than there are, or a `train_fraction` of a stream.
    """
    evaluation = random_subset(splits.evaluation, "eval_examples", arguments.eval_examples, seed)
    splits = splits._replace(**{"test" if splits.validation is None else "validation": evaluation})
    if isinstance(splits.train, datasets.IterableDataset):
        return _limit_stream(splits, arguments)
    train = _stratified_subset(splits.train, arguments.train_fraction, seed)
    train = random_subset(train, "train_examples", arguments.train_examples, seed)
    return splits._replace(train=train, num_train=len(train))


def _limit_stream(splits: Splits, arguments: DataArguments) -> Splits:
    if arguments.train_fraction is not None:
        raise InputError("train_fraction needs all labels at once, which a stream does not have: use local files")
    if arguments.train_examples in (None, splits.num_train):
        return splits
    if arguments.train_examples > splits.num_train:
        raise InputError(f"train_examples is {arguments.train_examples}, the data set has {splits.num_train}")
    return splits._replace(train=splits.train.take(arguments.train_examples), num_train=arguments.train_examples)


def _stratified_subset(dataset: datasets.Dataset, fraction: float | None, seed: int) -> datasets.Dataset:
    """The same share of each class, at least one example; with one seed, smaller shares are part of larger ones."""
    if fraction is None or fraction == 1:
        return dataset
    if not isinstance(dataset.features["label"], datasets.ClassLabel):
        raise InputError("train_fraction takes a share of each class, which examples of several classes do not have")
    labels = np.array(dataset["label"])
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [
        members[: max(round(fraction * len(members)), 1)]
        for members in (order[labels[order] == label] for label in np.unique(labels))
    ]
    return dataset.select(np.sort(np.concatenate(chosen)))


def random_subset(dataset: datasets.Dataset, field: str, count: int | None, seed: int) -> datasets.Dataset:
    """
    Raises:
        InputError: more examples than there are.
    """
    if count is None or count == len(dataset):
        return dataset
    if count > len(dataset):
        raise InputError(f"{field} is {count}, the data set has {len(dataset)}")
    return dataset.shuffle(seed=seed).select(range(count))
