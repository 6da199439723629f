"""Training and evaluation examples of a data set: held out where it has no evaluation split, and subsets of them."""

from collections.abc import Sequence
from typing import NamedTuple

import datasets
import numpy as np

from ...configuration import DataArguments
from ...errors import InputError
from ..media import MEDIA


class Splits(NamedTuple):
    """Training and evaluation examples with a column `image`, `video` or `volume` and a `ClassLabel` column, `label`.

    `train` may be a stream (`datasets.IterableDataset`) of `num_train` examples. `skipped_files` are the names of the
    files that were left out because they cannot be used.
    """

    train: datasets.Dataset | datasets.IterableDataset
    test: datasets.Dataset
    skipped_files: list[str]
    num_train: int

    @classmethod
    def of(cls, train: datasets.Dataset, test: datasets.Dataset, skipped_files: Sequence[str] = ()) -> "Splits":
        return cls(train, test, list(skipped_files), len(train))

    @property
    def column(self) -> str:
        return next(name for name in MEDIA if name in self.test.features)

    @property
    def label_names(self) -> list[str]:
        return self.test.features["label"].names


def complete_splits(
    tables: dict[str, datasets.Dataset], arguments: DataArguments, seed: int, skipped_files: Sequence[str] = ()
) -> Splits:
    """The tables `train` and `test`; without `test`, `eval_fraction` of `train` is held out."""
    if "test" in tables:
        return Splits.of(tables["train"], tables["test"], skipped_files)
    return Splits.of(*hold_out(tables["train"], arguments.eval_fraction, seed), skipped_files)


def hold_out(dataset: datasets.Dataset, fraction: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Training and evaluation examples, with `fraction` of each class in the latter.

    Raises:
        InputError: a class is too small for that.
    """
    try:
        splits = dataset.train_test_split(fraction, stratify_by_column="label", seed=seed)
    except ValueError as error:
        raise InputError(f"eval_fraction {fraction} cannot be held out of {len(dataset)} examples: {error}") from error
    return splits["train"], splits["test"]


def select_subsets(splits: Splits, arguments: DataArguments, seed: int) -> Splits:
    """The splits cut down to `train_fraction`, `train_examples` and `eval_examples`.

    Raises:
        InputError: more examples than there are, or a `train_fraction` of a stream.
    """
    splits = splits._replace(test=_random_subset(splits.test, "eval_examples", arguments.eval_examples, seed))
    if isinstance(splits.train, datasets.IterableDataset):
        return _limit_stream(splits, arguments)
    train = _stratified_subset(splits.train, arguments.train_fraction, seed)
    train = _random_subset(train, "train_examples", arguments.train_examples, seed)
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
    labels = np.array(dataset["label"])
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [
        members[: max(round(fraction * len(members)), 1)]
        for members in (order[labels[order] == label] for label in np.unique(labels))
    ]
    return dataset.select(np.sort(np.concatenate(chosen)))


def _random_subset(dataset: datasets.Dataset, field: str, count: int | None, seed: int) -> datasets.Dataset:
    if count is None or count == len(dataset):
        return dataset
    if count > len(dataset):
        raise InputError(f"{field} is {count}, the data set has {len(dataset)}")
    return dataset.shuffle(seed=seed).select(range(count))
