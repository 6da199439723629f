"""Encoded images to pixels."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import StubImageFile

from ...errors import InputError
from .pnm import decode_pnm

# Grey images of more than 8 bits, which Pillow's conversion to RGB would clip: the values that become black and white.
_RANGES = {"I;16": (0, 65535), "I": (0, 65535), "F": (0, 1)}
# Formats that Pillow identifies but does not decode, in addition to its stubs.
_NOT_DECODED = ("MPEG",)


def decode_image(image: dict[str, Any], window: tuple[float, float] | None = None) -> torch.Tensor:
    """Any format and mode to uint8 (3, height, width), turned upright.

    Transparency is dropped, as torchvision and transformers do. Grey images of more than 8 bits are scaled: those of
    16 bits from 0 and 65535 to 0 and 255, 32-bit integers likewise, floats from 0 and 1.

    Args:
        image: `bytes`, or None and the `path` of a file: a row of a `datasets.Image(decode=False)` column.
        window: of grey images of more than 8 bits, the values that become 0 and 255; others are clipped to them.

    Raises:
        InputError: an image that cannot be read, or has too many pixels or, without a window, 32-bit values beyond
            those above.
    """
    with _explaining(image):
        content = _content(image)
        pixels = decode_pnm(content)
        if pixels is not None:
            return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        return _to_rgb(ImageOps.exif_transpose(Image.open(io.BytesIO(content))), window)


def announced_size(image: dict[str, Any]) -> tuple[int, int]:
    """Width and height of an image, by its header.

    Raises:
        InputError: it has no header that can be read.
    """
    with _explaining(image), Image.open(io.BytesIO(_content(image))) as opened:
        return opened.size


def image_suffixes() -> tuple[str, ...]:
    """The endings of files, in lower case, that the installed Pillow decodes."""
    Image.init()
    formats = {
        name
        for name, (factory, _) in Image.OPEN.items()
        if name not in _NOT_DECODED and not (isinstance(factory, type) and issubclass(factory, StubImageFile))
    }
    return tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in formats))


def _to_rgb(image: Image.Image, window: tuple[float, float] | None) -> torch.Tensor:
    # I;16B, I;16L and I;16N differ in the order of bytes.
    mode = image.mode[:4]
    if mode in _RANGES:
        return torch.from_numpy(_to_uint8(np.asarray(image), mode, window)).expand(3, -1, -1)
    if mode == "L":
        return torch.from_numpy(np.array(image)).expand(3, -1, -1)
    return torch.from_numpy(np.array(image if mode == "RGB" else image.convert("RGB"))).permute(2, 0, 1)


def _to_uint8(values: np.ndarray, mode: str, window: tuple[float, float] | None) -> np.ndarray:
    """
    Raises:
        ValueError: values that are not finite, or without a window beyond the mode's range.
    """
    low, high = window or _RANGES[mode]
    smallest, largest = values.min(), values.max()
    if not (np.isfinite(smallest) and np.isfinite(largest)):
        raise ValueError("it has values that are not finite")
    if window is None and (smallest < low or largest > high):
        kind = "floats" if mode == "F" else "32-bit integers"
        raise ValueError(
            f"it has {kind} from {smallest:g} to {largest:g}, allowed are {low} to {high}: set intensity_window to "
            "the values that are black and white"
        )
    shares = (values.astype(np.float64) - low) / (high - low)
    return np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)


def _content(image: dict[str, Any]) -> bytes:
    """
    Raises:
        OSError, ValueError: there is no such file, or nothing in it.
    """
    content = image["bytes"]
    if content is None:
        with open(image["path"], "rb") as file:  # noqa: PTH123  a Path would take longer than reading a small file
            content = file.read()
    if not content:
        raise ValueError("it is empty")
    return content


@contextmanager
def _explaining(image: dict[str, Any]) -> Iterator[None]:
    """Turns what Pillow raises into one sentence."""
    try:
        yield
        return
    except UnidentifiedImageError:
        reason = "it is not an image of a known format"
    except Image.DecompressionBombError:
        reason = f"it has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels, the most that are decoded"
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
    raise InputError(f"image {image['path'] or 'without a name'} cannot be read: {reason}")
