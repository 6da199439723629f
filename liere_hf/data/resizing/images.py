"""Images of the size that a model takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2
from transformers import BaseImageProcessor

from ..decoding.images import decode_image
from ..draws import Draws
from .random_boxes import NUMBERS_PER_BOX, random_resized_crop


class TrainingImages:
    """Images brought to the training size: cropped at random, or as in evaluation.

    Args:
        size: (height, width).
        fit: `resize` both sides, `crop` the middle after resizing the shorter side, or `pad` without resizing.
        crop_scale: range of a random crop's share of the image's area; None for no random crops.
        window: intensities that become black and white; see `decode_image`.
    """

    def __init__(
        self,
        size: tuple[int, int],
        fit: str,
        crop_scale: tuple[float, float] | None = None,
        window: tuple[float, float] | None = None,
    ):
        self.size = list(size)
        self.fit = fit
        self.crop_scale = crop_scale
        self.window = window

    def __call__(self, images: Sequence[dict[str, Any]], draws: Draws) -> torch.Tensor:
        """uint8 of shape (batch, 3, height, width)."""
        decoded = [decode_image(image, self.window) for image in images]
        if self.crop_scale is None:
            return torch.stack([self._fit(image) for image in decoded])
        numbers = draws.next(NUMBERS_PER_BOX)
        return torch.stack([self._crop(image, row) for image, row in zip(decoded, numbers, strict=True)])

    def _fit(self, image: torch.Tensor) -> torch.Tensor:
        if self.fit == "crop":
            return v2.functional.center_crop(v2.functional.resize(image, [max(self.size)]), self.size)
        if list(image.shape[-2:]) == self.size:
            return image
        if self.fit == "pad":
            return v2.functional.center_crop(image, self.size)
        return v2.functional.resize(image, self.size)

    def _crop(self, image: torch.Tensor, numbers: np.ndarray) -> torch.Tensor:
        box = random_resized_crop(*image.shape[-2:], numbers, self.crop_scale)
        return v2.functional.resized_crop(image, *box, self.size)


class EvaluationImages:
    """Images as the model's image processor resizes and normalizes them, one view of each.

    Args:
        window: intensities that become black and white; see `decode_image`.
    """

    num_views = 1

    def __init__(self, processor: BaseImageProcessor, window: tuple[float, float] | None = None):
        self.processor = processor
        self.window = window
        self.image_mean, self.image_std = tuple(processor.image_mean), tuple(processor.image_std)

    def __call__(self, images: Sequence[dict[str, Any]], views: Sequence[int]) -> torch.Tensor:
        """`pixel_values` of shape (batch, 3, height, width)."""
        decoded = [decode_image(image, self.window) for image in images]
        return self.processor(decoded, return_tensors="pt")["pixel_values"]
