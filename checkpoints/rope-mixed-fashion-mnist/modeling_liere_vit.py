"""LiereViT: a vision transformer for inputs of any number of axes, whose attention rotates queries and keys."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, maybe_autocast, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_liere_vit import LiereViTConfig
from .differentiation import runs_eagerly
from .kept_rotations import KeptRotations, Reference
from .position_encodings import POSITION_ENCODINGS
from .positions import (
    augment_positions,
    grid_positions,
    interpolate_position_table,
    padded_grid_positions,
    stretched_positions,
)
from .rotary_application import rotate_queries_and_keys

logger = logging.get_logger(__name__)

# Where the Auto classes find each class when a saved directory is loaded with trust_remote_code.
AUTO_MAP = {
    "AutoConfig": "configuration_liere_vit.LiereViTConfig",
    "AutoModel": "modeling_liere_vit.LiereViTModel",
    "AutoModelForImageClassification": "modeling_liere_vit.LiereViTForImageClassification",
    "AutoModelForVideoClassification": "modeling_liere_vit.LiereViTForVideoClassification",
    "AutoModelForMaskedImageModeling": "modeling_liere_vit.LiereViTForMaskedImageModeling",
    "AutoBackbone": "modeling_liere_vit.LiereViTBackbone",
}


def to_patches(pixel_values: torch.Tensor, patch_size: tuple[int, ...]) -> torch.Tensor:
    """Split (batch, channels, *size) into patches (batch, *grid, prod(patch_size) * channels), channels last."""
    batch_size, num_channels = pixel_values.shape[:2]
    grid_size = [size // patch for size, patch in zip(pixel_values.shape[2:], patch_size, strict=True)]
    split = [extent for pair in zip(grid_size, patch_size, strict=True) for extent in pair]
    num_axes = len(patch_size)
    order = (0, *range(2, 2 + 2 * num_axes, 2), *range(3, 3 + 2 * num_axes, 2), 1)
    patches = pixel_values.reshape(batch_size, num_channels, *split).permute(order)
    return patches.reshape(batch_size, *grid_size, math.prod(patch_size) * num_channels)


def from_patches(patches: torch.Tensor, patch_size: tuple[int, ...]) -> torch.Tensor:
    """Join patches (batch, *grid, prod(patch_size) * channels) to (batch, channels, *size): inverts `to_patches`."""
    batch_size, *grid_size, _ = patches.shape
    num_axes = len(patch_size)
    patches = patches.reshape(batch_size, *grid_size, *patch_size, -1)
    order = (0, 1 + 2 * num_axes, *(axis + offset for axis in range(1, 1 + num_axes) for offset in (0, num_axes)))
    size = [steps * patch for steps, patch in zip(grid_size, patch_size, strict=True)]
    return patches.permute(order).reshape(batch_size, -1, *size)


def channels_first(pixel_values: torch.Tensor, num_axes: int) -> torch.Tensor:
    """(batch, frames, channels, ...) -> (batch, channels, frames, ...) for three or more axes. Its own inverse."""
    return pixel_values.transpose(1, 2) if num_axes >= 3 else pixel_values


class LiereViTPatchProjection(nn.Module):
    """A linear layer that is not an `nn.Linear`, so that quantization leaves it alone, as it does ViT's convolution.

    Rounded weights here would add to the error of the logits.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        nn.Linear.reset_parameters(self)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(patches.to(self.weight.dtype), self.weight, self.bias)


class LiereViTPatchEmbeddings(nn.Module):
    """Linear projection of patches, which are flattened with the channels last.

    Input: (batch, channels, length), (batch, channels, height, width) or (batch, frames, channels, height, width).
    Output: (batch, *grid, hidden_size).
    """

    def __init__(self, config: LiereViTConfig):
        super().__init__()
        self.num_axes = config.num_axes
        self.num_channels = config.num_channels
        self.patch_size = config.spatial_patch_size
        self.projection = LiereViTPatchProjection(math.prod(self.patch_size) * config.num_channels, config.hidden_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        shape = tuple(pixel_values.shape)
        if len(shape) != self.num_axes + 2:
            raise ValueError(
                f"pixel_values has shape {shape}, a model with {self.num_axes} spatial axes takes {self._layout()}"
            )
        pixel_values = channels_first(pixel_values, self.num_axes)
        if pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"pixel_values has {pixel_values.shape[1]} channels (shape {shape}, read as {self._layout()}), "
                f"num_channels is {self.num_channels}"
            )
        if any(size % patch or size == 0 for size, patch in zip(pixel_values.shape[2:], self.patch_size, strict=True)):
            raise ValueError(
                f"pixel_values has size {tuple(pixel_values.shape[2:])}, each must be a positive multiple of "
                f"patch_size {self.patch_size}"
            )
        return self.projection(to_patches(pixel_values, self.patch_size))

    def _layout(self) -> str:
        if self.num_axes < 3:
            return f"(batch, channels, {('length', 'height, width')[self.num_axes - 1]})"
        return f"(batch, frames, channels, {'height, width' if self.num_axes == 3 else '...'})"


