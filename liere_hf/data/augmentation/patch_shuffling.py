"""Patches in a random order, which shows how much a model's answers depend on positions."""

from collections.abc import Sequence

import numpy as np
import torch

from ...modeling.modeling_liere_vit import channels_first, from_patches, to_patches


def shuffle_patches(pixel_values: torch.Tensor, patch_size: tuple[int, ...], indices: Sequence[int]) -> torch.Tensor:
    """Permute the patches of each example, in video over time and space alike (paper, table 5).

    Args:
        pixel_values: (batch, channels, height, width), or (batch, frames, channels, height, width).
        patch_size: per axis; divides the size of the pixels.
        indices: of the examples. The permutation of an example depends only on its index.
    """
    num_axes = len(patch_size)
    grid = to_patches(channels_first(pixel_values, num_axes), patch_size)
    patches = grid.flatten(1, num_axes)
    num_patches = patches.shape[1]
    permutations = [torch.from_numpy(np.random.default_rng(index).permutation(num_patches)) for index in indices]
    shuffled = torch.stack([each[order] for each, order in zip(patches, permutations, strict=True)])
    return channels_first(from_patches(shuffled.reshape(grid.shape), patch_size), num_axes)
