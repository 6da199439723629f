"""Export to timm's rotary vision transformers: the inverse of eva.py."""

from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..modeling.configuration_liere_vit import LiereViTConfig
from ..modeling.modeling_liere_vit import LiereViTForImageClassification, LiereViTModel
from .eva import build_eva, coordinate_units, read_config, rename, rope_generators
from .options import ConversionOptions
from .planar import planar_frequencies

# What an architecture of timm determines. Biases and scales that one of the two lacks are those that change nothing.
ARCHITECTURE = (
    *("spatial_image_size", "spatial_patch_size", "num_channels", "hidden_size", "head_dim", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "hidden_act", "use_gated_mlp", "layer_norm_eps"),
    *("use_cls_token", "num_register_tokens", "use_absolute_position_embeddings", "use_pre_layernorm"),
    *("position_embedding_interpolation", "position_mode", "pooling", "final_layernorm", "prefix_attention_bias"),
)


def to_eva(model: LiereViTForImageClassification | LiereViTModel, name: str) -> nn.Module:
    """timm's model of a name, of this model's size, that computes the same.

    Raises:
        InputError: timm has no such model, or it cannot represent this one. The message says why.
    """
    config = model.config
    if config.num_axes != 2:
        raise InputError(f"{name} cannot represent this model: it has {config.num_axes} axes, there are 2")
    num_classes = config.num_labels if isinstance(model, LiereViTForImageClassification) else 0
    try:
        target = build_eva(name, **size_options(config), num_classes=num_classes)
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(f"{name} cannot represent this model's sizes: {' '.join(str(error).split())}") from error
    try:
        target_config = read_config(target, ConversionOptions())
    except InputError as error:
        raise InputError(f"{name} cannot represent this model: {error}") from error
    for field in ARCHITECTURE:
        ours, theirs = getattr(config, field), getattr(target_config, field)
        if ours != theirs:
            raise InputError(f"{name} cannot represent this model: {field} is {ours!r}, there it is {theirs!r}")
    state_dict = _rename_back(model, target, config, name)
    state_dict |= _frequencies(model, target, config, name)
    target.load_state_dict(state_dict)
    return target


def size_options(config: LiereViTConfig) -> dict[str, Any]:
    """Options of `timm.create_model` for a model of this size."""
    return {
        "img_size": list(config.spatial_image_size),
        "depth": config.num_hidden_layers,
        "embed_dim": config.hidden_size,
        "num_heads": config.num_attention_heads,
    }


def _rename_back(model: nn.Module, target: nn.Module, config: LiereViTConfig, name: str) -> dict[str, torch.Tensor]:
    """timm's weights without those of its rotations.

    The conversion from timm moves numbers and changes none. So it is inverted by converting their places: each weight
    of the target is given a number of its own, and where that arrives is the value that belongs there. 0 is no place.
    """
    theirs = {key: tensor for key, tensor in target.state_dict().items() if not key.startswith("rope.")}
    places, count = {}, 1
    for key, tensor in theirs.items():
        places[key] = torch.arange(count, count + tensor.numel(), dtype=torch.float64).view_as(tensor)
        count += tensor.numel()
    if target.pos_embed is not None and not target.no_embed_class:
        # Rows that are added to the prefix tokens: zero, since the tokens hold their sums.
        places["pos_embed"][:, : target.num_prefix_tokens] = 0
    renamed = rename(target, places, config, name)
    del renamed["rotations.generators"]

    ours = {key.removeprefix("liere_vit."): tensor for key, tensor in model.state_dict().items()}
    values = torch.zeros(count)
    for key, where in renamed.items():
        values[where.long()] = ours.pop(key) if key in ours else _neutral(key, where, name)
    for key, tensor in ours.items():
        # Pictures without a mask do not need its token.
        if key in ("rotations.generators", "embeddings.mask_token"):
            continue
        if not torch.equal(tensor, _neutral(key, tensor, name)):
            raise InputError(f"{name} cannot represent this model: it has no {key}, which is not neutral here")
    sizes = [tensor.numel() for tensor in theirs.values()]
    parts = zip(theirs.items(), values[1:].split(sizes), strict=True)
    return {key: part.view_as(tensor) for (key, tensor), part in parts}


def _neutral(key: str, like: torch.Tensor, name: str) -> torch.Tensor:
    """The values of a weight that change nothing."""
    if key.endswith(".bias"):
        return torch.zeros(like.shape)
    if key.endswith(".lambda1"):
        return torch.ones(like.shape)
    raise InputError(f"{name} cannot represent this model: only one of the two has {key}")


def _frequencies(
    model: LiereViTForImageClassification | LiereViTModel, target: nn.Module, config: LiereViTConfig, name: str
) -> dict[str, torch.Tensor]:
    """timm's learned frequencies. Fixed ones must be the model's."""
    try:
        frequencies = planar_frequencies(model)
    except InputError as error:
        raise InputError(f"{name} cannot represent this model: {error}") from error
    rope = target.rope
    if type(rope).__name__ == "RotaryEmbeddingMixed":
        units = torch.tensor(coordinate_units(rope, config), dtype=torch.float64)
        frequencies = frequencies.double() / units[:, None, None]
        if rope.grid_indexing == "xy":
            # Columns before rows.
            frequencies = frequencies.flip(1)
        return {"rope.freqs": frequencies.float().transpose(0, 1)}
    expected = -rope_generators(rope, config)[..., 0, 1]
    if not torch.allclose(frequencies, expected, rtol=1e-5, atol=0):
        raise InputError(f"{name} cannot represent this model: its rotations are no longer those of {name}")
    return {key: tensor for key, tensor in target.state_dict().items() if key.startswith("rope.")}
