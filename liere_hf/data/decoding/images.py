"""Encoded images to pixels."""

import io
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps

from ...errors import InputError
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


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123  a Path would take longer than reading a small file
        return file.read()
