"""Encoded images to pixels."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import StubImageFile

from ...errors import InputError
from .checks import Check, reason
from .pnm import decode_pnm

# Grey images of more than 8 bits, which Pillow's conversion to RGB would clip: the values that become black and white.
_RANGES = {"I;16": (0, 65535), "I": (0, 65535), "F": (0, 1)}
# Formats that Pillow identifies but does not decode, in addition to its stubs.
_NOT_DECODED = ("MPEG",)
# Values of TIFF's tags PhotometricInterpretation and SampleFormat.
_WHITE_IS_ZERO, _SIGNED = 0, 2
# Without a window, grey images that use less than this share of their range are nearly black.
_SMALL_SHARE = 1 / 8


def check_image(image: dict[str, Any], window: tuple[float, float] | None = None) -> Check:
    """Whether an image can be decoded, and what of it is lost: further frames or pages, and grey values.

    Args:
        image, window: as in `decode_image`.
    """
    try:
        decode_image(image, window)
    except InputError as error:
        return Check(fault=reason(error))
    content = _content(image)
    if decode_pnm(content) is not None:
        return Check()
    with Image.open(io.BytesIO(content)) as opened:
        # Of phones' MPO files, the other frames are previews or depths.
        num_frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
        if num_frames > 1:
            return Check(remark=f"only the first frame or page is used: it has {num_frames}")
        range_ = _RANGES.get(opened.mode[:4]) if window is None else None
        largest = 0 if range_ is None else np.asarray(opened).max()
        if range_ is not None and largest < _SMALL_SHARE * range_[1]:
            return Check(remark=f"nearly black, see intensity_window: its largest value is {largest:g} of {range_[1]}")
    return Check()


def decode_image(image: dict[str, Any], window: tuple[float, float] | None = None) -> torch.Tensor:
    """Any format and mode to uint8 (3, height, width), turned upright.

    Transparency is dropped, as torchvision and transformers do. Grey images of more than 8 bits are scaled: those of
    16 bits from 0 and 65535 to 0 and 255, 32-bit integers likewise, floats from 0 and 1. Of several frames or
    pages the first is decoded. A negative, a TIFF whose white is 0, becomes a positive.

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
        opened = Image.open(io.BytesIO(content))
        return _to_rgb(ImageOps.exif_transpose(opened), window, _is_white_zero(opened))


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


def _is_white_zero(image: Image.Image) -> bool:
    """Whether a TIFF holds a negative, which Pillow turns into a positive in images of 8 bits only.

    Raises:
        ValueError: a TIFF of signed 8-bit values, which Pillow takes for unsigned ones.
    """
    if image.format != "TIFF":
        return False
    if image.mode == "L" and _SIGNED in image.tag_v2.get(ExifTags.Base.SampleFormat, ()):
        raise ValueError("it has signed 8-bit values, allowed are unsigned ones")
    is_deep = image.mode[:4] in _RANGES
    return is_deep and image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == _WHITE_IS_ZERO


def _to_rgb(image: Image.Image, window: tuple[float, float] | None, is_white_zero: bool) -> torch.Tensor:
    # I;16B, I;16L and I;16N differ in the order of bytes.
    mode = image.mode[:4]
    if mode in _RANGES:
        pixels = _to_uint8(np.asarray(image), mode, window)
        return torch.from_numpy(255 - pixels if is_white_zero else pixels).expand(3, -1, -1)
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
