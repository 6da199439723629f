"""Tiny models and their inputs. Every axis has a different size, so that swapped axes are noticed."""

import av
import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification

from liere_hf import LiereViTConfig, LiereViTForImageClassification

ENCODINGS = ("liere", "rope_mixed", "visionllama", "absolute", "none")
ROTARY_ENCODINGS = ("liere", "rope_mixed", "visionllama")
LEARNED_ENCODINGS = ("liere", "rope_mixed")
BLOCK_SIZES = (2, 4, 8, 16, 64)

SIZES = {
    1: {"image_size": [20], "patch_size": [4]},
    2: {"image_size": [8, 12], "patch_size": [4, 3]},
    3: {"image_size": [4, 6, 8], "patch_size": [2, 3, 2]},
}


def tiny_config(num_axes=2, **overrides):
    settings = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "num_labels": 5,
        "generator_block_size": 8,
        # Blocks without zeros, which do not commute: the hardest case.
        "generator_init": "uniform",
        **SIZES[num_axes],
    }
    return LiereViTConfig(**{**settings, **overrides})


def random_model(model_class, config, seed=0, **kwargs):
    """A model in eval mode whose parameters are all perturbed: no zero biases, and attention far from uniform."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = model_class(config, **kwargs).eval()
        for name, parameter in model.named_parameters():
            if not name.endswith("generators"):
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def vit_pair(encoding, zero_generators=True, seed=0, **overrides):
    """ViTForImageClassification, and our model with its weights. Learned encodings have zero generators by default."""
    shared = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "num_labels": 5,
        "image_size": 16,
        "patch_size": 4,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        **overrides,
    }
    vit_config = ViTConfig(**shared)
    vit = random_model(ViTForImageClassification, vit_config, seed)
    config = tiny_config(
        **shared,
        position_encoding=encoding,
        use_absolute_position_embeddings=True,
        qkv_bias=True,
        layer_norm_eps=vit_config.layer_norm_eps,
    )
    model = LiereViTForImageClassification(config).eval()
    weights = {name.replace("vit.", "liere_vit.", 1): value for name, value in vit.state_dict().items()}
    table = weights["liere_vit.embeddings.position_embeddings"]
    weights["liere_vit.embeddings.cls_token"] = weights["liere_vit.embeddings.cls_token"] + table[:, :1]
    weights["liere_vit.embeddings.position_embeddings"] = table[:, 1:]
    projection = "liere_vit.embeddings.patch_embeddings.projection.weight"
    weights[projection] = weights[projection].permute(0, 2, 3, 1).flatten(1)
    if encoding in LEARNED_ENCODINGS:
        generators = model.liere_vit.rotations.generators
        weights["liere_vit.rotations.generators"] = torch.zeros_like(generators) if zero_generators else generators
    model.load_state_dict(weights)
    return vit, model


def random_input(config, batch_size=2, grid_size=None, seed=0):
    """Random `pixel_values` for a grid of patches, by default the training grid."""
    grid_size = config.grid_size if grid_size is None else grid_size
    size = [steps * patch for steps, patch in zip(grid_size, config.spatial_patch_size, strict=True)]
    if len(size) >= 3:
        shape = (batch_size, size[0], config.num_channels, *size[1:])
    else:
        shape = (batch_size, config.num_channels, *size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def patch_window(config, window):
    """Index into `pixel_values` of a window of patches, given as one slice per axis."""
    pixels = [
        slice(part.start * patch, part.stop * patch)
        for part, patch in zip(window, config.spatial_patch_size, strict=True)
    ]
    if len(pixels) >= 3:
        return (slice(None), pixels[0], slice(None), *pixels[1:])
    return (slice(None), slice(None), *pixels)


def random_skew(*shape, scale=1.0, seed=0):
    """Skew-symmetric float64 matrices with normal entries."""
    raw = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale
    return raw.triu(1) - raw.triu(1).mT


def write_clip(path, num_frames=12, height=32, width=48, seed=0):
    """Write an .mp4 with smooth moving colors, which lossy compression hardly changes."""
    phases = 2 * np.pi * np.random.default_rng(seed).random(3)
    y, x = np.mgrid[:height, :width] / width
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(num_frames):
            waves = np.sin(3 * x + 2 * y + 0.5 * index)[..., None] + np.cos(phases + index / 3)
            frame = av.VideoFrame.from_ndarray((127.5 + 60 * waves).clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def uniform_generators(num_layers, num_axes, num_heads, num_blocks, size, seed=0):
    shape = (num_layers, num_axes, num_heads, num_blocks, size, size)
    return 2 * torch.pi * torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def uniform_positions(*shape, seed=0):
    """Coordinates in [-1, 2): inside the training grid and beyond."""
    return 3 * torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
