"""FLOPs of matrix products, by torch's FlopCounterMode."""

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from .modeling.configuration_liere_vit import LiereViTConfig
from .modeling.modeling_liere_vit import LiereViTRotations
from .modeling.position_encodings import POSITION_ENCODINGS
from .modeling.positions import grid_positions


@torch.no_grad()
def count_flops(model: PreTrainedModel, pixel_values: torch.Tensor) -> int:
    """FLOPs of a forward pass whose rotations are there already; model and input may be on the meta device."""
    with FlopCounterMode(display=False) as counter:
        model(pixel_values=pixel_values)
    counts = counter.get_flop_counts()
    rotations = sum(sum(each.values()) for module, each in counts.items() if module.endswith(".rotations"))
    return counter.get_total_flops() - rotations


@torch.no_grad()
def count_rotation_flops(config: LiereViTConfig, grid_size: tuple[int, ...]) -> int:
    """FLOPs of the rotations of a grid, at the beginning of training, on a CPU.

    They are computed: on the meta device, exponentials are torch's own, whose products the counter does not see.
    """
    if not POSITION_ENCODINGS[config.position_encoding].is_rotary:
        return 0
    rotations = LiereViTRotations(config)
    rotations.initialize()
    positions = grid_positions(grid_size, config.grid_size, config.position_mode)
    with FlopCounterMode(display=False) as counter:
        rotations.eval()(positions[None], torch.float32)
    return counter.get_total_flops()
