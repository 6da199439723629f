"""From encoded images to pixels of the size that a model trains at."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torchvision import io as torchvision_io
from torchvision.transforms import v2
from transformers import BaseImageProcessor

from ..errors import InputError
from .augmentation import RESIZED_CROP_NUMBERS, random_resized_crop
from .draws import Draws


def decode_image(image: dict[str, Any]) -> torch.Tensor:
    """Any format and mode to uint8 (3, height, width), turned upright.

    Args:
        image: `bytes`, or None and the `path` of a file: a row of a `datasets.Image(decode=False)` column.

    Raises:
        InputError: an image that cannot be read.
    """
    try:
        content = image["bytes"] if image["bytes"] is not None else _read(image["path"])
        if content[:4] == b"\x89PNG" and content[24:26] in (b"\x08\x00", b"\x08\x02"):
            # Eight bits of grey or colour without transparency: torchvision reads these twice as fast as Pillow.
            encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            return torchvision_io.decode_png(encoded, torchvision_io.ImageReadMode.RGB)
        return to_rgb(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    except (OSError, SyntaxError, ValueError, RuntimeError, PIL.Image.DecompressionBombError) as error:
        name = image["path"] or "without a name"
        raise InputError(f"image {name} cannot be read: {' '.join(str(error).split())}") from error


def to_rgb(image: Image.Image) -> torch.Tensor:
    """Any mode to uint8 (3, height, width)."""
    if image.mode == "L":
        return v2.functional.pil_to_tensor(image).expand(3, -1, -1)
    return v2.functional.pil_to_tensor(image.convert("RGB"))


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
        if self.fit == "pad":
            return v2.functional.center_crop(image, self.size)
        if self.fit == "crop":
            scale = max(self.size[0] / image.shape[-2], self.size[1] / image.shape[-1])
            size = [max(round(side * scale), least) for side, least in zip(image.shape[-2:], self.size, strict=True)]
            return v2.functional.center_crop(v2.functional.resize(image, size), self.size)
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
