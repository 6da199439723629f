"""Import of transformers' vision transformers with absolute positions, for images and video."""

import math
from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
    PreTrainedConfig,
    PreTrainedModel,
    Siglip2VisionModel,
    SiglipVisionModel,
)

from ..errors import InputError, first_names
from ..hub_access import hub_or_cache
from ..model_loading import classifier_class
from ..modeling.configuration_liere_vit import LiereViTConfig
from ..modeling.modeling_liere_vit import LiereViTForImageClassification, LiereViTModel
from ..modeling.position_encodings import POSITION_ENCODINGS
from .options import ConversionOptions, where_all_tokens_are_normalized
from .state_dicts import Tensors, load_exactly
from .timm import convolution_as_linear

MODEL_TYPES = (
    "vit",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    "siglip_vision_model",
    "siglip2_vision_model",
    "videomae",
    "vivit",
    "siglip",
    "siglip2",
)
# Models of pictures and texts, of which one part is converted.
VISION_TOWERS = {"siglip": SiglipVisionModel, "siglip2": Siglip2VisionModel}
WITHOUT_CLS = ("siglip_vision_model", "siglip2_vision_model", "videomae")


def from_vit(name: str, options: ConversionOptions) -> LiereViTForImageClassification | LiereViTModel:
    """A model that computes the same as the one at `name`, with its table of positions and generators at zero.

    DeiT's distillation token becomes a register. For DINOv2, whose classifiers use other features than ours, for
    SigLIP, whose attention pooling is left out, and for a model without a classifier, the result is a bare model.

    Args:
        name: directory or Hub id.
        options: `position_encoding` is `liere` (the default), another one with free generators, or `absolute`.

    Raises:
        InputError: the model does not exist, has another architecture, or layers that LiereViT does not have.
    """
    source = load_source(name)
    weights = _weights(source, name)
    config = _read_config(source.config, weights, options)
    model_class = classifier_class(config) if hasattr(source, "classifier") else LiereViTModel
    model = model_class(config).eval()
    load_exactly(model, _rename(source, weights, config), name)
    return model


def load_source(name: str, model_types: Sequence[str] = MODEL_TYPES) -> PreTrainedModel:
    """The model at `name`, with the classifier of its checkpoint, if any."""
    try:
        with hub_or_cache("model", name):
            model, missing = _load_source(name, model_types)
    except InputError:
        raise
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise InputError(f"model {name} cannot be read: {' '.join(str(error).split())[:300]}") from error
    # transformers draws what is missing at random. A pooler is not converted.
    missing = [key for key in missing if "pooler." not in key]
    if missing:
        raise InputError(f"{name} lacks {len(missing)} weights: {first_names(sorted(missing))}")
    return model.eval()


