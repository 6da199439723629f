"""Patches in a random order: how much a model's answers depend on where things are."""

import math
from collections.abc import Sequence

import numpy as np
import torch


def shuffle_patches(pixel_values: torch.Tensor, patch_size: tuple[int, ...], indices: Sequence[int]) -> torch.Tensor:
    """Permute the patches of each example, in video over space and time alike (paper, table 5).

    Args:
        pixel_values: (batch, channels, height, width), or (batch, frames, channels, height, width).
        patch_size: per axis, which divide those of the pixels.
        indices: of the examples, on which alone their permutations depend.
    """
    is_image = pixel_values.ndim == 4
    pixels = pixel_values if is_image else pixel_values.transpose(1, 2)
    grid = [extent // patch for extent, patch in zip(pixels.shape[2:], patch_size, strict=True)]
    num_axes = len(grid)
    split = pixels.reshape(*pixels.shape[:2], *(size for pair in zip(grid, patch_size, strict=True) for size in pair))
    # (batch, *grid, channels, *patch)
    grid_axes, patch_axes = range(2, 2 + 2 * num_axes, 2), range(3, 3 + 2 * num_axes, 2)
    order = (0, *grid_axes, 1, *patch_axes)
    patches = split.permute(order)
    flat = patches.flatten(1, num_axes)
    permutations = [np.random.default_rng(index).permutation(math.prod(grid)) for index in indices]
    shuffled = torch.stack([each[torch.from_numpy(p)] for each, p in zip(flat, permutations, strict=True)])
    inverse = tuple(int(axis) for axis in np.argsort(order))
    result = shuffled.unflatten(1, grid).permute(inverse).reshape(pixels.shape)
    return result if is_image else result.transpose(1, 2)
