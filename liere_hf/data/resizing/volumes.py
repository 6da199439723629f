"""Volumes of the size that a model takes.

A model takes them as it takes clips, (batch, frames, channels, height, width): slices are its frames.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from ..decoding.volumes import read_volume, to_uint8
from ..draws import Draws
from ..normalization import normalize


class TrainingVolumes:
    """Volumes brought to the training size.

    Args:
        size: (depth, height, width).
        window: intensities that become black and white; see `to_uint8`.
    """

    def __init__(self, size: tuple[int, int, int], window: tuple[float, float] | None):
        self.size = tuple(size)
        self.window = window

    def __call__(self, volumes: Sequence[dict[str, Any]], draws: Draws) -> torch.Tensor:
        """uint8 of shape (batch, depth, 1, height, width)."""
        return _resized_batch(volumes, self.size, self.window)


class EvaluationVolumes:
    """Volumes brought to the training size as in training, and normalized, one view of each.

    Args:
        size: (depth, height, width).
        window: intensities that become black and white; see `to_uint8`.
        image_mean, image_std: of the one channel, of pixels in [0, 1].
    """

    num_views = 1

    def __init__(
        self,
        size: tuple[int, int, int],
        window: tuple[float, float] | None,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
    ):
        self.size = tuple(size)
        self.window = window
        self.image_mean = image_mean
        self.image_std = image_std

    def __call__(self, volumes: Sequence[dict[str, Any]], views: Sequence[int]) -> torch.Tensor:
        """`pixel_values` of shape (batch, depth, 1, height, width)."""
        return normalize(_resized_batch(volumes, self.size, self.window), self.image_mean, self.image_std)


def resize(pixels: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """uint8 (depth, height, width) to another size.

    Axes that shrink to half or less are averaged over the old voxels that each new one covers, which is exact where
    the new size divides the old one. The other axes are interpolated linearly.
    """
    values = pixels[None, None].float()
    averaged = [new if old >= 2 * new else old for old, new in zip(pixels.shape, size, strict=True)]
    if averaged != list(pixels.shape):
        values = functional.adaptive_avg_pool3d(values, averaged)
    values = functional.interpolate(values, size, mode="trilinear", align_corners=False)
    return values[0, 0].round_().to(torch.uint8)


def _resized_batch(
    volumes: Sequence[dict[str, Any]], size: tuple[int, int, int], window: tuple[float, float] | None
) -> torch.Tensor:
    """Volumes of any format and size to uint8 (batch, depth, 1, height, width)."""
    pixels = (torch.from_numpy(to_uint8(read_volume(volume), window)) for volume in volumes)
    return torch.stack([resize(each, size) for each in pixels]).unsqueeze(2)
