"""Import of timm's rotary vision transformers: DINOv3, RoPE-ViT, EVA-02, Perception Encoder and their kin.

timm has one class for them all, `Eva`, whose options the models share.
"""

import difflib
import math
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..modeling.configuration_liere_vit import LiereViTConfig
from ..modeling.modeling_liere_vit import LiereViTForImageClassification, LiereViTModel
from .dinov3 import halves_as_pairs
from .options import ConversionOptions
from .state_dicts import Tensors, load_exactly
from .timm import convolution_as_linear

# Names of transformers' activations by timm's layers.
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}
# Names of linear layers and normalizations in timm's blocks, and in our layers.
LAYER_PARTS = {"attn.proj": "attention.o_proj", "norm1": "layernorm_before", "norm2": "layernorm_after"}


def build_eva(name: str, tensors: dict[str, torch.Tensor] | None = None, **options: Any) -> nn.Module:
    """timm's model of a name, with these weights; without, with random ones.

    Args:
        options: for `timm.create_model`, such as `img_size`.

    Raises:
        InputError: timm has no such model, LiereViT lacks what it has, or the weights are not its.
    """
    import timm
    from timm.models.eva import checkpoint_filter_fn

    if name not in timm.list_models():
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise InputError(f"timm has no model {name!r}" + (f", did you mean {', '.join(close)}?" if close else ""))
    with torch.device("meta"):
        found = obstacles(timm.create_model(name, pretrained=False))
    if found:
        raise InputError(f"{name} has {', '.join(found)}, which LiereViT does not have")
    if tensors is not None:
        options["num_classes"] = len(tensors["head.weight"]) if "head.weight" in tensors else 0
    model = timm.create_model(name, pretrained=False, **options).eval()
    if tensors is not None:
        try:
            model.load_state_dict(checkpoint_filter_fn(tensors, model))
        except RuntimeError as error:
            raise InputError(f"the weights are not those of {name}: {' '.join(str(error).split())[:300]}") from error
    return model


def representable_models() -> dict[str, list[str]]:
    """timm's rotary models by name, each with its `obstacles`. `liere-hf convert --list timm` shows a copy of this."""
    import timm

    found = {}
    for name in timm.list_models(module="eva"):
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
        if model.rope is not None:
            found[name] = obstacles(model)
    return found


def obstacles(model: nn.Module) -> list[str]:
    """What a timm model has that LiereViT does not have, in words; nothing if it can be converted exactly."""
    from timm.models.eva import Eva, EvaBlock

    if not isinstance(model, Eva) or model.rope is None:
        return ["no rotary positions"]
    block, rope = model.blocks[0], model.rope
    attention, mlp = block.attn, block.mlp
    kind, indexed = type(rope).__name__, getattr(rope, "grid_type", "index") == "index"
    found = {
        "normalization after attention and MLP": not isinstance(block, EvaBlock),
        "normalization inside attention": not _is_absent(attention.norm),
        "normalization inside the MLP": not _is_absent(mlp.norm),
        "normalization of queries and keys": not _is_absent(attention.q_norm),
        "gated attention": attention.gate is not None,
        "grouped keys and values": any(getattr(each.attn, "num_kv_groups", 1) > 1 for each in model.blocks),
        "other normalization than LayerNorm": not isinstance(block.norm1, nn.LayerNorm),
        f"{model.global_pool} pooling": model.attn_pool is not None or model.global_pool not in ("", "token", "avg"),
        "two final normalizations": not _is_absent(model.norm) and not _is_absent(model.fc_norm),
        f"rotations by {kind}": kind not in ("RotaryEmbeddingCat", "RotaryEmbeddingMixed", "RotaryEmbeddingDinoV3"),
        "frequencies in pixels": getattr(rope, "in_pixels", False) or not indexed,
        "coordinates with an offset": _position_mode(rope) is None,
        "coordinates normalized by one side": getattr(rope, "normalize_coords", "separate") != "separate",
        "activation " + type(getattr(mlp, "act", None)).__name__: _activation(mlp) is None,
        # Their units are those of the frequencies, which only DINOv3 shares with our coordinates.
        "augmented coordinates": kind != "RotaryEmbeddingDinoV3" and getattr(rope, "aug_active", False),
    }
    return [words for words, is_so in found.items() if is_so]


def from_eva(
    model: nn.Module, options: ConversionOptions, source: str
) -> LiereViTForImageClassification | LiereViTModel:
    """A `rope_mixed` model that computes the same as a model of `build_eva`, at every input size.

    Without a classifier (`num_classes=0`), the result is a bare model. Where timm normalizes the pooled features
    alone, the last hidden states of the result are normalized, too.

    Raises:
        InputError: an option is given that the model determines.
    """
    for name in ("patch_size", "position_encoding", "pooling"):
        if getattr(options, name) is not None:
            raise InputError(f"{name} is {getattr(options, name)}, but timm's model determines it: leave it out")
    config = read_config(model, options)
    model_class = LiereViTForImageClassification if model.num_classes > 0 else LiereViTModel
    converted = model_class(config).eval()
    renamed = rename(model, model.state_dict(), config, source)
    prefix = "liere_vit." if model.num_classes > 0 else ""
    renamed = {name if name.startswith("classifier.") else prefix + name: tensor for name, tensor in renamed.items()}
    # A missing bias is one of zeros, and a missing scale one of ones.
    for name, parameter in converted.named_parameters():
        if name not in renamed and name.endswith(".bias"):
            renamed[name] = torch.zeros_like(parameter)
        elif name not in renamed and name.endswith("layer_scale2.lambda1"):
            renamed[name] = torch.ones_like(parameter)
    load_exactly(converted, renamed, source)
    return converted


