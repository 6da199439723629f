"""Import of transformers' vision transformers ViT, DeiT and DINOv2."""

from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel

from ..errors import InputError, first_names
from ..hub_access import hub_or_cache
from ..modeling.configuration_liere_vit import LiereViTConfig
from ..modeling.modeling_liere_vit import LiereViTForImageClassification, LiereViTModel
from ..modeling.position_encodings import POSITION_ENCODINGS
from .options import ConversionOptions
from .state_dicts import Tensors, load_exactly
from .timm import convolution_as_linear

MODEL_TYPES = ("vit", "deit", "dinov2", "dinov2_with_registers")


def from_vit(name: str, options: ConversionOptions) -> LiereViTForImageClassification | LiereViTModel:
    """A model that computes the same as the ViT, DeiT or DINOv2 at `name`, with its table and generators at zero.

    DeiT's distillation token becomes a register. For DINOv2, whose classifiers use other features than ours, and for a
    ViT without a classifier, the result is a bare model.

    Args:
        name: directory or Hub id.
        options: `position_encoding` is `liere` (the default), another one with free generators, or `absolute`.

    Raises:
        InputError: the model does not exist, has another architecture, or layers that LiereViT does not have.
    """
    source = load_source(name)
    config = _read_config(source.config, options)
    is_classifier = hasattr(source, "classifier")
    model_class = LiereViTForImageClassification if is_classifier else LiereViTModel
    model = model_class(config).eval()
    load_exactly(model, _rename(source, config, name), name)
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
        raise InputError(f"{name} lacks {len(missing)} weights: {first_names(missing)}")
    return model.eval()


def _load_source(name: str, model_types: Sequence[str]) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the names of weights that its checkpoint lacks."""
    config = AutoConfig.from_pretrained(name)
    if config.model_type not in model_types:
        raise InputError(f"{name} has model_type {config.model_type!r}, allowed are {', '.join(model_types)}")
    has_classifier = any("ForImageClassification" in architecture for architecture in config.architectures or [])
    auto_class = (
        AutoModelForImageClassification if has_classifier and not config.model_type.startswith("dinov2") else AutoModel
    )
    model, report = auto_class.from_pretrained(name, output_loading_info=True)
    return model, report["missing_keys"]


def _read_config(source: PreTrainedConfig, options: ConversionOptions) -> LiereViTConfig:
    encoding = options.position_encoding or "liere"
    allowed = [key for key, entry in POSITION_ENCODINGS.items() if entry.has_table or entry.has_free_generators]
    if encoding not in allowed:
        raise InputError(f"position_encoding is {encoding!r}, allowed are {', '.join(allowed)}")
    is_gated = getattr(source, "use_swiglu_ffn", False)
    return options.build_config(
        image_size=two_axes(source.image_size),
        patch_size=two_axes(source.patch_size),
        num_channels=source.num_channels,
        hidden_size=source.hidden_size,
        num_hidden_layers=source.num_hidden_layers,
        num_attention_heads=source.num_attention_heads,
        intermediate_size=_intermediate_size(source),
        hidden_act="silu" if is_gated else source.hidden_act,
        use_gated_mlp=is_gated,
        hidden_dropout_prob=source.hidden_dropout_prob,
        attention_probs_dropout_prob=source.attention_probs_dropout_prob,
        initializer_range=source.initializer_range,
        layer_norm_eps=source.layer_norm_eps,
        qkv_bias=source.qkv_bias,
        drop_path_rate=getattr(source, "drop_path_rate", 0.0),
        layer_scale_init_value=getattr(source, "layerscale_value", 0.0),
        num_register_tokens=1 if source.model_type == "deit" else getattr(source, "num_register_tokens", 0),
        pooling=options.pooling or "cls",
        position_encoding=encoding,
        generator_block_size=options.generator_block_size or 8,
        use_absolute_position_embeddings=not options.drop_position_embeddings,
        id2label=source.id2label,
        label2id=source.label2id,
    )


def _intermediate_size(source: PreTrainedConfig) -> int:
    if not hasattr(source, "mlp_ratio"):
        return source.intermediate_size
    width = int(source.hidden_size * source.mlp_ratio)
    # As DINOv2's SwiGLU, which has two thirds of the width, rounded up to a multiple of 8.
    return (int(width * 2 / 3) + 7) // 8 * 8 if getattr(source, "use_swiglu_ffn", False) else width


def two_axes(size: int | list[int] | tuple[int, ...]) -> list[int]:
    """A size for both axes, or one for each, as the latter."""
    return [size, size] if isinstance(size, int) else list(size)


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


def _rename(source: PreTrainedModel, config: LiereViTConfig, name: str) -> dict[str, torch.Tensor]:
    prefix = f"{source.base_model_prefix}."
    tensors = {key.removeprefix(prefix): value for key, value in source.state_dict().items()}
    weights = Tensors(name, {key.replace("encoder.layer.", "layers."): value for key, value in tensors.items()})
    weights.drop(lambda key: key.startswith("pooler.") or key == "embeddings.mask_token")
    renamed: dict[str, torch.Tensor] = {}
    prefix_tokens = [weights.take("embeddings.cls_token")]
    if "embeddings.distillation_token" in weights:
        prefix_tokens.append(weights.take("embeddings.distillation_token"))
    table = weights.take("embeddings.position_embeddings")
    # The rows of the table for prefix tokens are added to our prefix tokens.
    for row, target in enumerate(("cls_token", "register_tokens")[: len(prefix_tokens)]):
        renamed[f"embeddings.{target}"] = prefix_tokens[row] + table[:, row : row + 1]
    if "embeddings.register_tokens" in weights:
        renamed["embeddings.register_tokens"] = weights.take("embeddings.register_tokens")
    encoding = POSITION_ENCODINGS[config.position_encoding]
    if config.use_absolute_position_embeddings or encoding.has_table:
        renamed["embeddings.position_embeddings"] = table[:, len(prefix_tokens) :].clone()
    patches = "embeddings.patch_embeddings.projection"
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
    weights.take_linear("layernorm", "layernorm", renamed)
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
