"""The processor that is saved with a model: it brings inputs to the model's size and normalizes them."""

from typing import Any

from transformers import AutoImageProcessor, AutoVideoProcessor, ViTImageProcessor
from transformers.image_processing_base import ImageProcessingMixin

from ...configuration import DataArguments
from ...errors import InputError
from ...hub_access import hub_or_cache
from ...modeling.configuration_liere_vit import LiereViTConfig
from ...modeling.video_processing_liere_vit import LiereViTVideoProcessor
from ..media import require_taken


def input_size(config: LiereViTConfig, arguments: DataArguments) -> tuple[int, ...]:
    """Pixels per axis of the inputs: the model's training size, or `input_size` if it is given.

    Raises:
        InputError: `input_size` with another number of axes, or not a multiple of the patch size.
    """
    if arguments.input_size is None:
        return config.spatial_image_size
    values = arguments.input_size
    size = tuple(values) * config.num_axes if len(values) == 1 else tuple(values)
    if len(size) != config.num_axes:
        raise InputError(f"input_size is {values}, the model has {config.num_axes} axes")
    _require_whole_patches("input_size", values, size, config)
    return size


def train_input_sizes(config: LiereViTConfig, arguments: DataArguments) -> list[tuple[int, ...]]:
    """Pixels per axis of the inputs of training batches: the input size, or that with each of `train_input_sizes`.

    Raises:
        InputError: as `input_size`, or `train_input_sizes` that are not multiples of the patch size.
    """
    size, sides = input_size(config, arguments), arguments.train_input_sizes
    sizes = [(*size[:-2], side, side) for side in sides] if sides else [size]
    for each in sizes:
        _require_whole_patches("train_input_sizes", sides, each, config)
    return sizes


def _require_whole_patches(name: str, values: list[int] | None, size: tuple[int, ...], config: LiereViTConfig) -> None:
    for pixels, patch in zip(size, config.spatial_patch_size, strict=True):
        if pixels < 1 or pixels % patch:
            raise InputError(f"{name} is {values}, which patch_size {config.patch_size} does not divide")


def build_processor(
    column: str, config: LiereViTConfig, arguments: DataArguments, checkpoint: str | None = None
) -> ImageProcessingMixin:
    """The processor that resizes to the input size, then normalizes.

    Args:
        column: `image`, `video` or `volume`.
        checkpoint: where the model is from. If it has a processor, that decides the normalization, else the arguments
            do.

    Raises:
        InputError: the model takes other inputs than the data has.
    """
    require_taken([column], config)
    kind = ViTImageProcessor if column == "image" else LiereViTVideoProcessor
    auto = AutoImageProcessor if column == "image" else AutoVideoProcessor
    geometry = _geometry(column, input_size(config, arguments)[-2:], arguments)
    if checkpoint is not None:
        try:
            with hub_or_cache("model", checkpoint):
                return auto.from_pretrained(checkpoint, **geometry)
        except (OSError, ValueError):
            pass
    if len(arguments.image_mean) != config.num_channels:
        raise InputError(
            f"image_mean is {arguments.image_mean}, {column}s need {config.num_channels} value(s), one per channel"
        )
    return kind(**geometry, image_mean=arguments.image_mean, image_std=arguments.image_std)


def _geometry(column: str, size: tuple[int, int], arguments: DataArguments) -> dict[str, Any]:
    """The processor's options that bring the last two axes to their size."""
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
