"""Step 5: rows of a split to batches of `pixel_values` and `labels`, as data sets for a `DataLoader`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import datasets
import numpy as np
import torch

from ..errors import InputError
from .augmentation.batch_augmentation import BatchAugmentation
from .augmentation.mixing import Mixing
from .augmentation.patch_shuffling import shuffle_patches
from .data_sets.labels import label_names
from .draws import Draws
from .media import encoded_feature


class TrainingPixels(Protocol):
    """Decodes a batch of inputs and resizes them: uint8 (batch, [frames,] channels, height, width)."""

    def __call__(self, inputs: Sequence[Any], draws: Draws) -> torch.Tensor: ...


class EvaluationPixels(Protocol):
    """Decodes, resizes and normalizes one view of each input: float32 (batch, [frames,] channels, height, width).

    `num_views` views of every input are evaluated. `image_mean` and `image_std` are those of the normalization, per
    channel, of pixels in [0, 1].
    """

    num_views: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]

    def __call__(self, inputs: Sequence[Any], views: Sequence[int]) -> torch.Tensor: ...


# Coordinates of the patches of inputs, float32 (batch, patches, axes), for a model that does not take its own.
Positions = Callable[[Sequence[Any]], torch.Tensor]


class TrainingTransform:
    """Rows of a data set to augmented examples.

    The augmentation of an example depends only on the seed, the epoch and the example's index. Neither the number of
    workers and processes nor an interruption changes it. Mixing, and which one of several sizes inputs have, depend on
    the batch as well.

    Args:
        column: of the inputs.
        to_pixels: decodes and resizes them.
        augmentation: of a batch.
        mixing: of a batch, None for none.
        seed: of all random choices.
        num_labels: number of classes; labels must be smaller.
        to_positions: of the inputs; None for the model's own positions.
    """

    def __init__(
        self,
        column: str,
        to_pixels: TrainingPixels,
        augmentation: BatchAugmentation,
        mixing: Mixing | None,
        seed: int,
        num_labels: int,
        to_positions: Positions | None = None,
    ):
        self.column = column
        self.to_pixels = to_pixels
        self.to_positions = to_positions
        self.augmentation = augmentation
        self.mixing = mixing
        self.seed = seed
        self.num_labels = num_labels
        # In shared memory, so that persistent workers see when the next epoch begins.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __call__(self, rows: dict[str, list], indices: Sequence[int]) -> list[dict[str, Any]]:
        """Columns of some rows, and the rows' indices in the data set, to the arguments of a model.

        Raises:
            InputError: an input that cannot be read, or a label out of range.
        """
        labels = label_tensor(rows["label"], self.num_labels)
        draws = Draws(self.seed, self.epoch, indices)
        pixel_values = self.augmentation(self.to_pixels(rows[self.column], draws), draws)
        if self.mixing is not None:
            pixel_values, labels = self.mixing(pixel_values, labels, draws.next(1)[0, 0])
        return _examples(pixel_values, labels, self.to_positions and self.to_positions(rows[self.column]))


class TrainingExamples(torch.utils.data.Dataset):
    """A table of examples, transformed for training."""

    def __init__(self, dataset: datasets.Dataset, transform: TrainingTransform):
        self.dataset = dataset.cast_column(transform.column, encoded_feature(transform.column))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        return self.transform(self.dataset[indices], indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]


class StreamedExamples(torch.utils.data.IterableDataset):
    """This process's share of a streamed data set, transformed for training.

    Each process reads its own shards, and each of its workers its own share of these. The shards change from epoch to
    epoch. A reader at the end of its shards starts over, so that all processes make the same number of steps.

    Args:
        dataset: the whole stream.
        num_examples: of the whole stream. Examples beyond a multiple of `batch_size * world_size` are left out.
        batch_size: of this process.
        rank, world_size: of this process.
        buffer_size: of the buffer in which examples are shuffled; shards are shuffled as well.

    Raises:
        InputError: fewer examples than one batch for every process, or fewer shards than processes.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        transform: TrainingTransform,
        num_examples: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        buffer_size: int = 10_000,
    ):
        self.dataset = dataset.cast_column(transform.column, encoded_feature(transform.column))
        self.transform = transform
        self.batch_size = batch_size
        self.num_batches = num_examples // (batch_size * world_size)
        self.rank, self.world_size = rank, world_size
        self.buffer_size = buffer_size
        if self.num_batches == 0:
            raise InputError(
                f"per_device_train_batch_size is {batch_size}, too large for {num_examples} training examples in "
                f"{world_size} processes"
            )
        if self.num_shards < 1:
            raise InputError(
                f"the training data has {dataset.num_shards} shards, fewer than the {world_size} processes"
            )
        self._resumed_epoch, self._num_seen_batches = -1, 0

    @property
    def num_shards(self) -> int:
        """Shards of the process with the fewest: the largest number of workers that each may have."""
        return self.dataset.num_shards // self.world_size

    def resume(self, epoch: int, num_batches: int) -> None:
        """Do not decode the first batches of an epoch again, which were seen before an interruption.

        They are replaced by empty examples, which the Trainer skips.
        """
        self._resumed_epoch, self._num_seen_batches = epoch, num_batches

    def __len__(self) -> int:
        """Examples of this process in an epoch."""
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        rows = self._endless_rows()
        num_seen = self._num_seen_batches if self.transform.epoch == self._resumed_epoch else 0
        # The DataLoader takes batches from its workers in turn.
        for batch in range(number, self.num_batches, num_workers):
            chunk = [next(rows) for _ in range(self.batch_size)]
            if batch < num_seen:
                yield from [{"labels": 0}] * self.batch_size
                continue
            first = (batch * self.world_size + self.rank) * self.batch_size
            columns = {name: [row[name] for row in chunk] for name in chunk[0]}
            yield from self.transform(columns, range(first, first + self.batch_size))

    def _endless_rows(self) -> Iterator[dict[str, Any]]:
        """Rows of this worker's shards; `datasets` itself distributes the shards of a process among its workers."""
        generator = np.random.default_rng((self.transform.seed, self.transform.epoch))
        shuffled = self.dataset.shuffle(generator=generator, buffer_size=self.buffer_size)
        # Not split_dataset_by_node: unless each process gets as many shards, that lets every process read all of them.
        own = shuffled.shard(self.world_size, self.rank, contiguous=False)
        while True:
            row = None
            for row in own:
                yield row
            if row is None:
                raise InputError("a shard of the training data is empty, or there are fewer shards than readers")


