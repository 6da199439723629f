"""All steps from the splits of a data set to what trains and evaluates a model."""

from typing import NamedTuple

import datasets
from transformers import TrainingArguments
from transformers.image_processing_base import ImageProcessingMixin

from ..configuration import DataArguments
from ..configuration.metric_names import SINGLE_LABEL
from ..errors import InputError
from ..modeling.configuration_liere_vit import LiereViTConfig
from .augmentation.batch_augmentation import BatchAugmentation
from .augmentation.mixing import Mixing
from .batching import (
    EvaluationExamples,
    EvaluationPixels,
    StreamedExamples,
    TrainingExamples,
    TrainingPixels,
    TrainingTransform,
)
from .data_sets.splits import Splits
from .resizing.batch_sizes import OneOfSeveral
from .resizing.images import EvaluationImages, TrainingImages
from .resizing.processors import build_processor, input_size, train_input_sizes
from .resizing.volumes import EvaluationVolumes, MillimetrePositions, TrainingVolumes


class PreparedData(NamedTuple):
    """The processor to save with the model, and the examples.

    `train` is None where there is nothing to train on. `test` is evaluated once at the end, None if there is no such
    split beside that of `evaluation`.
    """

    processor: ImageProcessingMixin
    train: TrainingExamples | StreamedExamples | None
    evaluation: EvaluationExamples
    test: EvaluationExamples | None


def prepare(
    splits: Splits,
    config: LiereViTConfig,
    data_arguments: DataArguments,
    training_arguments: TrainingArguments,
    checkpoint: str | None = None,
    processor: ImageProcessingMixin | None = None,
) -> PreparedData:
    """Processor, training examples and evaluation examples for a model.

    Args:
        config: of the model.
        training_arguments: the seed, the batch size, and the numbers of processes and of workers are used.
        checkpoint: where the model is from; see `build_processor`.
        processor: an existing one to use as it is; by default, one is built.

    Raises:
        InputError: the model takes other inputs than the data has, the arguments do not fit the data, or there are
            too few examples or shards for the batches, processes and workers.
    """
    column = splits.column
    if splits.problem_type != SINGLE_LABEL and (data_arguments.mixup_alpha or data_arguments.cutmix_alpha):
        raise InputError(f"mixup_alpha and cutmix_alpha are for {SINGLE_LABEL}, the data is for {splits.problem_type}")
    if processor is None:
        processor = build_processor(column, config, data_arguments, checkpoint)
    size = input_size(config, data_arguments)
    to_pixels = evaluation_pixels(column, size, data_arguments, processor)
    to_positions = positions_in_millimetres(column, config, size, data_arguments)
    train = None
    if splits.train is not None:
        num_labels = len(splits.label_names)
        transform = TrainingTransform(
            column,
            _training_pixels(column, config, data_arguments, len(processor.image_mean)),
            BatchAugmentation.from_arguments(data_arguments, processor.image_mean, processor.image_std),
            Mixing.from_arguments(data_arguments, num_labels),
            training_arguments.seed,
            num_labels,
            to_positions,
        )
        train = _training_examples(splits, transform, data_arguments, training_arguments)
    shuffled_patch_size = config.spatial_patch_size if data_arguments.shuffle_patches else None

    def examples_of(table: datasets.Dataset) -> EvaluationExamples:
        return EvaluationExamples(table, column, to_pixels, shuffled_patch_size, to_positions)

    has_both = splits.validation is not None and splits.test is not None
    return PreparedData(
        processor, train, examples_of(splits.evaluation), examples_of(splits.test) if has_both else None
    )


def evaluation_pixels(
    column: str, size: tuple[int, ...], arguments: DataArguments, processor: ImageProcessingMixin
) -> EvaluationPixels:
    """How files become what the model takes, as in an evaluation.

    Args:
        size: of the inputs in pixels per axis.
    """
    window = tuple(arguments.intensity_window) if arguments.intensity_window else None
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    if column == "image":
        return EvaluationImages(processor, window)
    if column == "video":
        # Only videos need PyAV.
        from .resizing.clips import EvaluationClips

        return EvaluationClips(size, arguments.frame_stride, arguments.eval_segments, arguments.eval_crops, mean, std)
    return EvaluationVolumes(size, window, mean, std)


def positions_in_millimetres(
    column: str, config: LiereViTConfig, size: tuple[int, ...], arguments: DataArguments
) -> MillimetrePositions | None:
    """Coordinates of inputs of this size, with `volume_spacing`; None for the model's own.

    Raises:
        InputError: a `volume_spacing` for inputs that are no volumes.
    """
    if not arguments.volume_spacing:
        return None
    if column != "volume":
        raise InputError(f"volume_spacing is {arguments.volume_spacing}, {column}s have no such spacing")
    return MillimetrePositions(config, size, arguments.volume_spacing)


def _training_pixels(
    column: str, config: LiereViTConfig, arguments: DataArguments, num_channels: int
) -> TrainingPixels:
    """Decoding and resizing in training.

    Raises:
        InputError: options that the medium does not take, or sizes that are not multiples of the patch size.
    """
    sizes = train_input_sizes(config, arguments)
    crop_scale = tuple(arguments.random_resized_crop) if arguments.random_resized_crop else None
    window = tuple(arguments.intensity_window) if arguments.intensity_window else None
    if column == "image":
        ways = [TrainingImages(size, arguments.fit, crop_scale, window) for size in sizes]
    elif column == "video":
        from .resizing.clips import TrainingClips

        ways = [TrainingClips(size, arguments.frame_stride, crop_scale) for size in sizes]
    elif arguments.rand_augment_num_ops or crop_scale or arguments.train_input_sizes:
        raise InputError(
            "volumes take neither rand_augment_num_ops nor random_resized_crop nor train_input_sizes: leave them out"
        )
    else:
        ways = [TrainingVolumes(size, window, num_channels) for size in sizes]
    return ways[0] if len(ways) == 1 else OneOfSeveral(ways)


def _training_examples(
    splits: Splits, transform: TrainingTransform, data_arguments: DataArguments, arguments: TrainingArguments
) -> TrainingExamples | StreamedExamples:
    """
    Raises:
        InputError: fewer examples than a step takes, fewer shards than processes or workers, or a stream with
            auto_find_batch_size.
    """
    step_size = arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    if arguments.dataloader_drop_last and splits.num_train < step_size:
        raise InputError(f"a step takes {step_size} examples, the training split has {splits.num_train}")
    if not isinstance(splits.train, datasets.IterableDataset):
        return TrainingExamples(splits.train, transform)
    if arguments.auto_find_batch_size:
        raise InputError("auto_find_batch_size is True, allowed is False for a stream, which has a fixed batch size")
    examples = StreamedExamples(
        splits.train,
        transform,
        splits.num_train,
        arguments.per_device_train_batch_size,
        arguments.process_index,
        arguments.world_size,
        data_arguments.shuffle_buffer_size,
    )
    if arguments.dataloader_num_workers > examples.num_shards:
        raise InputError(
            f"dataloader_num_workers is {arguments.dataloader_num_workers}, allowed is at most "
            f"{examples.num_shards}: the training data has no more shards for each process"
        )
    return examples