class LiereViTEmbeddings(nn.Module):
    """Patch embeddings, plus the absolute position table and mask tokens where the model has them, behind the prefix.

    Output: (batch, prefix + patches, hidden_size), normalized with `use_pre_layernorm`, and the grid of patches.
    """

    def __init__(self, config: LiereViTConfig, use_mask_token: bool = False):
        super().__init__()
        self.training_grid_size = config.grid_size
        self.interpolation = config.position_embedding_interpolation
        self.patch_embeddings = LiereViTPatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.use_cls_token else None
        self.register_tokens = (
            nn.Parameter(torch.zeros(1, config.num_register_tokens, config.hidden_size))
            if config.num_register_tokens
            else None
        )
        has_mask_token = use_mask_token or config.use_mask_token
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if has_mask_token else None
        encoding = POSITION_ENCODINGS[config.position_encoding]
        has_table = encoding.has_table or config.use_absolute_position_embeddings
        self.position_embeddings = (
            nn.Parameter(torch.zeros(1, math.prod(config.grid_size), config.hidden_size)) if has_table else None
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layernorm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.use_pre_layernorm else nn.Identity()
        )

    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, tuple[int, ...]]:
        patches = self.patch_embeddings(pixel_values)
        grid_size = tuple(patches.shape[1:-1])
        embeddings = patches.flatten(1, -2)
        if positions is not None:
            self._check_positions(positions, embeddings)
        if bool_masked_pos is not None:
            embeddings = self._mask(embeddings, bool_masked_pos)
        if self.position_embeddings is not None:
            embeddings = embeddings + self.absolute_positions(grid_size, positions)
        prefix = [
            token.expand(embeddings.shape[0], -1, -1)
            for token in (self.cls_token, self.register_tokens)
            if token is not None
        ]
        return self.layernorm(self.dropout(torch.cat((*prefix, embeddings), dim=1))), grid_size

    def _check_positions(self, positions: torch.Tensor, embeddings: torch.Tensor) -> None:
        batch_size, num_patches = embeddings.shape[:2]
        shape = (num_patches, len(self.training_grid_size))
        if positions.ndim != 3 or positions.shape[0] not in (1, batch_size) or positions.shape[1:] != shape:
            raise ValueError(
                f"positions has shape {tuple(positions.shape)}, expected (1 or batch, patches, axes) = "
                f"(1 or {batch_size}, {num_patches}, {shape[1]})"
            )

    def _mask(self, embeddings: torch.Tensor, bool_masked_pos: torch.Tensor) -> torch.Tensor:
        if self.mask_token is None:
            raise ValueError(
                "bool_masked_pos is given, but this model has no mask token: create it with use_mask_token"
            )
        masked = bool_masked_pos.flatten(1).bool()
        if masked.shape != embeddings.shape[:2]:
            raise ValueError(
                f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}, expected (batch, patches) = "
                f"{tuple(embeddings.shape[:2])}"
            )
        return torch.where(masked.unsqueeze(-1), self.mask_token.to(embeddings.dtype), embeddings)

    def absolute_positions(self, grid_size: tuple[int, ...], positions: torch.Tensor | None = None) -> torch.Tensor:
        """The table itself at the training size, else read at the coordinates: stretched over any other grid."""
        table, training_grid_size = self.position_embeddings, self.training_grid_size
        spacing = None
        if positions is None:
            if grid_size == training_grid_size:
                return table
            positions = stretched_positions(grid_size, training_grid_size, device=table.device)[None]
            spacing = tuple(before / now for before, now in zip(training_grid_size, grid_size, strict=True))
        return interpolate_position_table(
            table[0], training_grid_size, positions.to(table.device), self.interpolation, spacing
        )