class EvaluationExamples(torch.utils.data.Dataset):
    """Every view of every row of a table; the views of a row follow each other.

    Args:
        to_pixels: decodes, resizes and normalizes views of the inputs.
        shuffled_patch_size: size of the patches that are put in a random order; None to leave them in place.
        to_positions: of the inputs; None for the model's own positions.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        column: str,
        to_pixels: EvaluationPixels,
        shuffled_patch_size: tuple[int, ...] | None = None,
        to_positions: Positions | None = None,
    ):
        self.dataset = dataset.cast_column(column, encoded_feature(column))
        self.column = column
        self.to_pixels = to_pixels
        self.to_positions = to_positions
        self.num_labels = len(label_names(dataset.features["label"]))
        self.shuffled_patch_size = shuffled_patch_size

    @property
    def num_views(self) -> int:
        return self.to_pixels.num_views

    def __len__(self) -> int:
        return len(self.dataset) * self.num_views

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        rows, views = np.divmod(indices, self.num_views)
        batch = self.dataset[rows.tolist()]
        pixel_values = self.to_pixels(batch[self.column], views.tolist())
        if self.shuffled_patch_size is not None:
            pixel_values = shuffle_patches(pixel_values, self.shuffled_patch_size, indices)
        labels = label_tensor(batch["label"], self.num_labels)
        return _examples(pixel_values, labels, self.to_positions and self.to_positions(batch[self.column]))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]


def _examples(
    pixel_values: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor | None
) -> list[dict[str, Any]]:
    """The arguments of a model for each example of a batch."""
    columns = {"pixel_values": pixel_values, "labels": labels} | (
        {} if positions is None else {"positions": positions}
    )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def label_tensor(labels: Sequence[Any], num_labels: int) -> torch.Tensor:
    """Rows of a column `label` to what a model's loss takes.

    Returns:
        int64 (batch,) from classes; float32 (batch, num_labels) from lists of classes, 1 for these, and from numbers.

    Raises:
        InputError: a class that is not in 0 to num_labels - 1.
    """
    if isinstance(labels[0], dict):
        return torch.tensor([[*row.values()] for row in labels], dtype=torch.float32)
    is_list = isinstance(labels[0], list)
    classes = torch.tensor([label for row in labels for label in row] if is_list else labels, dtype=torch.int64)
    wrong = classes[(classes < 0) | (classes >= num_labels)]
    if len(wrong):
        raise InputError(f"label {int(wrong[0])} is out of range, allowed are 0 to {num_labels - 1}")
    if not is_list:
        return classes
    rows = torch.tensor([row for row, listed in enumerate(labels) for _ in listed], dtype=torch.int64)
    flags = torch.zeros(len(labels), num_labels)
    flags[rows, classes] = 1
    return flags