def _is_absent(layer: nn.Module | None) -> bool:
    return layer is None or isinstance(layer, nn.Identity)


def _position_mode(rope: nn.Module) -> str | None:
    """The `position_mode` with timm's coordinates, up to a factor; None if there is none."""
    if type(rope).__name__ == "RotaryEmbeddingDinoV3":
        return "centered" if rope.grid_offset == 0 else None
    reference, offset = getattr(rope, "ref_feat_shape", None), getattr(rope, "grid_offset", None) or 0.0
    if reference is None:
        return "sequential" if offset == 0 else None
    return {0.0: "left_edges", 1.0: "right_edges"}.get(offset)


def _activation(mlp: nn.Module) -> str | None:
    activation = mlp.act
    if isinstance(activation, nn.GELU) and getattr(activation, "approximate", "none") == "tanh":
        return "gelu_pytorch_tanh"
    return ACTIVATIONS.get(type(activation).__name__)


def read_config(model: nn.Module, options: ConversionOptions) -> LiereViTConfig:
    """The configuration of the model that a model of timm becomes."""
    block, patches = model.blocks[0], model.patch_embed
    attention, mlp = block.attn, block.mlp
    is_gated = hasattr(mlp, "fc1_g") or type(mlp).__name__ == "GluMlp"
    rope = model.rope
    pools_patches = model.global_pool != "token"
    no_norm = _is_absent(model.norm) and _is_absent(model.fc_norm)
    projections = _projections(Tensors("the model", model.state_dict()), "blocks.0.attn")
    labels = {"num_labels": model.num_classes} if model.num_classes > 0 else {}
    return options.build_config(
        image_size=list(patches.img_size),
        patch_size=list(patches.patch_size),
        num_channels=patches.proj.in_channels,
        hidden_size=model.embed_dim,
        num_hidden_layers=len(model.blocks),
        num_attention_heads=attention.num_heads,
        head_dim=attention.head_dim,
        intermediate_size=mlp.fc2.in_features,
        hidden_act=_activation(mlp),
        use_gated_mlp=is_gated,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=block.norm1.eps,
        layer_scale_init_value=(block.init_values or 1.0) if block.gamma_1 is not None else 0.0,
        qkv_bias="q_proj.bias" in projections,
        key_bias="k_proj.bias" in projections,
        use_cls_token=model.cls_token is not None,
        num_register_tokens=0 if model.reg_token is None else model.reg_token.shape[1],
        use_pre_layernorm=not _is_absent(model.norm_pre),
        use_absolute_position_embeddings=model.pos_embed is not None,
        position_embedding_interpolation="antialiased_cubic",
        pooling="patches" if pools_patches else "cls",
        final_layernorm="none" if no_norm else "after_pooling" if _is_absent(model.norm) else "before_pooling",
        position_encoding="rope_mixed",
        position_mode=_position_mode(rope),
        pos_embed_shift=getattr(rope, "shift_coords", None),
        pos_embed_jitter=getattr(rope, "jitter_coords", None),
        pos_embed_rescale=getattr(rope, "rescale_coords", None),
        **labels,
    )


def rename(
    model: nn.Module, state_dict: dict[str, torch.Tensor], config: LiereViTConfig, source: str
) -> dict[str, torch.Tensor]:
    """Weights of a model of timm in the names and layouts of LiereViT, without a prefix for the encoder."""
    weights = Tensors(source, state_dict)
    renamed = _embeddings(model, weights)
    renamed["rotations.generators"] = rope_generators(model.rope, config)
    weights.drop(lambda name: name.startswith("rope."))
    is_half = getattr(model.blocks[0].attn, "rotate_half", False)
    for index in range(config.num_hidden_layers):
        block, layer = f"blocks.{index}", f"layers.{index}"
        for name, tensor in _projections(weights, f"{block}.attn").items():
            is_permuted = is_half and name[0] in "qk"
            renamed[f"{layer}.attention.{name}"] = halves_as_pairs(tensor, config.head_dim) if is_permuted else tensor
        for theirs, ours in LAYER_PARTS.items():
            weights.take_linear(f"{block}.{theirs}", f"{layer}.{ours}", renamed)
        renamed |= _mlp(weights, f"{block}.mlp", f"{layer}.mlp", config.use_gated_mlp)
        for theirs, ours in (("gamma_1", "layer_scale1"), ("gamma_2", "layer_scale2")):
            if f"{block}.{theirs}" in weights:
                renamed[f"{layer}.{ours}.lambda1"] = weights.take(f"{block}.{theirs}")
    for name in ("norm", "fc_norm"):
        if f"{name}.weight" in weights:
            weights.take_linear(name, "layernorm", renamed)
    if "head.weight" in weights:
        weights.take_linear("head", "classifier", renamed)
    weights.require_empty()
    return renamed