class LiereViTRotations(nn.Module):
    """The rotations of all layers, from the generators of the position encoding (LieRE, section 3).

    They are computed in every forward pass that trains the encoding's parameters, else once for as long as parameters,
    positions and dtype stay. The parameters, and the exponential, keep float32 (or float64) whatever the dtype of the
    model: at half precision a rotation by many radians would lose its meaning.
    """

    def __init__(self, config: LiereViTConfig):
        super().__init__()
        self.config = config
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        for name, shape in POSITION_ENCODINGS[config.position_encoding].parameter_shapes(config).items():
            setattr(self, name, nn.Parameter(torch.zeros(shape, dtype=dtype)))
        self.kept = KeptRotations()
        self._frozen: dict[FrozenGrid, list[str]] = {}
        self.register_load_state_dict_post_hook(_freeze_again)

    def initialize(self) -> None:
        """Initial values of the parameters, as `config.generator_init` says."""
        encoding = POSITION_ENCODINGS[self.config.position_encoding]
        if self.config.generator_init == "uniform":
            for name in encoding.parameters:
                init.uniform_(getattr(self, name), 0, self.config.generator_init_scale)
        elif encoding.parameters:
            for name, value in encoding.initial_values(self.config).items():
                init.copy_(getattr(self, name), value)

    def _apply(self, fn, recurse=True):
        def keep_precision(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            if tensor.is_floating_point() and torch.finfo(moved.dtype).bits < 32:
                return tensor.to(moved.device)
            return moved

        super()._apply(keep_precision, recurse)
        self.kept.clear()
        self._refreeze(fn)
        return self

    def forward(
        self, positions: torch.Tensor, dtype: torch.dtype, grid_size: tuple[int, ...] | None = None
    ) -> tuple[torch.Tensor | Reference, ...]:
        """Rotations of prefix and patch tokens, one tensor a layer (under the compiler, a reference to a kept one).

        Args:
            positions: coordinates of the patches, shape (batch or 1, patches, axes).
            dtype: dtype of the rotations returned.
            grid_size: the patches along each axis if `positions` are those of a grid, for which frozen rotations are
                taken.

        Returns:
            Per layer, shape (batch or 1, prefix + patches, heads or 1, blocks, b, b). Prefix tokens get the identity:
            they stand at the origin.
        """
        rotations = self._frozen_rotations(grid_size)
        if rotations:
            rotations = tuple(rotation.to(dtype) for rotation in rotations)
        else:
            rotations = self._rotations(positions, dtype)
        # All layers share one, or each has its own.
        return rotations * (self.config.num_hidden_layers // len(rotations))

    def _rotations(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor | Reference, ...]:
        _warn_of_half_precision(
            positions,
            "positions",
            "LiereTrainer keeps them; for FSDP2, take MixedPrecisionPolicy(cast_forward_inputs=False)",
        )
        with maybe_autocast(positions.device.type, enabled=False):
            generators = self.raw_generators(positions.device)
            dtype_inside = torch.promote_types(positions.dtype, generators.dtype)
            generators, positions = generators.to(dtype_inside), positions.to(generators.device, dtype_inside)
            positions = nn.functional.pad(positions, (0, 0, self.config.num_prefix_tokens, 0))
            return self.kept.rotations(positions, generators, dtype)

    @torch.no_grad()
    def freeze(self, grid_sizes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> None:
        """Turn the rotations of these grids into buffers, from the parameters as they are now."""
        for grid_size in grid_sizes:
            grid = (tuple(grid_size), self.config.position_mode)
            positions = grid_positions(grid_size, self.config.grid_size, self.config.position_mode, device=device)
            names = []
            for layer, rotation in enumerate(self._rotations(positions[None], dtype)):
                names.append(f"frozen_{'x'.join(map(str, grid_size))}_{self.config.position_mode}_{layer}")
                self.register_buffer(names[-1], rotation, persistent=False)
            self._frozen[grid] = names
        self.kept.clear()

    def unfreeze(self) -> None:
        for name in itertools.chain(*self._frozen.values()):
            delattr(self, name)
        self._frozen = {}

    def _frozen_rotations(self, grid_size: tuple[int, ...] | None) -> tuple[torch.Tensor, ...]:
        if not self._frozen or grid_size is None:
            return ()
        if torch.jit.is_tracing():
            grid_size = tuple(map(int, grid_size))
        if not all(isinstance(steps, int) for steps in grid_size):
            return ()
        return tuple(getattr(self, name) for name in self._frozen.get((grid_size, self.config.position_mode), ()))

    def _refreeze(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Freeze again after other weights were loaded or moved, with the dtype and device that `fn` gives."""
        grids = {grid: fn(getattr(self, names[0])[:0]) for grid, names in self._frozen.items()}
        self.unfreeze()
        for (grid_size, _), like in grids.items():
            self.freeze([grid_size], like.dtype, like.device)

    def train(self, mode: bool = True):
        if mode and self._frozen:
            raise RuntimeError("rotations are frozen, so they cannot train: call unfreeze_rotations() first")
        return super().train(mode)

    def raw_generators(self, device: torch.device) -> torch.Tensor:
        """Raw generators (layers, axes, heads, blocks, b, b), from the parameters as this module has them now."""
        encoding = POSITION_ENCODINGS[self.config.position_encoding]
        parameters = {name: _full_tensor(getattr(self, name)) for name in encoding.parameters}
        generators = encoding.generators(self.config, parameters, device)
        _warn_of_half_precision(
            generators,
            "The parameters of rotations",
            "from_pretrained(dtype=...), .to(dtype) and LiereTrainer keep float32, but not the dtype argument of "
            "accelerate's load_checkpoint_and_dispatch: call model.to(dtype) before it instead",
        )
        return generators.to(torch.promote_types(generators.dtype, torch.float32))


# The patches along each axis, and the mode of their positions.
FrozenGrid = tuple[tuple[int, ...], str]


def _freeze_again(module: LiereViTRotations, _) -> None:
    module._refreeze(lambda tensor: tensor)


def _warn_of_half_precision(tensor: torch.Tensor, name: str, advice: str) -> None:
    if torch.finfo(tensor.dtype).bits < 32 and not torch.compiler.is_compiling():
        logger.warning_once(f"{name} are {tensor.dtype}, which rounds angles by up to 0.1: {advice}.")


def _full_tensor(parameter: torch.Tensor) -> torch.Tensor:
    """All of a parameter that is sharded over several processes (DTensor), any other as it is."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention on (batch, heads, tokens, head_dim), with output (batch, tokens, heads, head_dim)."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class LiereViTAttention(nn.Module):
    """Multi-head attention between rotated queries and keys. Values are not rotated."""

    def __init__(self, config: LiereViTConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.attention_dropout = config.attention_probs_dropout_prob
        self.scaling = self.head_dim**-0.5
        self.is_causal = False

        inner_size = config.num_attention_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, inner_size, bias=config.key_bias)
        self.v_proj = nn.Linear(config.hidden_size, inner_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(inner_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rotations: torch.Tensor | Reference | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(hidden_shape)
        key = self.k_proj(hidden_states).view(hidden_shape)
        value = self.v_proj(hidden_states).view(hidden_shape)
        if isinstance(rotations, Reference):
            query, key = rotations.rotate(query, key)
        elif rotations is not None:
            query, key = rotate_queries_and_keys(query, key, rotations)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        attn_output = attn_output.reshape(*input_shape, -1).contiguous()
        return self.o_proj(attn_output), attn_weights


class LiereViTMLP(nn.Module):
    def __init__(self, config: LiereViTConfig):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.dropout(self.activation_fn(self.fc1(hidden_states))))


class LiereViTGatedMLP(nn.Module):
    """SwiGLU and its kin (arXiv 2002.05202), as in DINOv3."""

    def __init__(self, config: LiereViTConfig):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gated = self.activation_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        return self.down_proj(self.dropout(gated))


class LiereViTDropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, drops a residual branch for a random part of the samples."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return hidden_states
        keep_prob = 1 - self.drop_prob
        keep = torch.rand(hidden_states.shape[0], 1, 1, device=hidden_states.device) < keep_prob
        return hidden_states * keep.to(hidden_states.dtype) / keep_prob

    def extra_repr(self) -> str:
        return f"p={self.drop_prob}"


class LiereViTLayerScale(nn.Module):
    def __init__(self, config: LiereViTConfig):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.full((config.hidden_size,), config.layer_scale_init_value))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.lambda1


class LiereViTLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer."""

    def __init__(self, config: LiereViTConfig, drop_path_rate: float):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = LiereViTAttention(config)
        self.layer_scale1 = LiereViTLayerScale(config) if config.layer_scale_init_value else nn.Identity()
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = LiereViTGatedMLP(config) if config.use_gated_mlp else LiereViTMLP(config)
        self.layer_scale2 = LiereViTLayerScale(config) if config.layer_scale_init_value else nn.Identity()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = LiereViTDropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rotations: torch.Tensor | Reference | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        residual = hidden_states
        hidden_states = self.layernorm_before(hidden_states)
        hidden_states, _ = self.attention(hidden_states, attention_mask, rotations, **kwargs)
        hidden_states = residual + self.drop_path(self.layer_scale1(self.dropout(hidden_states)))

        residual = hidden_states
        hidden_states = self.mlp(self.layernorm_after(hidden_states))
        return residual + self.drop_path(self.layer_scale2(self.dropout(hidden_states)))


class LiereViTPooler(nn.Module):
    """Dense layer and activation on the pooled token, as in ViTModel."""

    def __init__(self, config: LiereViTConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.pooler_output_size)
        self.activation = ACT2FN[config.pooler_act]

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(pooled))


class LiereViTPreTrainedModel(PreTrainedModel):
    config: LiereViTConfig
    config_class = LiereViTConfig
    base_model_prefix = "liere_vit"
    main_input_name = "pixel_values"
    input_modalities = ("image", "video")
    supports_gradient_checkpointing = True
    _no_split_modules = ["LiereViTEmbeddings", "LiereViTRotations", "LiereViTLayer"]
    _keep_in_fp32_modules_strict = ["rotations"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": LiereViTLayer, "attentions": LiereViTAttention}
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LiereViTPatchProjection):
            init.normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, LiereViTEmbeddings):
            for table in (module.position_embeddings, module.cls_token, module.register_tokens):
                if table is not None:
                    init.trunc_normal_(table, std=self.config.initializer_range)
            if module.mask_token is not None:
                init.zeros_(module.mask_token)
        elif isinstance(module, LiereViTRotations):
            module.initialize()
        elif isinstance(module, LiereViTLayerScale):
            init.constant_(module.lambda1, self.config.layer_scale_init_value)

    def freeze_rotations(self, *image_sizes: int | Sequence[int], dtype: torch.dtype | None = None) -> None:
        """Compute the rotations of inputs of some sizes once and for all, as buffers that are not saved.

        Compilers and exporters then take them as constants, and no forward pass at these sizes compares weights.
        Rotations follow when weights are loaded, moved or cast, but not when they change otherwise.

        Args:
            image_sizes: each an int or one value per axis, `config.image_size` by default.
            dtype: of the rotations. By default that of the model; under autocast, give autocast's.

        Raises:
            RuntimeError: the model is in training mode.
            ValueError: a size has the wrong number of axes, or the patch size does not divide it.
        """
        if self.training:
            raise RuntimeError("the model is in training mode, in which rotations change: call eval() first")
        grid_sizes = [self.config.grid_of(size) for size in image_sizes or (self.config.image_size,)]
        for module in self.modules():
            if isinstance(module, LiereViTRotations):
                module.freeze(grid_sizes, dtype or self.dtype, self.device)

    def unfreeze_rotations(self) -> None:
        """Take `freeze_rotations` back, so that the model can train."""
        for module in self.modules():
            if isinstance(module, LiereViTRotations):
                module.unfreeze()

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save weights, configuration and the code of this model, so that it loads without this package too."""
        self.config.auto_map = dict(AUTO_MAP)
        return super().save_pretrained(save_directory, *args, **kwargs)


class LiereViTEncoder(LiereViTPreTrainedModel):
    """Embeddings, rotations and layers, shared by the bare model and the backbone."""

    def __init__(self, config: LiereViTConfig, use_mask_token: bool = False):
        super().__init__(config)
        config.validate()
        self.embeddings = LiereViTEmbeddings(config, use_mask_token=use_mask_token)
        is_rotary = POSITION_ENCODINGS[config.position_encoding].is_rotary
        self.rotations = LiereViTRotations(config) if is_rotary else None
        depth = max(config.num_hidden_layers - 1, 1)
        self.layers = nn.ModuleList(
            LiereViTLayer(config, config.drop_path_rate * index / depth) for index in range(config.num_hidden_layers)
        )
        has_final_layernorm = config.final_layernorm != "none"
        self.layernorm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if has_final_layernorm else nn.Identity()
        )

    def encode(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None,
        positions: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple[int, ...]]:
        """The last layer's output before the final normalization, the mask over all tokens, and the grid size."""
        if pixel_values is None:
            raise ValueError("pixel_values is None, the model needs an input")
        if self.config.prefix_attention_bias and self.config._attn_implementation not in ("eager", "sdpa"):
            raise ValueError(
                f"prefix_attention_bias is {self.config.prefix_attention_bias}, which attn_implementation "
                f"{self.config._attn_implementation!r} cannot add: use eager or sdpa"
            )
        # For a quantized module in place of the projection, which computes in the dtype of its input.
        pixel_values = pixel_values.to(self.layers[0].layernorm_before.weight.dtype)
        hidden_states, grid_size = self.embeddings(pixel_values, bool_masked_pos, positions)
        token_mask = self._token_mask(attention_mask, hidden_states)
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=self._attended(token_mask)
        )
        if self.config.prefix_attention_bias:
            attention_mask = self._with_prefix_bias(attention_mask, hidden_states)
        rotations = self._rotations(positions, grid_size, token_mask, hidden_states)
        for layer, rotation in zip(self.layers, rotations, strict=True):
            hidden_states = layer(hidden_states, attention_mask, rotation, **kwargs)
        return hidden_states, token_mask, grid_size

    def _token_mask(self, attention_mask: torch.Tensor | None, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Extend a mask over patches to prefix and patches. A mask over both is returned as it is."""
        if attention_mask is None:
            return None
        batch_size, num_tokens = hidden_states.shape[:2]
        num_patches = num_tokens - self.config.num_prefix_tokens
        if attention_mask.shape == (batch_size, num_patches):
            return nn.functional.pad(attention_mask, (self.config.num_prefix_tokens, 0), value=1)
        if attention_mask.shape == (batch_size, num_tokens):
            return attention_mask
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, expected (batch, patches) = "
            f"{(batch_size, num_patches)} or (batch, prefix + patches) = {(batch_size, num_tokens)}"
        )

    def _attended(self, token_mask: torch.Tensor | None) -> torch.Tensor | None:
        """The mask, but all tokens where a sample has nothing but padding: a softmax over no score is not a number."""
        if token_mask is None:
            return None
        kept = token_mask.bool()
        return kept | ~kept.any(1, keepdim=True)

    def _with_prefix_bias(self, attention_mask: torch.Tensor | None, hidden_states: torch.Tensor) -> torch.Tensor:
        """The mask, boolean in sdpa, as an additive one, plus the bias of the prefix tokens as keys."""
        bias = hidden_states.new_zeros(1, 1, 1, hidden_states.shape[1])
        bias[..., : self.config.num_prefix_tokens] = self.config.prefix_attention_bias
        if attention_mask is None:
            return bias
        if attention_mask.dtype == torch.bool:
            return torch.where(attention_mask, bias, torch.finfo(bias.dtype).min)
        return attention_mask + bias

    def _rotations(
        self,
        positions: torch.Tensor | None,
        grid_size: tuple[int, ...],
        token_mask: torch.Tensor | None,
        hidden_states: torch.Tensor,
    ) -> tuple[torch.Tensor | Reference | None, ...]:
        if self.rotations is None:
            return (None,) * len(self.layers)
        device = hidden_states.device
        # The meta device has no autocast and refuses the question.
        autocast = device.type != "meta" and torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else hidden_states.dtype
        if positions is None and self._has_own_positions(token_mask):
            mask = token_mask[:, self.config.num_prefix_tokens :].to(device)
            positions = padded_grid_positions(mask, grid_size, self.config.grid_size, self.config.position_mode)
            grid_size = None
        elif positions is None:
            positions = grid_positions(grid_size, self.config.grid_size, self.config.position_mode, device=device)
            positions = positions[None]
        else:
            grid_size = None
        if self.training:
            config = self.config
            positions = augment_positions(
                positions, config.pos_embed_shift, config.pos_embed_jitter, config.pos_embed_rescale
            )
        return self.rotations(positions, dtype, grid_size)

    def _has_own_positions(self, token_mask: torch.Tensor | None) -> bool:
        """Whether coordinates of samples depend on their padding. In graphs, wherever there is a mask."""
        if token_mask is None or self.config.position_mode == "sequential":
            return False
        return not (runs_eagerly(token_mask) and bool(token_mask.all()))


class LiereViTModel(LiereViTEncoder):
    """The bare model: normalized hidden states of all tokens, and the pooled token."""

    _auto_class = "AutoModel"

    def __init__(self, config: LiereViTConfig, add_pooling_layer: bool = False, use_mask_token: bool = False):
        """
        Args:
            add_pooling_layer: add a dense layer with activation (`pooler_act`) after pooling, as in ViTModel.
            use_mask_token: add a mask token, for masked image modeling.
        """
        super().__init__(config, use_mask_token=use_mask_token)
        self.pooler = LiereViTPooler(config) if add_pooling_layer else None
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values: (batch, channels, length), (batch, channels, height, width) or (batch, frames, channels,
                height, width). Each size must be a multiple of the patch size.
            bool_masked_pos: (batch, patches), 1 for patches that the mask token replaces.
            positions: (1 or batch, patches, axes), coordinates of the patches, in units of the training grid's extent:
                0 is its first patch, 1 its last (for `position_mode` `centered`: -1 and 1 are the edges of the image).
                Computed from the size of the input by default.
            attention_mask: (batch, patches), 1 for patches, 0 for padding, which is ignored by all other tokens and by
                pooling.

        Raises:
            ValueError: an input has a wrong shape, number of channels or size.
        """
        hidden_states, token_mask, _ = self.encode(pixel_values, bool_masked_pos, positions, attention_mask, **kwargs)
        last_hidden_state = self.layernorm(hidden_states)
        if self.config.final_layernorm == "before_pooling":
            pooled_output = self._pool(last_hidden_state, token_mask)
        else:
            pooled_output = self.layernorm(self._pool(hidden_states, token_mask))
        if self.pooler is not None:
            pooled_output = self.pooler(pooled_output)
        return BaseModelOutputWithPooling(last_hidden_state=last_hidden_state, pooler_output=pooled_output)

    def _pool(self, hidden_states: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
        """CLS, or the mean of patches and possibly CLS, without registers and padding: (batch, hidden_size)."""
        if self.config.pooling == "cls":
            return hidden_states[:, 0]
        num_cls = int(self.config.use_cls_token and self.config.pooling == "mean")
        num_prefix_tokens = self.config.num_prefix_tokens
        parts = (hidden_states[:, :num_cls], hidden_states[:, num_prefix_tokens:])
        if token_mask is None:
            count = num_cls + hidden_states.shape[1] - num_prefix_tokens
        else:
            mask = token_mask.to(hidden_states.dtype).unsqueeze(-1)
            masks = (mask[:, :num_cls], mask[:, num_prefix_tokens:])
            parts = [part * part_mask for part, part_mask in zip(parts, masks, strict=True)]
            # Of nothing but padding the mean is 0.
            count = sum(part_mask.sum(1) for part_mask in masks).clamp(min=1)
        return sum(part.sum(1) for part in parts) / count


class LiereViTForImageClassification(LiereViTPreTrainedModel):
    """Linear classifier of the normalized pooled token, for images, signals or volumes."""

    _auto_class = "AutoModelForImageClassification"

    def __init__(self, config: LiereViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.liere_vit = LiereViTModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""
        Args:
            pixel_values: as for `LiereViTModel`.
            positions: as for `LiereViTModel`.
            attention_mask: as for `LiereViTModel`.
            labels: (batch,) class indices, (batch,) or (batch, num_labels) regression targets, or (batch, num_labels)
                multi-label targets, depending on `config.problem_type`.
        """
        outputs = self.liere_vit(pixel_values, positions=positions, attention_mask=attention_mask, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class LiereViTForVideoClassification(LiereViTForImageClassification):
    """Linear classifier of the normalized pooled token, for clips (batch, frames, channels, height, width)."""

    _auto_class = "AutoModelForVideoClassification"

    def __init__(self, config: LiereViTConfig):
        if config.num_axes != 3:
            raise ValueError(
                f"patch_size is {config.patch_size!r}, a video model needs three values: (frames, height, width)"
            )
        super().__init__(config)


class LiereViTForMaskedImageModeling(LiereViTPreTrainedModel):
    """Linear decoder of the pixels of each patch, for masked image modeling as in SimMIM (arXiv 2111.09886)."""

    _auto_class = "AutoModelForMaskedImageModeling"

    def __init__(self, config: LiereViTConfig):
        super().__init__(config)
        self.liere_vit = LiereViTModel(config, use_mask_token=True)
        self.decoder = nn.Linear(config.hidden_size, math.prod(config.spatial_encoder_stride) * config.num_channels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedImageModelingOutput:
        r"""
        Args:
            pixel_values: as for `LiereViTModel`.
            positions: as for `LiereViTModel`.
            attention_mask: as for `LiereViTModel`.
            bool_masked_pos: (batch, patches), 1 for masked patches; the loss is the mean absolute error over them.

        Returns:
            `reconstruction` in the layout of `pixel_values`.
        """
        stride, patch_size = self.config.spatial_encoder_stride, self.config.spatial_patch_size
        if bool_masked_pos is not None and stride != patch_size:
            raise ValueError(
                f"encoder_stride is {stride}, which must equal patch_size {patch_size} when bool_masked_pos is given"
            )
        outputs = self.liere_vit(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            positions=positions,
            attention_mask=attention_mask,
            **kwargs,
        )
        num_axes = self.config.num_axes
        size = channels_first(pixel_values, num_axes).shape[2:]
        grid_size = [extent // patch for extent, patch in zip(size, patch_size, strict=True)]
        patches = self.decoder(outputs.last_hidden_state[:, self.config.num_prefix_tokens :])
        reconstruction = from_patches(patches.unflatten(1, grid_size), stride)

        loss = None
        if bool_masked_pos is not None:
            target = to_patches(channels_first(pixel_values, num_axes), patch_size).flatten(1, -2)
            error = nn.functional.l1_loss(patches, target.to(patches.dtype), reduction="none").mean(-1)
            mask = bool_masked_pos.flatten(1).to(error.dtype)
            loss = (error * mask).sum() / mask.sum().clamp(min=1)
        return MaskedImageModelingOutput(
            loss=loss,
            reconstruction=channels_first(reconstruction, num_axes),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class LiereViTBackbone(BackboneMixin, LiereViTEncoder):
    """Feature maps of selected layers, for detection, segmentation and other dense prediction."""

    _auto_class = "AutoBackbone"

    def __init__(self, config: LiereViTConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self,
        pixel_values: torch.Tensor,
        positions: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BackboneOutput:
        r"""
        Args:
            pixel_values: as for `LiereViTModel`.
            positions: as for `LiereViTModel`.
            attention_mask: as for `LiereViTModel`.

        Returns:
            `feature_maps`, one per entry of `config.out_features`, each (batch, hidden_size, *grid), or
            (batch, tokens, hidden_size) without `config.reshape_hidden_states`.
        """
        output = self._layer_outputs(pixel_values, positions, attention_mask, **kwargs)
        size = channels_first(pixel_values, self.config.num_axes).shape[2:]
        grid_size = [extent // patch for extent, patch in zip(size, self.config.spatial_patch_size, strict=True)]
        feature_maps = []
        for stage, hidden_states in zip(self.stage_names, output.hidden_states, strict=True):
            if stage not in self.out_features:
                continue
            if self.config.apply_layernorm:
                hidden_states = self.layernorm(hidden_states)
            feature_map = hidden_states[:, self.config.num_prefix_tokens :]
            if self.config.reshape_hidden_states:
                feature_map = feature_map.unflatten(1, grid_size).movedim(-1, 1).contiguous()
            elif self.config.use_cls_token and self.config.keep_cls_token:
                feature_map = torch.cat((hidden_states[:, :1], feature_map), dim=1)
            feature_maps.append(feature_map)
        return BackboneOutput(
            feature_maps=tuple(feature_maps), hidden_states=output.hidden_states, attentions=output.attentions
        )

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def _layer_outputs(
        self,
        pixel_values: torch.Tensor,
        positions: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """The encoder's output, with the hidden states and attentions that `capture_outputs` records."""
        hidden_states, _, _ = self.encode(pixel_values, None, positions, attention_mask, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states)


__all__ = [
    "LiereViTBackbone",
    "LiereViTForImageClassification",
    "LiereViTForMaskedImageModeling",
    "LiereViTForVideoClassification",
    "LiereViTModel",
    "LiereViTPreTrainedModel",
]
