"""From images to `pixel_values`: augmentation in training, then the model's own image processor."""

from typing import Any

import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import BaseImageProcessor, ViTImageProcessor

from ..configuration import DataArguments
from ..errors import InputError
from ..modeling.configuration_liere_vit import LiereViTConfig


def build_image_processor(config: LiereViTConfig, arguments: DataArguments) -> ViTImageProcessor:
    """The processor that is saved with a model: resize to the training size, normalize by the recipe's statistics."""
    if config.num_axes != 2 or config.num_channels != 3:
        raise InputError(
            f"image_size is {config.image_size!r} and num_channels {config.num_channels}, training needs two axes "
            "and three channels"
        )
    height, width = config.spatial_image_size
    return ViTImageProcessor(
        size={"height": height, "width": width}, image_mean=arguments.image_mean, image_std=arguments.image_std
    )


def build_augmentation(config: LiereViTConfig, arguments: DataArguments) -> v2.Transform | None:
    """Random crop and flip of one uint8 image (channels, height, width), None where the recipe asks for neither."""
    transforms = []
    if arguments.random_crop_padding:
        size = list(config.spatial_image_size)
        transforms += [v2.Resize(size), v2.RandomCrop(size, padding=arguments.random_crop_padding)]
    if arguments.horizontal_flip:
        transforms.append(v2.RandomHorizontalFlip())
    return v2.Compose(transforms) if transforms else None


class ImageTransform:
    """A `datasets` transform: `image` and `label` to `pixel_values` (batch, 3, height, width) and `labels`."""

    def __init__(self, processor: BaseImageProcessor, augmentation: v2.Transform | None = None):
        self.processor = processor
        self.augmentation = augmentation

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, Any]:
        images = [_to_rgb(image) for image in batch["image"]]
        if self.augmentation is not None:
            images = [self.augmentation(image) for image in images]
        pixel_values = self.processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixel_values, "labels": batch["label"]}


def _to_rgb(image: Image.Image) -> torch.Tensor:
    """Any mode to uint8 (3, height, width)."""
    if image.mode == "L":
        return v2.functional.pil_to_tensor(image).expand(3, -1, -1)
    return v2.functional.pil_to_tensor(image.convert("RGB"))