def _embeddings(model: nn.Module, weights: Tensors) -> dict[str, torch.Tensor]:
    """Tokens, table and patch projection. Rows of the table for prefix tokens are added to them."""
    if "patch_embed.proj.bias" not in weights:
        weights.add("patch_embed.proj.bias", torch.zeros(weights.shape("patch_embed.proj.weight")[0]))
    renamed = convolution_as_linear(weights, "patch_embed.proj", "embeddings.patch_embeddings.projection")
    if "norm_pre.weight" in weights:
        weights.take_linear("norm_pre", "embeddings.layernorm", renamed)
    table = weights.take("pos_embed") if "pos_embed" in weights else None
    rows = 0
    for theirs, ours in (("cls_token", "cls_token"), ("reg_token", "register_tokens")):
        if theirs not in weights:
            continue
        token = weights.take(theirs)
        if table is not None and not model.no_embed_class:
            token = token + table[:, rows : rows + token.shape[1]]
            rows += token.shape[1]
        renamed[f"embeddings.{ours}"] = token
    if table is not None:
        renamed["embeddings.position_embeddings"] = table[:, rows:].clone()
    return renamed


def _projections(weights: Tensors, name: str) -> dict[str, torch.Tensor]:
    """Queries, keys and values as three layers; timm also has them as one, with separate biases of two of them."""
    found: dict[str, torch.Tensor] = {}
    if f"{name}.qkv.weight" not in weights:
        for part in ("q_proj", "k_proj", "v_proj"):
            weights.take_linear(f"{name}.{part}", part, found)
        return found
    for kind in ("weight", "bias"):
        if f"{name}.qkv.{kind}" in weights:
            chunks = weights.take(f"{name}.qkv.{kind}").chunk(3)
            found |= {f"{part}_proj.{kind}": chunk.clone() for part, chunk in zip("qkv", chunks, strict=True)}
    for part in "qv":
        if f"{name}.{part}_bias" in weights:
            found[f"{part}_proj.bias"] = weights.take(f"{name}.{part}_bias")
    return found


def _mlp(weights: Tensors, name: str, target: str, is_gated: bool) -> dict[str, torch.Tensor]:
    renamed: dict[str, torch.Tensor] = {}
    if not is_gated:
        for part in ("fc1", "fc2"):
            weights.take_linear(f"{name}.{part}", f"{target}.{part}", renamed)
        return renamed
    if f"{name}.fc1_g.weight" in weights:
        for theirs, ours in (("fc1_g", "gate_proj"), ("fc1_x", "up_proj")):
            weights.take_linear(f"{name}.{theirs}", f"{target}.{ours}", renamed)
    else:
        for kind in ("weight", "bias"):
            gate, up = weights.take(f"{name}.fc1.{kind}").chunk(2)
            renamed |= {f"{target}.gate_proj.{kind}": gate.clone(), f"{target}.up_proj.{kind}": up.clone()}
    weights.take_linear(f"{name}.fc2", f"{target}.down_proj", renamed)
    return renamed


def rope_generators(rope: nn.Module, config: LiereViTConfig) -> torch.Tensor:
    """Generators (layers, axes, heads, blocks, 2, 2).

    A rotation [[cos, -sin], [sin, cos]] is the exponential of a generator whose upper entry is the negative angle.
    """
    frequencies = _frequencies(rope, config)
    if rope.grid_indexing == "xy":
        # Columns before rows.
        frequencies = frequencies.flip(1)
    frequencies = frequencies * torch.tensor(coordinate_units(rope, config), dtype=torch.float64)[:, None, None]
    generators = torch.zeros(*frequencies.shape, 2, 2)
    generators[..., 0, 1] = -frequencies.float()
    return generators.expand(config.num_hidden_layers, -1, config.num_attention_heads, -1, -1, -1).clone()


def _frequencies(rope: nn.Module, config: LiereViTConfig) -> torch.Tensor:
    """Radians per unit of timm's coordinates: (layers or 1, axes in timm's order, heads or 1, blocks), float64."""
    if type(rope).__name__ == "RotaryEmbeddingMixed":
        return rope.freqs.detach().double().transpose(0, 1)
    if type(rope).__name__ == "RotaryEmbeddingDinoV3":
        bands = 2 * math.pi / rope.periods.double()
    else:
        bands = rope.bands.double()
    frequencies = torch.zeros(1, 2, 1, 2, len(bands), dtype=torch.float64)
    for axis in range(2):
        frequencies[:, axis, :, axis] = bands
    return frequencies.flatten(3)


def coordinate_units(rope: nn.Module, config: LiereViTConfig) -> list[Any]:
    """timm's coordinates over ours, for rows and columns."""
    if config.position_mode == "centered":
        return [1.0, 1.0]
    if config.position_mode == "sequential":
        return [max(patches - 1, 1) for patches in config.grid_size]
    return list(rope.ref_feat_shape)
