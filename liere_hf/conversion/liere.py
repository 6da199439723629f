"""Import and export of checkpoints of the authors' code (StanfordMIMI/LieRE).

A converted model computes the same as their code, which uses layer 0's generators for all layers, positions
`linspace(0, steps / expected steps, steps)`, mean pooling over CLS and patches, and trilinear interpolation of the
absolute table with three axes.
"""

import math

import torch

from ..errors import InputError
from ..modeling.configuration_liere_vit import LiereViTConfig
from ..modeling.modeling_liere_vit import LiereViTForImageClassification, LiereViTForVideoClassification
from ..modeling.position_encodings import POSITION_ENCODINGS
from .options import ConversionOptions
from .state_dicts import Tensors, load_exactly

HEAD_DIM = 64
GENERATORS = "position_encoder.generator_raw_params"
# Their encodings that leave no generators in a checkpoint.
WITHOUT_GENERATORS = ("visionllama", "absolute", "none")


def from_liere(
    tensors: dict[str, torch.Tensor], options: ConversionOptions, source: str = "checkpoint"
) -> LiereViTForImageClassification:
    """A model that computes the same as the authors' code with these weights.

    Args:
        tensors: state dict, with or without Lightning's prefix `model.`, or a checkpoint flattened to names
            `state_dict.model.*`.
        options: settings that the shapes of the weights do not determine.
        source: name of the checkpoint in error messages.

    Raises:
        InputError: weights are missing, unknown or have impossible shapes, or a required option is missing.
    """
    if any(name.startswith("state_dict.") for name in tensors):
        prefix = "state_dict."
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    weights = Tensors(source, {name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    config = _read_config(weights, options)
    model_class = LiereViTForVideoClassification if config.num_axes == 3 else LiereViTForImageClassification
    model = model_class(config).eval()
    load_exactly(model, _rename(weights, config), source)
    return model


@torch.no_grad()
def stored_differences(
    model: LiereViTForImageClassification, tensors: dict[str, torch.Tensor]
) -> list[dict[str, list[int] | float]]:
    """Differences between a model's logits and those that a checkpoint stores beside its weights.

    Args:
        tensors: of the checkpoint, with inputs `input.<size>` (batch, channels, *size) and logits `logits.<size>`, or
            without.

    Returns:
        For each size: `size` (pixels per axis), `difference` (largest absolute one) and `largest_logit`.
    """
    rows = []
    for name in sorted(name for name in tensors if name.startswith("input.")):
        inputs, expected = tensors[name], tensors[name.replace("input.", "logits.", 1)]
        logits = model(inputs.transpose(1, 2) if inputs.ndim == 5 else inputs).logits
        difference, largest = (logits - expected).abs().max().item(), expected.abs().max().item()
        rows.append({"size": list(inputs.shape[2:]), "difference": difference, "largest_logit": largest})
    return rows


def _read_config(weights: Tensors, options: ConversionOptions) -> LiereViTConfig:
    hidden_size = weights.shape("cls_token")[-1]
    inner_size = weights.shape("transformer.layers.0.0.fn.to_qkv.weight")[0] // 3
    head_dim = options.head_dim or HEAD_DIM
    if inner_size % head_dim:
        raise InputError(f"{weights.source} has attention of width {inner_size}: give --head_dim, one of its divisors")
    num_heads = inner_size // head_dim
    encoding = {}
    num_axes = len(options.patch_size) if options.patch_size and len(options.patch_size) > 1 else None
    if GENERATORS in weights:
        axes, _, blocks, block_size, _ = _five(weights.shape(GENERATORS), weights.source)
        if num_axes not in (None, axes):
            raise InputError(f"{weights.source} has generators for {axes} axes, --patch_size has {num_axes} values")
        num_axes = axes
        encoding = {
            "position_encoding": "rope_mixed" if block_size == 2 else "liere",
            "generator_block_size": block_size,
            "share_generators_across_layers": True,
            "share_generators_across_heads": blocks * block_size != inner_size,
        }
        if options.position_encoding not in (None, encoding["position_encoding"]):
            raise InputError(
                f"position_encoding is {options.position_encoding!r}, but {weights.source} has generators with blocks "
                f"of {block_size}, which is {encoding['position_encoding']!r}"
            )
    elif options.position_encoding in WITHOUT_GENERATORS:
        encoding = {"position_encoding": options.position_encoding}
    else:
        raise InputError(
            f"{weights.source} has no generators, so its encoding cannot be read from it: give --position_encoding, "
            f"allowed are {', '.join(WITHOUT_GENERATORS)}"
        )
    image_size, patch_size = _read_sizes(weights, options, num_axes or 2)
    return options.build_config(
        image_size=image_size,
        patch_size=patch_size,
        num_channels=options.num_channels,
        hidden_size=hidden_size,
        num_hidden_layers=weights.count("transformer.layers."),
        num_attention_heads=num_heads,
        head_dim=head_dim,
        intermediate_size=weights.shape("transformer.layers.0.1.fn.net.0.weight")[0],
        num_labels=weights.shape("mlp_head.1.weight")[0],
        pooling=options.pooling or "cls",
        position_mode="linspace",
        position_embedding_interpolation=_interpolation(len(patch_size)),
        **encoding,
    )


def _interpolation(num_axes: int) -> str:
    """How their code reads the absolute table at other sizes: bicubic, but trilinear with three axes."""
    return "linear" if num_axes == 3 else "cubic"


def _five(shape: tuple[int, ...], source: str) -> tuple[int, ...]:
    if len(shape) != 5:
        raise InputError(f"{source} has {GENERATORS} of shape {shape}, expected (axes, layers, blocks, b, b)")
    return shape


def _read_sizes(weights: Tensors, options: ConversionOptions, num_axes: int) -> tuple[list[int], list[int]]:
    """Image and patch size per axis: from the options, or from the shapes if images and patches are square."""
    num_patches = weights.shape("pos_embedding")[1] - 1
    patch_values = weights.shape("to_patch_embedding.1.weight")[1]
    patch_size = options.per_axis("patch_size", num_axes)
    if patch_size is None:
        side = math.isqrt(patch_values // options.num_channels)
        if num_axes != 2 or side**2 * options.num_channels != patch_values:
            raise InputError(
                f"{weights.source} has patches of {patch_values} values on {num_axes} axes, which does not determine "
                "their size: give --patch_size, one value per axis (and --num_channels if it is not 3)"
            )
        patch_size = [side, side]
    image_size = options.per_axis("image_size", num_axes)
    if image_size is None:
        side = math.isqrt(num_patches)
        if num_axes != 2 or side**2 != num_patches:
            raise InputError(
                f"{weights.source} has {num_patches} patches on {num_axes} axes, which does not determine the image "
                "size: give --image_size, one value per axis"
            )
        image_size = [side * patch for patch in patch_size]
    if math.prod(patch_size) * options.num_channels != patch_values:
        raise InputError(
            f"patch_size is {patch_size} with {options.num_channels} channels, {weights.source} has patches of "
            f"{patch_values} values"
        )
    if math.prod(size // patch for size, patch in zip(image_size, patch_size, strict=True)) != num_patches:
        raise InputError(
            f"image_size is {image_size} with patch_size {patch_size}, {weights.source} has {num_patches} patches"
        )
    return image_size, patch_size


def _rename(weights: Tensors, config: LiereViTConfig) -> dict[str, torch.Tensor]:
    renamed: dict[str, torch.Tensor] = {}
    cls_token, table = weights.take("cls_token"), weights.take("pos_embedding")
    if POSITION_ENCODINGS[config.position_encoding].has_table:
        # The table's row for CLS is part of our CLS token.
        cls_token = cls_token + table[:, :1]
        renamed["embeddings.position_embeddings"] = table[:, 1:].clone()
    renamed["embeddings.cls_token"] = cls_token
    weights.take_linear("to_patch_embedding.1", "embeddings.patch_embeddings.projection", renamed)
    if GENERATORS in weights:
        heads = 1 if config.share_generators_across_heads else config.num_attention_heads
        generators = weights.take(GENERATORS)[:, :1].unflatten(2, (heads, -1))
        renamed["rotations.generators"] = generators.transpose(0, 1).contiguous()
    for index in range(config.num_hidden_layers):
        source, target = f"transformer.layers.{index}", f"layers.{index}"
        qkv = weights.take(f"{source}.0.fn.to_qkv.weight").chunk(3)
        for name, weight in zip("qkv", qkv, strict=True):
            renamed[f"{target}.attention.{name}_proj.weight"] = weight.clone()
        weights.take_linear(f"{source}.0.fn.to_out.0", f"{target}.attention.o_proj", renamed)
        weights.take_linear(f"{source}.0.norm", f"{target}.layernorm_before", renamed)
        weights.take_linear(f"{source}.1.norm", f"{target}.layernorm_after", renamed)
        weights.take_linear(f"{source}.1.fn.net.0", f"{target}.mlp.fc1", renamed)
        weights.take_linear(f"{source}.1.fn.net.3", f"{target}.mlp.fc2", renamed)
    weights.take_linear("mlp_head.0", "layernorm", renamed)
    renamed = {f"liere_vit.{name}": tensor for name, tensor in renamed.items()}
    weights.take_linear("mlp_head.1", "classifier", renamed)
    weights.require_empty()
    return renamed


def export_state_dict(model: LiereViTForImageClassification, to: str = "liere") -> dict[str, torch.Tensor]:
    """A classifier's weights in the layout of the authors' code, with Lightning's prefix `model.`.

    Args:
        to: `liere`, the only layout.

    Raises:
        InputError: the authors' code cannot represent the model. The message says why.
    """
    if to != "liere":
        raise InputError(f"to is {to!r}, allowed is 'liere'")
    config = model.config
    _require_representable(config)
    weights = {name.removeprefix("liere_vit."): tensor.detach() for name, tensor in model.state_dict().items()}
    cls_token = weights["embeddings.cls_token"]
    exported = {"cls_token": cls_token}
    table = weights.get("embeddings.position_embeddings")
    if table is None:
        table = cls_token.new_zeros(1, math.prod(config.grid_size), config.hidden_size)
    exported["pos_embedding"] = torch.cat((torch.zeros_like(cls_token), table), dim=1)
    if "rotations.generators" in weights:
        exported[GENERATORS] = weights["rotations.generators"].transpose(0, 1).flatten(2, 3)
    pairs = {
        "to_patch_embedding.1": "embeddings.patch_embeddings.projection",
        "mlp_head.0": "layernorm",
        "mlp_head.1": "classifier",
    }
    for index in range(config.num_hidden_layers):
        source, target = f"layers.{index}", f"transformer.layers.{index}"
        exported[f"{target}.0.fn.to_qkv.weight"] = torch.cat(
            [weights[f"{source}.attention.{name}_proj.weight"] for name in "qkv"]
        )
        pairs |= {
            f"{target}.0.fn.to_out.0": f"{source}.attention.o_proj",
            f"{target}.0.norm": f"{source}.layernorm_before",
            f"{target}.1.norm": f"{source}.layernorm_after",
            f"{target}.1.fn.net.0": f"{source}.mlp.fc1",
            f"{target}.1.fn.net.3": f"{source}.mlp.fc2",
        }
    for target, source in pairs.items():
        for part in ("weight", "bias"):
            exported[f"{target}.{part}"] = weights[f"{source}.{part}"]
    return {f"model.{name}": tensor.clone() for name, tensor in exported.items()}


def _require_representable(config: LiereViTConfig) -> None:
    encoding = POSITION_ENCODINGS[config.position_encoding]
    reasons = {
        f"position_encoding is {config.position_encoding!r}, which their code does not have": not (
            encoding.has_free_generators or config.position_encoding in WITHOUT_GENERATORS
        ),
        "generators differ by layer, and their code uses those of layer 0 for all": encoding.has_free_generators
        and not config.share_generators_across_layers,
        f"position_mode is {config.position_mode!r}, their code only has 'linspace'": encoding.is_rotary
        and config.position_mode != "linspace",
        f"position_embedding_interpolation is {config.position_embedding_interpolation!r}, in their code "
        f"{_interpolation(config.num_axes)!r} with {config.num_axes} axes": encoding.has_table
        and config.position_embedding_interpolation != _interpolation(config.num_axes),
        "queries, keys or values have a bias": config.qkv_bias or config.key_bias,
        "its MLPs are gated": config.use_gated_mlp,
        "its embeddings are normalized": config.use_pre_layernorm,
        f"final_layernorm is {config.final_layernorm!r}, in their code 'after_pooling'": config.final_layernorm
        != "after_pooling",
        "it pools patches without the CLS token": config.pooling == "patches",
        "it has no CLS token": not config.use_cls_token,
        "it has register tokens": config.num_register_tokens > 0,
        "it has LayerScale": config.layer_scale_init_value != 0,
        "it has a position table in addition to a rotary encoding": config.use_absolute_position_embeddings
        and not encoding.has_table,
        f"head_dim is {config.head_dim}, in their code {HEAD_DIM}": config.head_dim != HEAD_DIM,
        f"layer_norm_eps is {config.layer_norm_eps}, in their code 1e-05": config.layer_norm_eps != 1e-5,
        f"hidden_act is {config.hidden_act!r}, in their code 'gelu'": config.hidden_act != "gelu",
    }
    for reason, holds in reasons.items():
        if holds:
            raise InputError(f"the authors' code cannot represent this model: {reason}")
