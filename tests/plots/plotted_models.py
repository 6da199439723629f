"""Small untrained classifiers whose attention is far from uniform. Every axis has a different size."""

import torch

from liere_hf import LiereViTConfig, LiereViTForImageClassification, LiereViTForVideoClassification

PATCH = 2
# Their spacings, 1, 1/2 and 1/4, are exact in float32.
GRIDS = {1: (5,), 2: (3, 5), 3: (2, 3, 5)}


def classifier(num_axes: int = 2, **options) -> LiereViTForImageClassification:
    settings = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "head_dim": 24,
        "intermediate_size": 16,
        "num_labels": 5,
        "num_channels": 3,
        "image_size": [PATCH * steps for steps in GRIDS[num_axes]],
        "patch_size": [PATCH] * num_axes,
        "initializer_range": 0.4,
        "generator_block_size": 8,
        "generator_init": "uniform",
    }
    torch.manual_seed(0)
    kind = LiereViTForVideoClassification if num_axes == 3 else LiereViTForImageClassification
    return kind(LiereViTConfig(**{**settings, **options})).eval()


def pixels(num_axes: int, grid_size: tuple[int, ...] | None = None, batch_size: int = 2) -> torch.Tensor:
    """Inputs from 0 to 1, in a model's layout."""
    size = [PATCH * steps for steps in grid_size or GRIDS[num_axes]]
    shape = (size[0], 3, *size[1:]) if num_axes == 3 else (3, *size)
    return torch.rand(batch_size, *shape, generator=torch.Generator().manual_seed(1))
