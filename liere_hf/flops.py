"""FLOPs of a forward pass."""

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel


class Flops(NamedTuple):
    """FLOPs of matrix products, by torch's FlopCounterMode.

    Attributes:
        inputs: of the inputs, with the rotations there.
        rotations: of computing these, once for any number of inputs.
    """

    inputs: int
    rotations: int


@torch.no_grad()
def count_flops(model: PreTrainedModel, pixel_values: torch.Tensor) -> Flops:
    """Count the FLOPs of a forward pass; model and input may be on the meta device."""
    with FlopCounterMode(display=False) as counter:
        model(pixel_values=pixel_values)
    counts = counter.get_flop_counts()
    rotations = sum(sum(each.values()) for module, each in counts.items() if module.endswith(".rotations"))
    return Flops(counter.get_total_flops() - rotations, rotations)
