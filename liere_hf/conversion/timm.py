"""Import of timm's RoPE-Mixed vision transformers (`vit_*_rope_mixed_*`, from naver-ai/rope-vit) without timm.

Their weights show their architecture. For timm's other rotary models see eva.py.
"""

import math

import torch

from ..errors import InputError
from ..modeling.configuration_liere_vit import LiereViTConfig
from ..modeling.modeling_liere_vit import LiereViTForImageClassification
from .options import ConversionOptions, where_all_tokens_are_normalized
from .state_dicts import Tensors, load_exactly

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGE_SIZE = 224


def from_timm(
    tensors: dict[str, torch.Tensor], options: ConversionOptions, source: str = "checkpoint"
) -> LiereViTForImageClassification:
    """A `rope_mixed` model that computes the same as timm's model with these weights.

    Raises:
        InputError: weights are missing, unknown or have impossible shapes, or an option contradicts them.
    """
    weights = Tensors(source, tensors)
    config = _read_config(weights, options)
    model = LiereViTForImageClassification(config).eval()
    load_exactly(model, _rename(weights, config), source)
    return model


def _read_config(weights: Tensors, options: ConversionOptions) -> LiereViTConfig:
    if "rope.freqs" not in weights:
        raise InputError(
            f"{weights.source} has no rope.freqs, so it is not a rope_mixed model of timm: name its architecture by "
            "--timm_model"
        )
    if options.position_encoding not in (None, "rope_mixed"):
        raise InputError(f"position_encoding is {options.position_encoding!r}, but {weights.source} is 'rope_mixed'")
    _, num_layers, num_heads, num_blocks = weights.shape("rope.freqs")
    hidden_size, num_channels, *patch_size = weights.shape("patch_embed.proj.weight")
    if options.patch_size and options.per_axis("patch_size", 2) != patch_size:
        raise InputError(f"patch_size is {options.patch_size}, {weights.source} has patches of {patch_size}")
    pooling, image_size = options.pooling or "cls", options.per_axis("image_size", 2)
    if image_size is None:
        image_size = [IMAGE_SIZE, IMAGE_SIZE]
        if "pos_embed" in weights:
            side = math.isqrt(weights.shape("pos_embed")[1])
            image_size = [side * patch for patch in patch_size]
    return options.build_config(
        image_size=image_size,
        patch_size=patch_size,
        num_channels=num_channels,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        head_dim=2 * num_blocks,
        intermediate_size=weights.shape("blocks.0.mlp.fc1.weight")[0],
        num_labels=weights.shape("head.weight")[0],
        position_encoding="rope_mixed",
        position_mode="sequential",
        use_absolute_position_embeddings="pos_embed" in weights,
        position_embedding_interpolation="antialiased_cubic",
        pooling=pooling,
        final_layernorm=where_all_tokens_are_normalized(pooling),
        qkv_bias=True,
        layer_norm_eps=1e-6,
        layer_scale_init_value=1e-5 if "blocks.0.gamma_1" in weights else 0.0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def _rename(weights: Tensors, config: LiereViTConfig) -> dict[str, torch.Tensor]:
    renamed: dict[str, torch.Tensor] = {"embeddings.cls_token": weights.take("cls_token")}
    if "pos_embed" in weights:
        renamed["embeddings.position_embeddings"] = weights.take("pos_embed")
    renamed |= convolution_as_linear(weights, "patch_embed.proj", "embeddings.patch_embeddings.projection")
    renamed["rotations.generators"] = _generators(weights.take("rope.freqs"), config.grid_size)
    for index in range(config.num_hidden_layers):
        source, target = f"blocks.{index}", f"layers.{index}"
        for part in ("weight", "bias"):
            chunks = weights.take(f"{source}.attn.qkv.{part}").chunk(3)
            for name, chunk in zip("qkv", chunks, strict=True):
                renamed[f"{target}.attention.{name}_proj.{part}"] = chunk.clone()
        weights.take_linear(f"{source}.attn.proj", f"{target}.attention.o_proj", renamed)
        weights.take_linear(f"{source}.norm1", f"{target}.layernorm_before", renamed)
        weights.take_linear(f"{source}.norm2", f"{target}.layernorm_after", renamed)
        weights.take_linear(f"{source}.mlp.fc1", f"{target}.mlp.fc1", renamed)
        weights.take_linear(f"{source}.mlp.fc2", f"{target}.mlp.fc2", renamed)
        if config.layer_scale_init_value:
            renamed[f"{target}.layer_scale1.lambda1"] = weights.take(f"{source}.gamma_1")
            renamed[f"{target}.layer_scale2.lambda1"] = weights.take(f"{source}.gamma_2")
    weights.take_linear("norm", "layernorm", renamed)
    renamed = {f"liere_vit.{name}": tensor for name, tensor in renamed.items()}
    weights.take_linear("head", "classifier", renamed)
    weights.require_empty()
    return renamed


def _generators(frequencies: torch.Tensor, grid_size: tuple[int, ...]) -> torch.Tensor:
    """Frequencies (xy, layers, heads, blocks) per patch as generators (layers, row and column, heads, blocks, 2, 2).

    timm's coordinates are patch indices, ours are indices / (patches - 1). timm's rotation [[cos, -sin], [sin, cos]]
    is the exponential of a generator whose upper entry is the negative angle.
    """
    per_extent = torch.tensor([max(steps - 1, 1) for steps in grid_size], dtype=frequencies.dtype)
    rows_and_columns = frequencies.flip(0).transpose(0, 1) * per_extent[None, :, None, None]
    generators = torch.zeros(*rows_and_columns.shape, 2, 2)
    generators[..., 0, 1] = -rows_and_columns
    return generators


def convolution_as_linear(weights: Tensors, name: str, target: str) -> dict[str, torch.Tensor]:
    """A patch convolution (hidden, channels, *patch) as a linear layer on patches with the channels last."""
    weight = weights.take(f"{name}.weight").movedim(1, -1)
    return {f"{target}.weight": weight.flatten(1).contiguous(), f"{target}.bias": weights.take(f"{name}.bias")}
