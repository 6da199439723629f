"""Uncompressed images, which are decoded fast: for small images that are decoded in every epoch.

The format is Netpbm's binary portable anymap, which all image libraries read: P5 is grey, P6 is RGB.
"""

import re

import numpy as np

_HEADER = re.compile(rb"P([56])\n(\d+) (\d+)\n255\n")


def encode_pnm(pixels: np.ndarray) -> bytes:
    """uint8 pixels, grey (height, width) or RGB (height, width, 3), as a file."""
    kind = 6 if pixels.ndim == 3 else 5
    return b"P%d\n%d %d\n255\n" % (kind, pixels.shape[1], pixels.shape[0]) + pixels.tobytes()


def decode_pnm(content: bytes) -> np.ndarray | None:
    """The pixels of a file of [`encode_pnm`], always RGB, (height, width, 3); None for any other file."""
    header = _HEADER.match(content)
    if header is None:
        return None
    kind, width, height = map(int, header.groups())
    channels = 3 if kind == 6 else 1
    if len(content) != header.end() + height * width * channels:
        return None
    pixels = np.frombuffer(content, np.uint8, offset=header.end()).reshape(height, width, channels)
    return np.broadcast_to(pixels, (height, width, 3))
