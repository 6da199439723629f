"""From encoded images to pixels of the size that a model trains at."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2
from transformers import BaseImageProcessor

from ..errors import InputError
from .augmentation import RESIZED_CROP_NUMBERS, random_resized_crop
from .draws import Draws
from .pnm import decode_pnm


def decode_image(image: dict[str, Any]) -> torch.Tensor:
    """Any format and mode to uint8 (3, height, width), turned upright.

    Args:
        image: `bytes`, or None and the `path` of a file: a row of a `datasets.Image(decode=False)` column.

    Raises:
        InputError: an image that cannot be read.
    """
    try:
        content = image["bytes"] if image["bytes"] is not None else _read(image["path"])
        pixels = decode_pnm(content)
        if pixels is not None:
            return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        return to_rgb(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    except (OSError, SyntaxError, ValueError, RuntimeError, PIL.Image.DecompressionBombError) as error:
        name = image["path"] or "without a name"
        raise InputError(f"image {name} cannot be read: {' '.join(str(error).split())}") from error


def to_rgb(image: Image.Image) -> torch.Tensor:
    """Any mode to uint8 (3, height, width)."""
    if image.mode == "L":
        return torch.from_numpy(np.array(image)).expand(3, -1, -1)
    return torch.from_numpy(np.array(image if image.mode == "RGB" else image.convert("RGB"))).permute(2, 0, 1)


class TrainingImages:
    """Images brought to the training size: cropped at random, or in the way that they are for evaluation.

    Args:
        size: (height, width).
        fit: `resize` both sides, `crop` the middle after resizing the shorter side, or `pad` without resizing.
        crop_scale: range of the share of an image's area in a random crop; None for none.
    """

    def __init__(self, size: tuple[int, int], fit: str, crop_scale: tuple[float, float] | None = None):
        self.size = list(size)
        self.fit = fit
        self.crop_scale = crop_scale

    def __call__(self, images: Sequence[dict[str, Any]], draws: Draws) -> torch.Tensor:
        """uint8 of shape (batch, 3, height, width)."""
        decoded = [decode_image(image) for image in images]
        if self.crop_scale is None:
            return torch.stack([self._fit(image) for image in decoded])
        numbers = draws.next(RESIZED_CROP_NUMBERS)
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
    """Images as the model's image processor gives them, one view of each."""

    num_views = 1

    def __init__(self, processor: BaseImageProcessor):
        self.processor = processor

    def __call__(self, images: Sequence[dict[str, Any]], views: Sequence[int]) -> torch.Tensor:
        """`pixel_values` of shape (batch, 3, height, width)."""
        return self.processor([decode_image(image) for image in images], return_tensors="pt")["pixel_values"]


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123  a Path would cost more than reading a small file
        return file.read()
