"""Saved models for tests of the page: committed checkpoints, and small untrained ones."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from transformers import ViTImageProcessor

from liere_hf import LiereViTConfig, LiereViTForImageClassification, LiereViTForVideoClassification
from liere_hf.data.data_sets.arrows import DIRECTIONS
from liere_hf.modeling.video_processing_liere_vit import LiereViTVideoProcessor

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "checkpoints" / "liere-fashion-mnist"
SPATIAL = ROOT / "checkpoints" / "liere-spatial-9x9"
GRID_SIZE, CELL_SIZE = 5, 8


def embedded_picture(source: str) -> np.ndarray:
    """Pixels (height, width, 3) of a PNG in a page or in the address of an image."""
    content = re.search('data:image/png;base64,([^"]+)', source)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


def write_arrows_model(directory: Path, seed: int = 0, grid_size: int = GRID_SIZE, **options) -> Path:
    """A model that its recipe says was trained on the spatial task."""
    size = grid_size * CELL_SIZE
    _save(directory, LiereViTForImageClassification, seed, image_size=size, patch_size=CELL_SIZE, **options)
    ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(directory)
    recipe = {"dataset": "arrows", "arrows_grid_size": grid_size, "arrows_cell_size": CELL_SIZE}
    recipe |= {"arrows_num_distractor_arrows": 3, "arrows_num_distractor_letters": 2, "arrows_seed": 0}
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return directory


def write_clip_model(directory: Path) -> Path:
    _save(directory, LiereViTForVideoClassification, 0, image_size=[4, 16, 24], patch_size=[2, 8, 8])
    LiereViTVideoProcessor(size={"shortest_edge": 24}, crop_size={"height": 16, "width": 24}).save_pretrained(
        directory
    )
    (directory / "recipe.yaml").write_text("{frame_stride: 1, eval_segments: 1, eval_crops: 1}")
    return directory


def write_volume_model(directory: Path) -> Path:
    _save(directory, LiereViTForVideoClassification, 0, image_size=[4, 16, 24], patch_size=[2, 8, 8], num_channels=1)
    LiereViTVideoProcessor(size={"height": 16, "width": 24}, image_mean=[0.5], image_std=[0.25]).save_pretrained(
        directory
    )
    return directory


def _save(directory: Path, kind: type, seed: int, **options) -> None:
    settings = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "head_dim": 24,
        "intermediate_size": 16,
        "generator_block_size": 8,
        "generator_init": "uniform",
        "initializer_range": 0.4,
        "id2label": dict(enumerate(DIRECTIONS)),
    }
    torch.manual_seed(seed)
    kind(LiereViTConfig(**settings | options)).save_pretrained(directory)
