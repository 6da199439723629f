"""Inflation: an image model becomes a video model that initially computes the same for a still clip."""

import copy
import math

import torch

from ..errors import InputError
from ..modeling.configuration_liere_vit import LiereViTConfig
from ..modeling.modeling_liere_vit import (
    LiereViTForImageClassification,
    LiereViTForVideoClassification,
    LiereViTPreTrainedModel,
)
from ..modeling.position_encodings import POSITION_ENCODINGS, PositionEncoding


def inflate(
    model: LiereViTPreTrainedModel, num_frames: int, tubelet: int = 2, balance_prefix: bool = False
) -> LiereViTPreTrainedModel:
    """A copy of a model with two axes that has time as an additional first axis.

    The patch weights are spread evenly over the frames of a tubelet, and the encoding's parameters for time start at
    0. A still clip then gives the image's outputs exactly if it is a single tubelet, or if the model has no prefix
    tokens. With several tubelets a CLS token has a smaller share of the softmax than with one image;
    `balance_prefix` sets `config.prefix_attention_bias` to the logarithm of their number, which gives that share back
    in attention.

    Args:
        num_frames: frames of a clip, a multiple of `tubelet`.
        tubelet: frames of a patch.
        balance_prefix: whether prefix tokens keep their share of attention.

    Returns:
        A model of the same class. For an image classifier, a video classifier.

    Raises:
        InputError: the model does not have two axes, or num_frames is not a multiple of tubelet.
    """
    before = model.config
    if before.num_axes != 2:
        raise InputError(f"the model has {before.num_axes} axes, inflation needs a model with two")
    if tubelet < 1 or num_frames < 1 or num_frames % tubelet:
        raise InputError(f"num_frames is {num_frames}, which tubelet ({tubelet}) does not divide")
    encoding = POSITION_ENCODINGS[before.position_encoding]
    if encoding.is_rotary and not any("axes" in dimensions for dimensions in encoding.parameters.values()):
        raise InputError(
            f"position_encoding is {before.position_encoding!r}, which learns nothing for each axis, so that time "
            "could not start at 0"
        )
    num_tubelets = num_frames // tubelet
    config = _inflated_config(before, num_frames, tubelet)
    if balance_prefix:
        config.prefix_attention_bias = before.prefix_attention_bias + math.log(num_tubelets)
    is_classifier = isinstance(model, LiereViTForImageClassification)
    inflated = (LiereViTForVideoClassification if is_classifier else type(model))._from_config(config)
    state_dict = {
        name: _inflated(name, tensor, encoding, num_tubelets, tubelet) for name, tensor in model.state_dict().items()
    }
    inflated.load_state_dict(state_dict)
    return inflated.to(model.device).train(model.training)


def _inflated_config(before: LiereViTConfig, num_frames: int, tubelet: int) -> LiereViTConfig:
    config = copy.deepcopy(before)
    config.image_size = [num_frames, *before.spatial_image_size]
    config.patch_size = [tubelet, *before.spatial_patch_size]
    if before.encoder_stride is not None:
        config.encoder_stride = [tubelet, *before.spatial_encoder_stride]
    config.validate()
    return config


def _inflated(
    name: str, tensor: torch.Tensor, encoding: PositionEncoding, num_tubelets: int, tubelet: int
) -> torch.Tensor:
    if name.endswith("patch_embeddings.projection.weight"):
        return tensor.repeat(1, tubelet) / tubelet
    if name.endswith("position_embeddings"):
        return tensor.repeat(1, num_tubelets, 1)
    for parameter, dimensions in encoding.parameters.items():
        if name.endswith(f"rotations.{parameter}") and "axes" in dimensions:
            axes = dimensions.index("axes")
            return torch.cat((torch.zeros_like(tensor.narrow(axes, 0, 1)), tensor), dim=axes)
    # Masked image modeling: each frame of a tubelet is decoded as the image was.
    if name.startswith("decoder."):
        return tensor.repeat(tubelet, *(1,) * (tensor.ndim - 1))
    return tensor
