"""Data sets for a `DataLoader`: rows become `pixel_values` with `labels`."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import datasets
import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import InputError
from .augmentation import BatchAugmentation, Mixing
from .draws import Draws
from .shuffling import shuffle_patches
from .sources import undecoded


class TrainingInputs(Protocol):
    """Brings inputs of a batch to one size: uint8 (batch, [frames,] channels, height, width)."""

    def __call__(self, inputs: Sequence[Any], draws: Draws) -> torch.Tensor: ...


class EvaluationInputs(Protocol):
    """`pixel_values` of some views of inputs; `num_views` of each are evaluated."""

    num_views: int

    def __call__(self, inputs: Sequence[Any], views: Sequence[int]) -> torch.Tensor: ...


class TrainingTransform:
    """Rows of a data set to augmented examples.

    The augmentation of an example depends on the seed, the epoch and the example's index alone, so that neither the
    number of workers and processes nor an interruption changes what a run sees. Mixing depends on the batch as well.

    Args:
        column: of the inputs.
        inputs: brings them to one size.
        augmentation: of a batch.
        mixing: of a batch, None for none.
        seed: of all random choices.
        num_labels: labels must be below.
    """

    def __init__(
        self,
        column: str,
        inputs: TrainingInputs,
        augmentation: BatchAugmentation,
        mixing: Mixing | None,
        seed: int,
        num_labels: int,
    ):
        self.column = column
        self.inputs = inputs
        self.augmentation = augmentation
        self.mixing = mixing
        self.seed = seed
        self.num_labels = num_labels
        # In shared memory, so that workers that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __call__(self, rows: dict[str, list], indices: Sequence[int]) -> list[dict[str, Any]]:
        """Rows by column, with their indices in the data set, to `pixel_values` and `labels`."""
        labels = torch.tensor(rows["label"])
        require_labels_in_range(labels.numpy(), self.num_labels)
        draws = Draws(self.seed, self.epoch, indices)
        pixel_values = self.augmentation(self.inputs(rows[self.column], draws), draws)
        if self.mixing is not None:
            pixel_values, labels = self.mixing(pixel_values, labels, draws.next(1)[0, 0])
        return [{"pixel_values": pixels, "labels": label} for pixels, label in zip(pixel_values, labels, strict=True)]


class TrainingExamples(torch.utils.data.Dataset):
    """A data set that is at hand, transformed for training."""

    def __init__(self, dataset: datasets.Dataset, transform: TrainingTransform):
        self.dataset = dataset.cast_column(transform.column, undecoded(transform.column))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        return self.transform(self.dataset[indices], indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]


class StreamedExamples(torch.utils.data.IterableDataset):
    """This process's share of a streamed data set, transformed for training.

    Each process reads its own shards, other ones in each epoch, and each of its workers its own of these. A reader
    whose shards end early starts over, so that all processes make the same number of steps.

    Args:
        dataset: the whole stream.
        num_examples: of the whole stream; what is beyond a multiple of `batch_size` times processes is left out.
        batch_size: of this process.
        rank, world_size: of this process.
        buffer_size: examples that are shuffled among each other, beside the order of the shards.

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
        self.dataset = dataset.cast_column(transform.column, undecoded(transform.column))
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
        """Shards of the process that has fewest, and so the workers that it may have."""
        return self.dataset.num_shards // self.world_size

    def resume(self, epoch: int, num_batches: int) -> None:
        """So many first batches of an epoch were seen before an interruption: their images are not decoded again.

        They still come, as empty examples, for whoever skips them.
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
        # The DataLoader takes a batch from each worker in turn.
        for batch in range(number, self.num_batches, num_workers):
            chunk = [next(rows) for _ in range(self.batch_size)]
            if batch < num_seen:
                yield from [{"labels": 0}] * self.batch_size
                continue
            first = (batch * self.world_size + self.rank) * self.batch_size
            columns = {name: [row[name] for row in chunk] for name in chunk[0]}
            yield from self.transform(columns, range(first, first + self.batch_size))

    def _endless_rows(self) -> Iterator[dict[str, Any]]:
        """Rows of this worker's shards: `datasets` itself deals a process's shards out to its workers."""
        generator = np.random.default_rng((self.transform.seed, self.transform.epoch))
        shuffled = self.dataset.shuffle(generator=generator, buffer_size=self.buffer_size)
        # Not split_dataset_by_node: if the shards do not come out even, that lets every process read all of them.
        own = shuffled.shard(self.world_size, self.rank, contiguous=False)
        while True:
            row = None
            for row in own:
                yield row
            if row is None:
                raise InputError("a shard of the training data is empty, or there are fewer shards than readers")


class EvaluationExamples(torch.utils.data.Dataset):
    """Every view of every row, as the model's processor wants them; the views of a row follow each other.

    Args:
        shuffled_patch_size: of patches that are put in a random order; None for none.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        column: str,
        inputs: EvaluationInputs,
        shuffled_patch_size: tuple[int, ...] | None = None,
    ):
        self.dataset = dataset.cast_column(column, undecoded(column))
        self.column = column
        self.inputs = inputs
        self.shuffled_patch_size = shuffled_patch_size

    @property
    def num_views(self) -> int:
        return self.inputs.num_views

    def __len__(self) -> int:
        return len(self.dataset) * self.num_views

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        rows, views = np.divmod(indices, self.num_views)
        batch = self.dataset[rows.tolist()]
        pixel_values = self.inputs(batch[self.column], views.tolist())
        if self.shuffled_patch_size is not None:
            pixel_values = shuffle_patches(pixel_values, self.shuffled_patch_size, indices)
        return [
            {"pixel_values": pixels, "labels": label}
            for pixels, label in zip(pixel_values, batch["label"], strict=True)
        ]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]


class EpochCallback(TrainerCallback):
    """Tells the training examples which epoch it is."""

    def __init__(self, transform: TrainingTransform):
        self.transform = transform

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.transform.epoch = math.floor(state.epoch + 1e-6)


def require_labels_in_range(labels: np.ndarray, num_labels: int) -> None:
    """
    Raises:
        InputError: a label that is not one of 0 to num_labels - 1.
    """
    wrong = labels[(labels < 0) | (labels >= num_labels)]
    if len(wrong):
        raise InputError(f"label {int(wrong[0])} is out of range, allowed are 0 to {num_labels - 1}")
