"""Options of a conversion, for what the weights do not determine."""

from dataclasses import dataclass, field
from typing import Any

from ..configuration.allowed_values import require_allowed
from ..errors import InputError
from ..modeling.configuration_liere_vit import LiereViTConfig
from ..modeling.position_encodings import POSITION_ENCODINGS


@dataclass
class ConversionOptions:
    """Flags of `liere-hf convert`. None: determined by the weights."""

    image_size: list[int] | None = field(default=None, metadata={"help": "Training size in pixels per axis."})
    patch_size: list[int] | None = field(default=None, metadata={"help": "Patch size in pixels per axis."})
    num_channels: int = field(default=3, metadata={"help": "Number of input channels."})
    head_dim: int | None = field(default=None, metadata={"help": "Head dimension (authors' code: 64)."})
    position_encoding: str | None = field(
        default=None, metadata={"help": f"The position encoding: {', '.join(POSITION_ENCODINGS)}."}
    )
    pooling: str | None = field(
        default=None, metadata={"help": "cls, mean or patches (default: as the source, for liere cls)."}
    )
    generator_block_size: int | None = field(
        default=None, metadata={"help": "Block size of new generators, or the size to widen existing ones to."}
    )
    drop_position_embeddings: bool = field(
        default=False, metadata={"help": "vit: drop the absolute position table, which changes the outputs."}
    )
    timm_model: str | None = field(
        default=None, metadata={"help": "timm: the architecture of a local file, such as vit_small_patch16_dinov3."}
    )
    note: str | None = field(default=None, metadata={"help": "A note to put first on the model card."})

    def __post_init__(self):
        require_allowed(vars(self))

    def per_axis(self, name: str, num_axes: int) -> list[int] | None:
        """The size in `name` with one value per axis. A single value applies to all axes."""
        values = getattr(self, name)
        if values is None or len(values) == num_axes:
            return values
        if len(values) == 1:
            return values * num_axes
        raise InputError(f"{name} is {values}, expected {num_axes} values, one per axis, or one for all axes")

    def build_config(self, **fields: Any) -> LiereViTConfig:
        """A configuration, which says that the source started as published. Values not allowed raise InputError."""
        for name in ("image_size", "patch_size"):
            values = fields[name]
            fields[name] = values[0] if len(set(values)) == 1 and len(values) == 2 else list(values)
        try:
            return LiereViTConfig(generator_init="uniform", **fields)
        except ValueError as error:
            raise InputError(str(error)) from error


def where_all_tokens_are_normalized(pooling: str) -> str:
    """`final_layernorm` of a source that normalizes all tokens at the end. For CLS the order does not matter."""
    return "after_pooling" if pooling == "cls" else "before_pooling"
