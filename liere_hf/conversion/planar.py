"""Planar generators, those of RoPE-Mixed, as the frequencies of planes, also where they lie in wider blocks."""

import torch

from ..errors import InputError
from ..modeling.modeling_liere_vit import LiereViTPreTrainedModel, LiereViTRotations
from ..modeling.position_encodings import POSITION_ENCODINGS


def planar_frequencies(model: LiereViTPreTrainedModel) -> torch.Tensor:
    """Angular frequencies in radians per unit of coordinates: (layers, axes, heads, planes).

    Plane j is that of the dimensions 2j and 2j + 1 of a head, which turn from the first to the second.

    Raises:
        InputError: the model has no free generators, or ones that turn other planes, too.
    """
    encoding = POSITION_ENCODINGS[model.config.position_encoding]
    if not encoding.has_free_generators:
        raise InputError(f"position_encoding is {model.config.position_encoding!r}, which has no free generators")
    (rotations,) = (module for module in model.modules() if isinstance(module, LiereViTRotations))
    upper = rotations.generators.detach().triu(1)
    even = torch.arange(0, upper.shape[-1], 2)
    frequencies = -upper[..., even, even + 1]
    rest = upper.clone()
    rest[..., even, even + 1] = 0
    if rest.any():
        raise InputError(
            f"its generators, of width {upper.shape[-1]}, have entries outside of planes of neighbouring dimensions"
        )
    sizes = (model.config.num_hidden_layers, -1, model.config.num_attention_heads, -1)
    return frequencies.flatten(-2).expand(*sizes)
