"""The data set that a recipe names."""

from collections.abc import Callable

import datasets
import numpy as np

from ..configuration import DataArguments
from ..errors import InputError
from .arrows import load_arrows
from .cifar import load_cifar10, load_cifar100
from .clips import load_clips
from .digits import load_digits
from .fashion_mnist import load_fashion_mnist
from .imagefolder import load_imagefolder
from .imagenet import load_imagenet
from .sources import Data
from .ucf101 import load_ucf101
from .volumes import load_volumes

LOADERS: dict[str, Callable[[DataArguments, int], Data]] = {
    "arrows": load_arrows,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "clips": load_clips,
    "digits": load_digits,
    "fashion_mnist": load_fashion_mnist,
    "imagefolder": load_imagefolder,
    "imagenet": load_imagenet,
    "ucf101": load_ucf101,
    "volumes": load_volumes,
}


def load_data(arguments: DataArguments, seed: int) -> Data:
    """Load the data set that the arguments name.

    Args:
        seed: of the held-out split and of subsets.

    Raises:
        InputError: no data set named, or files that are missing or cannot be read.
    """
    if arguments.dataset is None:
        raise InputError(f"dataset is not given, allowed are {', '.join(LOADERS)}")
    data = LOADERS[arguments.dataset](arguments, seed)
    data = data._replace(test=_subset(data.test, "eval_examples", arguments.eval_examples, seed))
    if isinstance(data.train, datasets.IterableDataset):
        return _limit_stream(data, arguments)
    train = _stratified(data.train, arguments.train_fraction, seed)
    train = _subset(train, "train_examples", arguments.train_examples, seed)
    return data._replace(train=train, num_train=len(train))


def _limit_stream(data: Data, arguments: DataArguments) -> Data:
    if arguments.train_fraction is not None:
        raise InputError("train_fraction needs all labels at once, which a stream does not have: use local files")
    if arguments.train_examples in (None, data.num_train):
        return data
    if arguments.train_examples > data.num_train:
        raise InputError(f"train_examples is {arguments.train_examples}, the data set has {data.num_train}")
    return data._replace(train=data.train.take(arguments.train_examples), num_train=arguments.train_examples)


def _stratified(dataset: datasets.Dataset, fraction: float | None, seed: int) -> datasets.Dataset:
    """The same share of each class, at least one example; smaller shares are part of larger ones of the same seed."""
    if fraction is None or fraction == 1:
        return dataset
    labels = np.array(dataset["label"])
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [
        members[: max(round(fraction * len(members)), 1)]
        for members in (order[labels[order] == label] for label in np.unique(labels))
    ]
    return dataset.select(np.sort(np.concatenate(chosen)))


def _subset(dataset: datasets.Dataset, field: str, count: int | None, seed: int) -> datasets.Dataset:
    if count is None or count == len(dataset):
        return dataset
    if count > len(dataset):
        raise InputError(f"{field} is {count}, the data set has {len(dataset)}")
    return dataset.shuffle(seed=seed).select(range(count))
