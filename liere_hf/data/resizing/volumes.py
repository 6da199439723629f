"""Volumes of the size that a model takes.

A model takes them as it takes clips, (batch, frames, channels, height, width): slices are its frames.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from ...modeling.configuration_liere_vit import LiereViTConfig
from ...modeling.positions import grid_positions
from ..decoding.volumes import read_extent, read_volume, to_uint8
from ..draws import Draws
from ..normalization import normalize


class TrainingVolumes:
    """Volumes brought to the training size.

    Args:
        size: (depth, height, width).
        window: intensities that become black and white; see `to_uint8`.
        num_channels: of the volumes.
    """

    def __init__(self, size: tuple[int, int, int], window: tuple[float, float] | None, num_channels: int = 1):
        self.size = tuple(size)
        self.window = window
        self.num_channels = num_channels

    def __call__(self, volumes: Sequence[dict[str, Any]], draws: Draws) -> torch.Tensor:
        """uint8 of shape (batch, depth, channels, height, width)."""
        return _resized_batch(volumes, self.size, self.window, self.num_channels)


class EvaluationVolumes:
    """Volumes brought to the training size as in training, and normalized, one view of each.

    Args:
        size: (depth, height, width).
        window: intensities that become black and white; see `to_uint8`.
        image_mean, image_std: per channel, of pixels in [0, 1].
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
        """`pixel_values` of shape (batch, depth, channels, height, width)."""
        pixels = _resized_batch(volumes, self.size, self.window, len(self.image_mean))
        return normalize(pixels, self.image_mean, self.image_std)


class MillimetrePositions:
    """Coordinates of the patches of resized volumes, scaled by the size of their voxels.

    A model's own coordinates count patches: volumes of any extent look alike. With these, the same coordinate is the
    same distance in the patient, for all volumes. Where voxels of the resized volume have the size `spacing`, the
    coordinates are the model's own.

    Args:
        config: of the model.
        size: (depth, height, width) of resized volumes, in voxels.
        spacing: millimetres of a resized voxel along these axes.
    """

    def __init__(self, config: LiereViTConfig, size: tuple[int, int, int], spacing: tuple[float, float, float]):
        grid_size = [pixels // patch for pixels, patch in zip(size, config.spatial_patch_size, strict=True)]
        # Rescaled coordinates would depend on the number of patches.
        mode = "sequential" if config.position_mode == "rescaled" else config.position_mode
        self.positions = grid_positions(grid_size, config.grid_size, mode)
        self.extent = torch.tensor(spacing) * torch.tensor(size)

    def __call__(self, volumes: Sequence[dict[str, Any]]) -> torch.Tensor:
        """float32 of shape (batch, patches, 3).

        Raises:
            InputError: the size of a volume's voxels is not known.
        """
        extents = torch.tensor([read_extent(volume) for volume in volumes])
        return self.positions * (extents / self.extent)[:, None]


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
    volumes: Sequence[dict[str, Any]],
    size: tuple[int, int, int],
    window: tuple[float, float] | None,
    num_channels: int,
) -> torch.Tensor:
    """Volumes of any format and size to uint8 (batch, depth, channels, height, width)."""
    batch = []
    for volume in volumes:
        channels = read_volume(volume, num_channels)
        batch.append(torch.stack([resize(torch.from_numpy(to_uint8(each, window)), size) for each in channels], dim=1))
    return torch.stack(batch)
