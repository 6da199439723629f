"""From images to `pixel_values`: augmentation in training, then the model's own image processor."""

import math
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import (
    AutoImageProcessor,
    BaseImageProcessor,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    ViTImageProcessor,
)

from ..configuration import DataArguments
from ..errors import InputError
from ..modeling.configuration_liere_vit import LiereViTConfig


def build_image_processor(
    config: LiereViTConfig, arguments: DataArguments, checkpoint: str | None = None
) -> BaseImageProcessor:
    """The processor that is saved with a model: resize to the training size and normalize.

    Args:
        checkpoint: where the model is from; its processor, where it has one, decides the normalization, else the
            recipe does.

    Raises:
        InputError: the model does not take images of three channels.
    """
    if config.num_axes != 2 or config.num_channels != 3:
        raise InputError(
            f"image_size is {config.image_size!r} and num_channels {config.num_channels}, training needs two axes "
            "and three channels"
        )
    height, width = config.spatial_image_size
    size = {"height": height, "width": width}
    if checkpoint is not None:
        try:
            return AutoImageProcessor.from_pretrained(checkpoint, size=size)
        except (OSError, ValueError):
            pass
    return ViTImageProcessor(size=size, image_mean=arguments.image_mean, image_std=arguments.image_std)


def build_augmentation(config: LiereViTConfig, arguments: DataArguments) -> v2.Transform | None:
    """Random crop and flip of one uint8 image (channels, height, width), None where the recipe asks for neither."""
    transforms = []
    if arguments.random_crop_padding:
        size = list(config.spatial_image_size)
        transforms += [v2.Resize(size), v2.RandomCrop(size, padding=arguments.random_crop_padding)]
    if arguments.horizontal_flip:
        transforms.append(v2.RandomHorizontalFlip())
    return v2.Compose(transforms) if transforms else None


class TransformedImages(torch.utils.data.Dataset):
    """A data set's images as `pixel_values` (3, height, width) with `labels`.

    The augmentation of an image depends on the seed, the epoch and the image's index alone, so that neither the number
    of workers and processes nor an interruption changes what a run sees.

    Args:
        dataset: with columns `image` and `label`.
        processor: the model's image processor.
        augmentation: of one uint8 image (channels, height, width).
        seed: of the augmentation.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        processor: BaseImageProcessor,
        augmentation: v2.Transform | None = None,
        seed: int = 0,
    ):
        self.dataset = dataset
        self.processor = processor
        self.augmentation = augmentation
        self.seed = seed
        # In shared memory, so that workers that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw other augmentations than in other epochs."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        batch = self.dataset[indices]
        images = [to_rgb(image) for image in batch["image"]]
        if self.augmentation is not None:
            images = [self._augment(image, index) for image, index in zip(images, indices, strict=True)]
        pixel_values = self.processor(images, return_tensors="pt")["pixel_values"]
        return [
            {"pixel_values": pixels, "labels": label}
            for pixels, label in zip(pixel_values, batch["label"], strict=True)
        ]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def _augment(self, image: torch.Tensor, index: int) -> torch.Tensor:
        seed = np.random.SeedSequence([self.seed, int(self._epoch), index]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which also formats a stack trace each time for devices that are not there.
            torch.default_generator.manual_seed(int(seed[0]))
            return self.augmentation(image)


class EpochCallback(TrainerCallback):
    """Tells the training images which epoch it is."""

    def __init__(self, images: TransformedImages):
        self.images = images

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.images.set_epoch(math.floor(state.epoch + 1e-6))


def to_rgb(image: Image.Image) -> torch.Tensor:
    """Any mode to uint8 (3, height, width)."""
    if image.mode == "L":
        return v2.functional.pil_to_tensor(image).expand(3, -1, -1)
    return v2.functional.pil_to_tensor(image.convert("RGB"))
