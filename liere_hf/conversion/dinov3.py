"""Import and export of transformers' DINOv3 vision transformers (arXiv 2508.10104)."""

import math

import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel, PreTrainedConfig, PreTrainedModel

from ..errors import InputError
from ..modeling.configuration_liere_vit import LiereViTConfig
from ..modeling.modeling_liere_vit import LiereViTModel
from .options import ConversionOptions, where_all_tokens_are_normalized
from .planar import planar_frequencies
from .state_dicts import Tensors, load_exactly
from .timm import convolution_as_linear
from .vit import load_source, two_axes

MODEL_TYPES = ("dinov3_vit",)


def from_dinov3(name: str, options: ConversionOptions) -> LiereViTModel:
    """A bare model that computes the same as the DINOv3 at `name`, at every input size.

    Its fixed axial rotations become learned ones, those of `rope_mixed`, that start at the same frequencies.

    Args:
        name: directory or Hub id.

    Raises:
        InputError: the model does not exist or has another architecture, or an option contradicts it.
    """
    if options.position_encoding not in (None, "rope_mixed"):
        raise InputError(f"position_encoding is {options.position_encoding!r}, but {name} is 'rope_mixed'")
    source = load_source(name, MODEL_TYPES)
    config = _read_config(source.config, options)
    model = LiereViTModel(config).eval()
    renamed = _rename(source, config, name)
    # Our layers may have biases that theirs have not: zeros make the same function.
    biases = {key for key in model.state_dict() if key.startswith("layers.") and key.endswith(".bias")}
    renamed |= {key: torch.zeros_like(model.get_parameter(key)) for key in biases - renamed.keys()}
    load_exactly(model, renamed, name)
    return model


def _read_config(source: PreTrainedConfig, options: ConversionOptions) -> LiereViTConfig:
    pooling = options.pooling or "cls"
    return options.build_config(
        image_size=options.per_axis("image_size", 2) or two_axes(source.image_size),
        patch_size=two_axes(source.patch_size),
        num_channels=source.num_channels,
        hidden_size=source.hidden_size,
        num_hidden_layers=source.num_hidden_layers,
        num_attention_heads=source.num_attention_heads,
        intermediate_size=source.intermediate_size,
        hidden_act=source.hidden_act,
        use_gated_mlp=source.use_gated_mlp,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=source.attention_dropout,
        initializer_range=source.initializer_range,
        layer_norm_eps=source.layer_norm_eps,
        qkv_bias=source.query_bias or source.value_bias,
        key_bias=source.key_bias,
        drop_path_rate=source.drop_path_rate,
        # Its layers have the parameter whatever it starts from.
        layer_scale_init_value=source.layerscale_value or 1.0,
        num_register_tokens=source.num_register_tokens,
        use_mask_token=True,
        pooling=pooling,
        final_layernorm=where_all_tokens_are_normalized(pooling),
        position_encoding="rope_mixed",
        position_mode="centered",
        pos_embed_shift=source.pos_embed_shift,
        pos_embed_jitter=source.pos_embed_jitter,
        pos_embed_rescale=source.pos_embed_rescale,
        apply_layernorm=source.apply_layernorm,
        reshape_hidden_states=source.reshape_hidden_states,
    )


# Names of the parts of a layer in DINOv3, and in ours.
LAYER_PARTS = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attention.v_proj": "attention.v_proj",
    "attention.o_proj": "attention.o_proj",
    "mlp.gate_proj": "mlp.gate_proj",
}


