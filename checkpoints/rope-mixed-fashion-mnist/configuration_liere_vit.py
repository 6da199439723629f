"""LiereViT model configuration."""

from collections.abc import Sequence
from typing import Any

from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from .generator_initialization import GENERATOR_INITS
from .number_ranges import ALLOWED_NUMBERS, require_allowed_number
from .position_encodings import POSITION_ENCODINGS
from .positions import INTERPOLATIONS, POSITION_MODES

POOLINGS = ("cls", "mean", "patches")
FINAL_LAYERNORMS = ("after_pooling", "before_pooling", "none")
# Fields with one value or one per axis.
_SIZES = ("patch_size", "image_size", "encoder_stride")
# Which stages a backbone gives, and what they are called.
_STAGES = ("out_features", "out_indices", "stage_names")


class LiereViTConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""Configuration of a vision transformer with LieRE or one of the encodings it is compared with.

    The defaults are the base model of the LieRE paper (arXiv 2406.10322) with LieRE8. Names are those of
    transformers' `ViTConfig` wherever it has them.

    Args:
        hidden_size: width of the residual stream.
        num_hidden_layers: number of transformer layers.
        num_attention_heads: number of attention heads.
        intermediate_size: width of the MLP.
        head_dim: width of a head; hidden_size // num_attention_heads when not given.
        hidden_act: activation of the MLP.
        hidden_dropout_prob: dropout after the embeddings, the attention projection and each MLP layer.
        attention_probs_dropout_prob: dropout of the attention probabilities.
        drop_path_rate: stochastic depth of the last layer, rising linearly from 0 at the first.
        layer_scale_init_value: initial LayerScale factor; 0 for none.
        initializer_range: standard deviation of the initial weights.
        layer_norm_eps: epsilon of the layer normalizations.
        qkv_bias: whether queries, keys and values have a bias.
        key_bias: whether keys have a bias; as qkv_bias when not given.
        use_gated_mlp: whether the MLP is gated, as in SwiGLU.
        image_size: pixels at the training size, an int or one value per axis: (height, width),
            (frames, height, width), (length,) ...
        patch_size: pixels of a patch, an int or one value per axis. The number of values in `patch_size` (or, where
            that is an int, `image_size`) is the number of spatial axes; two when both are ints.
        num_channels: input channels.
        use_cls_token: whether a CLS token is put in front of the patches.
        use_mask_token: whether there is a token that replaces masked patches; always there in masked image modeling.
        num_register_tokens: register tokens between CLS and the patches.
        pooling: `cls`, `mean` over CLS and patch tokens (registers left out), or mean of the `patches` alone.
        final_layernorm: the final normalization is of the pooled token (`after_pooling`), of all tokens, which are
            pooled then (`before_pooling`), or left out (`none`).
        use_pre_layernorm: whether the embeddings are normalized before the first layer, as in CLIP.
        position_encoding: `liere`, `rope_mixed`, `visionllama`, `absolute`, `none`, or another entry of
            `POSITION_ENCODINGS`.
        use_absolute_position_embeddings: learned table added to the patches; always there for `absolute`, an
            addition beside the other encodings.
        position_embedding_interpolation: how the table is read at other sizes, the same along every axis: `cubic` as
            in ViT, `antialiased_cubic` as in timm, `linear` as in the authors' models with three axes, or
            `antialiased_linear` as in SigLIP 2.
        position_mode: coordinates at other sizes than the training size, `rescaled` (always [0, 1], for pictures that
            are resized), `sequential` (the training spacing goes on, for canvases that show more), `linspace` (as the
            authors' code), `centered` (the centers of patches in [-1, 1], as in DINOv3), `left_edges` or
            `right_edges` (the edges of patches in [0, 1], as in EVA-02 and the Perception Encoder).
        prefix_attention_bias: added to the attention scores of CLS and registers as keys, in every layer; the
            logarithm of n gives them the weight of n tokens. Needs `eager` or `sdpa` attention when it is not 0.
        generator_block_size: width b of the diagonal blocks of LieRE's generators, even, a divisor of head_dim;
            always 2 for `rope_mixed` and `visionllama`.
        generator_init: initial generators. With frequencies between the two below: `planar` (the default: RoPE-Mixed's
            function, each plane is a pair of neighbouring dimensions), `random_basis` (each block in a random basis,
            which all axes share) or `random_bases` (each axis in its own). Or `uniform`, as in the paper, which is
            the default of encodings that have no other. None where no generators are learned.
        generator_init_scale: `uniform` is in [0, generator_init_scale).
        generator_min_frequency: the lowest initial angular frequency, in radians per patch.
        generator_max_frequency: the highest one.
        pos_embed_shift: largest random shift of each axis by which training batches change the coordinates of rotary
            encodings (DINOv3); None for no change.
        pos_embed_jitter: largest random factor of each axis.
        pos_embed_rescale: largest random factor of all axes.
        share_generators_across_layers: one set of generators for all layers.
        share_generators_across_heads: one set of generators for all heads of a layer.
        encoder_stride: pixels that one patch token is decoded to in masked image modeling; patch_size if not given.
        pooler_output_size: width of the optional dense pooler of the bare model; hidden_size when not given.
        pooler_act: activation of that pooler.
        apply_layernorm: backbone: whether the feature maps are normalized.
        reshape_hidden_states: backbone: whether feature maps are (batch, hidden_size, *grid), or else
            (batch, tokens, hidden_size).
        keep_cls_token: backbone: whether feature maps that are not reshaped begin with the CLS token, as those of
            transformers' DINOv2 do and DPT, Depth Anything and ZoeDepth expect; ViTPose expects patches alone.

    Raises:
        ValueError: a value that is not allowed, in one sentence that names the field, the value and what is allowed.

    Example:

    ```python
    >>> from liere_hf import LiereViTConfig, LiereViTModel

    >>> image_config = LiereViTConfig(position_encoding="liere", generator_block_size=8)
    >>> video_config = LiereViTConfig(image_size=(8, 224, 224), patch_size=(2, 16, 16))
    >>> model = LiereViTModel(image_config)
    ```"""

    model_type = "liere_vit"
    _auto_class = "AutoConfig"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    head_dim: int | None = None
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    drop_path_rate: float = 0.0
    layer_scale_init_value: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    qkv_bias: bool = False
    key_bias: bool | None = None
    use_gated_mlp: bool = False
    image_size: int | list[int] | tuple[int, ...] = 224
    patch_size: int | list[int] | tuple[int, ...] = 16
    num_channels: int = 3
    use_cls_token: bool = True
    use_mask_token: bool = False
    num_register_tokens: int = 0
    pooling: str = "cls"
    final_layernorm: str = "after_pooling"
    use_pre_layernorm: bool = False
    position_encoding: str = "liere"
    use_absolute_position_embeddings: bool = False
    position_embedding_interpolation: str = "cubic"
    position_mode: str = "rescaled"
    prefix_attention_bias: float = 0.0
    generator_block_size: int = 8
    generator_init: str | None = None
    generator_init_scale: float = 6.283185307179586
    generator_min_frequency: float = 0.1
    generator_max_frequency: float = 1.5
    pos_embed_shift: float | None = None
    pos_embed_jitter: float | None = None
    pos_embed_rescale: float | None = None
    share_generators_across_layers: bool = False
    share_generators_across_heads: bool = False
    encoder_stride: int | list[int] | tuple[int, ...] | None = None
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    keep_cls_token: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.head_dim is None:
            for field in ("hidden_size", "num_attention_heads"):
                require_allowed_number(field, getattr(self, field))
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size is {self.hidden_size}, which num_attention_heads ({self.num_attention_heads}) does "
                    "not divide: choose a multiple, or give head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        encoding = POSITION_ENCODINGS.get(str(self.position_encoding))
        if encoding is not None and encoding.block_size is not None:
            self.generator_block_size = encoding.block_size
        # The name of older configurations.
        if kwargs.pop("position_embedding_antialias", False):
            self.position_embedding_interpolation = "antialiased_cubic"
        if self.generator_init is None and encoding is not None:
            self.generator_init = encoding.default_init
        if self.key_bias is None:
            self.key_bias = self.qkv_bias
        if self.pooler_output_size is None:
            self.pooler_output_size = self.hidden_size
        self.stage_names = ["stem"] + [f"stage{index}" for index in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)
        self.validate()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """As in transformers, but fields in `kwargs` count as much as if they were saved: others follow from them.

        Configurations saved without `generator_init` are of models that started `uniform`.
        """
        fields = {name: kwargs.pop(name) for name in [*kwargs] if name in LiereViTConfig.__annotations__}
        if "transformers_version" in config_dict:
            config_dict = {"generator_init": "uniform"} | config_dict
        encoding = config_dict.get("position_encoding")
        if fields.get("position_encoding", encoding) != encoding:
            # The start of another encoding.
            config_dict = config_dict | {"generator_init": None}
        if "num_hidden_layers" in fields:
            # Those of a backbone with other stages.
            config_dict = {name: value for name, value in config_dict.items() if name not in _STAGES}
        return super().from_dict(config_dict | fields, **kwargs)

    @property
    def num_axes(self) -> int:
        """Number of spatial axes: 1 for signals, 2 for images, 3 for video and volumes."""
        for size in (self.patch_size, self.image_size):
            if isinstance(size, Sequence):
                return len(size)
        return 2

    @property
    def spatial_image_size(self) -> tuple[int, ...]:
        """`image_size` with one value per axis."""
        return self._per_axis(self.image_size)

    @property
    def spatial_patch_size(self) -> tuple[int, ...]:
        """`patch_size` with one value per axis."""
        return self._per_axis(self.patch_size)

    @property
    def spatial_encoder_stride(self) -> tuple[int, ...]:
        """`encoder_stride` with one value per axis, the patch size where none is given."""
        return self._per_axis(self.patch_size if self.encoder_stride is None else self.encoder_stride)

    @property
    def grid_size(self) -> tuple[int, ...]:
        """Patches along each axis at the training size."""
        return tuple(
            size // patch for size, patch in zip(self.spatial_image_size, self.spatial_patch_size, strict=True)
        )

    def grid_of(self, image_size: int | Sequence[int]) -> tuple[int, ...]:
        """Patches along each axis of an input of this size."""
        size, patch_size = self._per_axis(image_size), self.spatial_patch_size
        if len(size) != len(patch_size) or any(
            extent % patch or extent <= 0 for extent, patch in zip(size, patch_size, strict=False)
        ):
            raise ValueError(
                f"image_size is {image_size!r}, each of {self.num_axes} values must be a positive multiple of "
                f"patch_size {patch_size}"
            )
        return tuple(extent // patch for extent, patch in zip(size, patch_size, strict=True))

    @property
    def num_prefix_tokens(self) -> int:
        """CLS and register tokens, which come before the patches and are not rotated."""
        return int(self.use_cls_token) + self.num_register_tokens

    @property
    def num_frames(self) -> int:
        """Frames of a clip at the training size, for models with three axes or more."""
        if self.num_axes < 3:
            raise AttributeError(f"num_frames: a model with {self.num_axes} axes has no frames")
        return self.spatial_image_size[0]

    def _per_axis(self, size: int | Sequence[int]) -> tuple[int, ...]:
        return tuple(size) if isinstance(size, Sequence) else (size,) * self.num_axes

    def validate(self) -> None:
        """Raise a ValueError that names the first field whose value is not allowed."""
        for field in ALLOWED_NUMBERS:
            if field not in _SIZES:
                require_allowed_number(field, getattr(self, field))
        for field, allowed in (
            ("position_encoding", tuple(POSITION_ENCODINGS)),
            ("position_mode", POSITION_MODES),
            ("position_embedding_interpolation", INTERPOLATIONS),
            ("pooling", POOLINGS),
            ("final_layernorm", FINAL_LAYERNORMS),
            ("hidden_act", ACT2FN),
            ("pooler_act", ACT2FN),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} is {getattr(self, field)!r}, allowed are {', '.join(allowed)}")
        if self.pooling == "cls" and not self.use_cls_token:
            raise ValueError(
                "pooling is 'cls' but use_cls_token is False: choose pooling 'mean' or keep the CLS token"
            )
        self._validate_sizes()
        self._validate_blocks()
        self._validate_initial_generators()

    def _validate_sizes(self) -> None:
        for field in _SIZES:
            if getattr(self, field) is None:
                continue
            values = self._per_axis(getattr(self, field))
            if len(values) != self.num_axes:
                raise ValueError(
                    f"{field} is {getattr(self, field)!r}, {len(values)} values where patch_size "
                    f"({self.patch_size!r}) makes {self.num_axes} axes: give {self.num_axes} values or one int"
                )
            if not values or not all(map(ALLOWED_NUMBERS[field].allows, values)):
                raise ValueError(f"{field} is {getattr(self, field)!r}, allowed are positive integers")
        for axis, (size, patch) in enumerate(zip(self.spatial_image_size, self.spatial_patch_size, strict=True)):
            if size % patch:
                raise ValueError(
                    f"image_size is {self.image_size!r}, which patch_size {self.patch_size!r} does not divide: along "
                    f"axis {axis}, {size} is not a multiple of {patch}"
                )

    def _validate_blocks(self) -> None:
        encoding = POSITION_ENCODINGS[self.position_encoding]
        if not encoding.is_rotary:
            return
        block_size = self.generator_block_size
        if encoding.block_size is None:
            self._validate_block_size(block_size)
        elif block_size != encoding.block_size:
            raise ValueError(
                f"generator_block_size is {block_size!r}, {self.position_encoding} allows {encoding.block_size}"
            )
        elif self.head_dim % block_size:
            raise ValueError(
                f"head_dim is {self.head_dim}, which must be a multiple of {block_size} for {self.position_encoding}"
            )
        if encoding.check is not None:
            encoding.check(self)

    def _validate_block_size(self, block_size: int) -> None:
        is_positive = isinstance(block_size, int) and not isinstance(block_size, bool) and block_size > 0
        if not is_positive or block_size % 2 or self.head_dim % block_size:
            divisors = [str(width) for width in range(2, self.head_dim + 1, 2) if self.head_dim % width == 0]
            raise ValueError(
                f"generator_block_size is {block_size!r}, it must be even and divide head_dim ({self.head_dim}): "
                f"allowed are {', '.join(divisors) or 'none, since head_dim is odd'}"
            )

    def _validate_initial_generators(self) -> None:
        low, high = self.generator_min_frequency, self.generator_max_frequency
        if low > high:
            raise ValueError(
                f"generator_min_frequency is {low!r}, generator_max_frequency {high!r}: allowed is the lower one first"
            )
        encoding = POSITION_ENCODINGS[self.position_encoding]
        allowed = GENERATOR_INITS if encoding.initial_values or not encoding.parameters else ("uniform",)
        if self.generator_init not in allowed and (self.generator_init is not None or encoding.parameters):
            names = ", ".join(allowed)
            raise ValueError(
                f"generator_init is {self.generator_init!r}, allowed for {self.position_encoding}: {names}"
            )


__all__ = ["LiereViTConfig"]
