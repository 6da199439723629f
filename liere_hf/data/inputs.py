"""From a recipe's data and a model's configuration to what trains and evaluates it."""

from typing import Any, NamedTuple

from transformers import AutoImageProcessor, AutoVideoProcessor, ViTImageProcessor
from transformers.image_processing_base import ImageProcessingMixin

from ..configuration import DataArguments
from ..errors import InputError
from ..modeling.configuration_liere_vit import LiereViTConfig
from ..modeling.video_processing_liere_vit import LiereViTVideoProcessor
from .augmentation import BatchAugmentation, Mixing
from .examples import EvaluationExamples, EvaluationInputs, TrainingInputs, TrainingTransform
from .images import EvaluationImages, TrainingImages
from .sources import Data
from .videos import EvaluationClips, TrainingClips
from .volumes import EvaluationVolumes, TrainingVolumes

AXES = {"image": 2, "video": 3, "volume": 3}
CHANNELS = {"image": 3, "video": 3, "volume": 1}


class Inputs(NamedTuple):
    """How inputs become pixels in training and in evaluation."""

    training: TrainingInputs
    evaluation: EvaluationInputs


def input_size(config: LiereViTConfig, arguments: DataArguments) -> tuple[int, ...]:
    """Pixels per axis of the inputs: the model's training size, unless the recipe says otherwise.

    Raises:
        InputError: `input_size` with another number of axes, or no multiple of the patch size.
    """
    if arguments.input_size is None:
        return config.spatial_image_size
    values = arguments.input_size
    size = tuple(values) * config.num_axes if len(values) == 1 else tuple(values)
    if len(size) != config.num_axes:
        raise InputError(f"input_size is {values}, the model has {config.num_axes} axes")
    for pixels, patch in zip(size, config.spatial_patch_size, strict=True):
        if pixels < 1 or pixels % patch:
            raise InputError(f"input_size is {values}, which patch_size {config.patch_size} does not divide")
    return size


def build_processor(
    column: str, config: LiereViTConfig, arguments: DataArguments, checkpoint: str | None = None
) -> ImageProcessingMixin:
    """The processor that is saved with a model: to the input size, then normalization.

    Args:
        column: `image`, `video` or `volume`.
        checkpoint: where the model is from; its processor, where it has one, decides the normalization, else the
            recipe does.

    Raises:
        InputError: the model takes other inputs than the data has.
    """
    if config.num_axes != AXES[column] or config.num_channels != CHANNELS[column]:
        raise InputError(
            f"image_size is {config.image_size!r} and num_channels {config.num_channels}, {column}s need "
            f"{AXES[column]} axes and {CHANNELS[column]} channel(s)"
        )
    kind = ViTImageProcessor if column == "image" else LiereViTVideoProcessor
    auto = AutoImageProcessor if column == "image" else AutoVideoProcessor
    geometry = _geometry(column, input_size(config, arguments)[-2:], arguments)
    if checkpoint is not None:
        try:
            return auto.from_pretrained(checkpoint, **geometry)
        except (OSError, ValueError):
            pass
    if len(arguments.image_mean) != config.num_channels:
        raise InputError(
            f"image_mean is {arguments.image_mean}, {column}s need {config.num_channels} value(s), one per channel"
        )
    return kind(**geometry, image_mean=arguments.image_mean, image_std=arguments.image_std)


def build_inputs(
    column: str, config: LiereViTConfig, arguments: DataArguments, processor: ImageProcessingMixin
) -> Inputs:
    """How the inputs in a column become pixels of the model's size."""
    size = input_size(config, arguments)
    crop_scale = tuple(arguments.random_resized_crop) if arguments.random_resized_crop else None
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    if column == "image":
        return Inputs(TrainingImages(size, arguments.fit, crop_scale), EvaluationImages(processor))
    if column == "video":
        return Inputs(
            TrainingClips(size, arguments.frame_stride, crop_scale),
            EvaluationClips(size, arguments.frame_stride, arguments.eval_segments, arguments.eval_crops, mean, std),
        )
    if arguments.rand_augment_num_ops or crop_scale:
        raise InputError("volumes take neither rand_augment_num_ops nor random_resized_crop: leave them out")
    window = tuple(arguments.intensity_window) if arguments.intensity_window else None
    return Inputs(TrainingVolumes(size, window), EvaluationVolumes(size, window, mean, std))


def build_training_transform(
    data: Data, inputs: Inputs, arguments: DataArguments, processor: ImageProcessingMixin, seed: int
) -> TrainingTransform:
    """Augmentation and mixing as the arguments have them."""
    num_labels = len(data.label_names)
    mixing = None
    if arguments.mixup_alpha or arguments.cutmix_alpha:
        mixing = Mixing(arguments.mixup_alpha, arguments.cutmix_alpha, num_labels)
    augmentation = BatchAugmentation.from_arguments(arguments, processor.image_mean, processor.image_std)
    return TrainingTransform(data.column, inputs.training, augmentation, mixing, seed, num_labels)


def build_evaluation_examples(
    data: Data, inputs: Inputs, config: LiereViTConfig, arguments: DataArguments
) -> EvaluationExamples:
    """The evaluation split, every view of every row."""
    shuffled = config.spatial_patch_size if arguments.shuffle_patches else None
    return EvaluationExamples(data.test, data.column, inputs.evaluation, shuffled)


def _geometry(column: str, size: tuple[int, int], arguments: DataArguments) -> dict[str, Any]:
    """How a processor brings the two spatial axes to their size."""
    height, width = size
    exact = {"height": height, "width": width}
    if column == "volume" or (column == "image" and arguments.fit == "resize"):
        return {"do_resize": True, "size": exact, "do_center_crop": False}
    if column == "image" and arguments.fit == "pad":
        return {"do_resize": False, "do_center_crop": True, "crop_size": exact}
    fraction = arguments.crop_fraction if column == "image" else 1.0
    shortest_edge = round(max(size) / fraction)
    return {
        "do_resize": True,
        "size": {"shortest_edge": shortest_edge},
        "do_center_crop": True,
        "crop_size": exact,
    }