def _rename(source: PreTrainedModel, config: LiereViTConfig, name: str) -> dict[str, torch.Tensor]:
    weights = Tensors(name, source.state_dict())
    renamed = {f"embeddings.{token}": weights.take(f"embeddings.{token}") for token in ("cls_token", "mask_token")}
    registers = weights.take("embeddings.register_tokens")
    if config.num_register_tokens:
        renamed["embeddings.register_tokens"] = registers
    renamed |= convolution_as_linear(weights, "embeddings.patch_embeddings", "embeddings.patch_embeddings.projection")
    renamed["rotations.generators"] = axial_frequencies_as_generators(source.config.rope_theta, config)
    for index in range(config.num_hidden_layers):
        theirs, ours = f"model.layer.{index}", f"layers.{index}"
        for their_part, our_part in _parts(config).items():
            if f"{theirs}.{their_part}.weight" in weights:
                weights.take_linear(f"{theirs}.{their_part}", f"{ours}.{our_part}", renamed)
        for part in ("q_proj", "k_proj"):
            projection: dict[str, torch.Tensor] = {}
            weights.take_linear(f"{theirs}.attention.{part}", f"{ours}.attention.{part}", projection)
            renamed |= {key: halves_as_pairs(tensor, config.head_dim) for key, tensor in projection.items()}
        for part in ("layer_scale1", "layer_scale2"):
            renamed[f"{ours}.{part}.lambda1"] = weights.take(f"{theirs}.{part}.lambda1")
    weights.take_linear("norm", "layernorm", renamed)
    weights.require_empty()
    return renamed


def _parts(config: LiereViTConfig) -> dict[str, str]:
    if config.use_gated_mlp:
        return LAYER_PARTS | {"mlp.up_proj": "mlp.up_proj", "mlp.down_proj": "mlp.down_proj"}
    return LAYER_PARTS | {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}