def _load_source(name: str, model_types: Sequence[str]) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the names of weights that its checkpoint lacks."""
    config = AutoConfig.from_pretrained(name)
    if config.model_type == "vjepa2":
        raise InputError(
            f"{name} is a V-JEPA 2: its position encoding turns pairs of dimensions by two different angles each, "
            "which is no rotation"
        )
    if config.model_type not in model_types:
        raise InputError(f"{name} has model_type {config.model_type!r}, allowed are {', '.join(model_types)}")
    model, report = _auto_class(config).from_pretrained(name, output_loading_info=True)
    if config.model_type == "videomae" and hasattr(model, "classifier") and not config.use_mean_pooling:
        raise InputError(f"{name} classifies the first patch (use_mean_pooling is False), LiereViT the mean of all")
    return model, report["missing_keys"]


def _auto_class(config: PreTrainedConfig) -> type:
    """What loads the model, with its classifier if that takes the same features as ours."""
    if config.model_type in VISION_TOWERS:
        return VISION_TOWERS[config.model_type]
    architectures = " ".join(config.architectures or [])
    if "ForVideoClassification" in architectures:
        return AutoModelForVideoClassification
    is_dinov2 = config.model_type.startswith("dinov2")
    return (
        AutoModelForImageClassification if "ForImageClassification" in architectures and not is_dinov2 else AutoModel
    )


def _read_config(source: PreTrainedConfig, weights: Tensors, options: ConversionOptions) -> LiereViTConfig:
    encoding = options.position_encoding or "liere"
    allowed = [key for key, entry in POSITION_ENCODINGS.items() if entry.has_table or entry.has_free_generators]
    if encoding not in allowed:
        raise InputError(f"position_encoding is {encoding!r}, allowed are {', '.join(allowed)}")
    is_gated = getattr(source, "use_swiglu_ffn", False)
    image_size, patch_size = _sizes(source)
    has_cls_token = source.model_type not in WITHOUT_CLS
    pooling = options.pooling or ("cls" if has_cls_token else "mean")
    return options.build_config(
        image_size=image_size,
        patch_size=patch_size,
        num_channels=source.num_channels,
        hidden_size=source.hidden_size,
        num_hidden_layers=source.num_hidden_layers,
        num_attention_heads=source.num_attention_heads,
        intermediate_size=_intermediate_size(source),
        hidden_act="silu" if is_gated else source.hidden_act,
        use_gated_mlp=is_gated,
        hidden_dropout_prob=getattr(source, "hidden_dropout_prob", 0.0),
        attention_probs_dropout_prob=getattr(source, "attention_probs_dropout_prob", 0.0),
        initializer_range=getattr(source, "initializer_range", 0.02),
        layer_norm_eps=source.layer_norm_eps,
        qkv_bias=_has(weights, "attention.q_proj.bias"),
        key_bias=_has(weights, "attention.k_proj.bias"),
        use_cls_token=has_cls_token,
        drop_path_rate=getattr(source, "drop_path_rate", 0.0),
        layer_scale_init_value=getattr(source, "layerscale_value", 0.0),
        num_register_tokens=1 if source.model_type == "deit" else getattr(source, "num_register_tokens", 0),
        pooling=pooling,
        final_layernorm=_final_layernorm(weights, pooling),
        position_encoding=encoding,
        generator_block_size=options.generator_block_size or 8,
        use_absolute_position_embeddings=not options.drop_position_embeddings,
        position_embedding_interpolation="antialiased_linear"
        if source.model_type == "siglip2_vision_model"
        else "cubic",
        id2label=source.id2label,
        label2id=source.label2id,
    )


def _final_layernorm(weights: Tensors, pooling: str) -> str:
    """`layernorm` is of all tokens, `fc_norm` of the pooled one."""
    if "layernorm.weight" in weights:
        return where_all_tokens_are_normalized(pooling)
    return "after_pooling" if "fc_norm.weight" in weights else "none"


def _has(weights: Tensors, part: str) -> bool:
    """Whether layers have a part, by our name."""
    module, _, kind = part.rpartition(".")
    return any(f"layers.0.{theirs}.{kind}" in weights for theirs, ours in LAYER_PARTS.items() if ours == module)


def _sizes(source: PreTrainedConfig) -> tuple[list[int], list[int]]:
    """Sizes of the input and of a patch along each axis."""
    if source.model_type == "siglip2_vision_model":
        side = math.isqrt(source.num_patches) * source.patch_size
        return [side, side], two_axes(source.patch_size)
    image_size = two_axes(source.image_size)
    if source.model_type == "vivit":
        return [source.num_frames, *image_size], list(source.tubelet_size)
    patch_size = two_axes(source.patch_size)
    if source.model_type == "videomae":
        return [source.num_frames, *image_size], [source.tubelet_size, *patch_size]
    return image_size, patch_size


def _intermediate_size(source: PreTrainedConfig) -> int:
    if not hasattr(source, "mlp_ratio"):
        return source.intermediate_size
    width = int(source.hidden_size * source.mlp_ratio)
    # As DINOv2's SwiGLU, which has two thirds of the width, rounded up to a multiple of 8.
    return (int(width * 2 / 3) + 7) // 8 * 8 if getattr(source, "use_swiglu_ffn", False) else width


def two_axes(size: int | list[int] | tuple[int, ...]) -> list[int]:
    """A size for both axes, or one for each, as the latter."""
    return [size, size] if isinstance(size, int) else list(size)


# Parts of names in other models, and in ViT.
VIT_NAMES = (
    ("encoder.layers.", "layers."),
    ("encoder.layer.", "layers."),
    ("embeddings.patch_embedding.", "embeddings.patch_embeddings.projection."),
    ("embeddings.position_embedding.weight", "embeddings.position_embeddings"),
    ("post_layernorm.", "layernorm."),
    ("layer_norm1.", "layernorm_before."),
    ("layer_norm2.", "layernorm_after."),
    ("self_attn.out_proj.", "attention.o_proj."),
    ("self_attn.", "attention."),
)
# Names of the parts of a layer in transformers' models (in two styles), and in ours.
LAYER_PARTS = {
    "attention.q_proj": "attention.q_proj",
    "attention.k_proj": "attention.k_proj",
    "attention.v_proj": "attention.v_proj",
    "attention.o_proj": "attention.o_proj",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "layernorm_before": "layernorm_before",
    "layernorm_after": "layernorm_after",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def _weights(source: PreTrainedModel, name: str) -> Tensors:
    """The weights under the names that ViT has for them, without heads that are not converted."""
    tensors = {}
    for key, tensor in source.state_dict().items():
        key = key.removeprefix(f"{source.base_model_prefix}.")
        for theirs, ours in VIT_NAMES:
            key = key.replace(theirs, ours)
        tensors[key] = tensor
    if source.config.model_type == "videomae":
        # A fixed table, which is no weight.
        base = getattr(source, source.base_model_prefix, source)
        tensors["embeddings.position_embeddings"] = base.embeddings.position_embeddings
    weights = Tensors(name, tensors)
    weights.drop(lambda key: key.startswith(("pooler.", "head.")) or key == "embeddings.mask_token")
    return weights


def _rename(source: PreTrainedModel, weights: Tensors, config: LiereViTConfig) -> dict[str, torch.Tensor]:
    renamed: dict[str, torch.Tensor] = {}
    tokens = ("embeddings.cls_token", "embeddings.distillation_token")
    prefix_tokens = [weights.take(token) for token in tokens if token in weights]
    table = weights.take("embeddings.position_embeddings").view(1, -1, config.hidden_size)
    # The rows of the table for prefix tokens are added to our prefix tokens.
    for row, target in enumerate(("cls_token", "register_tokens")[: len(prefix_tokens)]):
        renamed[f"embeddings.{target}"] = prefix_tokens[row] + table[:, row : row + 1]
    if "embeddings.register_tokens" in weights:
        renamed["embeddings.register_tokens"] = weights.take("embeddings.register_tokens")
    encoding = POSITION_ENCODINGS[config.position_encoding]
    if config.use_absolute_position_embeddings or encoding.has_table:
        renamed["embeddings.position_embeddings"] = table[:, len(prefix_tokens) :].clone()
    patches = "embeddings.patch_embeddings.projection"
    if len(weights.shape(f"{patches}.weight")) == 2:
        weights.take_linear(patches, patches, renamed)
    else:
        renamed |= convolution_as_linear(weights, patches, patches)
    for index in range(config.num_hidden_layers):
        layer = f"layers.{index}"
        for theirs, ours in LAYER_PARTS.items():
            if f"{layer}.{theirs}.weight" in weights:
                weights.take_linear(f"{layer}.{theirs}", f"{layer}.{ours}", renamed)
        if f"{layer}.mlp.weights_in.weight" in weights:
            renamed |= _gated_mlp(weights, f"{layer}.mlp")
        if config.layer_scale_init_value:
            for part in ("layer_scale1", "layer_scale2"):
                renamed[f"{layer}.{part}.lambda1"] = weights.take(f"{layer}.{part}.lambda1")
    for norm in ("layernorm", "fc_norm"):
        if f"{norm}.weight" in weights:
            weights.take_linear(norm, "layernorm", renamed)
    if encoding.has_free_generators:
        renamed["rotations.generators"] = torch.zeros(encoding.parameter_shapes(config)["generators"])
    if hasattr(source, "classifier"):
        renamed = {f"liere_vit.{key}": value for key, value in renamed.items()}
        weights.take_linear("classifier", "classifier", renamed)
    weights.require_empty()
    return renamed


def _gated_mlp(weights: Tensors, name: str) -> dict[str, torch.Tensor]:
    """DINOv2's SwiGLU in older versions of transformers: one layer holds the gate and the other factor."""
    renamed: dict[str, torch.Tensor] = {}
    for part in ("weight", "bias"):
        gate, up = weights.take(f"{name}.weights_in.{part}").chunk(2)
        renamed |= {f"{name}.gate_proj.{part}": gate.clone(), f"{name}.up_proj.{part}": up.clone()}
    weights.take_linear(f"{name}.weights_out", f"{name}.down_proj", renamed)
    return renamed
