"""Noise images, as pixels and as encoded files."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from liere_hf.data.decoding.images import image_suffixes

# Modes of the formats that Pillow writes in no other.
MODES = {"BLP": "P", "MSP": "1", "XBM": "1"}


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def planes(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def writable_images() -> list[str]:
    Image.init()
    formats = {suffix: Image.registered_extensions()[suffix] for suffix in image_suffixes()}
    # Pillow itself does not find the decoder of EPS and of PostScript, which is Ghostscript.
    return [suffix for suffix, name in formats.items() if name in Image.SAVE and name != "EPS"]


def write_image(path: Path, size: tuple[int, int]) -> Path:
    """A white image of this width and height, in the format of the path's suffix."""
    kind = Image.registered_extensions()[path.suffix]
    image = Image.new("F", size, 1.0) if path.suffix == ".pfm" else Image.new("RGB", size, "white")
    image.convert(MODES.get(kind, image.mode)).save(path)
    return path