def halves_as_pairs(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of a query or key projection for rotations of neighbouring dimensions in place of those of two halves.

    The planes (i, i + head_dim / 2) of each head become (2i, 2i + 1). Queries and keys are permuted alike, which
    leaves their scores as they are.
    """
    return tensor.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def pairs_as_halves(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """The inverse of `halves_as_pairs`."""
    return tensor.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def axial_frequencies_as_generators(theta: float, config: LiereViTConfig) -> torch.Tensor:
    """Generators (layers, axes, heads, blocks, 2, 2) with frequencies 2 pi / theta^(k / planes), axis after axis.

    A rotation [[cos, -sin], [sin, cos]] is the exponential of a generator whose upper entry is the negative angle.
    """
    planes = config.head_dim // (2 * config.num_axes)
    frequencies = 2 * math.pi / theta ** (torch.arange(planes, dtype=torch.float64) / planes)
    shape = (config.num_hidden_layers, config.num_axes, config.num_attention_heads, config.num_axes, planes, 2, 2)
    generators = torch.zeros(shape)
    for axis in range(config.num_axes):
        generators[:, axis, :, axis, :, 0, 1] = -frequencies.float()
    return generators.flatten(3, 4)


def to_dinov3(model: LiereViTModel) -> DINOv3ViTModel:
    """transformers' DINOv3 that computes the same as a model whose rotations are still DINOv3's.

    Raises:
        InputError: DINOv3 cannot represent the model. The message says why.
    """
    config = model.config
    target = DINOv3ViTModel(
        DINOv3ViTConfig(
            image_size=list(config.spatial_image_size),
            patch_size=list(config.spatial_patch_size),
            num_channels=config.num_channels,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            hidden_act=config.hidden_act,
            use_gated_mlp=config.use_gated_mlp,
            attention_dropout=config.attention_probs_dropout_prob,
            initializer_range=config.initializer_range,
            layer_norm_eps=config.layer_norm_eps,
            query_bias=config.qkv_bias,
            key_bias=config.key_bias,
            value_bias=config.qkv_bias,
            drop_path_rate=config.drop_path_rate,
            layerscale_value=config.layer_scale_init_value or 1.0,
            num_register_tokens=config.num_register_tokens,
            rope_theta=_require_dinov3(model),
            pos_embed_shift=config.pos_embed_shift,
            pos_embed_jitter=config.pos_embed_jitter,
            pos_embed_rescale=config.pos_embed_rescale,
        )
    ).eval()
    load_exactly(target, _rename_back(model, target), "the model")
    return target


def _require_dinov3(model: LiereViTModel) -> float:
    """DINOv3's `rope_theta`.

    Raises:
        InputError: see `to_dinov3`.
    """
    config = model.config
    reasons = {
        f"it has {config.num_axes} axes": config.num_axes != 2,
        f"position_mode is {config.position_mode!r}, not 'centered'": config.position_mode != "centered",
        "it has no CLS token": not config.use_cls_token,
        f"pooling is {config.pooling!r}, not 'cls'": config.pooling != "cls",
        "its embeddings are normalized": config.use_pre_layernorm,
        "it has no final normalization": config.final_layernorm == "none",
        "it has a table of positions": config.use_absolute_position_embeddings,
        "it has a bias for prefix tokens": config.prefix_attention_bias != 0,
        "the width of its heads does not make hidden_size": config.head_dim * config.num_attention_heads
        != config.hidden_size,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise InputError(f"DINOv3 cannot represent this model: {found[0]}")
    try:
        frequencies = planar_frequencies(model).double()
    except InputError as error:
        raise InputError(f"DINOv3 cannot represent this model: {error}") from error
    planes = frequencies.shape[-1] // 2
    # The second frequency is 2 pi / theta^(1 / planes).
    theta = (2 * math.pi / frequencies[0, 0, 0, 1].item()) ** planes if planes > 1 else 1.0
    expected = -axial_frequencies_as_generators(theta, config)[..., 0, 1]
    if not torch.allclose(frequencies, expected.double(), rtol=1e-5, atol=0):
        raise InputError(
            "DINOv3 cannot represent this model: its frequencies are no longer 2 pi / theta^(k / planes) for each "
            "axis, the same in all layers and heads"
        )
    # As many digits as float32 has.
    return float(f"{theta:.6g}")


def _rename_back(model: LiereViTModel, target: DINOv3ViTModel) -> dict[str, torch.Tensor]:
    """DINOv3's names. What the model lacks, and DINOv3 always has, is what changes nothing."""
    config, weights = model.config, Tensors("the model", model.state_dict())
    weights.drop(lambda name: name.startswith("rotations."))
    renamed = {}
    for name in ("cls_token", "mask_token", "register_tokens"):
        if f"embeddings.{name}" in weights:
            renamed[f"embeddings.{name}"] = weights.take(f"embeddings.{name}")
    projection = "embeddings.patch_embeddings"
    kernel = weights.take(f"{projection}.projection.weight")
    kernel = kernel.unflatten(1, (*config.spatial_patch_size, config.num_channels)).movedim(-1, 1)
    renamed |= {f"{projection}.weight": kernel, f"{projection}.bias": weights.take(f"{projection}.projection.bias")}
    for index in range(config.num_hidden_layers):
        theirs, ours = f"model.layer.{index}", f"layers.{index}"
        for their_part, our_part in _parts(config).items():
            if f"{ours}.{our_part}.weight" in weights:
                weights.take_linear(f"{ours}.{our_part}", f"{theirs}.{their_part}", renamed)
        for part in ("q_proj", "k_proj"):
            turned: dict[str, torch.Tensor] = {}
            weights.take_linear(f"{ours}.attention.{part}", f"{theirs}.attention.{part}", turned)
            renamed |= {key: pairs_as_halves(tensor, config.head_dim) for key, tensor in turned.items()}
        for part in ("layer_scale1", "layer_scale2"):
            if f"{ours}.{part}.lambda1" in weights:
                renamed[f"{theirs}.{part}.lambda1"] = weights.take(f"{ours}.{part}.lambda1")
    weights.take_linear("layernorm", "norm", renamed)
    weights.require_empty()
    neutral = {name: torch.zeros_like(tensor) for name, tensor in target.state_dict().items() if "token" in name}
    neutral |= {name: torch.ones_like(tensor) for name, tensor in target.state_dict().items() if "layer_scale" in name}
    return neutral | renamed
